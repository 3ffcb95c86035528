#include <cmath>
#include <cstring>
#include <limits>

#include "sage/kernels/matrix.hpp"

// One clone per vector width, chosen when the library is loaded; a wheel must run on any x86-64. Not under the
// sanitizers: the resolver would run before they are set up.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(SAGE_NO_CLONES)
#define SAGE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SAGE_CLONES
#endif

namespace sage::kernels {
namespace {

constexpr std::size_t lanes = 16;
using Lanes = float __attribute__((vector_size(lanes * sizeof(float))));

[[gnu::always_inline]] inline float dot(const float* left, const float* right, std::size_t dim) {
    Lanes sum{};
    std::size_t i = 0;
    for (; i + lanes <= dim; i += lanes) {
        Lanes a;
        Lanes b;
        std::memcpy(&a, left + i, sizeof a);
        std::memcpy(&b, right + i, sizeof b);
        sum += a * b;
    }
    float total = 0.0F;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        total += sum[lane];
    }
    for (; i < dim; ++i) {
        total += left[i] * right[i];
    }
    return total;
}

SAGE_CLONES float dot_one(const float* left, const float* right, std::size_t dim) { return dot(left, right, dim); }

SAGE_CLONES void dot_rows(const float* rows, const float* query, std::size_t dim, float* out, std::size_t num_rows) {
    for (std::size_t i = 0; i < num_rows; ++i) {
        const float score = dot(rows + i * dim, query, dim);
        out[i] = std::isnan(score) ? -std::numeric_limits<float>::infinity() : score;
    }
}

}  // namespace

float inner_product(std::span<const float> left, std::span<const float> right) {
    return dot_one(left.data(), right.data(), left.size());
}

void score_rows(const MatrixView& matrix, std::size_t first, std::span<const float> query, std::span<float> out) {
    dot_rows(matrix.data + first * matrix.dim, query.data(), matrix.dim, out.data(), out.size());
}

}  // namespace sage::kernels
