#include "sage/kernels/maximal_marginal_relevance.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace sage::kernels {

std::vector<std::int64_t> maximal_marginal_relevance(
    const MatrixView& candidates, std::span<const float> relevance, std::size_t k, double trade_off) {
    const std::size_t num_rows = candidates.num_rows;
    if (relevance.size() != num_rows) {
        throw std::invalid_argument(
            "relevance has " + std::to_string(relevance.size()) + " entries; expected " + std::to_string(num_rows) +
            ", one per candidate");
    }
    if (!(trade_off >= 0.0 && trade_off <= 1.0)) {
        throw std::invalid_argument("trade_off is " + std::to_string(trade_off) + "; expected 0 to 1");
    }
    k = std::min(k, num_rows);
    std::vector<std::int64_t> chosen;
    chosen.reserve(k);
    std::vector<float> similarity(num_rows);
    std::vector<float> nearest(num_rows, -std::numeric_limits<float>::infinity());
    std::vector<bool> is_chosen(num_rows, false);
    while (chosen.size() < k) {
        std::size_t best = num_rows;
        double best_value = 0.0;
        for (std::size_t i = 0; i < num_rows; ++i) {
            if (is_chosen[i]) {
                continue;
            }
            const double penalty = chosen.empty() ? 0.0 : static_cast<double>(nearest[i]);
            const double value = trade_off * static_cast<double>(relevance[i]) - (1.0 - trade_off) * penalty;
            if (best == num_rows || value > best_value) {
                best = i;
                best_value = value;
            }
        }
        is_chosen[best] = true;
        chosen.push_back(static_cast<std::int64_t>(best));
        score_rows(candidates, 0, candidates.row(best), similarity);
        for (std::size_t i = 0; i < num_rows; ++i) {
            nearest[i] = std::max(nearest[i], similarity[i]);
        }
    }
    return chosen;
}

}  // namespace sage::kernels
