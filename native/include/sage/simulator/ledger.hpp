// Who is where: runs, their stages, the attempts at each stage, and what came of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "sage/simulator/result.hpp"
#include "sage/simulator/scenario.hpp"

namespace sage::simulator {

using StageId = std::uint32_t;

enum class AttemptState : std::uint8_t { queued, dispatched, over };

// One submit of a stage to the policy; its number is the policy's RequestId.
struct Attempt {
    StageId stage = 0;
    policy::InstanceId instance = policy::kNoInstance;
    AttemptState state = AttemptState::queued;
    std::uint32_t num_kept = 0;  // output tokens of the attempts before
};

class Ledger {
public:
    Ledger(const Workload& workload, StageColumns& stages);

    // Open the next attempt at a stage.
    policy::RequestId open(StageId stage, double now);
    [[nodiscard]] bool knows(policy::RequestId id) const { return id > 0 && id <= attempts_.size(); }
    [[nodiscard]] Attempt& attempt(policy::RequestId id) { return attempts_[id - 1]; }
    [[nodiscard]] std::uint32_t num_kept(policy::RequestId id) const { return attempts_[id - 1].num_kept; }
    // What the policy is told of an attempt.
    void describe(policy::RequestId id, double now, policy::Request& request) const;
    [[nodiscard]] std::uint32_t run_of(StageId stage) const { return run_of_[stage]; }
    [[nodiscard]] bool is_last_stage(StageId stage) const {
        return workload_.stage_start[run_of_[stage] + 1] == stage + 1;
    }

    void dispatched(policy::RequestId id, policy::InstanceId instance, double now, const policy::Decision& decision);
    void first_token(policy::RequestId id, double now, std::uint32_t num_cached);
    void finished(policy::RequestId id, double now, std::uint32_t num_tokens);
    void shed(policy::RequestId id, policy::ShedCode code, double retry_after);
    void failed(policy::RequestId id);
    // An attempt died; the tokens it delivered are kept.
    void lost(policy::RequestId id, std::uint32_t num_delivered, double last_token_at);
    [[nodiscard]] double last_token_at(StageId stage) const { return last_token_at_[stage]; }
    [[nodiscard]] bool is_open(StageId stage) const;

    // Count the runs that waited past their first target, oldest first.
    void expire(double now);
    [[nodiscard]] std::size_t num_open_runs() const { return num_open_runs_; }
    [[nodiscard]] std::uint64_t num_bad() const { return num_bad_; }
    // Tokens that callers got.
    [[nodiscard]] std::uint64_t num_delivered() const;
    // Throws std::logic_error where an attempt or a stage is in two states.
    void check() const;

private:
    void close(policy::RequestId id, Outcome outcome);
    void mark_bad(std::uint32_t run);
    [[nodiscard]] bool is_good(StageId stage) const;
    [[nodiscard]] double arrival(StageId stage) const { return workload_.arrival[run_of_[stage]]; }

    const Workload& workload_;
    StageColumns& stages_;
    std::vector<std::uint32_t> run_of_;
    std::vector<double> last_token_at_;  // of attempts that died; NaN: none
    std::vector<std::uint8_t> is_bad_;   // by run
    std::vector<Attempt> attempts_;
    std::size_t num_open_runs_;
    std::uint64_t num_bad_ = 0;
    std::size_t num_expired_ = 0;
};

}  // namespace sage::simulator
