// See ledger.hpp.
#include "sage/simulator/ledger.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace sage::simulator {

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

}  // namespace

StageColumns::StageColumns(std::size_t num_stages)
    : submitted_at(num_stages, kNaN),
      dispatched_at(num_stages, kNaN),
      first_token_at(num_stages, kNaN),
      finished_at(num_stages, kNaN),
      instance(num_stages, policy::kNoInstance),
      outcome(num_stages, static_cast<std::uint8_t>(Outcome::unfinished)),
      code(num_stages, 0),
      cached_tokens(num_stages, 0),
      num_attempts(num_stages, 0),
      num_tokens(num_stages, 0),
      predicted_ttft(num_stages, kNaN),
      predicted_tpot(num_stages, kNaN),
      retry_after(num_stages, kNaN) {}

Ledger::Ledger(const Workload& workload, StageColumns& stages)
    : workload_(workload),
      stages_(stages),
      run_of_(workload.num_stages()),
      last_token_at_(workload.num_stages(), kNaN),
      is_bad_(workload.num_runs(), 0),
      num_open_runs_(workload.num_runs()) {
    for (std::uint32_t run = 0; run < workload.num_runs(); ++run) {
        for (StageId stage = workload.stage_start[run]; stage < workload.stage_start[run + 1]; ++stage) {
            run_of_[stage] = run;
        }
    }
    attempts_.reserve(workload.num_stages());
}

policy::RequestId Ledger::open(StageId stage, double now) {
    if (std::isnan(stages_.submitted_at[stage])) stages_.submitted_at[stage] = now;
    attempts_.push_back({.stage = stage, .num_kept = stages_.num_tokens[stage]});
    return attempts_.size();
}

void Ledger::describe(policy::RequestId id, double now, policy::Request& request) const {
    const Attempt& attempt = attempts_[id - 1];
    const StageId stage = attempt.stage;
    const std::uint32_t run = run_of_[stage];
    const Workload& work = workload_;
    request.id = id;
    request.pool = work.pool[stage];
    request.tenant = work.tenant[run];
    request.tier = static_cast<policy::Tier>(work.tier[run]);
    request.may_shed = work.may_shed[run] != 0;
    request.started_at = work.arrival[run];
    request.deadline = work.arrival[run] + work.budget[run];
    request.ttft_slo = work.ttft_slo[stage];
    request.tpot_slo = work.tpot_slo[stage];
    request.e2e_slo = work.e2e_slo[stage];
    request.downstream = work.downstream[stage];
    request.num_prompt_tokens = work.prompt_tokens[stage] + attempt.num_kept;
    request.max_tokens = work.max_tokens[stage];
    if (request.max_tokens > 0) request.max_tokens -= std::min(request.max_tokens - 1, attempt.num_kept);
    request.num_items = work.items[stage];
    request.route = work.route[stage];
    request.blocks.assign(
        work.blocks.begin() + work.block_start[stage], work.blocks.begin() + work.block_start[stage + 1]);
    // The first token is long out: what is due is the next one, as soon after the loss as a first one would be.
    if (attempt.num_kept > 0) request.ttft_slo += now - request.started_at;
}

void Ledger::dispatched(
    policy::RequestId id, policy::InstanceId instance, double now, const policy::Decision& decision) {
    Attempt& attempt = attempts_[id - 1];
    attempt.state = AttemptState::dispatched;
    attempt.instance = instance;
    stages_.dispatched_at[attempt.stage] = now;
    stages_.instance[attempt.stage] = instance;
    ++stages_.num_attempts[attempt.stage];
    stages_.predicted_ttft[attempt.stage] = decision.predicted_ttft;
    stages_.predicted_tpot[attempt.stage] = decision.predicted_tpot;
}

void Ledger::first_token(policy::RequestId id, double now, std::uint32_t num_cached) {
    const Attempt& attempt = attempts_[id - 1];
    stages_.cached_tokens[attempt.stage] = num_cached;
    if (attempt.num_kept > 0 || !is_open(attempt.stage)) return;
    stages_.first_token_at[attempt.stage] = now;
    if (now - arrival(attempt.stage) > workload_.ttft_slo[attempt.stage]) mark_bad(run_of_[attempt.stage]);
}

void Ledger::finished(policy::RequestId id, double now, std::uint32_t num_tokens) {
    const StageId stage = attempts_[id - 1].stage;
    if (!is_open(stage)) {  // it had been refused while it ran
        attempts_[id - 1].state = AttemptState::over;
        return;
    }
    stages_.finished_at[stage] = now;
    stages_.num_tokens[stage] = num_tokens;
    if (std::isnan(stages_.first_token_at[stage])) stages_.first_token_at[stage] = now;
    if (!is_good(stage)) mark_bad(run_of_[stage]);
    close(id, Outcome::finished);
}

void Ledger::shed(policy::RequestId id, policy::ShedCode code, double retry_after) {
    const StageId stage = attempts_[id - 1].stage;
    stages_.code[stage] = static_cast<std::uint8_t>(code);
    stages_.retry_after[stage] = retry_after;
    mark_bad(run_of_[stage]);
    // One that runs goes on until it ends or an abort reaches it.
    const AttemptState state = attempts_[id - 1].state;
    close(id, Outcome::shed);
    if (state == AttemptState::dispatched) attempts_[id - 1].state = state;
}

void Ledger::failed(policy::RequestId id) {
    mark_bad(run_of_[attempts_[id - 1].stage]);
    close(id, Outcome::failed);
}

void Ledger::lost(policy::RequestId id, std::uint32_t num_delivered, double last_token_at) {
    Attempt& attempt = attempts_[id - 1];
    attempt.state = AttemptState::over;
    stages_.num_tokens[attempt.stage] = num_delivered;
    last_token_at_[attempt.stage] = last_token_at;
}

bool Ledger::is_open(StageId stage) const {
    return stages_.outcome[stage] == static_cast<std::uint8_t>(Outcome::unfinished);
}

void Ledger::close(policy::RequestId id, Outcome outcome) {
    Attempt& attempt = attempts_[id - 1];
    attempt.state = AttemptState::over;
    stages_.outcome[attempt.stage] = static_cast<std::uint8_t>(outcome);
    if (outcome != Outcome::finished || is_last_stage(attempt.stage)) --num_open_runs_;
}

bool Ledger::is_good(StageId stage) const {
    const double start = arrival(stage);
    const double first = stages_.first_token_at[stage];
    const double last = stages_.finished_at[stage];
    const std::uint32_t num_tokens = stages_.num_tokens[stage];
    const double tpot = num_tokens > 1 ? (last - first) / (num_tokens - 1) : 0;
    return first - start <= workload_.ttft_slo[stage] && tpot <= workload_.tpot_slo[stage] &&
           last - start <= workload_.e2e_slo[stage] && last - start <= workload_.budget[run_of_[stage]];
}

void Ledger::mark_bad(std::uint32_t run) {
    num_bad_ += is_bad_[run] == 0 ? 1 : 0;
    is_bad_[run] = 1;
}

void Ledger::expire(double now) {
    for (; num_expired_ < workload_.num_runs(); ++num_expired_) {
        const auto run = static_cast<std::uint32_t>(num_expired_);
        const StageId stage = workload_.stage_start[run];
        const double limit = std::min(workload_.ttft_slo[stage], workload_.e2e_slo[stage]);
        // Targets differ, so a later run may be late earlier: it is counted once this one is.
        if (now <= workload_.arrival[run] + limit) return;
        if (std::isnan(stages_.first_token_at[stage])) mark_bad(run);
    }
}

std::uint64_t Ledger::num_delivered() const {
    std::uint64_t sum = 0;
    for (const std::uint32_t num_tokens : stages_.num_tokens) sum += num_tokens;
    return sum;
}

void Ledger::check() const {
    std::vector<std::uint32_t> num_live(workload_.num_stages(), 0);
    for (const Attempt& attempt : attempts_) {
        if (attempt.state == AttemptState::over) continue;
        if (++num_live[attempt.stage] > 1) {
            throw std::logic_error("two attempts at stage " + std::to_string(attempt.stage) + " are alive");
        }
    }
    std::size_t num_open = 0;
    for (std::uint32_t run = 0; run < workload_.num_runs(); ++run) {
        bool is_run_open = true;
        for (StageId stage = workload_.stage_start[run]; stage < workload_.stage_start[run + 1]; ++stage) {
            const auto outcome = static_cast<Outcome>(stages_.outcome[stage]);
            if (!is_run_open && outcome != Outcome::unfinished) {
                throw std::logic_error("stage " + std::to_string(stage) + " ended after its run had");
            }
            const bool goes_on = outcome == Outcome::finished && !is_last_stage(stage);
            is_run_open = is_run_open && (outcome == Outcome::unfinished || goes_on);
        }
        num_open += is_run_open ? 1 : 0;
    }
    if (num_open != num_open_runs_) {
        throw std::logic_error(
            std::to_string(num_open_runs_) + " runs are open; " + std::to_string(num_open) + " counted");
    }
}

}  // namespace sage::simulator
