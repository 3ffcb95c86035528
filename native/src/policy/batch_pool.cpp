#include "sage/policy/batch_pool.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "sage/policy/knee.hpp"

namespace sage::policy {

namespace {

constexpr std::size_t kMaxShed = 32;      // in one call
constexpr std::size_t kScan = 256;       // queued requests looked at for one batch
constexpr double kShareOfDevice = 0.25;  // of a step's slack that a batch beside an LLM may take

double tokens_per_item(const Request& request) {
    return std::max(1.0, static_cast<double>(request.num_prompt_tokens) / std::max(1U, request.num_items));
}

// Inputs of one power of two are padded to like lengths.
int bucket(double tokens) { return std::bit_width(static_cast<std::uint32_t>(tokens)); }

double target(const Request& request) {
    return std::min({request.started_at + request.ttft_slo, request.started_at + request.e2e_slo, request.deadline}) -
           request.downstream;
}

}  // namespace

double BatchPool::service_seconds(const Request& request) const {
    double best = kNever;
    for (const auto& instance : instances_) {
        // A request's marginal share of a batch; the fixed part is shared by all members.
        const StepCost& cost = instance->spec.cost;
        best = std::min(best, cost.m1 * request.num_prompt_tokens + cost.m4 * request.num_items);
    }
    return best == kNever || best <= 0 ? 1e-3 : best;
}

void BatchPool::dispatch(double now, std::vector<Command>& out) {
    if (!config_.hold) {
        push_all(now, out);
        return;
    }
    if (config_.shed) {
        shed_late(now, out);
    }
    bool progress = true;
    while (progress && !queued_.empty()) {
        progress = false;
        // Fast executors choose first; the slow ones take what is left and still in time there.
        std::vector<InstanceState*> idle;
        for (const auto& instance : instances_) {
            if (instance->is_open && instance->flights.empty() && instance->spec.max_in_flight > 0) {
                idle.push_back(instance.get());
            }
        }
        std::stable_sort(idle.begin(), idle.end(), [](const InstanceState* a, const InstanceState* b) {
            return a->cost.batch(512, 1) < b->cost.batch(512, 1);
        });
        for (InstanceState* instance : idle) {
            Batch batch;
            if (form(*instance, now, batch)) {
                send(*instance, batch, now, out);
                progress = true;
            }
            if (queued_.empty()) {
                return;
            }
        }
    }
}

// Refuse what no executor can finish by its target. The target of a pipeline's node leaves time for the nodes behind it,
// so a run that cannot be in time any more ends at its first node (PARD, arXiv 2602.08747).
void BatchPool::shed_late(double now, std::vector<Command>& out) {
    heads_.clear();
    queue_.first(kMaxShed, heads_);
    for (const RequestId id : heads_) {
        const Queued& queued = queued_.at(id);
        double best = kNever;
        for (const auto& instance : instances_) {
            best = instance->is_open ? std::min(best, finish_at(*instance, queued.request, now)) : best;
        }
        if (best == kNever || best <= target(queued.request) || !queued.request.may_shed) {
            continue;
        }
        Decision why = decision("", queued.since, now);
        why.predicted_ttft = best - now;
        if (shared_.receipts) {
            why.reason = "it would end " + std::to_string(best - target(queued.request)) +
                         " s too late for what must follow";
        }
        shed(id, ShedCode::overloaded, std::move(why), now, out);
    }
}

// Push: every request goes to an executor's own queue at once; batches form there.
void BatchPool::push_all(double now, std::vector<Command>& out) {
    while (!queued_.empty()) {
        heads_.clear();
        queue_.first(1, heads_);
        const Queued& queued = queued_.at(heads_.front());
        std::vector<InstanceState*> usable;
        for (const auto& instance : instances_) {
            if (instance->is_open && has_slot(*instance, queued.request)) {
                usable.push_back(instance.get());
            }
        }
        if (usable.empty()) {
            return;
        }
        const auto count = static_cast<std::uint32_t>(usable.size());
        InstanceState* chosen = usable[0];
        if (config_.placement == Placement::round_robin) {
            chosen = usable[turn_++ % count];
        } else if (config_.placement == Placement::random) {
            chosen = usable[shared_.random.below(count)];
        } else {
            for (InstanceState* instance : usable) {
                const bool is_fewer = instance->flights.size() < chosen->flights.size();
                chosen = is_fewer ? instance : chosen;
            }
        }
        Flight flight;
        flight.uncached = 0;
        place(queued, *chosen, flight, 0, decision("pushed on arrival", queued.since, now), now, out);
    }
}

bool BatchPool::form(const InstanceState& instance, double now, Batch& batch) {
    return config_.batching == Batching::deadline ? form_by_deadline(instance, now, batch)
                                                  : form_in_order(instance, now, batch);
}

bool BatchPool::form_in_order(const InstanceState& instance, double now, Batch& batch) {
    const EngineLimits& limits = instance.spec.limits;
    const bool is_window = config_.batching == Batching::fixed_window;
    const std::size_t most = is_window ? config_.window_items : limits.max_sequences;
    heads_.clear();
    queue_.first(std::min<std::size_t>(most, instance.spec.max_in_flight), heads_);
    if (is_window && heads_.size() < most) {
        double first = kNever;
        for (const auto& [id, queued] : queued_) {
            first = std::min(first, queued.since);
        }
        if (now < first + config_.window) {
            wake_at_ = std::min(wake_at_, first + config_.window);
            return false;
        }
    }
    for (const RequestId id : heads_) {
        const Request& request = queued_.at(id).request;
        const double longest = std::max(batch.longest, tokens_per_item(request));
        const double items = batch.items + request.num_items;
        if (!batch.members.empty() && (longest * items > limits.max_step_tokens || items > limits.max_sequences)) {
            break;
        }
        batch.members.push_back(id);
        batch.longest = longest;
        batch.items = items;
    }
    return !batch.members.empty();
}

double BatchPool::cap_tokens(const InstanceState& instance, double longest) const {
    const double limit = std::max<double>(longest, instance.spec.limits.max_step_tokens);
    return std::max(longest, knee_tokens(instance.cost, longest, limit));
}

bool BatchPool::form_by_deadline(const InstanceState& instance, double now, Batch& batch) {
    heads_.clear();
    queue_.first(kScan, heads_);
    const StepCost& cost = instance.cost;
    std::size_t anchor = 0;
    double look_again = kNever;
    for (; anchor < heads_.size(); ++anchor) {
        const double until = sooner_elsewhere_until(instance, queued_.at(heads_[anchor]).request, now);
        if (until <= now) {
            break;
        }
        look_again = std::min(look_again, until);
    }
    if (anchor == heads_.size()) {
        wake_at_ = std::min(wake_at_, look_again);
        return false;
    }
    const Request& first = queued_.at(heads_[anchor]).request;
    batch = {{first.id}, tokens_per_item(first), static_cast<double>(first.num_items), target(first)};
    const double cap = cap_tokens(instance, batch.longest * batch.items);
    // A target that is missed already, or surely, does not make the others small.
    const auto limit_of = [&](double at) {
        return at - now - config_.batch_guard < cost.batch(batch.longest, 1) ? kNever : at;
    };
    double tightest = limit_of(batch.tightest);
    // Like lengths first, then shorter ones, which only cost their padding.
    for (int step = 0; step < 2; ++step) {
        for (std::size_t i = 0; i < heads_.size(); ++i) {
            const Request& request = queued_.at(heads_[i]).request;
            const double tokens = tokens_per_item(request);
            const int distance = bucket(batch.longest) - bucket(tokens);
            if (i == anchor || distance != step || batch.members.size() >= instance.spec.max_in_flight) {
                continue;
            }
            const double longest = std::max(batch.longest, tokens);
            const double items = batch.items + request.num_items;
            const double seconds = cost.batch(longest * items, items);
            const double by = std::min(tightest, limit_of(target(request)));
            if (longest * items > cap || items > instance.spec.limits.max_sequences ||
                now + seconds + config_.batch_guard > by ||
                sooner_elsewhere_until(instance, request, now) > now) {
                continue;
            }
            tightest = by;
            batch.members.push_back(request.id);
            batch.longest = longest;
            batch.items = items;
        }
    }
    const double seconds = cost.batch(batch.padded(), batch.items);
    if (harms_device(instance, seconds, now)) {
        const double latest = batch.tightest - seconds - config_.batch_guard;
        if (batch.tightest != kNever && now < latest) {
            wake_at_ = std::min(wake_at_, std::max(now + 1e-3, std::min(latest, now + 0.02)));
            return false;
        }
    }
    return true;
}

double BatchPool::finish_at(const InstanceState& instance, const Request& request, double now) const {
    const double start = instance.flights.empty() ? now : std::max(now, instance.busy_until);
    return start + instance.cost.batch(tokens_per_item(request) * request.num_items, request.num_items);
}

// Until when another executor is expected to finish the request earlier, the work that waits before it included; not
// above `now`: none is. One that would make an LLM on its device late is spared, as long as the target is met here.
double BatchPool::sooner_elsewhere_until(const InstanceState& instance, const Request& request, double now) const {
    const double tokens = tokens_per_item(request) * request.num_items;
    const double here = instance.cost.batch(tokens, request.num_items);
    const bool is_in_time = finish_at(instance, request, now) + config_.batch_guard <= target(request);
    double until = 0;
    for (const auto& other : instances_) {
        if (other.get() == &instance || !other->is_open || other->spec.max_in_flight == 0) {
            continue;
        }
        const double seconds = other->cost.batch(tokens, request.num_items);
        const double gain = here - seconds - queue_.service();
        const bool is_idle = other->flights.empty();
        // A batch that takes longer than predicted is taken to need as long again as it is late, so that nobody waits
        // for ever for an executor that hangs.
        const bool is_sooner =
            is_idle ? gain > 0 : other->busy_until - gain < now && now < other->busy_until + gain;
        if (is_sooner && !(is_in_time && harms_device(*other, seconds, now))) {
            until = std::max(until, is_idle ? kNever : other->busy_until + gain);
        }
    }
    return until;
}

bool BatchPool::harms_device(const InstanceState& instance, double seconds, double now) const {
    const auto at = shared_.devices.find(instance.spec.device);
    if (at == shared_.devices.end()) {
        return false;
    }
    return std::any_of(at->second.begin(), at->second.end(), [&](InstanceState* other) {
        if (other == &instance || other->spec.work != Work::generate) {
            return false;
        }
        other->refresh(now);
        return other->harmed_by(seconds * (1.0 - kShareOfDevice), config_.future_load, now) > config_.harm_floor;
    });
}

void BatchPool::send(InstanceState& instance, const Batch& batch, double now, std::vector<Command>& out) {
    const double seconds = instance.cost.batch(batch.padded(), batch.items);
    const std::uint64_t number = ++batches_;
    for (const RequestId id : batch.members) {
        const Queued& queued = queued_.at(id);
        Flight flight;
        flight.predicted_ttft = seconds;
        if (id == batch.members.front()) {
            flight.batch_tokens = batch.padded();
            flight.batch_items = batch.items;
        }
        Decision why = decision("", queued.since, now);
        why.predicted_ttft = why.predicted_e2e = seconds;
        if (shared_.receipts) {
            why.reason = "batch of " + std::to_string(batch.members.size()) + ", " +
                         std::to_string(static_cast<std::uint64_t>(batch.padded())) + " padded tokens";
        }
        place(queued, instance, flight, number, std::move(why), now, out);
    }
    instance.busy_until = now + seconds;
}

}  // namespace sage::policy
