// One instance of the fleet: its engine or batch executor, its noise and disturbances, what it did in all.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "sage/simulator/batch_executor.hpp"
#include "sage/simulator/engine_model.hpp"
#include "sage/simulator/noise.hpp"
#include "sage/simulator/result.hpp"
#include "sage/simulator/scenario.hpp"

namespace sage::simulator {

// A request as its instance sees it.
struct Job {
    policy::RequestId id = 0;
    std::uint32_t num_prompt = 0;
    std::uint32_t num_kept = 0;    // output tokens of earlier attempts
    std::uint32_t num_output = 0;  // in all
    std::uint32_t num_items = 1;
    std::uint64_t batch = 0;
    double last_token_at = std::numeric_limits<double>::quiet_NaN();  // of earlier attempts
    std::span<const std::uint64_t> blocks;
};

// What the end of a step brought.
struct StepReport {
    struct First {
        policy::RequestId id;
        std::uint32_t num_cached;
    };
    std::vector<First> first;
    std::vector<policy::RequestId> finished;
};

// What a request had when its instance died or gave it up.
struct Remains {
    policy::RequestId id = 0;
    std::uint32_t num_delivered = 0;  // output tokens, earlier attempts included
    double last_token_at = 0;         // NaN: it had none
};

class Worker {
public:
    Worker(const InstanceSpec& spec, std::uint64_t seed);

    [[nodiscard]] const InstanceSpec& spec() const { return spec_; }
    [[nodiscard]] bool is_alive() const { return is_alive_; }
    [[nodiscard]] bool is_busy() const { return is_busy_; }
    [[nodiscard]] bool has_work() const;
    [[nodiscard]] std::uint32_t incarnation() const { return incarnation_; }
    // Output tokens that a sequence may have; 0 where its prompt alone does not fit.
    [[nodiscard]] std::uint32_t max_output(std::uint32_t num_prompt) const;

    void submit(const Job& job);
    // Give a request up; nothing where it is not here.
    std::optional<Remains> remove(policy::RequestId id);
    // Begin a step or batch; returns how long it takes. There must be work, and no step running.
    double start(double now, bool is_disturbed);
    void finish(double now, StepReport& report, DurationHistogram& gaps);

    // What every request here has so far, in the order of their ids.
    [[nodiscard]] std::vector<Remains> remains() const;
    // Lose everything; returns what was lost.
    std::vector<Remains> die(double now);
    void revive() { is_alive_ = true; }
    void set_factor(double factor) { factor_ = factor; }

    [[nodiscard]] std::uint32_t num_running() const;
    [[nodiscard]] std::uint32_t num_waiting() const;
    [[nodiscard]] double kv_used() const;
    [[nodiscard]] InstanceTotals totals() const;
    void check() const;

private:
    using Executor = std::variant<EngineModel, BatchExecutor>;

    // Where the tokens of a sequence stand, for the gaps that a preemption or a death makes between them.
    struct Progress {
        double last_token_at = 0;  // as of its last prefill or preemption; NaN: it had none
        bool is_decoding = false;
        bool has_emitted = false;  // in this attempt
    };

    static Executor make_executor(const policy::Instance& instance);
    void finish_step(EngineModel& engine, double now, StepReport& report, DurationHistogram& gaps);

    InstanceSpec spec_;
    Executor executor_;
    LogNormal noise_;
    InstanceTotals totals_;
    const Step* step_ = nullptr;
    std::vector<Progress> progress_;     // by slot
    double factor_ = 1;
    double started_at_ = 0;
    double seconds_ = 0;  // of the step that runs
    std::uint32_t incarnation_ = 0;
    bool is_alive_ = true;
    bool is_busy_ = false;
};

}  // namespace sage::simulator
