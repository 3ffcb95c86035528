// How large a batch is worth waiting for.
#pragma once

#include "sage/step_cost.hpp"

namespace sage::policy {

// Tokens per second of a batch executor at that batch size; 0 for an empty batch, infinite where the cost is unknown.
[[nodiscard]] double batch_throughput(const StepCost& cost, double tokens, double tokens_per_item);

// The smallest batch, in padded tokens, that gains less than `min_gain` of throughput when doubled.
//
// With a = host + m0 per batch and b = m1 + m4 / tokens_per_item per token, a batch of t tokens does t / (a + b*t), and
// doubling gains a / (a + 2*b*t). Within [tokens_per_item, max_tokens]; max_tokens where the cost does not grow
// with the batch. The cost is a reading of OnlineCost; `min_gain` is in (0, 1).
[[nodiscard]] double knee_tokens(
    const StepCost& cost, double tokens_per_item, double max_tokens, double min_gain = 0.05);

}  // namespace sage::policy
