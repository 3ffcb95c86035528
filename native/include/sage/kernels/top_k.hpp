// Exact nearest rows by inner product.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sage/kernels/matrix.hpp"

namespace sage::kernels {

struct Scored {
    std::int64_t index;
    float score;
};

// The k best rows of `matrix` for each row of `queries`, best first, ties by lower index: queries.num_rows
// lists of min(k, number of allowed rows) entries, one after the other.
//
// `mask` is empty (all rows are allowed) or has one byte per row of `matrix`, 0 = skipped. A row whose score is
// NaN ranks last with score -infinity. Throws std::invalid_argument where dims or the mask's length disagree.
[[nodiscard]] std::vector<Scored> top_k(
    const MatrixView& matrix, const MatrixView& queries, std::size_t k, std::span<const std::uint8_t> mask = {});

}  // namespace sage::kernels
