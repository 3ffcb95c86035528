#include "sage/kernels/rank_fusion.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace sage::kernels {

std::vector<Fused> reciprocal_rank_fusion(
    std::span<const std::span<const std::int64_t>> rankings, double rank_constant, std::span<const double> weights,
    std::size_t k) {
    if (!(rank_constant >= 0.0) || !std::isfinite(rank_constant)) {
        throw std::invalid_argument(
            "rank_constant is " + std::to_string(rank_constant) + "; expected a finite number >= 0");
    }
    if (!weights.empty() && weights.size() != rankings.size()) {
        throw std::invalid_argument(
            "weights has " + std::to_string(weights.size()) + " entries; expected " + std::to_string(rankings.size()) +
            ", one per ranking");
    }
    std::unordered_map<std::int64_t, double> scores;
    std::unordered_set<std::int64_t> seen;
    for (std::size_t r = 0; r < rankings.size(); ++r) {
        const double weight = weights.empty() ? 1.0 : weights[r];
        if (!(weight >= 0.0) || !std::isfinite(weight)) {
            throw std::invalid_argument(
                "weights[" + std::to_string(r) + "] is " + std::to_string(weight) + "; expected a finite number >= 0");
        }
        seen.clear();
        for (std::size_t i = 0; i < rankings[r].size(); ++i) {
            const std::int64_t id = rankings[r][i];
            if (!seen.insert(id).second) {
                throw std::invalid_argument(
                    "rankings[" + std::to_string(r) + "] holds id " + std::to_string(id) +
                    " twice; expected each id once");
            }
            scores[id] += weight / (rank_constant + static_cast<double>(i + 1));
        }
    }
    std::vector<Fused> fused;
    fused.reserve(scores.size());
    for (const auto& [id, score] : scores) {
        fused.push_back({id, score});
    }
    const std::size_t num_kept = std::min(k, fused.size());
    std::partial_sort(
        fused.begin(), fused.begin() + static_cast<std::ptrdiff_t>(num_kept), fused.end(),
        [](const Fused& left, const Fused& right) {
            return left.score != right.score ? left.score > right.score : left.id < right.id;
        });
    fused.resize(num_kept);
    return fused;
}

}  // namespace sage::kernels
