#include "sage/policy/length_histogram.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace sage::policy {
namespace {

constexpr std::size_t kNumBins = LengthHistogram::kNumBins;
using Edges = std::array<double, kNumBins + 1>;

Edges make_edges() {
    Edges edges{};
    for (std::size_t bin = 0; bin < kNumBins; ++bin) {
        edges[bin + 1] = std::max(edges[bin] + 1, std::round(edges[bin] * 1.2));
    }
    return edges;
}

// Share of lengths up to `length`, as if each bin were evenly spread.
double share_below(const std::array<double, kNumBins>& cumulative, double length) {
    const Edges& edges = LengthHistogram::edges();
    if (length >= edges.back()) {
        return 1;
    }
    const auto bin = static_cast<std::size_t>(std::upper_bound(edges.begin(), edges.end(), length) - edges.begin() - 1);
    const double before = bin == 0 ? 0 : cumulative[bin - 1];
    return before + (cumulative[bin] - before) * (length - edges[bin]) / (edges[bin + 1] - edges[bin]);
}

// The inverse of share_below.
double length_at(const std::array<double, kNumBins>& cumulative, double share) {
    const Edges& edges = LengthHistogram::edges();
    const auto found = std::lower_bound(cumulative.begin(), cumulative.end(), share);
    if (found == cumulative.end()) {
        return edges.back();
    }
    const auto bin = static_cast<std::size_t>(found - cumulative.begin());
    const double before = bin == 0 ? 0 : cumulative[bin - 1];
    const double inside = cumulative[bin] > before ? (share - before) / (cumulative[bin] - before) : 0;
    return edges[bin] + inside * (edges[bin + 1] - edges[bin]);
}

}  // namespace

const Edges& LengthHistogram::edges() {
    static const Edges edges = make_edges();
    return edges;
}

LengthHistogram::LengthHistogram(const LengthHistogramOptions& options) : options_(options) {
    if (!(options.decay > 0 && options.decay <= 1)) {
        throw std::invalid_argument("decay of a length histogram must be in (0, 1]");
    }
    if (!(options.parent_weight > 0 && options.prior_median > 0 && options.prior_shape > 0 && options.max_keys > 0)) {
        throw std::invalid_argument("weights, prior and key limit of a length histogram must be positive");
    }
    const auto below = [&](double length) {
        return length <= 0 ? 0 : 1 / (1 + std::pow(length / options.prior_median, -options.prior_shape));
    };
    for (std::size_t bin = 0; bin < kNumBins; ++bin) {
        prior_[bin] = below(edges()[bin + 1]) / below(edges().back());
    }
}

void LengthHistogram::record(TenantId tenant, std::uint64_t route, PoolId pool, std::uint32_t num_tokens) {
    const double length = std::clamp<double>(num_tokens, 1, edges().back());
    const auto bin =
        static_cast<std::size_t>(std::lower_bound(edges().begin(), edges().end(), length) - edges().begin() - 1);
    ++num_records_;
    record_in(routes_, {route, tenant, pool}, bin);
    record_in(tenants_, {0, tenant, pool}, bin);
    record_in(pools_, {0, 0, pool}, bin);
}

void LengthHistogram::record_in(Level& level, const Key& key, std::size_t bin) {
    const auto [known, is_new] = level.index.try_emplace(key);
    if (is_new) {
        level.entries.emplace_front().key = key;
        known->second = level.entries.begin();
    } else {
        level.entries.splice(level.entries.begin(), level.entries, known->second);
    }
    Entry& entry = level.entries.front();
    entry.counts[bin] += entry.weight;
    entry.total += entry.weight;
    entry.weight /= options_.decay;
    entry.changed_at = num_records_;
    if (entry.weight > 1e100) {
        for (double& count : entry.counts) {
            count /= entry.weight;
        }
        entry.total /= entry.weight;
        entry.weight = 1;
    }
    if (level.entries.size() > options_.max_keys) {
        level.index.erase(level.entries.back().key);
        level.entries.pop_back();
    }
}

double LengthHistogram::quantile(
    TenantId tenant, std::uint64_t route, PoolId pool, double q, std::uint32_t max_tokens,
    std::uint32_t so_far) const {
    const Bins& below = cumulative(tenant, route, pool);
    const double ended = share_below(below, so_far);
    const double length = length_at(below, ended + std::clamp(q, 0.0, 1.0) * (1 - ended));
    const double limit = max_tokens == 0 ? kNever : max_tokens;
    return std::max(std::min(length, limit), static_cast<double>(so_far));
}

// so_far plus the integral of the share that lives longer, which is linear within a bin.
double LengthHistogram::mean(
    TenantId tenant, std::uint64_t route, PoolId pool, std::uint32_t max_tokens, std::uint32_t so_far) const {
    const Bins& below = cumulative(tenant, route, pool);
    const double limit = max_tokens == 0 ? edges().back() : std::min<double>(max_tokens, edges().back());
    const double start = so_far;
    double from = start;
    double alive = 1 - share_below(below, from);
    const double all = alive;
    double area = 0;
    for (std::size_t bin = 0; bin < kNumBins && all > 0; ++bin) {
        const double to = std::min(edges()[bin + 1], limit);
        if (to > from) {
            const double still = 1 - share_below(below, to);
            area += (to - from) * (alive + still) / 2;
            from = to;
            alive = still;
        }
    }
    return start + (all > 0 ? area / all : 0);
}

std::size_t LengthHistogram::num_keys() const {
    return routes_.entries.size() + tenants_.entries.size() + pools_.entries.size();
}

std::size_t LengthHistogram::KeyHash::operator()(const Key& key) const {
    const std::uint64_t names = (std::uint64_t{key.tenant} << 32U) | key.pool;
    std::uint64_t mixed = (key.route ^ (names * 0x9E3779B97F4A7C15ULL)) * 0xBF58476D1CE4E5B9ULL;
    mixed ^= mixed >> 31U;
    return static_cast<std::size_t>(mixed);
}

const LengthHistogram::Entry* LengthHistogram::find(const Level& level, const Key& key) {
    const auto known = level.index.find(key);
    return known == level.index.end() ? nullptr : &*known->second;
}

// A distribution may be kept until the next record in its pool, since records of its tenant and route are also that. A
// key never outlives those above it: they are touched with it, and after it no more of them than of its own level are.
const LengthHistogram::Bins& LengthHistogram::cumulative(TenantId tenant, std::uint64_t route, PoolId pool) const {
    const Entry* chain[3] = {find(pools_, {0, 0, pool}), nullptr, nullptr};
    if (chain[0] == nullptr) {
        return prior_;
    }
    chain[1] = find(tenants_, {0, tenant, pool});
    chain[2] = chain[1] == nullptr ? nullptr : find(routes_, {route, tenant, pool});
    const Bins* parent = &prior_;
    for (const Entry* entry : chain) {
        if (entry != nullptr) {
            parent = entry->cached_at >= chain[0]->changed_at ? &entry->cumulative : &blend(*entry, *parent);
        }
    }
    return *parent;
}

const LengthHistogram::Bins& LengthHistogram::blend(const Entry& entry, const Bins& parent) const {
    // The next record would weigh `weight`, the last one weighed 1 at its time.
    const double unit = entry.weight * options_.decay;
    const double parent_weight = options_.parent_weight * unit;
    const double scale = 1 / (entry.total + parent_weight);
    double counted = 0;
    for (std::size_t bin = 0; bin < kNumBins; ++bin) {
        counted += entry.counts[bin];
        entry.cumulative[bin] = (counted + parent_weight * parent[bin]) * scale;
    }
    entry.cumulative.back() = 1;
    entry.cached_at = num_records_;
    return entry.cumulative;
}

}  // namespace sage::policy
