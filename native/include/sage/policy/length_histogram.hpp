// How many tokens a request will generate: decayed histograms of what was generated before.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>

#include "sage/policy/policy.hpp"

namespace sage::policy {

struct LengthHistogramOptions {
    double decay = 0.995;         // of a key's older records, per record of that key
    double parent_weight = 16;    // records that the less specific distribution counts for
    double prior_median = 200;    // tokens; the prior is log-logistic
    double prior_shape = 2;       // 90 % of the prior lie below prior_median * 9^(1/prior_shape)
    std::size_t max_keys = 4096;  // per level; the key that was longest without a record leaves first
};

// Distribution of output lengths by (tenant, route, pool), backed by (tenant, pool), backed by (pool), backed by a
// prior: a level with records of total weight n has the distribution (its counts + w * its parent's) / (n + w), w
// being `parent_weight` (Dirichlet smoothing), so a key gains its own shape as its records come in, and far tails that
// it never saw are its parent's. Lengths are counted in log-spaced bins, 20 % wide, single tokens up to 7; within a bin
// they are taken as evenly spread. A query is a look-up between records, O(bins) after one. Not for several threads.
class LengthHistogram {
public:
    static constexpr std::size_t kNumBins = 64;

    // Throws std::invalid_argument where an option is out of its range.
    explicit LengthHistogram(const LengthHistogramOptions& options = {});

    // A request of this key generated `num_tokens` (0 counts as 1) and ended.
    void record(TenantId tenant, std::uint64_t route, PoolId pool, std::uint32_t num_tokens);
    // The length below which the share `q` of those requests ends that generated more than `so_far` tokens. At most
    // `max_tokens` (0: no limit), never less than `so_far`; grows with q and with so_far.
    [[nodiscard]] double quantile(
        TenantId tenant, std::uint64_t route, PoolId pool, double q, std::uint32_t max_tokens = 0,
        std::uint32_t so_far = 0) const;
    // The mean length, cut at `max_tokens`, of the requests that generated more than `so_far`.
    [[nodiscard]] double mean(
        TenantId tenant, std::uint64_t route, PoolId pool, std::uint32_t max_tokens = 0,
        std::uint32_t so_far = 0) const;

    // Keys of all three levels.
    [[nodiscard]] std::size_t num_keys() const;

    // The bin boundaries: bin i counts the lengths in (edges[i], edges[i + 1]]; longer ones are in the last bin.
    [[nodiscard]] static const std::array<double, kNumBins + 1>& edges();

private:
    using Bins = std::array<double, kNumBins>;

    struct Key {
        std::uint64_t route = 0;
        TenantId tenant = 0;
        PoolId pool = 0;
        bool operator==(const Key&) const = default;
    };
    struct KeyHash {
        std::size_t operator()(const Key& key) const;
    };
    struct Entry {
        Key key;
        Bins counts{};       // in units of 1 / weight
        double total = 0;    // sum of counts
        double weight = 1;   // of the next record: grows instead of all counts decaying
        std::uint64_t changed_at = 0;
        mutable std::uint64_t cached_at = 0;
        mutable Bins cumulative{};  // blended with the levels above; its last is 1
    };
    struct Level {
        std::list<Entry> entries;  // latest record first
        std::unordered_map<Key, std::list<Entry>::iterator, KeyHash> index;
    };

    [[nodiscard]] static const Entry* find(const Level& level, const Key& key);
    void record_in(Level& level, const Key& key, std::size_t bin);
    [[nodiscard]] const Bins& cumulative(TenantId tenant, std::uint64_t route, PoolId pool) const;
    const Bins& blend(const Entry& entry, const Bins& parent) const;

    LengthHistogramOptions options_;
    Bins prior_{};  // cumulative
    Level routes_, tenants_, pools_;
    std::uint64_t num_records_ = 0;
};

}  // namespace sage::policy
