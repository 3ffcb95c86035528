#include "sage/policy/recent_blocks.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace sage::policy {

RecentBlocks::RecentBlocks(std::size_t max_blocks) : max_blocks_(max_blocks) {
    const std::size_t num_entries = std::bit_ceil(std::max<std::size_t>(max_blocks, 2) * 2);
    index_.assign(num_entries, kNone);
    mask_ = num_entries - 1;
    shift_ = 64U - static_cast<unsigned>(std::countr_zero(num_entries));
}

bool RecentBlocks::touch(std::uint64_t block) {
    const std::size_t position = locate(block);
    std::uint32_t node = index_[position];
    const bool is_new = node == kNone;
    if (!is_new) {
        unlink(node);
    } else if (unused_ != kNone) {
        node = std::exchange(unused_, nodes_[unused_].older);
    } else {
        node = static_cast<std::uint32_t>(nodes_.size());
        nodes_.push_back({});
    }
    if (is_new) {
        nodes_[node].block = block;
        index_[position] = node;
        ++size_;
    }
    link_newest(node);
    return is_new;
}

std::uint64_t RecentBlocks::remove_oldest() {
    const std::uint32_t node = oldest_;
    const std::uint64_t block = nodes_[node].block;
    const std::size_t position = locate(block);
    unlink(node);
    index_[position] = kNone;
    close_gap(position);
    nodes_[node].older = std::exchange(unused_, node);
    --size_;
    return block;
}

void RecentBlocks::set_max_blocks(std::size_t max_blocks) {
    RecentBlocks other(max_blocks);
    for (std::uint32_t node = oldest_; node != kNone; node = nodes_[node].newer) {
        other.touch(nodes_[node].block);
    }
    *this = std::move(other);
}

std::size_t RecentBlocks::locate(std::uint64_t block) const {
    std::size_t position = home(block);
    while (index_[position] != kNone && nodes_[index_[position]].block != block) {
        position = (position + 1) & mask_;
    }
    return position;
}

void RecentBlocks::link_newest(std::uint32_t node) {
    nodes_[node].older = newest_;
    nodes_[node].newer = kNone;
    (newest_ == kNone ? oldest_ : nodes_[newest_].newer) = node;
    newest_ = node;
}

void RecentBlocks::unlink(std::uint32_t node) {
    const auto [block, older, newer] = nodes_[node];
    (older == kNone ? oldest_ : nodes_[older].newer) = newer;
    (newer == kNone ? newest_ : nodes_[newer].older) = older;
}

// Linear probing without tombstones: move entries back that were displaced over the gap.
void RecentBlocks::close_gap(std::size_t gap) {
    for (std::size_t next = (gap + 1) & mask_; index_[next] != kNone; next = (next + 1) & mask_) {
        const std::size_t displacement = (next - home(nodes_[index_[next]].block)) & mask_;
        if (displacement < ((next - gap) & mask_)) {
            continue;
        }
        index_[gap] = std::exchange(index_[next], kNone);
        gap = next;
    }
}

}  // namespace sage::policy
