// What a simulation is given: the fleet, the work, the latencies and what goes wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "sage/policy/policy.hpp"

namespace sage::simulator {

// One worker of one pool. Its real step times are those that the policy is told, times noise and disturbances.
struct InstanceSpec {
    policy::Instance instance;  // instance.id is its index in the fleet
    double noise_sigma = 0;     // log-normal noise of mean 1 on every step
    double interference = 1;    // factor on a step that begins while another instance of the device is busy
};

// Columns; one entry per run, or per stage of a run. A run is a request, or a chain of them. Not owned.
struct Workload {
    // Per run. Times are seconds; `budget` counts from the arrival.
    std::span<const double> arrival;  // ascending
    std::span<const std::uint32_t> tenant;
    std::span<const std::uint8_t> tier;
    std::span<const std::uint8_t> may_shed;
    std::span<const double> budget;
    std::span<const std::uint32_t> stage_start;  // num_runs + 1 offsets
    // Per stage. Targets count from the run's arrival, but for TPOT; infinite: none.
    std::span<const std::uint32_t> pool;
    std::span<const std::uint32_t> prompt_tokens;  // of all items together
    std::span<const std::uint32_t> output_tokens;  // the truth, which no policy is told
    std::span<const std::uint32_t> max_tokens;     // 0: not limited
    std::span<const std::uint32_t> items;
    std::span<const double> ttft_slo;
    std::span<const double> tpot_slo;
    std::span<const double> e2e_slo;
    std::span<const double> downstream;
    std::span<const std::uint64_t> route;
    std::span<const std::uint32_t> block_start;  // num_stages + 1 offsets
    std::span<const std::uint64_t> blocks;

    [[nodiscard]] std::size_t num_runs() const { return arrival.size(); }
    [[nodiscard]] std::size_t num_stages() const { return pool.size(); }
    // Throws std::invalid_argument naming the column that does not fit the others.
    void validate() const;
};

enum class DisturbanceKind : std::uint8_t {
    down,    // the instance dies with all that it runs
    drain,   // it takes no more work, and finishes what it has
    up,      // it is ready again; after a death with an empty cache
    slow,    // its steps take `factor` times as long
    normal,  // as long as they should
};

struct Disturbance {
    double at = 0;
    std::uint32_t instance = 0;
    DisturbanceKind kind = DisturbanceKind::down;
    double factor = 1;
};

struct SimulationOptions {
    std::uint64_t seed = 0;
    double dispatch_latency = 0;    // from the policy to the engine
    double report_latency = 0;      // from the engine to the policy, and to the caller
    double hop_latency = 0;         // from the end of a stage, as the caller sees it, to the next one's submit
    double detection_latency = 0;   // from a death to its report
    double telemetry_interval = 0;  // 0: no telemetry
    double telemetry_latency = 0;
    std::uint32_t max_attempts = 3;  // dispatches of a stage whose instances die
    std::vector<Disturbance> disturbances;
    std::uint64_t max_bad = std::numeric_limits<std::uint64_t>::max();  // runs that miss a target, then it stops
    double until = policy::kNever;
    bool check = false;           // conservation of requests, tokens and blocks, and commands that make no sense
    bool send_started = false;    // tell the policy when a dispatch arrived
    bool time_decisions = false;  // measure the policy's calls
};

}  // namespace sage::simulator
