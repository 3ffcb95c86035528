// The embedding that the mock engines answer with: the same numbers for every text.
#pragma once

#include <cstdint>
#include <vector>

namespace bench {

inline constexpr std::size_t default_dim = 384;

// Return `dim` floats in [-0.1, 0.1).
inline std::vector<float> make_vector(std::size_t dim) {
    std::vector<float> vector(dim);
    std::uint32_t state = 12345;
    for (float& value : vector) {
        state = state * 1664525U + 1013904223U;
        value = (static_cast<float>(state >> 8) / 16777216.0F - 0.5F) * 0.2F;
    }
    return vector;
}

}  // namespace bench
