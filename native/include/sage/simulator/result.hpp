// What a simulation measured. Times are the caller's: seconds of the workload's clock, report latency included.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sage/simulator/histogram.hpp"

namespace sage::simulator {

enum class Outcome : std::uint8_t { finished, shed, failed, unfinished };

// One entry per stage; NaN where it never happened. A stage never submitted is unfinished.
struct StageColumns {
    explicit StageColumns(std::size_t num_stages);

    std::vector<double> submitted_at;   // first attempt
    std::vector<double> dispatched_at;  // last attempt
    std::vector<double> first_token_at;
    std::vector<double> finished_at;
    std::vector<std::uint32_t> instance;  // of the last attempt
    std::vector<std::uint8_t> outcome;
    std::vector<std::uint8_t> code;  // policy::ShedCode of a stage that was shed
    std::vector<std::uint32_t> cached_tokens;
    std::vector<std::uint32_t> num_attempts;  // dispatches
    std::vector<std::uint32_t> num_tokens;    // output tokens that the caller got
    std::vector<double> predicted_ttft;       // at the last dispatch, from then
    std::vector<double> predicted_tpot;
    std::vector<double> retry_after;
};

struct InstanceTotals {
    double busy_seconds = 0;
    std::uint64_t num_steps = 0;
    std::uint64_t num_preemptions = 0;
    std::uint64_t num_generated = 0;  // tokens that left the instance
    std::uint64_t cached_tokens = 0;  // prompt tokens not computed, over all requests
    std::uint64_t num_finished = 0;
    std::uint64_t num_lost = 0;  // requests that died with it
};

struct SimulationResult {
    explicit SimulationResult(std::size_t num_stages) : stages(num_stages) {}

    StageColumns stages;
    std::vector<InstanceTotals> instances;
    DurationHistogram token_gaps;  // inter-token latencies, all requests pooled
    DurationHistogram decisions;   // wall time of the policy's calls, with SimulationOptions::time_decisions
    std::uint64_t num_events = 0;
    std::uint64_t num_bad = 0;  // runs known to have missed a target when the simulation ended
    double ended_at = 0;
    double wall_seconds = 0;
    double cpu_seconds = 0;
    bool stopped_early = false;
};

}  // namespace sage::simulator
