#include "sage/policy/prefix_index.hpp"

#include <algorithm>
#include <bit>

namespace sage::policy {
namespace {

// Blocks ahead of the one at hand that are being loaded: at ~10 outstanding misses a core's memory pipeline is full.
constexpr std::size_t kPrefetchDistance = 8;

// num_matched[slot] = depth for the slots in word `word` of a bitset.
void assign(std::vector<std::uint32_t>& num_matched, std::size_t word, std::uint64_t slots, std::uint32_t depth) {
    for (; slots != 0; slots &= slots - 1) {
        const std::size_t slot = word * 64 + static_cast<std::size_t>(std::countr_zero(slots));
        if (slot >= num_matched.size()) {
            return;
        }
        num_matched[slot] = depth;
    }
}

}  // namespace

PrefixIndex::PrefixIndex(std::size_t max_blocks_per_instance)
    : default_max_blocks_(std::max<std::size_t>(max_blocks_per_instance, 1)) {}

std::uint32_t PrefixIndex::add_instance(InstanceId instance, std::size_t max_blocks) {
    max_blocks = max_blocks == 0 ? default_max_blocks_ : max_blocks;
    const auto [known, is_new] = slots_.try_emplace(instance, kNoSlot);
    if (!is_new) {
        const std::uint32_t slot = known->second;
        while (held_[slot].size() > max_blocks) {
            remove_oldest(slot);
        }
        held_[slot].set_max_blocks(max_blocks);
    } else if (!free_slots_.empty()) {
        known->second = free_slots_.back();
        free_slots_.pop_back();
        held_[known->second] = RecentBlocks(max_blocks);
    } else {
        known->second = static_cast<std::uint32_t>(held_.size());
        held_.emplace_back(max_blocks);
    }
    holders_.reserve_slots(held_.size());
    return known->second;
}

void PrefixIndex::remove_instance(InstanceId instance) {
    const auto known = slots_.find(instance);
    if (known == slots_.end()) {
        return;
    }
    const std::uint32_t slot = known->second;
    while (held_[slot].size() > 0) {
        remove_oldest(slot);
    }
    held_[slot] = RecentBlocks(0);
    free_slots_.push_back(slot);
    slots_.erase(known);
}

void PrefixIndex::insert(InstanceId instance, std::span<const std::uint64_t> blocks) {
    const std::uint32_t slot = this->slot(instance);
    if (slot == kNoSlot) {
        return;
    }
    RecentBlocks& held = held_[slot];
    blocks = blocks.first(std::min(blocks.size(), held.max_blocks()));
    for (std::size_t left = blocks.size(); left > 0; --left) {
        if (left > kPrefetchDistance) {
            held.prefetch(blocks[left - 1 - kPrefetchDistance]);
            holders_.prefetch(blocks[left - 1 - kPrefetchDistance]);
        }
        const std::uint64_t block = blocks[left - 1];
        if (held.is_full() && !held.contains(block)) {
            remove_oldest(slot);
        }
        if (held.touch(block)) {
            holders_.add(block, slot);
        }
    }
}

std::uint32_t PrefixIndex::matched(InstanceId instance, std::span<const std::uint64_t> blocks) const {
    const std::uint32_t slot = this->slot(instance);
    if (slot == kNoSlot) {
        return 0;
    }
    const auto missing = std::find_if_not(
        blocks.begin(), blocks.end(), [&](std::uint64_t block) { return held_[slot].contains(block); });
    return static_cast<std::uint32_t>(missing - blocks.begin());
}

void PrefixIndex::match_all(std::span<const std::uint64_t> blocks, std::vector<std::uint32_t>& num_matched) const {
    num_matched.assign(num_slots(), 0);
    const std::size_t num_words = holders_.num_words();
    left_.assign(num_words, ~std::uint64_t{0});
    for (std::size_t ahead = 0; ahead < std::min(blocks.size(), kPrefetchDistance); ++ahead) {
        holders_.prefetch(blocks[ahead]);
    }
    std::uint32_t depth = 0;
    for (; depth < blocks.size(); ++depth) {
        if (depth + kPrefetchDistance < blocks.size()) {
            holders_.prefetch(blocks[depth + kPrefetchDistance]);
        }
        const std::uint64_t* holders = holders_.find(blocks[depth]);
        if (holders == nullptr) {
            break;
        }
        std::uint64_t any_left = 0;
        for (std::size_t word = 0; word < num_words; ++word) {
            assign(num_matched, word, left_[word] & ~holders[word], depth);
            left_[word] &= holders[word];
            any_left |= left_[word];
        }
        if (any_left == 0) {
            return;
        }
    }
    for (std::size_t word = 0; word < num_words; ++word) {
        assign(num_matched, word, left_[word], depth);
    }
}

std::uint32_t PrefixIndex::slot(InstanceId instance) const {
    const auto known = slots_.find(instance);
    return known == slots_.end() ? kNoSlot : known->second;
}

std::size_t PrefixIndex::num_blocks(InstanceId instance) const {
    const std::uint32_t slot = this->slot(instance);
    return slot == kNoSlot ? 0 : held_[slot].size();
}

std::size_t PrefixIndex::num_bytes() const {
    std::size_t bytes = holders_.num_bytes();
    for (const RecentBlocks& held : held_) {
        bytes += held.num_bytes();
    }
    return bytes;
}

void PrefixIndex::remove_oldest(std::uint32_t slot) { holders_.remove(held_[slot].remove_oldest(), slot); }

}  // namespace sage::policy
