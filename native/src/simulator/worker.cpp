// See worker.hpp.
#include "sage/simulator/worker.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace sage::simulator {

Worker::Worker(const InstanceSpec& spec, std::uint64_t seed)
    : spec_(spec), executor_(make_executor(spec.instance)), noise_(seed, spec.noise_sigma) {
    if (!(spec.noise_sigma >= 0 && spec.noise_sigma <= 2)) {
        throw std::invalid_argument(
            "noise_sigma is " + std::to_string(spec.noise_sigma) + "; expected 0 <= noise_sigma <= 2");
    }
    if (!(spec.interference > 0)) {
        throw std::invalid_argument(
            "interference is " + std::to_string(spec.interference) + "; expected a factor above 0");
    }
}

Worker::Executor Worker::make_executor(const policy::Instance& instance) {
    if (instance.work == policy::Work::batch) return BatchExecutor(instance.cost, instance.limits);
    return EngineModel(instance.cost, instance.limits);
}

bool Worker::has_work() const {
    return std::visit([](const auto& executor) { return !executor.is_idle(); }, executor_);
}

std::uint32_t Worker::max_output(std::uint32_t num_prompt) const {
    const auto* engine = std::get_if<EngineModel>(&executor_);
    if (engine == nullptr) return std::numeric_limits<std::uint32_t>::max();
    const std::uint32_t most = engine->max_sequence_tokens();
    return num_prompt < most ? most - num_prompt : 0;
}

void Worker::submit(const Job& job) {
    if (auto* batches = std::get_if<BatchExecutor>(&executor_)) {
        batches->submit({job.id, job.num_items, (job.num_prompt + job.num_items - 1) / job.num_items, job.batch});
        return;
    }
    const Slot slot = std::get<EngineModel>(executor_).submit({
        .tag = job.id,
        .num_prompt = job.num_prompt,
        .num_generated = job.num_kept,
        .num_output = job.num_output,
        .groups = job.blocks,
        .group_tokens = spec_.instance.prefix_block,
    });
    if (slot >= progress_.size()) progress_.resize(slot + 1);
    progress_[slot] = {.last_token_at = job.last_token_at};
}

double Worker::start(double now, bool is_disturbed) {
    double seconds = 0;
    if (auto* batches = std::get_if<BatchExecutor>(&executor_)) {
        seconds = batches->start();
    } else {
        step_ = &std::get<EngineModel>(executor_).step();
        seconds = step_->seconds;
        for (const Slot slot : step_->preempted) {
            Progress& progress = progress_[slot];
            if (progress.is_decoding) progress.last_token_at = now;
            progress.is_decoding = false;
        }
    }
    is_busy_ = true;
    started_at_ = now;
    seconds_ = seconds * factor_ * (is_disturbed ? spec_.interference : 1.0) * noise_.next();
    return seconds_;
}

void Worker::finish(double now, StepReport& report, DurationHistogram& gaps) {
    report.first.clear();
    report.finished.clear();
    is_busy_ = false;
    totals_.busy_seconds += seconds_;
    ++totals_.num_steps;
    if (auto* batches = std::get_if<BatchExecutor>(&executor_)) {
        for (const BatchExecutor::Job& job : batches->running()) report.finished.push_back(job.tag);
        batches->finish();
    } else {
        finish_step(std::get<EngineModel>(executor_), now, report, gaps);
    }
    totals_.num_finished += report.finished.size();
}

void Worker::finish_step(EngineModel& engine, double now, StepReport& report, DurationHistogram& gaps) {
    const Step& step = *step_;
    // A decoding sequence had its token before at the end of the step before: the gap is this step.
    if (step.num_decoding > 0) gaps.add(now - started_at_, step.num_decoding);
    totals_.num_generated += step.emitting.size();
    for (const Slot slot : step.prefilled) {
        Progress& progress = progress_[slot];
        if (!std::isnan(progress.last_token_at)) gaps.add(now - progress.last_token_at);
        if (!progress.has_emitted) {
            report.first.push_back({engine.tag(slot), engine.num_cached(slot)});
            totals_.cached_tokens += engine.num_cached(slot);
        }
        progress = {.last_token_at = now, .is_decoding = true, .has_emitted = true};
    }
    for (const Slot slot : step.finished) report.finished.push_back(engine.tag(slot));
    engine.complete();
}

std::vector<Remains> Worker::remains() const {
    std::vector<Remains> all;
    if (const auto* batches = std::get_if<BatchExecutor>(&executor_)) {
        for (const BatchExecutor::Job& job : batches->running()) all.push_back({.id = job.tag});
        for (const BatchExecutor::Job& job : batches->waiting()) all.push_back({.id = job.tag});
    } else {
        const auto& engine = std::get<EngineModel>(executor_);
        std::vector<Slot> slots;
        engine.list(slots);
        for (const Slot slot : slots) {
            const Progress& progress = progress_[slot];
            const double last_token_at = progress.is_decoding ? started_at_ : progress.last_token_at;
            all.push_back({engine.tag(slot), engine.num_delivered(slot), last_token_at});
        }
    }
    std::ranges::sort(all, {}, &Remains::id);
    return all;
}

std::vector<Remains> Worker::die(double now) {
    std::vector<Remains> lost = remains();
    const InstanceTotals before = totals();
    totals_.num_preemptions = before.num_preemptions;
    if (is_busy_) totals_.busy_seconds += now - started_at_;
    totals_.num_lost += lost.size();
    executor_ = make_executor(spec_.instance);
    is_alive_ = is_busy_ = false;
    ++incarnation_;
    return lost;
}

std::optional<Remains> Worker::remove(policy::RequestId id) {
    if (auto* batches = std::get_if<BatchExecutor>(&executor_)) {
        return batches->remove(id) ? std::optional<Remains>(Remains{.id = id}) : std::nullopt;
    }
    auto& engine = std::get<EngineModel>(executor_);
    std::vector<Slot> slots;
    engine.list(slots);
    const auto found = std::ranges::find(slots, id, [&engine](Slot slot) { return engine.tag(slot); });
    if (found == slots.end()) return std::nullopt;
    const Remains had{id, engine.num_delivered(*found), progress_[*found].last_token_at};
    engine.remove(*found);
    return had;
}

std::uint32_t Worker::num_running() const {
    if (const auto* batches = std::get_if<BatchExecutor>(&executor_)) {
        return static_cast<std::uint32_t>(batches->running().size());
    }
    return std::get<EngineModel>(executor_).num_running();
}

std::uint32_t Worker::num_waiting() const {
    if (const auto* batches = std::get_if<BatchExecutor>(&executor_)) {
        return static_cast<std::uint32_t>(batches->waiting().size());
    }
    return std::get<EngineModel>(executor_).num_waiting();
}

double Worker::kv_used() const {
    const auto* engine = std::get_if<EngineModel>(&executor_);
    return engine == nullptr ? 0 : engine->kv_used();
}

InstanceTotals Worker::totals() const {
    InstanceTotals totals = totals_;
    if (const auto* engine = std::get_if<EngineModel>(&executor_)) totals.num_preemptions += engine->num_preemptions();
    return totals;
}

void Worker::check() const {
    if (const auto* engine = std::get_if<EngineModel>(&executor_)) engine->check();
}

}  // namespace sage::simulator
