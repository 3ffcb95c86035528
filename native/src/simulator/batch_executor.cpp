// See batch_executor.hpp.
#include "sage/simulator/batch_executor.hpp"

#include <algorithm>
#include <stdexcept>

namespace sage::simulator {

BatchExecutor::BatchExecutor(const StepCost& cost, const EngineLimits& limits) : cost_(cost), limits_(limits) {
    if (limits.max_sequences == 0) throw std::invalid_argument("max_sequences is 0; expected at least 1");
    if (limits.max_step_tokens == 0) throw std::invalid_argument("max_step_tokens is 0; expected at least 1");
}

bool BatchExecutor::remove(std::uint64_t tag) {
    const auto is_it = [tag](const Job& job) { return job.tag == tag; };
    return std::erase_if(waiting_, is_it) + std::erase_if(running_, is_it) > 0;
}

double BatchExecutor::start() {
    const std::uint64_t batch = waiting_.front().batch;
    std::uint64_t num_items = 0;
    std::uint64_t item_tokens = 0;
    while (!waiting_.empty() && waiting_.front().batch == batch) {
        const Job& job = waiting_.front();
        const std::uint64_t items = num_items + job.num_items;
        const std::uint64_t longest = std::max<std::uint64_t>(item_tokens, job.item_tokens);
        const bool fits = items <= limits_.max_sequences && items * longest <= limits_.max_step_tokens;
        if (batch == 0 && !fits && !running_.empty()) break;
        num_items = items;
        item_tokens = longest;
        running_.push_back(job);
        waiting_.pop_front();
    }
    const std::uint64_t padded = num_items * item_tokens;
    // What exceeds the limits runs in several passes.
    const std::uint64_t num_passes = std::max<std::uint64_t>(
        {1, (num_items + limits_.max_sequences - 1) / limits_.max_sequences,
         (padded + limits_.max_step_tokens - 1) / limits_.max_step_tokens});
    return cost_.batch(static_cast<double>(padded), static_cast<double>(num_items)) +
           static_cast<double>(num_passes - 1) * cost_.batch(0, 0);
}

}  // namespace sage::simulator
