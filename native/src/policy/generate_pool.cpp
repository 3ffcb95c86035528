#include "sage/policy/generate_pool.hpp"

#include <algorithm>
#include <cmath>

namespace sage::policy {

namespace {

constexpr double kLookAgain = 0.02;     // seconds after which a place without harm may have come up
constexpr double kKeepAfter = 1.0;      // seconds next in turn without fitting anywhere, then a place is kept free
// An engine that names no limit has none to the policy; the index takes its room at once.
constexpr std::uint64_t kMaxPrefixBlocks = 1U << 16U;
constexpr std::uint32_t kMaxShed = 32;    // in one call
constexpr double kDefaultService = 1.0;  // seconds charged while nothing is known of any instance

}  // namespace

// -- sizes -----------------------------------------------------------------------------------------------------------

double GeneratePool::service_seconds(const Request& request) const {
    // On the fastest instance there is, alone: the same measure for every request of the pool.
    double best = kNever;
    const double expected = shared_.lengths.quantile(request.tenant, request.route, id_, 0.5, request.max_tokens);
    for (const auto& instance : instances_) {
        const StepCost& cost = instance->spec.cost;
        const double prompt = request.num_prompt_tokens;
        // A token's share of a step that it has to itself is its marginal cost; the step's fixed part is shared.
        const double share = (cost.host + cost.a0) / std::max(1.0, instance->spec.limits.max_sequences / 8.0);
        const double seconds = cost.m1 * prompt + cost.m3 * prompt * prompt / 2 +
                               expected * (share + cost.a1 + cost.a2 * (prompt + expected / 2));
        best = std::min(best, seconds);
    }
    return best == kNever || best <= 0 ? kDefaultService : best;
}

GeneratePool::Wanted GeneratePool::wanted(const Request& request, double now) {
    const LengthHistogram& lengths = shared_.lengths;
    Wanted result{request};
    result.expected = lengths.quantile(request.tenant, request.route, id_, 0.5, request.max_tokens);
    result.reserved =
        lengths.quantile(request.tenant, request.route, id_, config_.reserve_quantile, request.max_tokens);
    result.waited = now - request.started_at;
    result.slack = request.ttft_slo - result.waited - request.downstream;
    result.is_above_share = is_above_share(request, now);
    result.is_below_share = !result.is_above_share && config_.fair && predicted_wait() > config_.share_backlog &&
                            loads_.is_overloaded(now) && loads_.is_anyone_above(config_.share_spread, now);
    return result;
}

Ask GeneratePool::ask(const InstanceState& instance, const Wanted& wanted) const {
    Ask result;
    result.prompt = std::max<double>(1, wanted.request.num_prompt_tokens);
    const std::uint32_t slot = instance.prefix_slot;
    if (slot < matched_.size()) {
        const double cached = static_cast<double>(matched_[slot]) * instance.spec.prefix_block;
        result.cached = std::min(cached, result.prompt - 1);
    }
    result.expected_tokens = wanted.expected;
    result.reserved_tokens = wanted.reserved;
    return result;
}

void GeneratePool::arrived(const Request& request, double service, double now) {
    if (config_.fair) {
        loads_.offered(request.tenant, service, now);
    }
}

bool GeneratePool::is_above_share(const Request& request, double now) {
    return config_.fair && config_.hold && predicted_wait() > config_.share_backlog && loads_.is_overloaded(now) &&
           loads_.is_above_share(request.tenant, config_.share_spread, now);
}

Tier GeneratePool::effective_tier(const Request& request, double now) {
    return request.tier == Tier::interactive && is_above_share(request, now) ? Tier::normal : request.tier;
}

// -- the loop --------------------------------------------------------------------------------------------------------

void GeneratePool::dispatch(double now, std::vector<Command>& out) {
    std::uint32_t num_shed = 0;
    while (!queued_.empty()) {
        kept_ = nullptr;
        heads_.clear();
        queue_.first(1 + config_.backfill_depth, heads_);
        wake_at_ = kNever;
        bool is_head = true;
        bool progress = false;
        for (const RequestId id : heads_) {
            const std::uint64_t before = num_changes_;
            if (consider(id, now, is_head, out)) {
                progress = true;
                num_shed += num_changes_ == before ? 1U : 0U;
                break;
            }
            is_head = false;
        }
        if (!progress) {
            return;
        }
        if (num_shed >= kMaxShed) {
            // A backlog that is late all at once is refused in parts, other events in between.
            wake_at_ = now;
            return;
        }
    }
}

// Dispatch, shed or relegate one queued request; false: it stays where it is.
bool GeneratePool::consider(RequestId id, double now, bool is_head, std::vector<Command>& out) {
    Queued& queued = queued_.find(id)->second;
    // What fitted nowhere a moment ago is only offered to instances that have changed since.
    const bool is_known = now < queued.looked_until;
    const std::uint64_t since = is_known ? queued.looked_changes : 0;
    const bool is_stuck = is_head && queued.stuck_since >= 0;
    if (is_known && since == num_changes_ && !is_stuck) {
        wake_at_ = std::min(wake_at_, queued.wake_at);
        return false;
    }
    if (const double longest = longest_prompt(); queued.request.num_prompt_tokens > longest) {
        refuse_too_long(queued, longest, now, out);
        return true;
    }
    prefixes_.match_all(queued.request.blocks, matched_);
    const Wanted want = wanted(queued.request, now);
    if (!is_known && is_too_late(queued, want, now, out)) {
        return true;
    }
    std::vector<Candidate> candidates;
    const Choice choice = choose(want, now, since, shared_.receipts ? &candidates : nullptr);
    if (!is_known) {
        queued.looked_until = now + kLookAgain;
        queued.wake_at = kNever;
    }
    queued.looked_changes = num_changes_;
    if (choice.instance == nullptr) {
        if (is_head) {
            // Those behind it may pass, but not for ever: with a stream of small requests a large one never fits.
            queued.stuck_since = queued.stuck_since < 0 ? now : queued.stuck_since;
            kept_ = now - queued.stuck_since >= kKeepAfter ? nearest_to_fit(want) : nullptr;
        }
        wake_at_ = std::min(wake_at_, queued.wake_at);
        return false;
    }
    if (config_.placement == Placement::predicted && config_.hold && choice.harm > config_.harm_floor &&
        want.slack != kNever) {
        // Somebody's tokens would come late: wait for a place without harm while the slack allows it. Nobody waits
        // for those who take more than their share.
        const double ttft = choice.prediction.ttft;
        const double spare = want.slack - ttft * choice.instance->ttft_factor(ttft).value();
        const double patience = want.is_below_share ? config_.patience_below_share : config_.patience;
        const double until = queued.since + patience * (now - queued.since + spare);
        if (is_known) {
            // One without harm has not come up. When the waiting ends all are compared again.
            wake_at_ = std::min(wake_at_, queued.wake_at);
            return false;
        }
        if (until > now) {
            queued.wake_at = std::min(until, queued.looked_until);
            queued.looked_until = queued.wake_at;
            wake_at_ = std::min(wake_at_, queued.wake_at);
            return false;
        }
    }
    Decision why = explain(choice, want, queued, now);
    why.candidates = std::move(candidates);
    send(queued, want, choice, std::move(why), now, out);
    return true;
}

// Shed or relegate what even the best instance would start too late.
bool GeneratePool::is_too_late(Queued& queued, const Wanted& want, double now, std::vector<Command>& out) {
    if (!config_.shed || !config_.hold || queued.is_relegated || want.slack == kNever) {
        return false;
    }
    const double best = best_ttft(want, now);
    if (best == kNever || config_.shed_margin * best <= want.slack) {
        return false;
    }
    const RequestId id = queued.request.id;
    if (!queued.request.may_shed) {
        relegate(id);
        return true;
    }
    Decision why = decision("", queued.since, now);
    why.predicted_ttft = best;
    if (shared_.receipts) {
        why.reason = "its first token would come " + std::to_string(best) + " s from now, its slack is " +
                     std::to_string(want.slack) + " s";
    }
    shed(id, ShedCode::overloaded, std::move(why), now, out);
    return true;
}

double GeneratePool::longest_prompt() const {
    double longest = -1;
    for (const auto& instance : instances_) {
        if (instance->is_open) {
            longest = std::max(longest, std::min<double>(instance->spec.limits.max_context, instance->capacity) - 1);
        }
    }
    return longest < 0 ? kNever : longest;
}

void GeneratePool::refuse_too_long(
    const Queued& queued, double longest, double now, std::vector<Command>& out) {
    Decision why = decision("", queued.since, now);
    if (shared_.receipts) {
        why.reason = "its " + std::to_string(queued.request.num_prompt_tokens) +
                     " prompt tokens fit no instance; the largest takes " +
                     std::to_string(static_cast<std::uint64_t>(longest));
    }
    shed(queued.request.id, ShedCode::context_length_exceeded, std::move(why), now, out);
}

const InstanceState* GeneratePool::nearest_to_fit(const Wanted& want) const {
    const InstanceState* nearest = nullptr;
    double least = kNever;
    for (const auto& instance : instances_) {
        const Ask asked = ask(*instance, want);
        if (!instance->is_open || asked.prompt + 1 > instance->spec.limits.max_context ||
            asked.prompt + 1 > instance->capacity) {
            continue;
        }
        const double filled = instance->peak_memory(asked) / instance->capacity;
        if (filled < least) {
            nearest = instance.get();
            least = filled;
        }
    }
    return nearest;
}

bool GeneratePool::refuse_on_arrival(const Request& request, double now, std::vector<Command>& out) {
    const Wanted want = wanted(request, now);
    if (want.slack == kNever || instances_.empty() || !request.may_shed) {
        return false;
    }
    prefixes_.match_all(request.blocks, matched_);
    double best = best_ttft(want, now);
    if (!config_.hold) {
        // What is pushed cannot be reconsidered: the prediction for the instance that would get it decides.
        const Choice choice = choose(want, now, 0, nullptr);
        best = choice.instance == nullptr ? best : choice.prediction.ttft;
    }
    if (best == kNever || config_.shed_margin * best <= want.slack) {
        return false;
    }
    Decision why = decision("", now, now);
    why.predicted_ttft = best;
    if (shared_.receipts) {
        why.reason = "even the best instance would give the first token in " + std::to_string(best) +
                     " s, its slack is " + std::to_string(want.slack) + " s";
    }
    shed(request.id, ShedCode::overloaded, std::move(why), now, out);
    return true;
}

double GeneratePool::best_ttft(const Wanted& want, double now) {
    double best = kNever;
    for (const auto& instance : instances_) {
        if (!instance->is_open || want.request.num_prompt_tokens + 1 > instance->spec.limits.max_context) {
            continue;
        }
        instance->refresh(now);
        const Ask asked = ask(*instance, want);
        const Prediction prediction = instance->predict(asked);
        const double quick = prediction.ttft - prediction.memory_wait;
        best = std::min(best, quick * instance->ttft_factor(quick).value());
    }
    return best;
}

void GeneratePool::send(
    const Queued& queued, const Wanted& want, const Choice& choice, Decision why, double now,
    std::vector<Command>& out) {
    InstanceState& instance = *choice.instance;
    Flight flight;
    flight.uncached = static_cast<std::uint32_t>(choice.ask.uncached());
    flight.expected_tokens = static_cast<float>(want.expected);
    flight.reserved_tokens = static_cast<float>(want.reserved);
    flight.predicted_ttft = choice.prediction.ttft;
    flight.predicted_tpot = choice.prediction.tpot;
    flight.prior_ttft = choice.prediction.ttft / instance.online.scale(Regime::mixed);
    flight.prior_tpot = choice.prediction.tpot / instance.online.scale(Regime::decode);
    flight.stall = instance.stall_seconds(choice.ask);
    for (std::size_t i = 0; i < flight.length.at.size(); ++i) {
        const Request& request = queued.request;
        flight.length.at[i] = static_cast<float>(shared_.lengths.quantile(
            request.tenant, request.route, id_, LengthShape::kLevels[i], request.max_tokens));
    }
    loads_.served(queued.service, now);
    instance.routed_tokens += choice.ask.uncached();
    if (!queued.request.blocks.empty()) {
        prefixes_.insert(instance.spec.id, queued.request.blocks);
    }
    place(queued, instance, flight, 0, std::move(why), now, out);
}

void GeneratePool::finished(const Flight& flight, std::uint32_t num_tokens) {
    if (num_tokens == 0) {
        return;
    }
    shared_.lengths.record(flight.tenant, flight.route, id_, num_tokens);
    // Virtual counters count what was really generated.
    if (flight.expected_tokens > 0) {
        const double expected = flight.expected_tokens;
        const double decode_share = expected / (expected + 4.0 * flight.prompt / 10.0);
        queue_.charge(flight.tenant, flight.tier, flight.service * decode_share * (num_tokens / expected - 1.0));
    }
}

void GeneratePool::instance_added(InstanceState& instance) {
    const std::uint64_t blocks = instance.spec.limits.kv_tokens / std::max(1U, instance.spec.prefix_block);
    instance.prefix_slot =
        prefixes_.add_instance(instance.spec.id, std::clamp<std::uint64_t>(blocks, 1, kMaxPrefixBlocks));
}

void GeneratePool::instance_removed(InstanceId id) { prefixes_.remove_instance(id); }

}  // namespace sage::policy
