#include "sage/policy/pool.hpp"

#include <algorithm>
#include <cmath>

#include "sage/policy/batch_pool.hpp"
#include "sage/policy/generate_pool.hpp"

namespace sage::policy {

namespace {

constexpr double kDemandSeconds = 30.0;
constexpr double kMinRetryAfter = 1.0, kMaxRetryAfter = 60.0;
constexpr double kNoTarget = 600;     // seconds: the target of work that has none, so that it never starves
constexpr double kRelegated = 1e12;  // key of relegated work: after every real time

}  // namespace

Pool::Pool(PoolId id, Shared& shared)
    : id_(id),
      shared_(shared),
      config_(shared.config),
      queue_(shared.config.fair, shared.config.tenant_quantum, shared.config.lower_tier_share) {}

Pool::~Pool() {
    for (const auto& instance : instances_) {
        auto& device = shared_.devices[instance->spec.device];
        std::erase(device, instance.get());
    }
}

// -- events ----------------------------------------------------------------------------------------------------------

void Pool::submit(const Request& request, double now, std::vector<Command>& out) {
    if (knows(request.id)) {
        return;
    }
    demand_ *= std::exp(std::min(0.0, demand_at_ - now) / kDemandSeconds);
    demand_at_ = now;
    const double service = service_seconds(request);
    demand_ += service / kDemandSeconds;
    arrived(request, service, now);
    if (request.deadline <= now) {
        shed(request.id, ShedCode::deadline_exceeded, decision("budget spent on arrival", now, now), now, out);
        return;
    }
    // Only what would have to wait is refused: with a free slot the queue is passed through in this very call.
    if (queued_.size() >= config_.max_queued) {
        Decision why = decision("", now, now);
        if (shared_.receipts) {
            why.reason = std::to_string(queued_.size()) + " requests wait already; the limit is " +
                         std::to_string(config_.max_queued);
        }
        shed(request.id, ShedCode::overloaded, std::move(why), now, out);
        return;
    }
    if (config_.shed && refuse_on_arrival(request, now, out)) {
        return;
    }
    enqueue(request, effective_tier(request, now), now);
}

void Pool::enqueue(const Request& request, Tier tier, double now) {
    const double service = service_seconds(request);
    queue_.push(
        request.id, request.tenant, tier, request.priority, order_key(request, service), std::max(1e-9, service));
    queued_.emplace(request.id, Queued{request, tier, now, service});
    if (request.deadline != kNever) {
        deadlines_.emplace(request.deadline, request.id);
    }
}

void Pool::cancel(RequestId id, double now, std::vector<Command>& out) {
    if (const auto at = queued_.find(id); at != queued_.end()) {
        shed(id, ShedCode::cancelled, decision("cancelled while queued", at->second.since, now), now, out);
        return;
    }
    const auto at = placed_.find(id);
    if (at == placed_.end()) {
        return;
    }
    // The slot is freed by the instance's report, not here: until then the engine still holds the sequence.
    Command command;
    command.kind = CommandKind::abort;
    command.id = id;
    command.pool = id_;
    command.instance_id = at->second->spec.id;
    command.decision = decision("cancelled while running", now, now);
    out.push_back(std::move(command));
}

bool Pool::finish(RequestId id, std::uint32_t num_tokens, double now) {
    const auto at = placed_.find(id);
    if (at == placed_.end()) {
        return false;
    }
    InstanceState* instance = at->second;
    placed_.erase(at);
    const int position = instance->find(id);
    if (position >= 0) {
        finished(instance->flights[static_cast<std::size_t>(position)], num_tokens);
    }
    instance->remove(id, num_tokens, now, config_.learn);
    changed(*instance);
    forget_if_closed(instance);
    return true;
}

void Pool::first_token(RequestId id, std::uint32_t num_cached, double now) {
    if (const auto at = placed_.find(id); at != placed_.end()) {
        at->second->first_token(id, num_cached, now, config_.learn);
        changed(*at->second);
    }
}

void Pool::progressed(RequestId id, std::uint32_t num_tokens, double now) {
    if (const auto at = placed_.find(id); at != placed_.end()) {
        at->second->progressed(id, num_tokens, now);
    }
}

void Pool::instance_up(
    const Instance& spec, const std::vector<RequestId>& running, double now, std::vector<Command>& out) {
    InstanceState* state = instance(spec.id);
    if (state == nullptr) {
        instances_.push_back(std::make_unique<InstanceState>(spec, now));
        state = instances_.back().get();
        shared_.devices[spec.device].push_back(state);
        instance_added(*state);
    } else {
        if (spec.device != state->spec.device) {
            std::erase(shared_.devices[state->spec.device], state);
            shared_.devices[spec.device].push_back(state);
        }
        state->update(spec);
    }
    state->is_open = true;
    changed(*state);
    for (const RequestId id : running) {
        if (placed_.contains(id)) {
            continue;
        }
        // An unknown id is work of an earlier scheduler. One still queued here was dispatched by it, too.
        Flight flight;
        flight.id = id;
        flight.dispatched_at = now;
        if (const auto at = queued_.find(id); at != queued_.end()) {
            flight.prompt = flight.uncached = at->second.request.num_prompt_tokens;
            queue_.remove(id);
            queued_.erase(at);
        }
        state->add(flight, {}, now);
        placed_.emplace(id, state);
    }
    std::vector<RequestId> lost;
    for (Flight& flight : state->flights) {
        if (std::find(running.begin(), running.end(), flight.id) != running.end()) {
            flight.unlisted_since = -1;
            continue;
        }
        if (flight.unlisted_since < 0) {
            flight.unlisted_since = now;
        }
        if (now - flight.dispatched_at > kReconcileAfter && now - flight.unlisted_since > kUnlistedAfter) {
            lost.push_back(flight.id);
        }
    }
    for (const RequestId id : lost) {
        state->remove(id, 0, now, false);
        placed_.erase(id);
        shed(id, ShedCode::worker_lost, decision("its instance does not run it", now, now), now, out);
    }
}

void Pool::instance_down(InstanceId id, bool is_lost, std::vector<Command>& out) {
    InstanceState* state = instance(id);
    if (state == nullptr) {
        return;
    }
    state->is_open = false;
    changed(*state);
    if (is_lost) {
        for (const Flight& flight : state->flights) {
            placed_.erase(flight.id);
            shed(flight.id, ShedCode::worker_lost, decision("its instance was lost", 0, 0), 0, out);
        }
        state->flights.clear();
    }
    forget_if_closed(state);
}

void Pool::telemetry(const Event& event, double now) {
    if (InstanceState* state = instance(event.instance_id)) {
        state->telemetry(event.num_running, event.num_waiting, event.kv_used, now);
        changed(*state);
    }
}

void Pool::pump(double now, std::vector<Command>& out) {
    expire(now, out);
    wake_at_ = kNever;
    if (!queued_.empty()) {
        dispatch(now, out);
    }
    compact();
}

double Pool::next_wake() const {
    const double deadline = queued_.empty() || deadlines_.empty() ? kNever : deadlines_.top().first;
    return std::min(wake_at_, deadline);
}

void Pool::scale_hint(double now, std::vector<Command>& out) {
    if (instances_.empty()) {
        return;
    }
    const double demand = demand_ * std::exp(std::min(0.0, demand_at_ - now) / kDemandSeconds);
    const double backlog = queue_.service() / std::max(1.0, config_.scale_hint_interval);
    const auto wanted =
        static_cast<std::uint32_t>(std::max(1.0, std::ceil((demand + backlog) / config_.scale_target)));
    if (wanted == hinted_) {
        return;
    }
    hinted_ = wanted;
    Command command;
    command.kind = CommandKind::scale_hint;
    command.pool = id_;
    command.num_instances = wanted;
    command.decision = decision("", now, now);
    if (shared_.receipts) {
        command.decision.reason = std::to_string(demand) + " instance seconds arrive per second, " +
                                  std::to_string(queue_.service()) + " wait";
    }
    out.push_back(std::move(command));
}

// -- what decisions are made of --------------------------------------------------------------------------------------

bool Pool::has_slot(const InstanceState& instance, const Request& request) const {
    const std::uint32_t limit = instance.spec.max_in_flight;
    if (instance.flights.size() >= limit) {
        return false;
    }
    // Background work never takes the last quarter of the slots, so urgent work need not wait for it to end.
    const bool is_background = request.tier == Tier::batch || request.priority < 0;
    return !is_background || instance.flights.size() < limit - limit / 4;
}

void Pool::place(
    const Queued& queued, InstanceState& instance, Flight flight, std::uint64_t batch, Decision why, double now,
    std::vector<Command>& out) {
    const Request& request = queued.request;
    flight.id = request.id;
    flight.tenant = request.tenant;
    flight.tier = queued.tier;
    flight.route = request.route;
    flight.service = queued.service;
    flight.dispatched_at = now;
    flight.started_at = request.started_at;
    flight.ttft_slo = request.ttft_slo;
    flight.tpot_slo = request.tpot_slo;
    flight.prompt = request.num_prompt_tokens;
    flight.is_batch_tier = request.tier == Tier::batch;
    Command command;
    command.kind = CommandKind::dispatch;
    command.id = request.id;
    command.pool = id_;
    command.instance_id = instance.spec.id;
    command.batch = batch;
    command.decision = std::move(why);
    out.push_back(std::move(command));
    queue_.serve(request.id);
    placed_.emplace(request.id, &instance);
    instance.add(flight, request.blocks, now);
    changed(instance);
    queued_.erase(flight.id);
}

void Pool::shed(RequestId id, ShedCode code, Decision why, double now, std::vector<Command>& out) {
    (void)now;
    Command command;
    command.kind = CommandKind::shed;
    command.id = id;
    command.pool = id_;
    command.code = code;
    if (code == ShedCode::overloaded) {
        command.retry_after = std::clamp(predicted_wait(), kMinRetryAfter, kMaxRetryAfter);
    }
    command.decision = std::move(why);
    out.push_back(std::move(command));
    queue_.remove(id);
    queued_.erase(id);
}

void Pool::relegate(RequestId id) {
    Queued& queued = queued_.at(id);
    queued.is_relegated = true;
    queued.tier = Tier::batch;
    queue_.remove(id);
    queue_.push(
        id, queued.request.tenant, Tier::batch, queued.request.priority, kRelegated, std::max(1e-9, queued.service));
}

Decision Pool::decision(const char* reason, double since, double now) const {
    Decision why;
    why.queue_seconds = now - since;
    why.num_queued = static_cast<std::uint32_t>(queued_.size());
    if (shared_.receipts) {
        why.reason = reason;
    }
    return why;
}

double Pool::predicted_wait() const {
    std::size_t open = 0;
    for (const auto& instance : instances_) {
        open += instance->is_open ? 1U : 0U;
    }
    return queue_.service() / static_cast<double>(std::max<std::size_t>(1, open));
}

// -- inside ----------------------------------------------------------------------------------------------------------

double Pool::alpha() const {
    // 0 while the backlog is short, `backlog_alpha` once it takes longer than typical slack (1 s) several times over.
    const double backlog = predicted_wait();
    return config_.backlog_alpha * std::clamp((backlog - 0.5) / 3.0, 0.0, 1.0);
}

double Pool::order_key(const Request& request, double service) const {
    const double target = std::min(
        {request.started_at + request.ttft_slo, request.started_at + request.e2e_slo, request.deadline});
    switch (config_.order) {
        case Order::fcfs:
            return 0;
        case Order::edf:
            return target - request.downstream;
        case Order::sjf:
            return service;
        case Order::hybrid:
            break;
    }
    const double latest = std::min(target - request.downstream, request.started_at + kNoTarget);
    return latest - service + alpha() * service;
}

void Pool::expire(double now, std::vector<Command>& out) {
    while (!deadlines_.empty()) {
        const auto [at, id] = deadlines_.top();
        const auto queued = queued_.find(id);
        if (queued != queued_.end() && at > now) {
            return;
        }
        deadlines_.pop();
        if (queued != queued_.end()) {
            const Decision why = decision("budget ran out in the queue", queued->second.since, now);
            shed(id, ShedCode::deadline_exceeded, why, now, out);
        }
    }
}

void Pool::compact() {
    // Drop entries of requests that left early, so that they do not pile up.
    if (deadlines_.size() > 2 * queued_.size() + 64) {
        decltype(deadlines_) kept;
        for (const auto& [id, queued] : queued_) {
            if (queued.request.deadline != kNever) {
                kept.emplace(queued.request.deadline, id);
            }
        }
        deadlines_ = std::move(kept);
    }
}

InstanceState* Pool::instance(InstanceId id) {
    for (const auto& instance : instances_) {
        if (instance->spec.id == id) {
            return instance.get();
        }
    }
    return nullptr;
}

void Pool::forget_if_closed(InstanceState* state) {
    if (state->is_open || !state->flights.empty()) {
        return;
    }
    std::erase(shared_.devices[state->spec.device], state);
    instance_removed(state->spec.id);
    std::erase_if(instances_, [state](const auto& item) { return item.get() == state; });
}

std::unique_ptr<Pool> make_pool(const Instance& instance, Shared& shared) {
    if (instance.work == Work::batch) {
        return std::make_unique<BatchPool>(instance.pool, shared);
    }
    return std::make_unique<GeneratePool>(instance.pool, shared);
}

}  // namespace sage::policy
