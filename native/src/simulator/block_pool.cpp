// See block_pool.hpp.
#include "sage/simulator/block_pool.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sage::simulator {

BlockPool::Run BlockPool::make(Kind kind, std::uint64_t num_blocks) {
    Run run;
    if (spare_.empty()) {
        run = static_cast<Run>(runs_.size());
        runs_.emplace_back();
    } else {
        run = spare_.back();
        spare_.pop_back();
    }
    runs_[run] = {.num_blocks = num_blocks, .kind = kind};
    return run;
}

void BlockPool::destroy(Run run) {
    runs_[run].kind = Kind::free;
    spare_.push_back(run);
}

void BlockPool::enqueue(Run run) {
    Entry& entry = runs_[run];
    entry.before = last_;
    entry.after = kNoRun;
    (last_ == kNoRun ? first_ : runs_[last_].after) = run;
    last_ = run;
    entry.is_queued = true;
    num_idle_ += entry.num_blocks;
    if (entry.kind != Kind::anonymous) ++num_findable_;
}

void BlockPool::unqueue(Run run) {
    Entry& entry = runs_[run];
    (entry.before == kNoRun ? first_ : runs_[entry.before].after) = entry.after;
    (entry.after == kNoRun ? last_ : runs_[entry.after].before) = entry.before;
    entry.is_queued = false;
    num_idle_ -= entry.num_blocks;
    if (entry.kind != Kind::anonymous) --num_findable_;
}

void BlockPool::evict(std::uint64_t count) {
    while (count > 0) {
        const Run run = first_;
        Entry& entry = runs_[run];
        const std::uint64_t taken = std::min(count, entry.num_blocks);
        entry.num_blocks -= taken;
        num_idle_ -= taken;
        count -= taken;
        if (entry.num_blocks > 0) return;
        unqueue(run);
        if (entry.kind == Kind::group) groups_.erase(entry.group);
        if (entry.kind != Kind::saved) destroy(run);  // a saved run ends when its sequence comes back
    }
}

void BlockPool::release_full(std::uint64_t count) {
    num_used_ -= count;
    // Behind nothing that could be hit, blocks that cannot be hit are as good as empty ones: both are taken first.
    if (count > 0 && num_findable_ > 0) enqueue(make(Kind::anonymous, count));
}

BlockPool::Run BlockPool::save(std::uint64_t count) {
    num_used_ -= count;
    const Run run = make(Kind::saved, count);
    if (count > 0) enqueue(run);
    return run;
}

void BlockPool::take_back(Run run, std::uint64_t num_kept) {
    Entry& entry = runs_[run];
    num_used_ += num_kept;
    if (!entry.is_queued) return destroy(run);
    if (num_kept == entry.num_blocks) {
        unqueue(run);
        return destroy(run);
    }
    // The others keep their place in the queue, though nobody will ask for them.
    entry.num_blocks -= num_kept;
    entry.kind = Kind::anonymous;
    num_idle_ -= num_kept;
    --num_findable_;
}

BlockPool::Hit BlockPool::find(
    std::span<const std::uint64_t> groups, std::uint64_t group_blocks, std::uint64_t limit) const {
    Hit hit;
    for (const std::uint64_t group : groups) {
        if (hit.num_blocks >= limit) break;
        const auto found = groups_.find(group);
        if (found == groups_.end()) break;
        const Entry& entry = runs_[found->second];
        hit.num_blocks += entry.num_blocks;
        if (entry.num_pins == 0) hit.num_idle += entry.num_blocks;
        if (entry.num_blocks < group_blocks) break;
    }
    hit.num_blocks = std::min(hit.num_blocks, limit);
    return hit;
}

void BlockPool::pin(std::uint64_t group) {
    const Run run = groups_.at(group);
    Entry& entry = runs_[run];
    if (entry.num_pins++ == 0) {
        unqueue(run);
        num_used_ += entry.num_blocks;
    }
}

void BlockPool::unpin(std::uint64_t group) {
    const Run run = groups_.at(group);
    Entry& entry = runs_[run];
    if (--entry.num_pins == 0) {
        num_used_ -= entry.num_blocks;
        enqueue(run);
    }
}

bool BlockPool::publish(std::uint64_t group, std::uint64_t before, std::uint64_t count) {
    if (before == 0) {
        const auto [position, is_new] = groups_.try_emplace(group, kNoRun);
        if (!is_new) return false;
        const Run run = make(Kind::group, count);
        runs_[run].group = group;
        runs_[run].num_pins = 1;
        position->second = run;
        return true;
    }
    Entry& entry = runs_[groups_.at(group)];
    if (entry.num_blocks != before) return false;
    entry.num_blocks += count;
    return true;
}

std::uint64_t BlockPool::count_pinned() const {
    std::uint64_t pinned = 0;
    std::uint64_t idle = 0;
    for (const Entry& entry : runs_) {
        if (entry.kind == Kind::group && entry.num_pins > 0) pinned += entry.num_blocks;
        if (entry.is_queued) idle += entry.num_blocks;
        if (entry.is_queued && entry.num_pins > 0) throw std::logic_error("a pinned group of blocks can be evicted");
    }
    if (idle != num_idle_ || num_used_ + num_idle_ > num_blocks_) {
        throw std::logic_error(
            "blocks are not conserved: " + std::to_string(num_used_) + " used and " + std::to_string(num_idle_) +
            " cached (" + std::to_string(idle) + " counted) of " + std::to_string(num_blocks_));
    }
    return pinned;
}

}  // namespace sage::simulator
