// Who asks for more than an equal part of a pool.
#pragma once

#include <cstddef>
#include <unordered_map>

#include "sage/policy/policy.hpp"

namespace sage::policy {

// Offered work per tenant, decayed over some 15 s. An equal part is the total over the tenants that offer anything to
// speak of. The pool is overloaded where the offer exceeds by far the most that it
// has served of late. Bounded: tenants whose load has decayed are forgotten.
class TenantLoads {
public:
    void offered(TenantId tenant, double service, double now);
    void served(double service, double now);
    // True where the tenant offers over 1 + spread * sqrt(number of tenants) equal parts.
    [[nodiscard]] bool is_above_share(TenantId tenant, double spread, double now);
    // True where some tenant does.
    [[nodiscard]] bool is_anyone_above(double spread, double now);
    // True where more is offered than the pool has been seen to serve.
    [[nodiscard]] bool is_overloaded(double now) const;

private:
    struct Load {
        double service = 0;
        double at = 0;
    };

    [[nodiscard]] static double decayed(const Load& load, double now);
    void refresh(double now);
    [[nodiscard]] double allowed(double spread) const;

    std::unordered_map<TenantId, Load> loads_;
    Load offered_, served_;
    Load best_served_;  // the highest of `served_`, forgotten slowly
    double equal_part_ = 0;
    std::size_t num_active_ = 0;
    double largest_ = 0;
    double counted_at_ = -1;
};

}  // namespace sage::policy
