// What will happen, earliest first; events of one time in the order in which they were added.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sage::simulator {

enum class Happening : std::uint8_t {
    stage_due,    // id: stage
    delivered,    // id: request, instance: dispatched to it
    abort,        // id: request, instance
    kick,         // instance: start working, if there is something to do; id: its incarnation
    step_ended,   // instance, id: its incarnation
    tell_started,   // id: request
    tell_first,     // id: request, extra: num_cached
    tell_finished,  // id: request, extra: num_tokens
    tell_up,      // instance
    tell_down,    // instance, extra: 1 if lost
    bounced,      // id: request that reached a dead instance
    telemetry_due,
    tell_telemetry,
    disturbance,  // id: its index
};

class Calendar {
public:
    struct Entry {
        double time;
        std::uint64_t order;
        std::uint64_t id;
        std::uint32_t extra;
        std::uint32_t instance : 24;
        std::uint32_t what : 8;
    };

    void add(double time, Happening what, std::uint64_t id, std::uint32_t instance = 0, std::uint32_t extra = 0) {
        entries_.push_back({});
        sift_up(
            entries_.size() - 1,
            {time, num_added_++, id, extra, instance & 0xFFFFFFU, static_cast<std::uint8_t>(what)});
    }

    [[nodiscard]] bool empty() const { return entries_.empty(); }
    [[nodiscard]] std::size_t size() const { return entries_.size(); }
    [[nodiscard]] double next_time() const { return entries_.front().time; }

    Entry take() {
        const Entry first = entries_.front();
        const Entry last = entries_.back();
        entries_.pop_back();
        if (!entries_.empty()) sift_down(last);
        return first;
    }

private:
    static constexpr std::size_t kWays = 4;  // shallower than a binary heap, and the children share cache lines

    static bool is_before(const Entry& left, const Entry& right) {
        return left.time != right.time ? left.time < right.time : left.order < right.order;
    }

    void sift_up(std::size_t hole, const Entry& entry) {
        while (hole > 0) {
            const std::size_t parent = (hole - 1) / kWays;
            if (!is_before(entry, entries_[parent])) break;
            entries_[hole] = entries_[parent];
            hole = parent;
        }
        entries_[hole] = entry;
    }

    void sift_down(const Entry& entry) {
        std::size_t hole = 0;
        const std::size_t size = entries_.size();
        while (true) {
            const std::size_t first = hole * kWays + 1;
            if (first >= size) break;
            const std::size_t end = first + kWays < size ? first + kWays : size;
            std::size_t best = first;
            for (std::size_t child = first + 1; child < end; ++child) {
                if (is_before(entries_[child], entries_[best])) best = child;
            }
            if (!is_before(entries_[best], entry)) break;
            entries_[hole] = entries_[best];
            hole = best;
        }
        entries_[hole] = entry;
    }

    std::vector<Entry> entries_;
    std::uint64_t num_added_ = 0;
};

}  // namespace sage::simulator
