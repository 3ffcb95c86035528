// What the policy is told, and what becomes of its commands.
#include <chrono>
#include <stdexcept>
#include <string>

#include "sage/simulator/simulation.hpp"

namespace sage::simulator {

using policy::Command;
using policy::CommandKind;
using policy::EventKind;

void Simulation::tell(const policy::Event& event) {
    using Clock = std::chrono::steady_clock;
    commands_.clear();
    if (options_.time_decisions) {
        const auto began = Clock::now();
        policy_.handle(event, now_, commands_);
        result_.decisions.add(std::chrono::duration<double>(Clock::now() - began).count());
    } else {
        policy_.handle(event, now_, commands_);
    }
    if (!commands_.empty()) obey(commands_);
}

void Simulation::tell_about(EventKind kind, policy::RequestId id, std::uint32_t value) {
    policy::Event event{.kind = kind, .id = id};
    (kind == EventKind::first_token ? event.num_cached : event.num_tokens) = value;
    tell(event);
}

void Simulation::tell_up(policy::InstanceId instance) {
    if (!workers_[instance].is_alive()) return;  // it died again before this was known
    const policy::Instance& told = workers_[instance].spec().instance;
    const std::vector<policy::RequestId> running;
    is_told_up_[instance] = 1;
    tell(
        {.kind = EventKind::instance_up,
         .pool = told.pool,
         .instance_id = instance,
         .instance = &told,
         .running = &running});
}

void Simulation::tell_down(policy::InstanceId instance, bool is_lost) {
    const policy::PoolId pool = workers_[instance].spec().instance.pool;
    is_told_up_[instance] = 0;
    std::vector<Remains> lost;
    if (is_lost) {
        lost = std::move(undetected_[instance].front());
        undetected_[instance].pop_front();
        for (const Remains& remains : lost) ledger_.lost(remains.id, remains.num_delivered, remains.last_token_at);
    }
    tell({.kind = EventKind::instance_down, .pool = pool, .instance_id = instance, .is_lost = is_lost});
    for (const Remains& remains : lost) resubmit(remains.id);
}

void Simulation::tell_telemetry() {
    const Snapshot snapshot = snapshots_.front();
    snapshots_.pop_front();
    --num_idle_entries_;
    tell(
        {.kind = EventKind::telemetry,
         .pool = workers_[snapshot.instance].spec().instance.pool,
         .instance_id = snapshot.instance,
         .num_running = snapshot.num_running,
         .num_waiting = snapshot.num_waiting,
         .kv_used = snapshot.kv_used});
}

void Simulation::obey(const std::vector<Command>& commands) {
    for (const Command& command : commands) {
        switch (command.kind) {
            case CommandKind::dispatch: dispatch(command); break;
            case CommandKind::shed: shed(command); break;
            case CommandKind::abort:
                if (!ledger_.knows(command.id) || command.instance_id >= workers_.size()) {
                    refuse(command, "aborts what does not exist");
                } else {
                    calendar_.add(
                        now_ + options_.dispatch_latency, Happening::abort, command.id, command.instance_id);
                }
                break;
            case CommandKind::set_timer: timer_at_ = command.at; break;
            case CommandKind::scale_hint: break;
        }
    }
}

void Simulation::dispatch(const Command& command) {
    if (!ledger_.knows(command.id)) return refuse(command, "dispatches a request that nobody submitted");
    const Attempt& attempt = ledger_.attempt(command.id);
    if (attempt.state != AttemptState::queued) return refuse(command, "dispatches a request that does not wait");
    if (command.instance_id >= workers_.size()) return refuse(command, "dispatches to an unknown instance");
    if (workers_[command.instance_id].spec().instance.pool != workload_.pool[attempt.stage]) {
        return refuse(command, "dispatches to an instance of another pool");
    }
    if (is_told_up_[command.instance_id] == 0) return refuse(command, "dispatches to an instance that is down");
    progressed_at_ = now_;
    ledger_.dispatched(command.id, command.instance_id, now_, command.decision);
    // The number only tells neighbours apart; zero stays zero.
    const auto batch = command.batch == 0 ? 0U : static_cast<std::uint32_t>(command.batch % 0xFFFFFFFFU) + 1U;
    calendar_.add(
        now_ + options_.dispatch_latency, Happening::delivered, command.id, command.instance_id, batch);
}

void Simulation::shed(const Command& command) {
    if (!ledger_.knows(command.id)) return refuse(command, "sheds a request that nobody submitted");
    if (!ledger_.is_open(ledger_.attempt(command.id).stage) ||
        ledger_.attempt(command.id).state == AttemptState::over) {
        // Giving up what died with its instance says what is known: the client tries again by itself.
        if (command.code == policy::ShedCode::worker_lost) return;
        return refuse(command, "sheds a request that is over");
    }
    progressed_at_ = now_;
    ledger_.shed(command.id, command.code, command.retry_after);
}

void Simulation::refuse(const Command& command, const char* complaint) const {
    if (!options_.check) return;
    throw std::logic_error(
        "at " + std::to_string(now_) + " s the policy " + complaint + ": request " + std::to_string(command.id) +
        ", instance " + std::to_string(command.instance_id));
}

}  // namespace sage::simulator
