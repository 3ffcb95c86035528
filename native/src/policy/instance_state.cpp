#include "sage/policy/instance_state.hpp"

#include <algorithm>
#include <cmath>

namespace sage::policy {

namespace {

constexpr double kRefreshSeconds = 0.05;
constexpr double kLoadSeconds = 5.0;    // time constant of the prefill load
constexpr std::uint32_t kMinTokens = 8;  // fewer say more about stalls than about speed
constexpr double kTail = 0.5;
constexpr double kOwnShare = 0.7;
constexpr double kHarmSeconds = 0.02;
constexpr double kForeignSeconds = 5.0;  // telemetry older than this says nothing

}  // namespace

InstanceState::InstanceState(const Instance& from, double now) : spec(from), online(from.cost), load_at_(now) {
    update(from);
    progress_from_ = now;
}

void InstanceState::update(const Instance& from) {
    spec = from;
    capacity = static_cast<double>(from.limits.kv_tokens) * (1.0 - from.limits.watermark);
    if (!(online.prior() == from.cost)) {
        online = OnlineCost(from.cost);
    }
    cost = online.cost();
    dirty();
}

QuantileFactor& InstanceState::ttft_factor(double predicted) {
    std::size_t size = 0;
    for (double limit = 0.25; size + 1 < ttft_factors_.size() && predicted > limit; limit *= 4) {
        ++size;
    }
    return ttft_factors_[size];
}

int InstanceState::find(RequestId id) const {
    for (std::size_t i = 0; i < flights.size(); ++i) {
        if (flights[i].id == id) {
            return static_cast<int>(i);
        }
    }
    return -1;
}

void InstanceState::decay_load(double now) {
    if (now > load_at_) {
        prefill_load *= std::exp((load_at_ - now) / kLoadSeconds);
        load_at_ = now;
    }
}

void InstanceState::add(const Flight& flight, const std::vector<std::uint64_t>& blocks, double now) {
    decay_load(now);
    prefill_load += flight.uncached * cost.m1 / kLoadSeconds;
    if (pending <= 0) {
        progress_from_ = now;
    }
    flights.push_back(flight);
    flights.back().order = ++num_added_;
    if (!blocks.empty()) {
        flights.back().num_blocks = static_cast<std::uint32_t>(blocks.size());
        for (const std::uint64_t block : blocks) {
            ++held_blocks_[block];
        }
        num_nominal_blocks_ += blocks.size();
        blocks_.emplace(flight.id, blocks);
    }
    num_batch_tier += flight.is_batch_tier ? 1U : 0U;
    dirty();
    refresh(now);
}

void InstanceState::first_token(RequestId id, std::uint32_t num_cached, double now, bool learn) {
    const int at = find(id);
    if (at < 0 || flights[static_cast<std::size_t>(at)].first_token_at >= 0) {
        return;
    }
    Flight& flight = flights[static_cast<std::size_t>(at)];
    flight.first_token_at = now;
    flight.uncached = flight.prompt > num_cached ? flight.prompt - num_cached : 1;
    progress_from_ = now;
    stalled += flight.stall;
    flight.stalled_from = stalled;
    if (learn && flight.prior_ttft > 0) {
        // From dispatch, never from held time. Of the speed only prompts tell that are most of their own wait: the others
        // tell when the step in progress happened to end.
        const double actual = std::max(1e-6, now - flight.dispatched_at);
        if (flight.stall > kOwnShare * flight.predicted_ttft) {
            online.observe_scale(Regime::mixed, flight.prior_ttft, actual);
        }
        ttft_factor(flight.predicted_ttft).observe(flight.predicted_ttft, actual);
        cost = online.cost();
    }
    dirty();
}

void InstanceState::progressed(RequestId id, std::uint32_t num_tokens, double now) {
    const int at = find(id);
    if (at >= 0 && num_tokens > 0) {
        Flight& flight = flights[static_cast<std::size_t>(at)];
        if (flight.first_token_at < 0) {
            first_token(id, flight.prompt - flight.uncached, now, false);
        }
    }
}

bool InstanceState::remove(RequestId id, std::uint32_t num_tokens, double now, bool learn) {
    const int at = find(id);
    if (at < 0) {
        return false;
    }
    const Flight flight = flights[static_cast<std::size_t>(at)];
    release_blocks(id);
    flights[static_cast<std::size_t>(at)] = flights.back();
    flights.pop_back();
    num_batch_tier -= flight.is_batch_tier ? 1U : 0U;
    if (learn && flight.first_token_at >= 0 && num_tokens > kMinTokens && flight.prior_tpot > 0) {
        online.observe_scale(Regime::decode, flight.prior_tpot, (now - flight.first_token_at) / (num_tokens - 1));
        cost = online.cost();
    } else if (learn && flight.batch_items > 0) {
        online.observe_batch(flight.batch_tokens, flight.batch_items, now - flight.dispatched_at);
        cost = online.cost();
    }
    dirty();
    return true;
}

void InstanceState::telemetry(std::uint32_t num_running, std::uint32_t num_waiting, double, double now) {
    const double seen = static_cast<double>(num_running) + num_waiting;
    foreign_running = std::max(0.0, seen - static_cast<double>(flights.size()));
    foreign_at_ = now;
}

void InstanceState::refresh(double now) {
    if (refreshed_at_ >= 0 && now - refreshed_at_ < kRefreshSeconds) {
        return;
    }
    decay_load(now);
    if (foreign_at_ >= 0 && now - foreign_at_ > kForeignSeconds) {
        foreign_running = 0;
    }
    const double tpot = std::max(1e-6, cost.decode(decoding, resident) / std::max(0.2, 1.0 - prefill_load));
    pending = pending_work = decoding = resident = reserved_ = outstanding_tokens = 0;
    num_pending = 0;
    holds_.clear();
    // Of blocks that several requests hold, each carries its part.
    const double repeated = num_nominal_blocks_ == 0 ? 0.0
                                                     : 1.0 - static_cast<double>(held_blocks_.size()) /
                                                                 static_cast<double>(num_nominal_blocks_);
    for (const Flight& flight : flights) {
        const double own = std::max(
            1.0, flight.prompt - repeated * static_cast<double>(flight.num_blocks) * spec.prefix_block);
        double generated = 0;
        if (flight.first_token_at >= 0) {
            generated = 1.0 + (now - flight.first_token_at) / tpot;
            generated = std::min(generated, std::max<double>(flight.reserved_tokens, flight.expected_tokens) * 4.0);
            decoding += 1;
            resident += flight.prompt + generated;
        } else {
            const double uncached = flight.uncached;
            const double cached = flight.prompt - uncached;
            pending += uncached;
            pending_work += uncached * (cached + uncached / 2);
            resident += cached;
            num_pending += 1;
        }
        reserved_ += flight.prompt + std::max<double>(generated, flight.reserved_tokens);
        outstanding_tokens += flight.prompt + std::max<double>(generated, flight.expected_tokens);
        // Who is past the estimate has a long tail: half as much again as it has by now.
        holds_.push_back(
            {std::max(flight.reserved_tokens - generated, kTail * generated + 8.0), own + generated});
    }
    std::sort(holds_.begin(), holds_.end(), [](const Hold& a, const Hold& b) { return a.remaining > b.remaining; });
    decoding += foreign_running;
    if (pending > 0) {
        const double step_tokens = std::max(1.0, spec.limits.max_step_tokens - decoding);
        const double step = std::max(1e-6, cost.mixed(step_tokens, decoding, resident, 0));
        const double done = std::min(0.9 * pending, (now - progress_from_) / step * step_tokens);
        pending_work *= (pending - done) / pending;
        resident += done;
        pending -= done;
    }
    refreshed_at_ = now;
}

double InstanceState::peak_memory(const Ask& ask) const {
    const Hold added{ask.reserved_tokens, ask.prompt - ask.shared};
    bool is_added = false;
    double held = 0, count = 0, peak = 0;
    const auto count_in = [&](const Hold& hold) {
        held += hold.held;
        count += 1;
        peak = std::max(peak, held + count * hold.remaining);
    };
    for (const Hold& hold : holds_) {
        if (!is_added && added.remaining >= hold.remaining) {
            count_in(added);
            is_added = true;
        }
        count_in(hold);
    }
    if (!is_added) {
        count_in(added);
    }
    return peak;
}

Prediction InstanceState::predict(const Ask& ask) const {
    Prediction result;
    const double uncached = ask.uncached();
    const double total = pending + uncached;
    const double room = std::max(1.0, spec.limits.max_step_tokens - decoding);
    const double steps = std::ceil(total / room);
    // On average half of the step in progress is left when a dispatch arrives.
    const double current = pending > 0 ? cost.mixed(std::min(room, pending), decoding, resident, 0)
                           : decoding > 0 ? cost.decode(decoding, resident)
                                          : 0.0;
    const double work = pending_work + uncached * (ask.cached + uncached / 2);
    const double per_step = cost.host + cost.m0 + (cost.m1 + cost.m4) * decoding + cost.m2 * resident;
    const double short_of = reserved_ + ask.prompt + ask.expected_tokens - capacity;
    const double decode_step = cost.decode(decoding + 1, resident + ask.prompt);
    const double load = std::min(0.8, prefill_load + uncached * cost.m1 / kLoadSeconds);
    result.tpot = decode_step / (1.0 - load);
    if (short_of > 0 && decoding > 0) {
        // Memory comes back at the pace at which sequences end: all of it within their mean remaining time.
        double remaining = 0;
        for (const Flight& flight : flights) {
            remaining += std::max(8.0F, flight.expected_tokens / 2);
        }
        remaining /= static_cast<double>(flights.size());
        result.memory_wait = short_of / std::max(1.0, resident) * remaining * result.tpot;
    }
    result.ttft = current / 2 + steps * per_step + cost.m1 * total + cost.m3 * work + result.memory_wait;
    return result;
}

double InstanceState::stall_seconds(const Ask& ask) const {
    const double uncached = ask.uncached();
    const double room = std::max(1.0, spec.limits.max_step_tokens - decoding);
    const double steps = std::ceil(uncached / room);
    const double extra = cost.m0 - cost.a0 + (cost.m1 + cost.m4 - cost.a1) * decoding;
    return steps * std::max(0.0, extra) + cost.m1 * uncached + cost.m3 * uncached * (ask.cached + uncached / 2);
}

std::uint32_t InstanceState::num_held_blocks(const std::vector<std::uint64_t>& blocks) const {
    std::uint32_t count = 0;
    while (count < blocks.size() && held_blocks_.contains(blocks[count])) {
        ++count;
    }
    return count;
}

void InstanceState::release_blocks(RequestId id) {
    const auto at = blocks_.find(id);
    if (at == blocks_.end()) {
        return;
    }
    for (const std::uint64_t block : at->second) {
        const auto held = held_blocks_.find(block);
        if (--held->second == 0) {
            held_blocks_.erase(held);
        }
    }
    num_nominal_blocks_ -= at->second.size();
    blocks_.erase(at);
}

double InstanceState::harmed_by(double stall, double future_load, double now) {
    if (harm_at_ < 0 || now - harm_at_ > kHarmSeconds) {
        draw_harm(future_load, now);
    }
    for (std::size_t k = 1; k < kStalls.size(); ++k) {
        if (stall <= kStalls[k]) {
            const double share = (stall - kStalls[k - 1]) / (kStalls[k] - kStalls[k - 1]);
            return harm_[k - 1] + share * (harm_[k] - harm_[k - 1]);
        }
    }
    return harm_.back();
}

// Profile of a decision with 64 instances of 127 requests each, before there was a curve: 63 % of the time went here,
// once per candidate and queued request.
void InstanceState::draw_harm(double future_load, double now) {
    harm_at_ = now;
    harm_.fill(0);
    const double bare = cost.decode(decoding, resident);
    if (bare <= 0) {
        return;
    }
    const double tpot = bare / std::max(0.2, 1.0 - future_load * prefill_load);
    double queued = 0;
    for (const Flight& flight : flights) {
        queued += flight.first_token_at < 0 ? flight.stall : 0.0;
    }
    for (const Flight& flight : flights) {
        if (flight.tpot_slo <= tpot || flight.tpot_slo == kNever) {
            continue;
        }
        // With L tokens in all, g of them there by now after e seconds, the target is met if
        // e + stalls + (L - g) * tpot <= slo * (L - 1): outputs shorter than that L will be late.
        double elapsed = 0, generated = 1, ahead = queued;
        if (flight.first_token_at >= 0) {
            elapsed = now - flight.first_token_at;
            const double lost = std::min(elapsed, std::max(0.0, stalled - flight.stalled_from));
            generated = 1.0 + (elapsed - lost) / bare;
        } else {
            // Prompts are computed in the order of dispatch: only those behind it stall it.
            ahead = 0;
            for (const Flight& other : flights) {
                ahead += other.first_token_at < 0 && other.order > flight.order ? other.stall : 0.0;
            }
        }
        const double head = elapsed + ahead - generated * tpot + flight.tpot_slo;
        const double gain = flight.tpot_slo - tpot;
        if (head + kStalls.back() <= generated * gain) {
            continue;
        }
        const double done = flight.length.below(generated);
        const double before = std::max(done, flight.length.below(head / gain));
        const double weight = 1.0 / std::max(0.02, 1.0 - done);
        for (std::size_t k = 1; k < kStalls.size(); ++k) {
            const double after = (head + kStalls[k]) / gain;
            if (after > generated) {
                harm_[k] += std::max(0.0, flight.length.below(after) - before) * weight;
            }
        }
    }
}

double LengthShape::below(double tokens) const {
    if (tokens <= at[0]) {
        return at[0] > 0 ? kLevels[0] * std::max(0.0, tokens) / at[0] : 0.0;
    }
    for (std::size_t i = 1; i < at.size(); ++i) {
        if (tokens <= at[i]) {
            const double width = std::max(1e-6, static_cast<double>(at[i] - at[i - 1]));
            return kLevels[i - 1] + (kLevels[i] - kLevels[i - 1]) * (tokens - at[i - 1]) / width;
        }
    }
    return std::min(1.0, kLevels.back() + (1.0 - kLevels.back()) * (tokens / at.back() - 1.0));
}

}  // namespace sage::policy
