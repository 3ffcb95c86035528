// Discrete-event simulation of a fleet under one scheduling policy, in simulated seconds.
//
// The policy sees what it sees live: its events arrive `report_latency` after they happened, its dispatches reach the
// engine `dispatch_latency` after they were given. Deterministic: the same scenario and seed give the same result.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "sage/policy/policy.hpp"
#include "sage/simulator/calendar.hpp"
#include "sage/simulator/ledger.hpp"
#include "sage/simulator/result.hpp"
#include "sage/simulator/scenario.hpp"
#include "sage/simulator/worker.hpp"

namespace sage::simulator {

class Simulation {
public:
    // Throws std::invalid_argument for a scenario that cannot be. `workload` must outlive the simulation.
    Simulation(
        policy::Policy& policy, const std::vector<InstanceSpec>& instances, const Workload& workload,
        const SimulationOptions& options);

    // Run to the end; once. `poll` is called now and then, and may throw to stop. Throws std::logic_error for commands
    // that make no sense, and with SimulationOptions::check where something is not conserved.
    SimulationResult run(const std::function<void()>& poll = {});

private:
    void prepare();
    bool advance();
    [[nodiscard]] bool is_stalled(double next) const;
    void happen(const Calendar::Entry& entry);

    void submit_run();
    void submit_stage(StageId stage);
    void resubmit(policy::RequestId id);
    void deliver(policy::RequestId id, policy::InstanceId instance, std::uint32_t batch);
    void start(policy::InstanceId instance);
    void end_step(policy::InstanceId instance);
    void finish(policy::RequestId id, std::uint32_t num_tokens);
    void abort(policy::RequestId id, policy::InstanceId instance);
    void report(Happening what, policy::RequestId id, std::uint32_t value = 0);
    void disturb(const Disturbance& disturbance);
    void kill(policy::InstanceId instance);
    void take_telemetry();

    void tell(const policy::Event& event);
    void tell_about(policy::EventKind kind, policy::RequestId id, std::uint32_t value);
    void tell_up(policy::InstanceId instance);
    void tell_down(policy::InstanceId instance, bool is_lost);
    void tell_telemetry();
    void obey(const std::vector<policy::Command>& commands);
    void dispatch(const policy::Command& command);
    void shed(const policy::Command& command);
    // Complain of a command, or ignore it where nothing is checked.
    void refuse(const policy::Command& command, const char* complaint) const;

    [[nodiscard]] std::uint32_t num_output(StageId stage, const Worker& worker) const;
    void check() const;
    void check_tokens() const;

    struct Snapshot {
        policy::InstanceId instance;
        std::uint32_t num_running;
        std::uint32_t num_waiting;
        double kv_used;
    };

    policy::Policy& policy_;
    const Workload& workload_;
    SimulationOptions options_;
    SimulationResult result_;
    Ledger ledger_;
    Calendar calendar_;
    std::vector<Worker> workers_;
    std::vector<std::uint8_t> is_told_up_;                    // by instance: what the policy believes
    std::vector<double> told_down_at_;                        // by instance: when its last death is reported
    std::vector<std::deque<std::vector<Remains>>> undetected_;  // by instance: deaths that were not reported yet
    std::vector<std::uint32_t> num_busy_on_;                  // by device
    std::deque<Snapshot> snapshots_;
    std::size_t next_run_ = 0;
    std::size_t num_idle_entries_ = 0;  // entries of the calendar that move nothing by themselves: telemetry
    double now_ = 0;
    double timer_at_ = policy::kNever;
    double progressed_at_ = 0;
    double reports_until_ = 0;
    std::uint64_t num_unclaimed_tokens_ = 0;  // of requests that were refused while they ran
    bool has_run_ = false;
    // Buffers that keep their capacity.
    std::vector<policy::Command> commands_;
    policy::Request request_;
    StepReport report_;
};

}  // namespace sage::simulator
