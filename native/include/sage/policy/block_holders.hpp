// Which instances hold a block: an open-addressed table from block hash to a bitset of slots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sage::policy {

// One entry is a block's hash and its bitset side by side, so that a look-up touches one cache line. A block without
// holders has no entry, which is also how a free entry is told: its bitset is zero.
class BlockHolders {
public:
    BlockHolders();

    // Widen the bitsets to hold that many slots; never narrows them.
    void reserve_slots(std::size_t num_slots);
    // `slot` must be below the reserved number. Doubles the table where it would be more than half full.
    void add(std::uint64_t block, std::uint32_t slot);
    // Does nothing where the slot does not hold the block.
    void remove(std::uint64_t block, std::uint32_t slot);
    // The bitset of the block, num_words() long; nullptr where nobody holds it. Valid until the next change.
    [[nodiscard]] const std::uint64_t* find(std::uint64_t block) const;
    // Load the block's entry into the cache ahead of find().
    void prefetch(std::uint64_t block) const { __builtin_prefetch(&words_[home(block) * stride_]); }

    [[nodiscard]] std::size_t num_words() const { return stride_ - 1; }
    [[nodiscard]] std::size_t num_blocks() const { return num_blocks_; }
    [[nodiscard]] std::size_t num_bytes() const { return words_.capacity() * sizeof(std::uint64_t); }

private:
    [[nodiscard]] std::size_t home(std::uint64_t block) const {
        return static_cast<std::size_t>((block * 0x9E3779B97F4A7C15ULL) >> shift_);
    }
    [[nodiscard]] bool is_free(std::size_t position) const;
    // Where the block is, or the free entry where it belongs.
    [[nodiscard]] std::size_t locate(std::uint64_t block) const;
    void rebuild(std::size_t num_entries, std::size_t stride);
    void close_gap(std::size_t gap);

    std::vector<std::uint64_t> words_;  // per entry: hash, bitset
    std::size_t stride_ = 2;
    std::size_t mask_ = 0;
    unsigned shift_ = 0;
    std::size_t num_blocks_ = 0;
};

}  // namespace sage::policy
