// A read-only view of a row-major float32 matrix, and the inner product of two rows.
#pragma once

#include <cstddef>
#include <span>

namespace sage::kernels {

// Borrowed memory: `data` holds num_rows * dim floats and must outlive the view.
struct MatrixView {
    const float* data = nullptr;
    std::size_t num_rows = 0;
    std::size_t dim = 0;

    [[nodiscard]] std::span<const float> row(std::size_t index) const { return {data + index * dim, dim}; }
};

// Sum of products in sixteen interleaved lanes: the same bits on every host, whatever its vector width.
// Both spans have the same length.
[[nodiscard]] float inner_product(std::span<const float> left, std::span<const float> right);

// out[i] = inner_product(matrix.row(first + i), query) for i < out.size(). A NaN becomes -infinity, so that
// scores are totally ordered.
void score_rows(const MatrixView& matrix, std::size_t first, std::span<const float> query, std::span<float> out);

}  // namespace sage::kernels
