// Token-by-token work: the hold gate and the placement of requests on continuously batching engines.
#pragma once

#include <vector>

#include "sage/policy/pool.hpp"
#include "sage/policy/prefix_index.hpp"
#include "sage/policy/tenant_loads.hpp"

namespace sage::policy {

class GeneratePool final : public Pool {
public:
    GeneratePool(PoolId id, Shared& shared) : Pool(id, shared) {}

private:
    // One request as the instances see it.
    struct Wanted {
        const Request& request;
        double expected = 0;   // median output length
        double reserved = 0;   // quantile that memory is kept for
        double waited = 0;     // since the clock of its targets started
        double slack = 0;      // until its first token is late
        bool is_above_share = false;  // of a tenant that asks for more than its part while work waits
        bool is_below_share = false;  // of another tenant while one does
    };
    struct Choice {
        InstanceState* instance = nullptr;
        double score = 0;
        double harm = 0;  // requests in flight that it would make late
        Ask ask;
        Prediction prediction;
    };

    void dispatch(double now, std::vector<Command>& out) override;
    [[nodiscard]] double service_seconds(const Request& request) const override;
    [[nodiscard]] Tier effective_tier(const Request& request, double now) override;
    [[nodiscard]] bool is_above_share(const Request& request, double now);
    void arrived(const Request& request, double service, double now) override;
    bool refuse_on_arrival(const Request& request, double now, std::vector<Command>& out) override;
    void finished(const Flight& flight, std::uint32_t num_tokens) override;
    void instance_added(InstanceState& instance) override;
    void instance_removed(InstanceId id) override;

    [[nodiscard]] Wanted wanted(const Request& request, double now);
    [[nodiscard]] Ask ask(const InstanceState& instance, const Wanted& wanted) const;
    // Why the instance cannot take the request now; empty: it can.
    [[nodiscard]] const char* blocked(const InstanceState& instance, const Wanted& wanted, Ask& ask) const;
    // Would the engine still be quick for others with this request on it?
    [[nodiscard]] bool stays_quick(const InstanceState& instance, const Wanted& wanted, const Ask& ask) const;
    // Of the instances that have changed after `since`.
    Choice choose(const Wanted& wanted, double now, std::uint64_t since, std::vector<Candidate>* candidates);
    double score(InstanceState& instance, const Wanted& wanted, Choice& choice, double now);
    [[nodiscard]] double predicted_score(
        InstanceState& instance, const Wanted& wanted, Choice& choice, double now) const;
    // Sampling and the two-stage rules (power of two, cache-aware, headroom) need all usable instances at once.
    void apply_two_stage(std::vector<Choice>& usable, const Wanted& wanted);
    // Seconds from now in which the most favourable instance could give the first token.
    [[nodiscard]] double best_ttft(const Wanted& wanted, double now);
    // The longest prompt that an instance takes when it is empty; kNever where there is no instance to ask.
    [[nodiscard]] double longest_prompt() const;
    // Where a request that fits nowhere will fit first; nullptr: nowhere.
    [[nodiscard]] const InstanceState* nearest_to_fit(const Wanted& wanted) const;
    void refuse_too_long(const Queued& queued, double longest, double now, std::vector<Command>& out);
    bool is_too_late(Queued& queued, const Wanted& wanted, double now, std::vector<Command>& out);
    bool consider(RequestId id, double now, bool is_head, std::vector<Command>& out);
    void send(const Queued& queued, const Wanted& wanted, const Choice& choice, Decision why, double now,
              std::vector<Command>& out);
    Decision explain(const Choice& choice, const Wanted& wanted, const Queued& queued, double now) const;

    TenantLoads loads_;
    PrefixIndex prefixes_;
    std::vector<std::uint32_t> matched_;  // of the request being looked at, by slot of the index
    std::vector<Choice> usable_;
    std::vector<RequestId> heads_;
    std::uint64_t turn_ = 0;  // of round robin
    // Takes nothing else until the request that is next, and has fitted nowhere for long, fits there.
    const InstanceState* kept_ = nullptr;
};

}  // namespace sage::policy
