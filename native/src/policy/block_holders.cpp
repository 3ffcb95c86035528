#include "sage/policy/block_holders.hpp"

#include <algorithm>
#include <bit>
#include <utility>

namespace sage::policy {

BlockHolders::BlockHolders() { rebuild(64, 2); }

void BlockHolders::reserve_slots(std::size_t num_slots) {
    const std::size_t stride = 1 + (num_slots + 63) / 64;
    if (stride > stride_) {
        rebuild(mask_ + 1, stride);
    }
}

void BlockHolders::add(std::uint64_t block, std::uint32_t slot) {
    std::size_t position = locate(block);
    if (is_free(position)) {
        if (++num_blocks_ * 2 > mask_ + 1) {
            rebuild((mask_ + 1) * 2, stride_);
            position = locate(block);
        }
        words_[position * stride_] = block;
    }
    words_[position * stride_ + 1 + slot / 64] |= std::uint64_t{1} << (slot % 64);
}

void BlockHolders::remove(std::uint64_t block, std::uint32_t slot) {
    const std::size_t position = locate(block);
    if (is_free(position)) {
        return;
    }
    words_[position * stride_ + 1 + slot / 64] &= ~(std::uint64_t{1} << (slot % 64));
    if (is_free(position)) {
        --num_blocks_;
        close_gap(position);
    }
}

const std::uint64_t* BlockHolders::find(std::uint64_t block) const {
    const std::size_t position = locate(block);
    return is_free(position) ? nullptr : words_.data() + position * stride_ + 1;
}

bool BlockHolders::is_free(std::size_t position) const {
    const std::uint64_t* entry = words_.data() + position * stride_;
    std::uint64_t held = 0;
    for (std::size_t word = 1; word < stride_; ++word) {
        held |= entry[word];
    }
    return held == 0;
}

std::size_t BlockHolders::locate(std::uint64_t block) const {
    std::size_t position = home(block);
    while (!is_free(position) && words_[position * stride_] != block) {
        position = (position + 1) & mask_;
    }
    return position;
}

void BlockHolders::rebuild(std::size_t num_entries, std::size_t stride) {
    const std::vector<std::uint64_t> old = std::exchange(words_, std::vector<std::uint64_t>(num_entries * stride));
    const std::size_t old_stride = std::exchange(stride_, stride);
    mask_ = num_entries - 1;
    shift_ = 64U - static_cast<unsigned>(std::countr_zero(num_entries));
    for (std::size_t from = 0; from < old.size(); from += old_stride) {
        const auto* entry = old.data() + from;
        if (std::any_of(entry + 1, entry + old_stride, [](std::uint64_t word) { return word != 0; })) {
            std::copy(entry, entry + old_stride, words_.data() + locate(*entry) * stride_);
        }
    }
}

// Linear probing without tombstones: move entries back that were displaced over the gap.
void BlockHolders::close_gap(std::size_t gap) {
    for (std::size_t next = (gap + 1) & mask_; !is_free(next); next = (next + 1) & mask_) {
        std::uint64_t* entry = words_.data() + next * stride_;
        const std::size_t displacement = (next - home(entry[0])) & mask_;
        if (displacement < ((next - gap) & mask_)) {
            continue;
        }
        std::copy(entry, entry + stride_, words_.data() + gap * stride_);
        std::fill(entry, entry + stride_, 0);
        gap = next;
    }
}

}  // namespace sage::policy
