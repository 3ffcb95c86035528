// Cuts text into passages at the best boundary that fits: paragraph > line > sentence > word > character.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace sage::kernels {

// Half-open range of code points.
struct Passage {
    std::size_t start;
    std::size_t end;
};

// Passages of at most `chunk_chars` code points, in order, without white space at their ends; together they hold
// every code point that is not white space. Neighbours share at most `overlap_chars`.
//
// A passage that cannot hold the rest ends at the last boundary of the highest level that leaves it more than
// half full; the next one starts at the first sentence (else word) inside the overlap. Only a run without any
// boundary is cut between characters. O(length) for a fixed chunk size.
//
// Throws std::invalid_argument for text that is not UTF-8, chunk_chars of 0, or an overlap above half of it.
[[nodiscard]] std::vector<Passage> split_text(std::string_view utf8, std::size_t chunk_chars, std::size_t overlap_chars);

}  // namespace sage::kernels
