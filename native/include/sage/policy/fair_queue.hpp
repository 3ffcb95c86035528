// One pool's queue: tiers, then tenants by virtual counters, then the earliest key.
//
// Virtual token counters (Sheng et al., OSDI 2024) in seconds of service over uncached tokens, lifted when a tenant
// becomes active again. Deviation: among tenants within `quantum` seconds of the least served, the most urgent head goes
// first, so that fairness costs no deadline while nobody is far ahead. Lower tiers earn a small share of what is
// dispatched above them, so that they never starve.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sage/policy/policy.hpp"

namespace sage::policy {

class FairQueue {
public:
    FairQueue(bool fair, double quantum, double lower_tier_share)
        : fair_(fair), quantum_(quantum), lower_tier_share_(lower_tier_share) {}

    // Smaller keys first, among equal priorities; equal keys in order of arrival. `service` in seconds.
    void push(RequestId id, TenantId tenant, Tier tier, std::int32_t priority, double key, double service);
    // Remove a request wherever it stands; false where it is not queued.
    bool remove(RequestId id);
    // Remove it because it was dispatched: its service counts for its tenant and tier.
    void serve(RequestId id);
    // Correct a tenant's counter once the true service is known; negative: it was charged too much.
    void charge(TenantId tenant, Tier tier, double service);
    // Append the first `count` requests in the order in which they would be served.
    void first(std::size_t count, std::vector<RequestId>& out) const;
    [[nodiscard]] std::size_t size() const { return entries_.size(); }
    [[nodiscard]] double service() const { return service_; }
    [[nodiscard]] bool contains(RequestId id) const { return entries_.contains(id); }

private:
    struct Key {
        std::int32_t rank;  // -priority
        double key;
        std::uint64_t arrival;
        RequestId id;
        auto operator<=>(const Key&) const = default;
    };
    struct Tenant {
        double counter = 0;
        bool is_near = false;
        std::set<Key> queue;
    };
    struct TierState {
        std::unordered_map<TenantId, Tenant> tenants;
        std::set<std::pair<double, TenantId>> active;  // tenants with work, by counter
        std::set<std::pair<Key, TenantId>> near;       // heads of those in `active` up to and with `edge`
        std::pair<double, TenantId> edge{-std::numeric_limits<double>::infinity(), 0};  // see settle()
        double credit = 0;                             // seconds of service owed by the tiers above
        double floor = 0;                              // counter of the least served active tenant, never falling
    };
    using Position = std::pair<std::set<Key>::const_iterator, std::set<Key>::const_iterator>;  // in a tenant's queue
    struct Entry {
        Tier tier;
        TenantId tenant;
        double service;
        Key key;
    };

    void forget(std::unordered_map<RequestId, Entry>::iterator at);
    // Take a tenant with work out of the indices before its head or counter changes, and put it back after.
    static void leave(TierState& state, TenantId slot, Tenant& owner);
    static void enter(TierState& state, TenantId slot, Tenant& owner);
    void settle(TierState& state) const;
    [[nodiscard]] const Entry& head(const TierState& state) const;
    void scan(const TierState& tier, std::size_t count, std::vector<RequestId>& out) const;

    bool fair_;
    double quantum_;
    double lower_tier_share_;
    std::uint64_t arrivals_ = 0;
    double service_ = 0;
    std::array<TierState, 3> tiers_;
    std::unordered_map<RequestId, Entry> entries_;
};

}  // namespace sage::policy
