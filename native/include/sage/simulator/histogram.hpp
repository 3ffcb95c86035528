// Counts of durations in bins of 1/32 octave, from 2^-24 s (60 ns) to 2^12 s; what is outside counts at the ends.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sage::simulator {

class DurationHistogram {
public:
    DurationHistogram() : counts_(kNumBins, 0) {}

    // The bin of a positive double is in its exponent and leading mantissa bits: no logarithm in the hot loop.
    void add(double seconds, std::uint64_t count = 1) {
        const auto bits = static_cast<std::int64_t>(std::bit_cast<std::uint64_t>(seconds) >> kShift) - kFirst;
        const std::int64_t last = static_cast<std::int64_t>(kNumBins) - 1;
        counts_[static_cast<std::size_t>(seconds <= 0 || bits < 0 ? 0 : bits > last ? last : bits)] += count;
    }

    [[nodiscard]] const std::vector<std::uint64_t>& counts() const { return counts_; }
    // Bin i holds edges[i] <= duration < edges[i + 1].
    [[nodiscard]] static std::vector<double> edges() {
        std::vector<double> values;
        for (std::size_t i = 0; i <= kNumBins; ++i) {
            const auto bits = static_cast<std::uint64_t>(kFirst + static_cast<std::int64_t>(i)) << kShift;
            values.push_back(std::bit_cast<double>(bits));
        }
        return values;
    }

private:
    static constexpr unsigned kShift = 52 - 5;
    static constexpr std::size_t kNumBins = 36 * 32;
    static constexpr std::int64_t kFirst = (1023 - 24) * 32;

    std::vector<std::uint64_t> counts_;
};

}  // namespace sage::simulator
