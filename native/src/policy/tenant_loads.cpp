#include "sage/policy/tenant_loads.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace sage::policy {

namespace {

constexpr double kSeconds = 15;        // time constant of the decay
constexpr double kCountEvery = 0.5;    // seconds: the sum over all tenants is not taken for every decision
constexpr double kLeastPart = 0.01;    // of the total, to count as a tenant
constexpr double kForgotten = 1e-6;
constexpr double kOverload = 1.2;      // offered / most served
constexpr double kBestSeconds = 120;   // time constant with which the most served is forgotten

}  // namespace

double TenantLoads::decayed(const Load& load, double now) {
    return load.service * std::exp(std::min(0.0, load.at - now) / kSeconds);
}

void TenantLoads::offered(TenantId tenant, double service, double now) {
    loads_[tenant] = {decayed(loads_[tenant], now) + service, now};
    offered_ = {decayed(offered_, now) + service, now};
}

void TenantLoads::served(double service, double now) {
    served_ = {decayed(served_, now) + service, now};
    const double best = best_served_.service * std::exp(std::min(0.0, best_served_.at - now) / kBestSeconds);
    best_served_ = {std::max(best, served_.service), now};
}

void TenantLoads::refresh(double now) {
    if (counted_at_ >= 0 && now - counted_at_ <= kCountEvery) {
        return;
    }
    double total = 0;
    largest_ = 0;
    for (auto at = loads_.begin(); at != loads_.end();) {
        const double load = decayed(at->second, now);
        total += load;
        largest_ = std::max(largest_, load);
        at = load < kForgotten ? loads_.erase(at) : std::next(at);
    }
    num_active_ = 0;
    for (const auto& [tenant, load] : loads_) {
        num_active_ += decayed(load, now) >= kLeastPart * total ? 1U : 0U;
    }
    equal_part_ = num_active_ == 0 ? 0.0 : total / static_cast<double>(num_active_);
    counted_at_ = now;
}

bool TenantLoads::is_above_share(TenantId tenant, double spread, double now) {
    refresh(now);
    const auto at = loads_.find(tenant);
    return num_active_ > 1 && at != loads_.end() && decayed(at->second, now) > allowed(spread);
}

bool TenantLoads::is_anyone_above(double spread, double now) {
    refresh(now);
    return num_active_ > 1 && largest_ > allowed(spread);
}

// Of many tenants the largest is by nature far above the mean.
double TenantLoads::allowed(double spread) const {
    return equal_part_ * (1.0 + spread * std::sqrt(static_cast<double>(num_active_)));
}

bool TenantLoads::is_overloaded(double now) const {
    return decayed(offered_, now) > kOverload * best_served_.service;
}

}  // namespace sage::policy
