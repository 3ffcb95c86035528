#include "sage/policy/knee.hpp"

#include <algorithm>

namespace sage::policy {

double batch_throughput(const StepCost& cost, double tokens, double tokens_per_item) {
    return tokens > 0 ? tokens / cost.batch(tokens, tokens / tokens_per_item) : 0;
}

double knee_tokens(const StepCost& cost, double tokens_per_item, double max_tokens, double min_gain) {
    tokens_per_item = std::max(tokens_per_item, 1.0);
    const double per_token = cost.m1 + cost.m4 / tokens_per_item;
    if (per_token <= 0) {
        return max_tokens;
    }
    const double knee = (cost.host + cost.m0) * (1 - min_gain) / (2 * min_gain * per_token);
    return std::min(std::max(knee, tokens_per_item), max_tokens);
}

}  // namespace sage::policy
