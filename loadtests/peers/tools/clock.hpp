// The one clock of all tools, and the stamps by which a token's way through a gateway is measured exactly.
//
// A stamp is CLOCK_MONOTONIC in nanoseconds as 16 hex digits; all processes of one host share that clock. The text of a
// streamed token is " @<sent>"; that of the first token of an answer is " @<sent>~<received>", where `received` is when
// the engine took the request in. So a client knows how long the request travelled to the engine, how long the engine
// held it, and how long each token travelled back.
#pragma once

#include <time.h>

#include <charconv>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace bench {

inline std::uint64_t now_ns() {
    timespec time{};
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000ULL + static_cast<std::uint64_t>(time.tv_nsec);
}

inline constexpr std::size_t num_stamp_digits = 16;

inline void append_hex(std::string& out, std::uint64_t value) {
    char digits[num_stamp_digits];
    for (std::size_t i = num_stamp_digits; i-- > 0; value >>= 4) {
        digits[i] = "0123456789abcdef"[value & 15];
    }
    out.append(digits, num_stamp_digits);
}

// Append the text of a token sent at `sent`; `received` 0 marks any token but the first.
inline void append_stamp(std::string& out, std::uint64_t sent, std::uint64_t received) {
    out += " @";
    append_hex(out, sent);
    if (received != 0) {
        out += '~';
        append_hex(out, received);
    }
}

struct Stamp {
    std::uint64_t sent = 0;
    std::uint64_t received = 0;
};

// Return the first stamp in `text`; both times are 0 where there is none. `received` is only in the first of an answer.
inline Stamp read_stamp(std::string_view text) {
    const auto digits = [](std::string_view from) {
        std::uint64_t value = 0;
        if (from.size() < num_stamp_digits) {
            return value;
        }
        const auto [end, error] = std::from_chars(from.data(), from.data() + num_stamp_digits, value, 16);
        return error == std::errc{} && end == from.data() + num_stamp_digits ? value : 0;
    };
    const std::size_t mark = text.find('@');
    if (mark == std::string_view::npos) {
        return {};
    }
    text.remove_prefix(mark + 1);
    Stamp stamp{.sent = digits(text)};
    if (stamp.sent != 0 && text.size() > num_stamp_digits && text[num_stamp_digits] == '~') {
        stamp.received = digits(text.substr(num_stamp_digits + 1));
    }
    return stamp;
}

// Return the stamp of an answer that came whole: when its request was received, and when its last token was sent.
inline Stamp read_whole_stamp(std::string_view text) {
    const std::size_t last = text.rfind('@');
    return last == std::string_view::npos
               ? Stamp{}
               : Stamp{.sent = read_stamp(text.substr(last)).sent, .received = read_stamp(text).received};
}

}  // namespace bench
