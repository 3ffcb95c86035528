// Embed, rerank and operator work: batches for executors that run one batch at a time.
#pragma once

#include <vector>

#include "sage/policy/pool.hpp"

namespace sage::policy {

class BatchPool final : public Pool {
public:
    BatchPool(PoolId id, Shared& shared) : Pool(id, shared) {}

private:
    struct Batch {
        std::vector<RequestId> members;
        double longest = 0;  // tokens of the longest input
        double items = 0;
        double tightest = kNever;  // earliest target among the members, absolute
        [[nodiscard]] double padded() const { return longest * items; }
    };

    void dispatch(double now, std::vector<Command>& out) override;
    [[nodiscard]] double service_seconds(const Request& request) const override;

    void shed_late(double now, std::vector<Command>& out);
    void push_all(double now, std::vector<Command>& out);
    // Fill `batch` for an idle instance; false: nothing goes there now.
    bool form(const InstanceState& instance, double now, Batch& batch);
    bool form_in_order(const InstanceState& instance, double now, Batch& batch);
    bool form_by_deadline(const InstanceState& instance, double now, Batch& batch);
    // When the instance could have finished this request, were it given to it next.
    [[nodiscard]] double finish_at(const InstanceState& instance, const Request& request, double now) const;
    [[nodiscard]] double sooner_elsewhere_until(const InstanceState& instance, const Request& request, double now) const;
    // Would a batch of that length make LLM requests late that run on the same device?
    [[nodiscard]] bool harms_device(const InstanceState& instance, double seconds, double now) const;
    [[nodiscard]] double cap_tokens(const InstanceState& instance, double longest) const;
    void send(InstanceState& instance, const Batch& batch, double now, std::vector<Command>& out);

    std::vector<RequestId> heads_;
    std::uint64_t batches_ = 0;
    std::uint64_t turn_ = 0;
};

}  // namespace sage::policy
