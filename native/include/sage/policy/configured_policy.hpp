// Every policy of the registry but those written in Python: one object, layers chosen by Config.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "sage/policy/config.hpp"
#include "sage/policy/pool.hpp"

namespace sage::policy {

class ConfiguredPolicy final : public Policy {
public:
    explicit ConfiguredPolicy(const Config& config) : shared_(config) {}

    void handle(const Event& event, double now, std::vector<Command>& commands) override;
    void keep_receipts(bool keep) override { shared_.receipts = keep; }
    [[nodiscard]] std::size_t num_queued(PoolId pool) const;
    // True from a request's first event to the command or report that ends it.
    [[nodiscard]] bool knows(RequestId id) const { return where_.contains(id); }

private:
    Pool* take(const Event& event, double now, std::vector<Command>& commands);
    Pool* pool_of(RequestId id);
    void forget(const std::vector<Command>& commands, std::size_t from);
    void arm(std::vector<Command>& commands);

    Shared shared_;
    std::unordered_map<PoolId, std::unique_ptr<Pool>> pools_;
    std::unordered_map<RequestId, PoolId> where_;
    std::vector<PoolId> order_;  // pools in the order of their first instance: determinism
    double timer_at_ = kNever;
    double next_hint_ = 0;
};

}  // namespace sage::policy
