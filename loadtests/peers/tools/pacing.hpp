// When a mock engine produces what: answers that are ready take turns, others wait for their time.
#pragma once

#include <cstdint>
#include <deque>
#include <queue>
#include <string_view>
#include <vector>

namespace bench {

// Microseconds to an answer's first token, and between its tokens. Both 0: answers come as fast as they are written.
struct Pace {
    std::uint64_t ttft_us = 0;
    std::uint64_t itl_us = 0;

    [[nodiscard]] bool is_instant() const { return ttft_us == 0 && itl_us == 0; }
    // When token `index` of an answer is due that was asked for at `start_ns`.
    [[nodiscard]] std::uint64_t due_ns(std::uint64_t start_ns, std::uint64_t index) const {
        return start_ns + (ttft_us + index * itl_us) * 1000;
    }
    // Take every `itl_us=N` and `ttft_us=N` of `text`, separated by '&' or ' '.
    void read(std::string_view text);
};

// Answers in the order in which they go on. `Answer` is a pointer or an id; it is in here at most once.
template <typename Answer>
class Turns {
public:
    void push_ready(Answer answer) { ready_.push_back(answer); }
    void push_at(std::uint64_t due_ns, Answer answer) { timed_.push({due_ns, num_pushed_++, answer}); }

    // Call `step` once for each answer that is due or ready now; it pushes the ones that go on.
    template <typename Step>
    void run(std::uint64_t now_ns, Step step) {
        while (!timed_.empty() && timed_.top().due_ns <= now_ns) {
            const Answer answer = timed_.top().answer;
            timed_.pop();
            step(answer);
        }
        for (std::size_t num = ready_.size(); num > 0; --num) {
            const Answer answer = ready_.front();
            ready_.pop_front();
            step(answer);
        }
    }

    // Until when nothing is to be done, as `Poller::wait` takes it.
    [[nodiscard]] std::uint64_t deadline_ns() const {
        if (!ready_.empty()) {
            return 1;
        }
        return timed_.empty() ? 0 : timed_.top().due_ns;
    }

private:
    struct Timed {
        std::uint64_t due_ns;
        std::uint64_t number;
        Answer answer;
        bool operator<(const Timed& other) const {
            return due_ns != other.due_ns ? due_ns > other.due_ns : number > other.number;
        }
    };

    std::deque<Answer> ready_;
    std::priority_queue<Timed> timed_;
    std::uint64_t num_pushed_ = 0;
};

}  // namespace bench
