// Reciprocal rank fusion (Cormack, Clarke, Buettcher, SIGIR 2009).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sage::kernels {

struct Fused {
    std::int64_t id;
    double score;
};

// The k best ids by  sum over rankings of weight / (rank_constant + rank), rank counted from 1; ties by lower id.
//
// `weights` is empty (all 1) or has one finite weight >= 0 per ranking. Throws std::invalid_argument for a
// negative rank_constant, a bad weight, or an id that appears twice in one ranking.
[[nodiscard]] std::vector<Fused> reciprocal_rank_fusion(
    std::span<const std::span<const std::int64_t>> rankings, double rank_constant, std::span<const double> weights,
    std::size_t k);

}  // namespace sage::kernels
