// See engine_model.hpp.
#include "sage/simulator/engine_model.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace sage::simulator {

namespace {

constexpr Slot kNoSlot = std::numeric_limits<Slot>::max();
constexpr std::uint64_t kNoStep = std::numeric_limits<std::uint64_t>::max();

// True where `left` is to be admitted after `right`: the order of a heap whose front is first.
constexpr auto is_later = [](const auto& left, const auto& right) {
    return left.priority != right.priority ? left.priority < right.priority : left.arrival > right.arrival;
};

// Messages are built only to be thrown: formatting numbers for complaints never made was 5 % of a simulation.
[[noreturn]] void refuse(const char* name, std::uint64_t found, const char* expected, std::uint64_t bound) {
    throw std::invalid_argument(
        std::string(name) + " is " + std::to_string(found) + "; expected " + expected + " " + std::to_string(bound));
}

const EngineLimits& checked(const EngineLimits& limits) {
    if (limits.block_tokens == 0) refuse("block_tokens", 0, "at least", 1);
    if (limits.max_sequences == 0) refuse("max_sequences", 0, "at least", 1);
    if (limits.max_step_tokens < limits.max_sequences) {
        refuse("max_step_tokens", limits.max_step_tokens, "at least max_sequences,", limits.max_sequences);
    }
    const std::uint64_t two_blocks = 2 * std::uint64_t{limits.block_tokens};
    if (limits.kv_tokens < two_blocks) refuse("kv_tokens", limits.kv_tokens, "at least two blocks,", two_blocks);
    if (!(limits.watermark >= 0 && limits.watermark < 1)) {
        throw std::invalid_argument(
            "watermark is " + std::to_string(limits.watermark) + "; expected 0 <= watermark < 1");
    }
    return limits;
}

void take_out(std::vector<Slot>& slots, Slot slot) { std::erase(slots, slot); }

}  // namespace

void Step::clear() {
    seconds = 0;
    num_tokens = 0;
    num_decoding = 0;
    emitting.clear();
    prefilled.clear();
    finished.clear();
    preempted.clear();
}

EngineModel::EngineModel(const StepCost& cost, const EngineLimits& limits)
    : cost_(cost),
      limits_(checked(limits)),
      watermark_blocks_(static_cast<std::uint64_t>(
          limits.watermark * static_cast<double>(limits.kv_tokens / limits.block_tokens))),
      // vLLM keeps one block for padding (the null block).
      pool_(limits.kv_tokens / limits.block_tokens - 1),
      due_(limits.block_tokens, 0),
      next_end_(kNoStep),
      prefilling_(kNoSlot) {
    max_sequence_tokens_ = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(limits.max_context, pool_.num_blocks() * limits.block_tokens));
}

void EngineModel::check_request(const SequenceRequest& request) const {
    if (request.num_prompt == 0) refuse("num_prompt", 0, "at least", 1);
    if (request.num_output != 0 && request.num_output <= request.num_generated) {
        refuse("num_output", request.num_output, "more than num_generated,", request.num_generated);
    }
    const std::uint64_t total =
        std::uint64_t{request.num_prompt} + std::max(request.num_output, request.num_generated + 1);
    if (total > max_sequence_tokens_) refuse("prompt plus output", total, "at most", max_sequence_tokens_);
    if (request.groups.empty()) return;
    if (request.group_tokens == 0 || request.group_tokens % limits_.block_tokens != 0) {
        refuse("prefix_block", request.group_tokens, "a multiple of block_tokens,", limits_.block_tokens);
    }
    const std::uint64_t most = (std::uint64_t{request.num_prompt} + request.group_tokens - 1) / request.group_tokens;
    if (request.groups.size() > most) refuse("number of blocks", request.groups.size(), "at most", most);
}

Slot EngineModel::submit(const SequenceRequest& request) {
    check_request(request);
    Slot slot;
    if (spare_.empty()) {
        slot = static_cast<Slot>(sequences_.size());
        sequences_.emplace_back();
    } else {
        slot = spare_.back();
        spare_.pop_back();
    }
    sequences_[slot] = {
        .tag = request.tag,
        .groups = request.groups,
        .arrival = num_arrivals_++,
        .group_blocks = request.group_tokens / limits_.block_tokens,
        .num_prompt = request.num_prompt,
        .num_tokens = request.num_prompt + request.num_generated,
        .num_left = request.num_output == 0 ? 0 : request.num_output - request.num_generated,
        .priority = request.priority,
    };
    ++num_live_;
    enqueue(slot);
    return slot;
}

const Step& EngineModel::step() {
    settle(steps_[current_]);
    if (is_next_planned_) current_ ^= 1;
    Step& now = steps_[current_];
    if (now.num_tokens == 0) {
        plan(now);
        if (now.num_tokens == 0 && num_live_ > 0) {
            throw std::logic_error("a sequence outgrew the KV cache; expected the caller to end it before");
        }
    }
    is_next_planned_ = limits_.async_scheduling;
    if (is_next_planned_) plan(steps_[current_ ^ 1]);
    return now;
}

// The outputs of a step are known: its finished sequences leave.
void EngineModel::settle(Step& step) {
    for (const Slot slot : step.finished) {
        if (sequences_[slot].state == State::ending) end(slot);
        forget(slot);
    }
    step.clear();
}

void EngineModel::plan(Step& step) {
    step.clear();
    has_preempted_ = false;
    const std::uint32_t size = make_room(step);
    const double resident_before = static_cast<double>(decode_resident_);
    decode(step);
    Chunks chunks;
    std::uint32_t budget = limits_.max_step_tokens - step.num_decoding;
    if (size > 0) {
        prefill(prefilling_, size, step, chunks);
        budget -= size;
    }
    if (!has_preempted_) admit(step, budget, chunks);

    step.num_tokens = step.num_decoding + static_cast<std::uint32_t>(chunks.num_tokens);
    if (step.num_tokens == 0) return;
    const auto num_single = static_cast<double>(step.num_decoding + chunks.num_single);
    const auto num_prefill = static_cast<double>(chunks.num_tokens - chunks.num_single);
    const double context = resident_before + static_cast<double>(chunks.context);
    step.seconds = num_prefill > 0 ? cost_.mixed(num_prefill, num_single, context, chunks.work)
                                   : cost_.decode(num_single, context);
}

std::uint32_t EngineModel::make_room(Step& step) {
    while (blocks_due() > pool_.num_free()) preempt(newest(), step);
    if (prefilling_ == kNoSlot) return 0;
    const Sequence& sequence = sequences_[prefilling_];
    const auto budget = limits_.max_step_tokens - static_cast<std::uint32_t>(decoding_.size());
    const std::uint32_t size = std::min(sequence.num_tokens - sequence.resident, budget);
    const std::uint64_t needed = blocks(sequence.resident + size) - blocks(sequence.resident);
    while (prefilling_ != kNoSlot && blocks_due() + needed > pool_.num_free()) preempt(newest(), step);
    return prefilling_ == kNoSlot ? 0 : size;
}

void EngineModel::decode(Step& step) {
    if (decoding_.empty()) return;
    if (const std::uint64_t needed = blocks_due(); needed > 0) pool_.allocate(needed);
    step.num_decoding = static_cast<std::uint32_t>(decoding_.size());
    step.emitting = decoding_;
    ++num_steps_;
    decode_resident_ += decoding_.size();
    if (num_steps_ >= next_end_) end_decoding(step);
}

// Take those out whose last token is in this step; they hold their blocks until it is over.
void EngineModel::end_decoding(Step& step) {
    std::size_t kept = 0;
    next_end_ = kNoStep;
    for (std::size_t i = 0; i < decoding_.size(); ++i) {
        const Slot slot = decoding_[i];
        if (last_steps_[i] > num_steps_) {
            decoding_[kept] = slot;
            last_steps_[kept++] = last_steps_[i];
            next_end_ = std::min(next_end_, last_steps_[i]);
            continue;
        }
        Sequence& sequence = sequences_[slot];
        --due(sequence);
        sequence.resident = resident(sequence);
        decode_resident_ -= sequence.resident;
        sequence.state = State::ending;
        ++num_ending_;
        step.finished.push_back(slot);
    }
    decoding_.resize(kept);
    last_steps_.resize(kept);
}

void EngineModel::admit(Step& step, std::uint32_t budget, Chunks& chunks) {
    while (budget > 0 && !waiting_.empty() && num_running() < limits_.max_sequences) {
        const Slot slot = waiting_.front().slot;
        Sequence& sequence = sequences_[slot];
        if (!try_admit(sequence)) return;
        std::pop_heap(waiting_.begin(), waiting_.end(), is_later);
        waiting_.pop_back();
        sequence.state = State::prefilling;
        const std::uint32_t size = std::min(budget, sequence.num_tokens - sequence.resident);
        prefilling_ = slot;
        prefill(slot, size, step, chunks);
        budget -= size;
    }
}

// The whole sequence must fit (scheduler_reserve_full_isl), though only the next chunk is allocated.
bool EngineModel::try_admit(Sequence& sequence) {
    const std::uint64_t total = blocks(sequence.num_tokens);
    const std::uint64_t free = pool_.num_free();
    const std::uint64_t watermark = num_running() > 0 ? watermark_blocks_ : 0;
    // The last token is computed in any case, for its output.
    const std::uint64_t limit = (sequence.num_tokens - 1) / limits_.block_tokens;
    BlockPool::Hit hit;
    if (!sequence.groups.empty()) {
        const std::uint64_t of_prompt = sequence.num_prompt / limits_.block_tokens;
        hit = pool_.find(sequence.groups, sequence.group_blocks, std::min(limit, of_prompt));
    }
    if (total - hit.num_blocks + hit.num_idle + watermark > free) return false;

    for (std::uint64_t i = 0; i * sequence.group_blocks < hit.num_blocks; ++i) pool_.pin(sequence.groups[i]);
    std::uint64_t num_hit = hit.num_blocks;
    if (sequence.saved != BlockPool::kNoRun) {
        const std::uint64_t end = std::min(sequence.saved_from + pool_.num_saved(sequence.saved), limit);
        const std::uint64_t kept = num_hit >= sequence.saved_from && end > num_hit ? end - num_hit : 0;
        pool_.take_back(sequence.saved, kept);
        sequence.saved = BlockPool::kNoRun;
        num_hit += kept;
    }
    sequence.num_shared = static_cast<std::uint32_t>(hit.num_blocks);
    sequence.is_publishing = true;
    sequence.resident = static_cast<std::uint32_t>(num_hit * limits_.block_tokens);
    if (!sequence.was_admitted) sequence.num_cached = sequence.resident;
    sequence.was_admitted = true;
    return true;
}

void EngineModel::prefill(Slot slot, std::uint32_t size, Step& step, Chunks& chunks) {
    Sequence& sequence = sequences_[slot];
    pool_.allocate(blocks(sequence.resident + size) - blocks(sequence.resident));
    chunks.num_tokens += size;
    chunks.context += sequence.resident;
    if (size == 1) {
        ++chunks.num_single;
    } else {
        const double length = size;
        chunks.work += length * (sequence.resident + length / 2);
    }
    sequence.resident += size;
    if (!sequence.groups.empty()) publish(sequence);
    if (sequence.resident < sequence.num_tokens) return;
    prefilling_ = kNoSlot;
    begin_decoding(slot, step);
}

void EngineModel::begin_decoding(Slot slot, Step& step) {
    Sequence& sequence = sequences_[slot];
    step.emitting.push_back(slot);
    step.prefilled.push_back(slot);
    if (sequence.num_left == 1) {
        sequence.state = State::ending;
        ++num_ending_;
        step.finished.push_back(slot);
        return;
    }
    sequence.state = State::decoding;
    sequence.since = num_steps_;
    sequence.last_step = sequence.num_left == 0 ? kNoStep : num_steps_ + sequence.num_left - 1;
    decoding_.push_back(slot);
    last_steps_.push_back(sequence.last_step);
    next_end_ = std::min(next_end_, sequence.last_step);
    ++due(sequence);
    decode_resident_ += sequence.resident;
}

// What was computed of the prompt's groups can be hit from now on, as in vLLM, which caches a block when it is planned.
void EngineModel::publish(Sequence& sequence) {
    const std::uint32_t full = std::min(sequence.resident, sequence.num_prompt) / limits_.block_tokens;
    while (sequence.is_publishing && sequence.num_shared < full) {
        const std::uint32_t index = sequence.num_shared / sequence.group_blocks;
        if (index >= sequence.groups.size()) return;
        const std::uint32_t before = sequence.num_shared % sequence.group_blocks;
        const std::uint32_t count = std::min(sequence.group_blocks - before, full - sequence.num_shared);
        sequence.is_publishing = pool_.publish(sequence.groups[index], before, count);
        if (sequence.is_publishing) sequence.num_shared += count;
    }
}

Slot EngineModel::newest() const {
    Slot found = prefilling_;
    const auto consider = [this, &found](Slot slot) {
        if (found == kNoSlot || is_later(sequences_[slot], sequences_[found])) found = slot;
    };
    std::ranges::for_each(decoding_, consider);
    // Planning ahead, vLLM takes the blocks of those, too, whose last token is only being computed.
    for (const Slot slot : steps_[current_].finished) {
        if (sequences_[slot].state == State::ending) consider(slot);
    }
    return found;
}

void EngineModel::preempt(Slot slot, Step& step) {
    Sequence& sequence = sequences_[slot];
    has_preempted_ = true;
    if (sequence.state == State::ending) return end(slot);
    // Planning ahead, the newest token of the cache is only being computed: its block is not to be had again.
    std::uint32_t num_computing = 0;
    if (sequence.state == State::decoding) {
        num_computing = limits_.async_scheduling && num_steps_ > sequence.since ? 1 : 0;
        leave_decoding(slot);
        sequence.num_tokens = sequence.resident + 1;  // the newest one is not in the cache yet
        if (sequence.num_left > 0) sequence.num_left = static_cast<std::uint32_t>(sequence.last_step - num_steps_);
    } else {
        prefilling_ = kNoSlot;
    }
    save_blocks(sequence, sequence.resident - num_computing);
    ++sequence.num_preempted;
    ++num_preemptions_;
    step.preempted.push_back(slot);
    enqueue(slot);
}

void EngineModel::enqueue(Slot slot) {
    Sequence& sequence = sequences_[slot];
    sequence.state = State::waiting;
    // A preempted sequence keeps its arrival: before everything of its priority that never ran.
    waiting_.push_back({sequence.priority, sequence.arrival, slot});
    std::push_heap(waiting_.begin(), waiting_.end(), is_later);
}

void EngineModel::leave_decoding(Slot slot) {
    Sequence& sequence = sequences_[slot];
    const auto position = std::find(decoding_.begin(), decoding_.end(), slot);
    last_steps_.erase(last_steps_.begin() + (position - decoding_.begin()));
    decoding_.erase(position);
    --due(sequence);
    sequence.resident = resident(sequence);
    decode_resident_ -= sequence.resident;
}

void EngineModel::end(Slot slot) {
    Sequence& sequence = sequences_[slot];
    sequence.num_tokens = sequence.resident + 1;
    sequence.state = State::ended;
    free_blocks(sequence);
    --num_ending_;
}

// Give everything back; the sequence is over.
void EngineModel::free_blocks(Sequence& sequence) {
    const std::uint32_t num_full = sequence.resident / limits_.block_tokens;
    pool_.release(blocks(sequence.resident) - num_full);
    pool_.release_full(num_full - sequence.num_shared);
    unpin(sequence);
}

// Give everything back; the sequence will ask for its first `num_tokens` tokens again.
void EngineModel::save_blocks(Sequence& sequence, std::uint32_t num_tokens) {
    const std::uint32_t num_full = num_tokens / limits_.block_tokens;
    pool_.release(blocks(sequence.resident) - num_full);
    if (num_full > sequence.num_shared) {
        sequence.saved = pool_.save(num_full - sequence.num_shared);
        sequence.saved_from = sequence.num_shared;
    }
    unpin(sequence);
}

// After the private blocks, and from the last group to the first: what was freed first is evicted first.
void EngineModel::unpin(Sequence& sequence) {
    if (sequence.num_shared > 0) {
        for (std::uint32_t i = (sequence.num_shared - 1) / sequence.group_blocks + 1; i-- > 0;) {
            pool_.unpin(sequence.groups[i]);
        }
    }
    sequence.resident = 0;
    sequence.num_shared = 0;
}

void EngineModel::remove(Slot slot) {
    Sequence& sequence = sequences_[slot];
    switch (sequence.state) {
        case State::absent: return;
        case State::waiting:
            std::erase_if(waiting_, [slot](const Waiting& entry) { return entry.slot == slot; });
            std::make_heap(waiting_.begin(), waiting_.end(), is_later);
            if (sequence.saved != BlockPool::kNoRun) pool_.take_back(sequence.saved, 0);
            break;
        case State::prefilling: prefilling_ = kNoSlot; break;
        case State::decoding: leave_decoding(slot); break;
        case State::ending: end(slot); break;
        case State::ended: break;
    }
    if (sequence.state != State::waiting) free_blocks(sequence);
    for (Step& step : steps_) {
        take_out(step.emitting, slot);
        take_out(step.prefilled, slot);
        take_out(step.finished, slot);
        take_out(step.preempted, slot);
    }
    forget(slot);
}

void EngineModel::forget(Slot slot) {
    sequences_[slot].state = State::absent;
    spare_.push_back(slot);
    --num_live_;
}

std::uint32_t EngineModel::num_running() const {
    return static_cast<std::uint32_t>(decoding_.size()) + (prefilling_ == kNoSlot ? 0U : 1U) + num_ending_;
}

std::uint64_t EngineModel::num_resident() const {
    return decode_resident_ + (prefilling_ == kNoSlot ? 0 : sequences_[prefilling_].resident);
}

double EngineModel::kv_used() const {
    return static_cast<double>(pool_.num_used()) / static_cast<double>(pool_.num_blocks());
}

std::uint32_t EngineModel::num_in_flight(Slot slot) const {
    std::uint32_t count = 0;
    for (const Step& step : steps_) count += static_cast<std::uint32_t>(std::ranges::count(step.emitting, slot));
    return count;
}

std::uint32_t EngineModel::num_delivered(Slot slot) const {
    const Sequence& sequence = sequences_[slot];
    const bool has_newest = sequence.state == State::decoding || sequence.state == State::ending;
    const std::uint32_t num_tokens = has_newest ? resident(sequence) + 1 : sequence.num_tokens;
    return num_tokens - sequence.num_prompt - num_in_flight(slot);
}

void EngineModel::list(std::vector<Slot>& slots) const {
    for (Slot slot = 0; slot < sequences_.size(); ++slot) {
        if (sequences_[slot].state != State::absent) slots.push_back(slot);
    }
}

std::uint32_t EngineModel::resident(const Sequence& sequence) const {
    if (sequence.state != State::decoding) return sequence.resident;
    return sequence.resident + static_cast<std::uint32_t>(num_steps_ - sequence.since);
}

std::uint32_t& EngineModel::due(const Sequence& sequence) {
    const std::uint64_t size = limits_.block_tokens;
    return due_[(sequence.since + size - sequence.resident % size) % size];
}

void EngineModel::check() const {
    const auto expect = [](bool holds, const char* what) {
        if (!holds) throw std::logic_error(std::string("an engine's books are off: ") + what);
    };
    std::uint64_t num_private = 0;
    std::uint64_t num_tokens = 0;
    std::size_t num_live = 0;
    std::size_t num_waiting = 0;
    std::vector<std::uint32_t> due_now(limits_.block_tokens, 0);
    for (const Sequence& sequence : sequences_) {
        if (sequence.state == State::absent) continue;
        ++num_live;
        num_waiting += sequence.state == State::waiting ? 1 : 0;
        const std::uint32_t held = resident(sequence);
        num_private += blocks(held) - sequence.num_shared;
        if (sequence.state == State::decoding) {
            num_tokens += held;
            const std::uint64_t size = limits_.block_tokens;
            ++due_now[(num_steps_ + size - held % size) % size];
        }
    }
    expect(num_live == num_live_, "sequences");
    expect(num_waiting == waiting_.size(), "waiting sequences");
    expect(num_tokens == decode_resident_, "resident tokens");
    expect(due_now == due_, "blocks due");
    expect(num_running() <= limits_.max_sequences, "more sequences than the engine takes");
    expect(num_private + pool_.count_pinned() == pool_.num_used(), "used blocks");
}

}  // namespace sage::simulator
