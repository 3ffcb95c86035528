// GeneratePool's choice of an instance: the gates, the score of every placement rule, and the receipt.

#include <algorithm>
#include <cmath>

#include "sage/policy/generate_pool.hpp"

namespace sage::policy {

namespace {

double phi(double share, const Config& config) {
    return share / 2 + config.lateness_weight * std::max(0.0, share - config.knee);
}

}  // namespace

const char* GeneratePool::blocked(const InstanceState& instance, const Wanted& want, Ask& asked) const {
    const EngineLimits& limits = instance.spec.limits;
    if (!instance.is_open) {
        return "draining";
    }
    if (!has_slot(instance, want.request)) {
        return "full";
    }
    if (&instance == kept_) {
        return "kept for the next";
    }
    if (asked.prompt + 1 > limits.max_context || asked.prompt + 1 > instance.capacity) {
        return "context";
    }
    if (!config_.hold || instance.flights.empty()) {
        return "";
    }
    const double by_time = instance.cost.m1 > 0 && want.request.ttft_slo != kNever
                               ? config_.hold_prefill_share * want.request.ttft_slo / instance.cost.m1
                               : kNever;
    if (instance.pending > std::min(config_.hold_prefill_tokens, by_time)) {
        return "prefill backlog";
    }
    // The peak is below the sum of all at their longest, which is at hand.
    const double limit = config_.memory_share * instance.capacity;
    if (instance.reserved_ + asked.prompt + asked.reserved_tokens > limit) {
        asked.shared = std::min<double>(
            instance.num_held_blocks(want.request.blocks) * instance.spec.prefix_block, asked.prompt - 1);
        if (instance.peak_memory(asked) > limit) {
            return "memory";
        }
    }
    if (instance.flights.size() + static_cast<std::size_t>(instance.foreign_running) >= limits.max_sequences) {
        return "sequences";
    }
    if (want.is_above_share && !stays_quick(instance, want, asked)) {
        return "above its share";
    }
    return "";
}

bool GeneratePool::stays_quick(const InstanceState& instance, const Wanted& want, const Ask& asked) const {
    if (instance.num_pending > 0 || instance.peak_memory(asked) > config_.quiet_memory * instance.capacity) {
        return false;
    }
    return want.request.tpot_slo == kNever || instance.predict(asked).tpot <= config_.quiet_tpot * want.request.tpot_slo;
}

GeneratePool::Choice GeneratePool::choose(
    const Wanted& want, double now, std::uint64_t since, std::vector<Candidate>* candidates) {
    usable_.clear();
    for (const auto& instance : instances_) {
        if (instance->changed_at <= since) {
            if (candidates != nullptr) {
                candidates->push_back({instance->spec.id, 0, "did not fit a moment ago"});
            }
            continue;
        }
        instance->refresh(now);
        Choice choice;
        choice.ask = ask(*instance, want);
        choice.instance = instance.get();
        const char* why = blocked(*instance, want, choice.ask);
        if (*why == '\0') {
            choice.prediction = instance->predict(choice.ask);
            choice.score = score(*instance, want, choice, now);
            usable_.push_back(choice);
        }
        if (candidates != nullptr) {
            candidates->push_back({instance->spec.id, choice.score, why});
        }
    }
    if (usable_.empty()) {
        return {};
    }
    apply_two_stage(usable_, want);
    const Choice* best = nullptr;
    std::uint32_t ties = 0;
    for (const Choice& choice : usable_) {
        if (best == nullptr || choice.score < best->score) {
            best = &choice;
            ties = 1;
        } else if (choice.score == best->score && shared_.random.below(++ties) == 0) {
            best = &choice;
        }
    }
    if (config_.placement == Placement::round_robin) {
        ++turn_;
    }
    return *best;
}

double GeneratePool::score(InstanceState& instance, const Wanted& want, Choice& choice, double now) {
    const double uncached = choice.ask.uncached();
    const auto running = static_cast<double>(instance.flights.size());
    switch (config_.placement) {
        case Placement::round_robin:
        case Placement::random:
        case Placement::power_of_two:
        case Placement::headroom:
            return 0;  // see apply_two_stage
        case Placement::least_outstanding:
        case Placement::cache_aware:
            return running;
        case Placement::least_tokens:
            return instance.outstanding_tokens;
        case Placement::dynamo_cost: {
            const double block = std::max(1U, instance.spec.limits.block_tokens);
            double prefill = uncached;
            for (const Flight& flight : instance.flights) {
                prefill += flight.first_token_at < 0 ? flight.uncached : 0U;
            }
            return prefill / block + (instance.resident + choice.ask.prompt) / block;
        }
        case Placement::lmetric: {
            double prefill = uncached;
            for (const Flight& flight : instance.flights) {
                prefill += flight.first_token_at < 0 ? flight.uncached : 0U;
            }
            return prefill * (running + 1);
        }
        case Placement::predicted:
            return predicted_score(instance, want, choice, now);
    }
    return 0;
}

double GeneratePool::predicted_score(
    InstanceState& instance, const Wanted& want, Choice& choice, double now) const {
    const Request& request = want.request;
    const Prediction& prediction = choice.prediction;
    const double ttft = prediction.ttft * instance.ttft_factor(prediction.ttft).value();
    const double e2e = ttft + prediction.tpot * std::max(0.0, want.expected - 1);
    double result = 0;
    if (request.ttft_slo != kNever) {
        result += phi((want.waited + ttft) / request.ttft_slo, config_);
    }
    if (request.tpot_slo != kNever) {
        result += phi(prediction.tpot / request.tpot_slo, config_);
    }
    if (request.e2e_slo != kNever) {
        result += phi((want.waited + e2e) / request.e2e_slo, config_);
    }
    choice.harm = instance.harmed_by(instance.stall_seconds(choice.ask), config_.future_load, now);
    result += config_.harm_weight * choice.harm;
    // Decides where no target is in reach of being missed, and where nothing is known but the number of requests.
    const double slots = std::max(1.0, std::min<double>(instance.spec.max_in_flight, instance.spec.limits.max_sequences));
    return result + 0.01 * e2e + 1e-3 * static_cast<double>(instance.flights.size()) / slots;
}

void GeneratePool::apply_two_stage(std::vector<Choice>& usable, const Wanted& want) {
    const auto count = static_cast<std::uint32_t>(usable.size());
    const auto only = [&usable](std::size_t kept) {
        for (std::size_t i = 0; i < usable.size(); ++i) {
            usable[i].score = i == kept ? 0 : 1;
        }
    };
    const auto load = [](const Choice& choice) { return choice.instance->flights.size(); };
    switch (config_.placement) {
        case Placement::round_robin:
            only(turn_ % count);
            return;
        case Placement::random:
            only(shared_.random.below(count));
            return;
        case Placement::power_of_two: {
            const std::uint32_t one = shared_.random.below(count);
            std::uint32_t other = count > 1 ? shared_.random.below(count - 1) : 0;
            other += count > 1 && other >= one ? 1U : 0U;
            only(load(usable[other]) < load(usable[one]) ? other : one);
            return;
        }
        case Placement::cache_aware: {
            std::size_t most = 0, least = load(usable[0]), smallest = 0, best = 0;
            for (std::size_t i = 0; i < usable.size(); ++i) {
                most = std::max(most, load(usable[i]));
                least = std::min(least, load(usable[i]));
                best = usable[i].ask.cached > usable[best].ask.cached ? i : best;
                const auto tree = [&](std::size_t k) { return usable[k].instance->routed_tokens; };
                smallest = tree(i) < tree(smallest) ? i : smallest;
            }
            if (most > least + 64 && static_cast<double>(most) > 1.5 * static_cast<double>(least)) {
                return;  // out of balance: the shortest queue, which is the score already
            }
            only(usable[best].ask.cached > 0.3 * usable[best].ask.prompt ? best : smallest);
            return;
        }
        case Placement::headroom: {
            // Positive headroom: the least of it, which packs; none: the least negative.
            bool any = false;
            for (Choice& choice : usable) {
                const double ttft = want.slack == kNever ? 1.0 : want.slack - choice.prediction.ttft;
                const double slo = want.request.tpot_slo;
                const double tpot = slo == kNever ? 1.0 : slo - choice.prediction.tpot;
                choice.score = ttft < 0 || tpot < 0 ? std::min(ttft, 0.0) * 0.8 + std::min(tpot, 0.0) * 0.2
                                                    : 0.8 * ttft + 0.2 * tpot;
                choice.harm = ttft < 0 || tpot < 0 ? 0 : 1;
                any = any || choice.harm > 0;
            }
            for (Choice& choice : usable) {
                choice.score = any ? (choice.harm > 0 ? choice.score : kNever) : -choice.score;
                choice.harm = 0;
            }
            return;
        }
        default:
            return;
    }
}

Decision GeneratePool::explain(const Choice& choice, const Wanted& want, const Queued& queued, double now) const {
    Decision why = decision("", queued.since, now);
    why.predicted_ttft = choice.prediction.ttft;
    why.predicted_tpot = choice.prediction.tpot;
    why.predicted_e2e = choice.prediction.ttft + choice.prediction.tpot * std::max(0.0, want.expected - 1);
    if (shared_.receipts) {
        const InstanceState& instance = *choice.instance;
        why.reason = "lowest score of " + std::to_string(usable_.size()) + " usable; " +
                     std::to_string(instance.flights.size()) + " of " +
                     std::to_string(instance.spec.max_in_flight) + " slots taken";
    }
    return why;
}

}  // namespace sage::policy
