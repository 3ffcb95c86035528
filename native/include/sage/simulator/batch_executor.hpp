// An executor that runs whole batches, one at a time: embeddings, reranking, operators. No clock of its own.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "sage/step_cost.hpp"

namespace sage::simulator {

class BatchExecutor {
public:
    struct Job {
        std::uint64_t tag = 0;
        std::uint32_t num_items = 1;
        std::uint32_t item_tokens = 0;  // of its longest item
        std::uint64_t batch = 0;        // 0: the executor forms batches by itself
    };

    // Throws std::invalid_argument for limits that no executor can have.
    BatchExecutor(const StepCost& cost, const EngineLimits& limits);

    void submit(const Job& job) { waiting_.push_back(job); }
    // Take a job out, running or not. False where it is not here.
    bool remove(std::uint64_t tag);
    // Begin the next batch; returns how long it takes. There must be waiting jobs, and no batch running.
    double start();
    // The batch is over.
    void finish() { running_.clear(); }

    [[nodiscard]] const std::vector<Job>& running() const { return running_; }
    [[nodiscard]] const std::deque<Job>& waiting() const { return waiting_; }
    [[nodiscard]] bool is_idle() const { return waiting_.empty() && running_.empty(); }

private:
    StepCost cost_;
    EngineLimits limits_;
    std::deque<Job> waiting_;
    std::vector<Job> running_;
};

}  // namespace sage::simulator
