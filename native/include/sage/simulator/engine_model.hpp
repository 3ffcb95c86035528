// Continuous batching without a model: which sequences advance in a step, and how long it takes. No clock of its own.
//
// Follows vLLM V1 (vllm/v1/core/sched/scheduler.py, 0.19 to 0.32): running sequences first, prompts in chunks under one
// token budget per step, admission in order of arrival and only if the whole sequence fits the free blocks, recompute
// preemption of the newest sequence, cached prefixes, and planning one step ahead of execution. Checked against vLLM's
// own scheduler step by step: tests/vllm/test_engine_model.py. Where it deviates:
//   generated tokens are not shared between requests, only with the sequence itself after a preemption;
//   a group of blocks is held as a whole, also where a prompt's last cached block has to be computed again;
//   a block that another sequence computed meanwhile is not cached a second time;
//   with unequal priorities, a sequence that gives way to itself does not hold up those behind it for a step.
//
// Every decoding sequence gains a token in every step, so a step costs O(1) beside those that start or end in it:
// lengths follow from the number of decode steps so far, and new blocks are due by the phase of a sequence modulo the
// block size. At most one sequence is between chunks of its prompt, and it is the last one running.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "sage/simulator/block_pool.hpp"
#include "sage/step_cost.hpp"

namespace sage::simulator {

using Slot = std::uint32_t;

// What an engine is asked to do. `groups` must outlive the sequence.
struct SequenceRequest {
    std::uint64_t tag = 0;            // the caller's own name for it
    std::uint32_t num_prompt = 0;
    std::uint32_t num_generated = 0;  // by earlier attempts; recomputed like the prompt
    std::uint32_t num_output = 0;     // tokens after which it ends, earlier ones included; 0: when it is removed
    std::int32_t priority = 0;        // higher first
    std::span<const std::uint64_t> groups;  // chained hashes of the prompt's leading groups
    std::uint32_t group_tokens = 512;
};

// What one step does. Slots stay valid until the next step.
struct Step {
    double seconds = 0;
    std::uint32_t num_tokens = 0;    // computed in it; 0: there was nothing to do
    std::uint32_t num_decoding = 0;  // sequences that had a token in the step before, too
    std::vector<Slot> emitting;      // sequences that have one more token after it, in the order they run
    std::vector<Slot> prefilled;     // those of them whose prompt was completed
    std::vector<Slot> finished;      // those of them that end
    std::vector<Slot> preempted;     // sequences thrown out while it was planned

    void clear();
};

class EngineModel {
public:
    // Throws std::invalid_argument for limits that no engine can have.
    EngineModel(const StepCost& cost, const EngineLimits& limits);

    // Throws std::invalid_argument for a sequence that could never run.
    Slot submit(const SequenceRequest& request);
    // Free a sequence in any phase. It leaves the step in flight, too.
    void remove(Slot slot);
    // Begin the next step; the step before is over. The caller lets `seconds` pass, then hands out the tokens.
    const Step& step();
    // The step is over, though the next one does not begin yet: what finished in it is forgotten.
    void complete() { settle(steps_[current_]); }

    // True where nothing is left to do once the step in flight is over.
    [[nodiscard]] bool is_idle() const { return num_live_ == steps_[current_].finished.size(); }
    [[nodiscard]] std::uint32_t num_running() const;
    [[nodiscard]] std::uint32_t num_waiting() const { return static_cast<std::uint32_t>(waiting_.size()); }
    [[nodiscard]] std::uint64_t num_resident() const;    // tokens held by sequences
    [[nodiscard]] double kv_used() const;                // share of the blocks, 0..1
    [[nodiscard]] std::uint64_t num_preemptions() const { return num_preemptions_; }
    [[nodiscard]] std::uint32_t max_sequence_tokens() const { return max_sequence_tokens_; }

    [[nodiscard]] std::uint64_t tag(Slot slot) const { return sequences_[slot].tag; }
    // Prompt tokens that were not computed when the sequence was first admitted.
    [[nodiscard]] std::uint32_t num_cached(Slot slot) const { return sequences_[slot].num_cached; }
    // Times the sequence was thrown out and had to start again.
    [[nodiscard]] std::uint32_t num_preempted(Slot slot) const { return sequences_[slot].num_preempted; }
    // Output tokens handed out, by earlier attempts too; those of steps in flight are not counted.
    [[nodiscard]] std::uint32_t num_delivered(Slot slot) const;
    // Every sequence that is not over, in no order.
    void list(std::vector<Slot>& slots) const;

    // Count everything afresh; throws std::logic_error that says what is off.
    void check() const;

private:
    enum class State : std::uint8_t {
        absent,
        waiting,
        prefilling,
        decoding,
        ending,  // its last token is in a step that is planned or runs
        ended,   // and its blocks are given back
    };

    struct Sequence {
        std::uint64_t tag = 0;
        std::span<const std::uint64_t> groups;
        std::uint64_t arrival = 0;
        std::uint64_t since = 0;      // decoding: number of decode steps when it had `resident` tokens
        std::uint64_t last_step = 0;  // decoding: number of decode steps after which it ends
        std::uint32_t group_blocks = 0;
        std::uint32_t num_prompt = 0;
        std::uint32_t num_tokens = 0;  // to have in the cache before the next token comes
        std::uint32_t num_left = 0;    // output tokens still to come; 0: no limit
        std::uint32_t resident = 0;
        std::uint32_t num_shared = 0;  // leading blocks that belong to pinned groups
        std::uint32_t num_cached = 0;
        std::uint32_t num_preempted = 0;
        std::uint32_t saved_from = 0;  // first block of the saved run
        BlockPool::Run saved = BlockPool::kNoRun;
        std::int32_t priority = 0;
        State state = State::absent;
        bool is_publishing = true;
        bool was_admitted = false;
    };

    struct Waiting {
        std::int32_t priority;
        std::uint64_t arrival;
        Slot slot;
    };

    // The prefill part of a step that is being planned.
    struct Chunks {
        std::uint64_t num_tokens = 0;
        std::uint64_t num_single = 0;  // sequences that compute one token only: the engine sees them as decoding
        std::uint64_t context = 0;
        double work = 0;
    };

    void check_request(const SequenceRequest& request) const;
    void plan(Step& step);
    void settle(Step& step);
    // Make room for a decode step and the next chunk of the unfinished prompt. Returns the size of that chunk.
    std::uint32_t make_room(Step& step);
    void decode(Step& step);
    void admit(Step& step, std::uint32_t budget, Chunks& chunks);
    bool try_admit(Sequence& sequence);
    void prefill(Slot slot, std::uint32_t size, Step& step, Chunks& chunks);
    void begin_decoding(Slot slot, Step& step);
    void publish(Sequence& sequence);
    void end_decoding(Step& step);
    [[nodiscard]] Slot newest() const;
    void preempt(Slot slot, Step& step);
    void end(Slot slot);
    void enqueue(Slot slot);
    void leave_decoding(Slot slot);
    void free_blocks(Sequence& sequence);
    void save_blocks(Sequence& sequence, std::uint32_t num_tokens);
    void unpin(Sequence& sequence);
    void forget(Slot slot);

    [[nodiscard]] std::uint32_t resident(const Sequence& sequence) const;
    [[nodiscard]] std::uint64_t blocks(std::uint64_t num_tokens) const {
        return (num_tokens + limits_.block_tokens - 1) / limits_.block_tokens;
    }
    [[nodiscard]] std::uint64_t blocks_due() const { return due_[num_steps_ % limits_.block_tokens]; }
    [[nodiscard]] std::uint32_t& due(const Sequence& sequence);
    [[nodiscard]] std::uint32_t num_in_flight(Slot slot) const;

    StepCost cost_;
    EngineLimits limits_;
    std::uint64_t watermark_blocks_;
    std::uint32_t max_sequence_tokens_;
    BlockPool pool_;

    std::vector<Sequence> sequences_;
    std::vector<Slot> spare_;
    std::vector<Waiting> waiting_;  // a heap, first one first
    std::vector<Slot> decoding_;    // in the order they run
    std::vector<std::uint64_t> last_steps_;  // of decoding_, beside it: scanned when somebody ends
    std::vector<std::uint32_t> due_;         // decoding sequences that need a block, by decode step modulo block size
    std::uint64_t next_end_;                 // the smallest of last_steps_
    Slot prefilling_;
    std::uint32_t num_ending_ = 0;
    std::uint32_t num_live_ = 0;
    std::uint64_t num_steps_ = 0;            // decode steps planned
    std::uint64_t decode_resident_ = 0;      // tokens of decoding_
    std::uint64_t num_arrivals_ = 0;
    std::uint64_t num_preemptions_ = 0;

    bool has_preempted_ = false;  // for the step that is being planned

    // The step that runs, and with asynchronous scheduling the one planned after it.
    std::array<Step, 2> steps_;
    std::size_t current_ = 0;
    bool is_next_planned_ = false;
};

}  // namespace sage::simulator
