// What part of a prompt each instance already has in its KV cache: chained block hashes -> instances.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "sage/policy/block_holders.hpp"
#include "sage/policy/policy.hpp"
#include "sage/policy/recent_blocks.hpp"

namespace sage::policy {

// Follows the engines' prefix caches (least recently used blocks leave first) from what was dispatched to them. A
// block's hash covers all blocks before it, so a hash stands for a whole prefix. A use of a chain refreshes it from its
// tail to its head: a block is always more recent than those that follow it, and chains lose their tails first.
// The order of the calls is the order of use. Unknown instances hold nothing. Not for several threads.
class PrefixIndex {
public:
    static constexpr std::uint32_t kNoSlot = ~std::uint32_t{0};

    // `max_blocks_per_instance` is for instances that are added without a limit of their own.
    explicit PrefixIndex(std::size_t max_blocks_per_instance = 4096);

    // Follow an instance whose KV cache has room for `max_blocks` blocks (0: the default), and return its slot: a small
    // number that is its own until it is removed, then given to another. A known instance gets a new limit and keeps
    // its most recent blocks and its slot.
    std::uint32_t add_instance(InstanceId instance, std::size_t max_blocks = 0);
    // Forget an instance and what it holds. Linear in its blocks.
    void remove_instance(InstanceId instance);
    // The instance was given, or has used, this chain: it holds the blocks now, the least recently used others leave.
    // Of a chain longer than the limit the leading blocks are kept.
    void insert(InstanceId instance, std::span<const std::uint64_t> blocks);

    // How many leading blocks of the chain the instance holds.
    [[nodiscard]] std::uint32_t matched(InstanceId instance, std::span<const std::uint64_t> blocks) const;
    // The same for every instance in one walk: num_matched[slot of the instance]; resized to num_slots(), 0 in slots
    // without an instance. Stops at the first block that no instance is left for.
    void match_all(std::span<const std::uint64_t> blocks, std::vector<std::uint32_t>& num_matched) const;

    [[nodiscard]] std::uint32_t slot(InstanceId instance) const;  // kNoSlot: unknown
    [[nodiscard]] std::size_t num_slots() const { return held_.size(); }
    [[nodiscard]] std::size_t num_blocks(InstanceId instance) const;
    // Distinct blocks over all instances.
    [[nodiscard]] std::size_t num_blocks() const { return holders_.num_blocks(); }
    [[nodiscard]] std::size_t num_bytes() const;

private:
    void remove_oldest(std::uint32_t slot);

    std::size_t default_max_blocks_;
    BlockHolders holders_;
    std::vector<RecentBlocks> held_;  // by slot
    std::unordered_map<InstanceId, std::uint32_t> slots_;
    std::vector<std::uint32_t> free_slots_;
    mutable std::vector<std::uint64_t> left_;  // scratch of match_all: slots that hold the chain so far
};

}  // namespace sage::policy
