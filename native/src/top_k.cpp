#include "sage/kernels/top_k.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sage::kernels {
namespace {

// Rows of one block stay in the second-level cache while every query passes over them.
constexpr std::size_t block_bytes = 256 * 1024;

bool is_better(const Scored& left, const Scored& right) {
    return left.score != right.score ? left.score > right.score : left.index < right.index;
}

// The best k seen so far; the heap's front is the worst of them.
class Best {
public:
    explicit Best(std::size_t k) : k_(k) { heap_.reserve(k); }

    void offer(Scored entry) {
        if (heap_.size() < k_) {
            heap_.push_back(entry);
            std::push_heap(heap_.begin(), heap_.end(), is_better);
        } else if (is_better(entry, heap_.front())) {
            std::pop_heap(heap_.begin(), heap_.end(), is_better);
            heap_.back() = entry;
            std::push_heap(heap_.begin(), heap_.end(), is_better);
        }
    }

    void append_sorted(std::vector<Scored>& out) {
        std::sort_heap(heap_.begin(), heap_.end(), is_better);
        out.insert(out.end(), heap_.begin(), heap_.end());
    }

private:
    std::size_t k_;
    std::vector<Scored> heap_;
};

}  // namespace

std::vector<Scored> top_k(
    const MatrixView& matrix, const MatrixView& queries, std::size_t k, std::span<const std::uint8_t> mask) {
    if (queries.dim != matrix.dim) {
        throw std::invalid_argument(
            "queries have " + std::to_string(queries.dim) + " columns; expected " + std::to_string(matrix.dim) +
            " like the matrix");
    }
    if (!mask.empty() && mask.size() != matrix.num_rows) {
        throw std::invalid_argument(
            "mask has " + std::to_string(mask.size()) + " entries; expected " + std::to_string(matrix.num_rows) +
            ", one per row");
    }
    std::size_t num_allowed = matrix.num_rows;
    if (!mask.empty()) {
        num_allowed -= static_cast<std::size_t>(std::count(mask.begin(), mask.end(), std::uint8_t{0}));
    }
    k = std::min(k, num_allowed);
    std::vector<Scored> out;
    if (k == 0 || queries.num_rows == 0) {
        return out;
    }

    std::vector<Best> best(queries.num_rows, Best(k));
    const std::size_t row_bytes = std::max<std::size_t>(1, matrix.dim * sizeof(float));
    const std::size_t block_rows = std::max<std::size_t>(1, block_bytes / row_bytes);
    std::vector<float> scores(std::min(block_rows, matrix.num_rows));
    for (std::size_t first = 0; first < matrix.num_rows; first += block_rows) {
        const std::size_t num_rows = std::min(block_rows, matrix.num_rows - first);
        const std::span<float> block(scores.data(), num_rows);
        for (std::size_t query = 0; query < queries.num_rows; ++query) {
            score_rows(matrix, first, queries.row(query), block);
            for (std::size_t i = 0; i < num_rows; ++i) {
                if (mask.empty() || mask[first + i] != 0) {
                    best[query].offer({static_cast<std::int64_t>(first + i), block[i]});
                }
            }
        }
    }
    out.reserve(k * queries.num_rows);
    for (Best& entries : best) {
        entries.append_sorted(out);
    }
    return out;
}

}  // namespace sage::kernels
