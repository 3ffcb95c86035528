// Re-selection of candidates that are relevant and unlike each other (Carbonell and Goldstein, SIGIR 1998).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sage/kernels/matrix.hpp"

namespace sage::kernels {

// Indices of min(k, num_rows) candidates in the order they were chosen. Each step takes the candidate with the
// highest  trade_off * relevance - (1 - trade_off) * max inner product with those chosen before  (0 for the
// first), ties by lower index. trade_off 1 is plain relevance.
//
// Throws std::invalid_argument where lengths disagree or trade_off is outside [0, 1]. O(k * num_rows * dim).
[[nodiscard]] std::vector<std::int64_t> maximal_marginal_relevance(
    const MatrixView& candidates, std::span<const float> relevance, std::size_t k, double trade_off);

}  // namespace sage::kernels
