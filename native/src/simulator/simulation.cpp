// The loop of a simulation, and what happens to fleet and requests. What the policy is told and wants: policy_seam.cpp.
#include "sage/simulator/simulation.hpp"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

namespace sage::simulator {

namespace {

// A policy that holds requests for ever would otherwise be asked for ever by its own timer.
constexpr double kPatience = 3600;
constexpr std::uint64_t kPollInterval = 1U << 16U;
constexpr std::uint64_t kCheckInterval = 1U << 8U;  // at first; then ever longer, as a check counts everything

using Clock = std::chrono::steady_clock;

// Of this thread: wall time says little on a busy host.
double cpu_seconds() {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

const std::vector<InstanceSpec>& checked(const std::vector<InstanceSpec>& instances) {
    for (std::size_t i = 0; i < instances.size(); ++i) {
        if (instances[i].instance.id != i) {
            throw std::invalid_argument(
                "instance " + std::to_string(instances[i].instance.id) + " stands at place " + std::to_string(i) +
                "; expected ids to be places in the fleet");
        }
    }
    return instances;
}

const Workload& checked(const Workload& workload) {
    workload.validate();
    return workload;
}

}  // namespace

Simulation::Simulation(
    policy::Policy& policy, const std::vector<InstanceSpec>& instances, const Workload& workload,
    const SimulationOptions& options)
    : policy_(policy),
      workload_(checked(workload)),
      options_(options),
      result_(workload.num_stages()),
      ledger_(workload_, result_.stages),
      is_told_up_(instances.size(), 0),
      told_down_at_(instances.size(), -policy::kNever),
      undetected_(instances.size()) {
    std::uint32_t num_devices = 0;
    workers_.reserve(instances.size());
    for (const InstanceSpec& spec : checked(instances)) {
        // Own noise for every instance: one that is slower or gone does not shift the others'.
        workers_.emplace_back(spec, policy::SplitMix64(options.seed + spec.instance.id).next());
        num_devices = std::max(num_devices, spec.instance.device + 1);
    }
    num_busy_on_.resize(num_devices, 0);
    for (std::size_t i = 0; i < options_.disturbances.size(); ++i) {
        const Disturbance& disturbance = options_.disturbances[i];
        if (disturbance.instance >= workers_.size()) {
            throw std::invalid_argument(
                "disturbance of instance " + std::to_string(disturbance.instance) + "; expected one below " +
                std::to_string(workers_.size()));
        }
        calendar_.add(disturbance.at, Happening::disturbance, i);
    }
}

SimulationResult Simulation::run(const std::function<void()>& poll) {
    if (has_run_) throw std::logic_error("a simulation runs once: its policy has learned; make a new one");
    has_run_ = true;
    const auto began = Clock::now();
    const double cpu_began = cpu_seconds();
    prepare();
    std::uint64_t next_check = kCheckInterval;
    while (advance()) {
        ++result_.num_events;
        if (poll && result_.num_events % kPollInterval == 0) poll();
        if (options_.check && result_.num_events == next_check) {
            check();
            next_check += std::max(kCheckInterval, next_check / 32);
        }
    }
    if (options_.check) {
        check();
        check_tokens();
    }
    for (const Worker& worker : workers_) result_.instances.push_back(worker.totals());
    result_.num_bad = ledger_.num_bad();
    result_.ended_at = now_;
    result_.cpu_seconds = cpu_seconds() - cpu_began;
    result_.wall_seconds = std::chrono::duration<double>(Clock::now() - began).count();
    return std::move(result_);
}

void Simulation::prepare() {
    policy_.keep_receipts(false);
    if (workload_.num_runs() > 0) now_ = std::min(0.0, workload_.arrival.front());
    progressed_at_ = now_;
    if (options_.telemetry_interval > 0) {
        calendar_.add(now_ + options_.telemetry_interval, Happening::telemetry_due, 0);
        ++num_idle_entries_;
    }
    for (policy::InstanceId instance = 0; instance < workers_.size(); ++instance) tell_up(instance);
}

// One thing at a time, earliest first. False where there is nothing left that could matter.
bool Simulation::advance() {
    if (ledger_.num_bad() >= options_.max_bad) {
        result_.stopped_early = true;
        return false;
    }
    const double arrival = next_run_ < workload_.num_runs() ? workload_.arrival[next_run_] : policy::kNever;
    const double entry = calendar_.empty() ? policy::kNever : calendar_.next_time();
    const double next = std::min({arrival, entry, timer_at_});
    if (next == policy::kNever || is_stalled(next)) return false;
    if (ledger_.num_open_runs() == 0 && next > reports_until_) return false;
    if (next > options_.until) {
        now_ = options_.until;
        return false;
    }
    now_ = std::max(now_, next);
    if (entry <= next) {
        happen(calendar_.take());
    } else if (arrival <= next) {
        submit_run();
    } else {
        timer_at_ = policy::kNever;
        tell({.kind = policy::EventKind::timer});
    }
    return true;
}

bool Simulation::is_stalled(double next) const {
    const bool is_moving = next_run_ < workload_.num_runs() || calendar_.size() > num_idle_entries_;
    return !is_moving && next > progressed_at_ + kPatience;
}

void Simulation::happen(const Calendar::Entry& entry) {
    const policy::InstanceId instance = entry.instance;
    const bool is_idle = entry.what == static_cast<std::uint8_t>(Happening::telemetry_due) ||
                         entry.what == static_cast<std::uint8_t>(Happening::tell_telemetry);
    if (!is_idle) progressed_at_ = now_;
    switch (static_cast<Happening>(entry.what)) {
        case Happening::stage_due: return submit_stage(static_cast<StageId>(entry.id));
        case Happening::delivered: return deliver(entry.id, instance, entry.extra);
        case Happening::abort: return abort(entry.id, instance);
        case Happening::kick:
            if (workers_[instance].incarnation() == entry.id) start(instance);
            return;
        case Happening::step_ended:
            if (workers_[instance].incarnation() == entry.id) end_step(instance);
            return;
        case Happening::tell_started: return tell_about(policy::EventKind::started, entry.id, 0);
        case Happening::tell_first: return tell_about(policy::EventKind::first_token, entry.id, entry.extra);
        case Happening::tell_finished: return tell_about(policy::EventKind::finished, entry.id, entry.extra);
        case Happening::tell_up: return tell_up(instance);
        case Happening::tell_down: return tell_down(instance, entry.extra != 0);
        case Happening::bounced: return resubmit(entry.id);
        case Happening::telemetry_due: return take_telemetry();
        case Happening::tell_telemetry: return tell_telemetry();
        case Happening::disturbance: return disturb(options_.disturbances[entry.id]);
    }
}

void Simulation::submit_run() {
    ledger_.expire(now_);
    const auto run = next_run_++;
    progressed_at_ = now_;
    submit_stage(workload_.stage_start[run]);
}

void Simulation::submit_stage(StageId stage) {
    const policy::RequestId id = ledger_.open(stage, now_);
    ledger_.describe(id, now_, request_);
    tell({.kind = policy::EventKind::submitted, .id = id, .pool = request_.pool, .request = &request_});
}

// The attempt died with its instance: try again with what was delivered.
void Simulation::resubmit(policy::RequestId id) {
    const StageId stage = ledger_.attempt(id).stage;
    if (!ledger_.is_open(stage)) return;
    if (result_.stages.num_attempts[stage] >= options_.max_attempts) {
        ledger_.failed(id);
        return;
    }
    submit_stage(stage);
}

std::uint32_t Simulation::num_output(StageId stage, const Worker& worker) const {
    std::uint32_t limit = worker.max_output(workload_.prompt_tokens[stage]);
    if (workload_.max_tokens[stage] > 0) limit = std::min(limit, workload_.max_tokens[stage]);
    return std::min(limit, std::max(1U, workload_.output_tokens[stage]));
}

void Simulation::deliver(policy::RequestId id, policy::InstanceId instance, std::uint32_t batch) {
    Worker& worker = workers_[instance];
    const Attempt& attempt = ledger_.attempt(id);
    const StageId stage = attempt.stage;
    if (!worker.is_alive()) {
        const Remains remains{id, attempt.num_kept, ledger_.last_token_at(stage)};
        if (!undetected_[instance].empty()) {
            undetected_[instance].back().push_back(remains);
        } else {
            ledger_.lost(id, remains.num_delivered, remains.last_token_at);
            calendar_.add(now_ + options_.report_latency, Happening::bounced, id);
        }
        return;
    }
    if (options_.send_started) report(Happening::tell_started, id);
    const std::uint32_t output = num_output(stage, worker);
    if (output <= attempt.num_kept) {  // no room for the prompt, or for one more token
        if (ledger_.is_open(stage)) ledger_.failed(id);
        ledger_.attempt(id).state = AttemptState::over;
        report(Happening::tell_finished, id);
        return;
    }
    const std::size_t first_block = workload_.block_start[stage];
    worker.submit({
        .id = id,
        .num_prompt = workload_.prompt_tokens[stage],
        .num_kept = attempt.num_kept,
        .num_output = output,
        .num_items = workload_.items[stage],
        .batch = batch,
        .last_token_at = ledger_.last_token_at(stage),
        .blocks = workload_.blocks.subspan(first_block, workload_.block_start[stage + 1] - first_block),
    });
    // Not at once: what is delivered at the same moment starts together.
    if (!worker.is_busy()) calendar_.add(now_, Happening::kick, worker.incarnation(), instance);
}

void Simulation::start(policy::InstanceId instance) {
    Worker& worker = workers_[instance];
    if (worker.is_busy() || !worker.has_work()) return;
    std::uint32_t& num_busy = num_busy_on_[worker.spec().instance.device];
    const double seconds = worker.start(now_, num_busy > 0);
    ++num_busy;
    calendar_.add(now_ + seconds, Happening::step_ended, worker.incarnation(), instance);
}

void Simulation::end_step(policy::InstanceId instance) {
    Worker& worker = workers_[instance];
    --num_busy_on_[worker.spec().instance.device];
    worker.finish(now_, report_, result_.token_gaps);
    const double told_at = now_ + options_.report_latency;
    for (const StepReport::First& first : report_.first) {
        ledger_.first_token(first.id, told_at, first.num_cached);
        report(Happening::tell_first, first.id, first.num_cached);
    }
    for (const policy::RequestId id : report_.finished) {
        const bool is_generated = worker.spec().instance.work == policy::Work::generate;
        finish(id, is_generated ? num_output(ledger_.attempt(id).stage, worker) : 0);
    }
    start(instance);
}

void Simulation::finish(policy::RequestId id, std::uint32_t num_tokens) {
    const double told_at = now_ + options_.report_latency;
    const Attempt& attempt = ledger_.attempt(id);
    const StageId stage = attempt.stage;
    const bool is_wanted = ledger_.is_open(stage);
    if (!is_wanted) num_unclaimed_tokens_ += num_tokens - attempt.num_kept;
    ledger_.finished(id, told_at, num_tokens);
    report(Happening::tell_finished, id, num_tokens - attempt.num_kept);
    if (is_wanted && !ledger_.is_last_stage(stage)) {
        calendar_.add(told_at + options_.hop_latency, Happening::stage_due, stage + 1);
    }
}

void Simulation::abort(policy::RequestId id, policy::InstanceId instance) {
    const std::optional<Remains> remains = workers_[instance].remove(id);
    if (!remains) return;
    Attempt& attempt = ledger_.attempt(id);
    const std::uint32_t num_tokens = remains->num_delivered - attempt.num_kept;
    if (ledger_.is_open(attempt.stage)) ledger_.shed(id, policy::ShedCode::cancelled, 0);
    attempt.state = AttemptState::over;
    num_unclaimed_tokens_ += num_tokens;
    report(Happening::tell_finished, id, num_tokens);
}

void Simulation::report(Happening what, policy::RequestId id, std::uint32_t value) {
    // The policy hears of everything that happened before the last run ended.
    reports_until_ = now_ + options_.report_latency;
    calendar_.add(reports_until_, what, id, 0, value);
}

void Simulation::disturb(const Disturbance& disturbance) {
    Worker& worker = workers_[disturbance.instance];
    const double told_at = now_ + options_.report_latency;
    switch (disturbance.kind) {
        case DisturbanceKind::down:
            if (worker.is_alive()) kill(disturbance.instance);
            return;
        case DisturbanceKind::drain: return calendar_.add(told_at, Happening::tell_down, 0, disturbance.instance, 0);
        case DisturbanceKind::up:
            worker.revive();
            // Never before the report of the death that it follows.
            return calendar_.add(
                std::max(told_at, told_down_at_[disturbance.instance]), Happening::tell_up, 0, disturbance.instance);
        case DisturbanceKind::slow: return worker.set_factor(disturbance.factor);
        case DisturbanceKind::normal: return worker.set_factor(1);
    }
}

void Simulation::kill(policy::InstanceId instance) {
    Worker& worker = workers_[instance];
    if (worker.is_busy()) --num_busy_on_[worker.spec().instance.device];
    undetected_[instance].push_back(worker.die(now_));
    told_down_at_[instance] = now_ + options_.detection_latency + options_.report_latency;
    calendar_.add(told_down_at_[instance], Happening::tell_down, 0, instance, 1);
}

void Simulation::take_telemetry() {
    for (policy::InstanceId instance = 0; instance < workers_.size(); ++instance) {
        const Worker& worker = workers_[instance];
        if (!worker.is_alive()) continue;
        snapshots_.push_back({instance, worker.num_running(), worker.num_waiting(), worker.kv_used()});
        calendar_.add(now_ + options_.telemetry_latency, Happening::tell_telemetry, 0);
        ++num_idle_entries_;
    }
    calendar_.add(now_ + options_.telemetry_interval, Happening::telemetry_due, 0);
}

void Simulation::check() const {
    ledger_.check();
    for (const Worker& worker : workers_) worker.check();
}

// Every token that left an instance is one that a caller got or that nobody wanted any more.
void Simulation::check_tokens() const {
    std::uint64_t num_generated = 0;
    std::uint64_t num_alive = 0;
    for (const Worker& worker : workers_) {
        num_generated += worker.totals().num_generated;
        for (const Remains& remains : worker.remains()) {
            num_alive += remains.num_delivered - ledger_.num_kept(remains.id);
        }
    }
    for (const auto& deaths : undetected_) {
        for (const auto& death : deaths) {
            for (const Remains& remains : death) num_alive += remains.num_delivered - ledger_.num_kept(remains.id);
        }
    }
    const std::uint64_t num_accounted = ledger_.num_delivered() + num_alive + num_unclaimed_tokens_;
    if (num_generated != num_accounted) {
        throw std::logic_error(
            "tokens are not conserved: " + std::to_string(num_generated) + " generated, " +
            std::to_string(num_accounted) + " accounted for");
    }
}

}  // namespace sage::simulator
