#include "sage/policy/fair_queue.hpp"

#include <algorithm>
#include <iterator>

namespace sage::policy {

namespace {

constexpr std::size_t kMaxIdleTenants = 4096;  // counters kept for tenants without work
// Tenants that one change moves over the quantum's edge. Where more would have to move, the edge lags behind by a few
// changes, and no call takes long with thousands of tenants.
constexpr std::size_t kMaxMoved = 32;

}  // namespace

void FairQueue::push(
    RequestId id, TenantId tenant, Tier tier, std::int32_t priority, double key, double service) {
    const TenantId slot = fair_ ? tenant : 0;
    TierState& state = tiers_[static_cast<std::size_t>(tier)];
    if (!state.tenants.contains(slot) && state.tenants.size() >= state.active.size() + kMaxIdleTenants) {
        // Everybody idle is at or below the floor, or will be soon: what is lost is at most one quantum of fairness.
        std::erase_if(state.tenants, [](const auto& item) { return item.second.queue.empty(); });
    }
    Tenant& owner = state.tenants[slot];
    const Key position{-priority, key, arrivals_++, id};
    if (owner.queue.empty()) {
        if (!state.active.empty()) {
            state.floor = std::max(state.floor, state.active.begin()->first);
        }
        owner.counter = std::max(owner.counter, state.floor);
        owner.queue.insert(position);
        enter(state, slot, owner);
        settle(state);
    } else {
        if (owner.is_near && position < *owner.queue.begin()) {
            state.near.erase({*owner.queue.begin(), slot});
            state.near.emplace(position, slot);
        }
        owner.queue.insert(position);
    }
    entries_.emplace(id, Entry{tier, slot, service, position});
    service_ += service;
}

void FairQueue::forget(std::unordered_map<RequestId, Entry>::iterator at) {
    const Entry entry = at->second;
    TierState& state = tiers_[static_cast<std::size_t>(entry.tier)];
    Tenant& owner = state.tenants[entry.tenant];
    if (*owner.queue.begin() != entry.key) {
        owner.queue.erase(entry.key);
    } else {
        leave(state, entry.tenant, owner);
        owner.queue.erase(owner.queue.begin());
        if (!owner.queue.empty()) {
            enter(state, entry.tenant, owner);
        } else if (state.active.empty()) {
            state.floor = std::max(state.floor, owner.counter);
        }
        settle(state);
    }
    entries_.erase(at);
    service_ = entries_.empty() ? 0.0 : service_ - entry.service;
}

void FairQueue::leave(TierState& state, TenantId slot, Tenant& owner) {
    state.active.erase({owner.counter, slot});
    if (owner.is_near) {
        state.near.erase({*owner.queue.begin(), slot});
        owner.is_near = false;
    }
}

void FairQueue::enter(TierState& state, TenantId slot, Tenant& owner) {
    state.active.emplace(owner.counter, slot);
    if (std::pair(owner.counter, slot) <= state.edge) {
        state.near.emplace(*owner.queue.begin(), slot);
        owner.is_near = true;
    }
}

// Move the edge of `near` towards the least counter + quantum.
void FairQueue::settle(TierState& state) const {
    if (state.active.empty()) {
        return;
    }
    const double wanted = state.active.begin()->first + quantum_;
    constexpr TenantId kLast = std::numeric_limits<TenantId>::max();
    std::size_t moved = 0;
    auto next = state.active.upper_bound(state.edge);
    for (; next != state.active.end() && next->first <= wanted; ++next) {
        if (moved++ == kMaxMoved) {
            return;
        }
        Tenant& owner = state.tenants.at(next->second);
        state.near.emplace(*owner.queue.begin(), next->second);
        owner.is_near = true;
        state.edge = *next;
    }
    // The least served tenant itself never leaves: its counter is below what is wanted.
    for (; next != state.active.begin() && std::prev(next)->first > wanted; state.edge = *std::prev(next)) {
        if (moved++ == kMaxMoved) {
            return;
        }
        --next;
        Tenant& owner = state.tenants.at(next->second);
        state.near.erase({*owner.queue.begin(), next->second});
        owner.is_near = false;
    }
    state.edge = {wanted, kLast};
}

bool FairQueue::remove(RequestId id) {
    const auto at = entries_.find(id);
    if (at == entries_.end()) {
        return false;
    }
    forget(at);
    return true;
}

void FairQueue::serve(RequestId id) {
    const auto at = entries_.find(id);
    if (at == entries_.end()) {
        return;
    }
    const Entry entry = at->second;
    forget(at);
    charge(entry.tenant, entry.tier, entry.service);
    const auto tier = static_cast<std::size_t>(entry.tier);
    tiers_[tier].credit = std::max(0.0, tiers_[tier].credit - entry.service);
    for (std::size_t lower = tier + 1; lower < tiers_.size(); ++lower) {
        TierState& state = tiers_[lower];
        // No more than its next turn is saved up: what could not run for long must not shut the others out later.
        if (!state.active.empty() && state.credit < head(state).service) {
            state.credit += lower_tier_share_ * entry.service;
        }
    }
}

void FairQueue::charge(TenantId tenant, Tier tier, double service) {
    const TenantId slot = fair_ ? tenant : 0;
    TierState& state = tiers_[static_cast<std::size_t>(tier)];
    const auto at = state.tenants.find(slot);
    if (at == state.tenants.end()) {
        return;
    }
    Tenant& owner = at->second;
    if (owner.queue.empty()) {
        owner.counter += service;
        return;
    }
    leave(state, slot, owner);
    owner.counter += service;
    enter(state, slot, owner);
    settle(state);
}

// The tier's next request. The tier must have one.
const FairQueue::Entry& FairQueue::head(const TierState& state) const {
    return entries_.at(state.near.begin()->first.id);
}

void FairQueue::first(std::size_t count, std::vector<RequestId>& out) const {
    const std::size_t until = out.size() + count;
    std::size_t favoured = tiers_.size();
    for (std::size_t tier = tiers_.size() - 1; tier > 0; --tier) {
        const TierState& state = tiers_[tier];
        if (state.active.empty() || state.credit <= 0) {
            continue;
        }
        if (state.credit >= head(state).service) {
            favoured = tier;
            break;
        }
    }
    if (favoured < tiers_.size()) {
        scan(tiers_[favoured], std::min<std::size_t>(1, until - out.size()), out);
    }
    const RequestId taken = out.empty() ? 0 : out.back();
    for (std::size_t tier = 0; tier < tiers_.size() && out.size() < until; ++tier) {
        const std::size_t before = out.size();
        scan(tiers_[tier], until - out.size() + (tier == favoured ? 1 : 0), out);
        if (tier == favoured) {
            const auto again = std::find(out.begin() + static_cast<std::ptrdiff_t>(before), out.end(), taken);
            if (again != out.end()) {
                out.erase(again);
            }
            out.resize(std::min(out.size(), until));
        }
    }
}

// Tenants near the least served compete by key; after their last request those of the next counters, and so on.
void FairQueue::scan(const TierState& tier, std::size_t count, std::vector<RequestId>& out) const {
    const std::size_t until = out.size() + count;
    std::vector<Position> heads;
    const auto later = [](const Position& a, const Position& b) { return *b.first < *a.first; };
    const auto add = [&](const std::set<Key>& queue) {
        heads.emplace_back(queue.begin(), queue.end());
        std::push_heap(heads.begin(), heads.end(), later);
    };
    // Of the near ones only the best are looked at: the next joins once its head is the best that is left.
    auto near = tier.near.begin();
    auto next = tier.active.upper_bound(tier.edge);
    while (out.size() < until) {
        if (near != tier.near.end() && (heads.empty() || near->first < *heads.front().first)) {
            add(tier.tenants.at(near->second).queue);
            ++near;
        }
        if (heads.empty()) {
            if (next == tier.active.end()) {
                return;
            }
            const double limit = next->first + quantum_;
            for (std::size_t added = 0; next != tier.active.end() && next->first <= limit && added < kMaxMoved;
                 ++next, ++added) {
                add(tier.tenants.at(next->second).queue);
            }
        }
        std::pop_heap(heads.begin(), heads.end(), later);
        Position& head = heads.back();
        out.push_back(head.first->id);
        if (++head.first == head.second) {
            heads.pop_back();
        } else {
            std::push_heap(heads.begin(), heads.end(), later);
        }
    }
}

}  // namespace sage::policy
