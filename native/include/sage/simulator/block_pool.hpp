// The KV cache of one engine in blocks: private blocks, shared prefixes, and what is cached though nobody uses it.
//
// Follows vLLM V1 (vllm/v1/core/block_pool.py): freed full blocks stay cached in a queue, least recently freed first,
// tail blocks before head blocks; allocation takes blocks that can never be hit before it evicts from that queue.
// Blocks are kept in runs, one per group of a prompt (`group_blocks` blocks with one hash), not one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace sage::simulator {

class BlockPool {
public:
    using Run = std::uint32_t;
    static constexpr Run kNoRun = UINT32_MAX;

    // How much of a prompt is cached: `num_blocks` from its start, of which `num_idle` are free blocks until pinned.
    struct Hit {
        std::uint64_t num_blocks = 0;
        std::uint64_t num_idle = 0;
    };

    explicit BlockPool(std::uint64_t num_blocks) : num_blocks_(num_blocks) {}

    [[nodiscard]] std::uint64_t num_blocks() const { return num_blocks_; }
    [[nodiscard]] std::uint64_t num_used() const { return num_used_; }
    // Blocks that can be had, cached ones included.
    [[nodiscard]] std::uint64_t num_free() const { return num_blocks_ - num_used_; }
    // Free blocks that still hold a prefix.
    [[nodiscard]] std::uint64_t num_cached() const { return num_idle_; }

    // Private blocks; `count` must be free.
    void allocate(std::uint64_t count) {
        num_used_ += count;
        if (num_used_ + num_idle_ > num_blocks_) evict(num_used_ + num_idle_ - num_blocks_);
    }
    void release(std::uint64_t count) { num_used_ -= count; }
    // Give back private blocks whose content nobody can name again; they compete with what is cached all the same.
    void release_full(std::uint64_t count);
    // Give back private blocks that their sequence will ask for when it comes back.
    [[nodiscard]] Run save(std::uint64_t count);
    // Blocks of a saved run that were not evicted; they stay free.
    [[nodiscard]] std::uint64_t num_saved(Run run) const { return runs_[run].num_blocks; }
    // End a saved run: `num_kept` of its blocks are private again, the others free.
    void take_back(Run run, std::uint64_t num_kept);

    // Longest cached prefix of `groups`, at most `limit` blocks.
    [[nodiscard]] Hit find(
        std::span<const std::uint64_t> groups, std::uint64_t group_blocks, std::uint64_t limit) const;
    // Hold a group, so that it is not evicted. It must be cached.
    void pin(std::uint64_t group);
    void unpin(std::uint64_t group);
    // Turn `count` private blocks into the next blocks of a group that has `before` of them. False, and nothing done,
    // where the group has another number: somebody else computed it, too.
    bool publish(std::uint64_t group, std::uint64_t before, std::uint64_t count);

    // Blocks held by pinned groups, counted afresh. Throws std::logic_error where the books do not add up.
    [[nodiscard]] std::uint64_t count_pinned() const;

private:
    enum class Kind : std::uint8_t { free, group, saved, anonymous };
    struct Entry {
        std::uint64_t group = 0;
        std::uint64_t num_blocks = 0;
        std::uint32_t num_pins = 0;
        Run before = kNoRun;
        Run after = kNoRun;
        Kind kind = Kind::free;
        bool is_queued = false;
    };

    Run make(Kind kind, std::uint64_t num_blocks);
    void destroy(Run run);
    void enqueue(Run run);
    void unqueue(Run run);
    void evict(std::uint64_t count);

    std::uint64_t num_blocks_;
    std::uint64_t num_used_ = 0;
    std::uint64_t num_idle_ = 0;
    std::size_t num_findable_ = 0;  // queued runs that can be hit
    std::vector<Entry> runs_;
    std::vector<Run> spare_;
    std::unordered_map<std::uint64_t, Run> groups_;
    Run first_ = kNoRun;
    Run last_ = kNoRun;
};

}  // namespace sage::simulator
