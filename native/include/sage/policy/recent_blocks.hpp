// The blocks one instance is thought to hold, in order of last use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sage::policy {

// A set of block hashes with an order of use; every operation is O(1). Memory: about 24 bytes per block of the limit.
class RecentBlocks {
public:
    explicit RecentBlocks(std::size_t max_blocks);

    [[nodiscard]] bool contains(std::uint64_t block) const { return index_[locate(block)] != kNone; }
    // Make the block the most recent; true where it was not there before. The set must not be full then.
    bool touch(std::uint64_t block);
    // Remove the least recently used block and return it. The set must not be empty.
    std::uint64_t remove_oldest();
    // Change the limit, to at least size().
    void set_max_blocks(std::size_t max_blocks);
    void prefetch(std::uint64_t block) const { __builtin_prefetch(&index_[home(block)]); }

    [[nodiscard]] std::size_t size() const { return size_; }
    [[nodiscard]] std::size_t max_blocks() const { return max_blocks_; }
    [[nodiscard]] bool is_full() const { return size_ >= max_blocks_; }
    [[nodiscard]] std::size_t num_bytes() const {
        return nodes_.capacity() * sizeof(Node) + index_.capacity() * sizeof(std::uint32_t);
    }

private:
    static constexpr std::uint32_t kNone = ~std::uint32_t{0};

    struct Node {
        std::uint64_t block;
        std::uint32_t older;
        std::uint32_t newer;
    };

    [[nodiscard]] std::size_t home(std::uint64_t block) const {
        return static_cast<std::size_t>((block * 0x9E3779B97F4A7C15ULL) >> shift_);
    }
    [[nodiscard]] std::size_t locate(std::uint64_t block) const;
    void link_newest(std::uint32_t node);
    void unlink(std::uint32_t node);
    void close_gap(std::size_t gap);

    std::size_t max_blocks_;
    std::size_t size_ = 0;
    std::vector<Node> nodes_;
    std::vector<std::uint32_t> index_;  // open-addressed: hash -> node
    std::size_t mask_ = 0;
    unsigned shift_ = 0;
    std::uint32_t oldest_ = kNone;
    std::uint32_t newest_ = kNone;
    std::uint32_t unused_ = kNone;  // removed nodes, linked by `older`
};

}  // namespace sage::policy
