#include "http.hpp"

#include <algorithm>
#include <charconv>
#include <cstring>

namespace bench {
namespace {

constexpr std::string_view line_end = "\r\n";
constexpr std::string_view head_end = "\r\n\r\n";

std::size_t number(std::string_view digits, int base) {
    std::size_t value = 0;
    while (!digits.empty() && digits.front() == ' ') {
        digits.remove_prefix(1);
    }
    std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    return value;
}

// Call `take(name, value)` for each header line of `head`, whose first line is left out.
template <typename Take>
void for_each_header(std::string_view head, Take take) {
    std::size_t position = head.find(line_end);
    while (position != std::string_view::npos) {
        position += line_end.size();
        const std::size_t end = std::min(head.find(line_end, position), head.size());
        const std::string_view line = head.substr(position, end - position);
        const std::size_t colon = line.find(':');
        if (colon != std::string_view::npos) {
            take(line.substr(0, colon), line.substr(colon + 1));
        }
        position = end == head.size() ? std::string_view::npos : end;
    }
}

}  // namespace

bool is_header(std::string_view header, std::string_view name) {
    return header.size() == name.size() && strncasecmp(header.data(), name.data(), name.size()) == 0;
}

RequestReader::State RequestReader::next(const std::string& in, Request& request) {
    if (in.size() < num_needed_) {
        return State::incomplete;
    }
    const std::size_t end = in.find(head_end);
    if (end == std::string::npos) {
        return State::incomplete;
    }
    const std::string_view head = std::string_view(in).substr(0, end);
    const std::size_t method_end = head.find(' ');
    const std::size_t target_end = method_end == head.npos ? head.npos : head.find(' ', method_end + 1);
    if (target_end == head.npos) {
        return State::malformed;
    }
    std::size_t length = 0;
    bool is_chunked = false;
    bool expects_continue = false;
    request.is_last = false;
    for_each_header(head, [&](std::string_view name, std::string_view value) {
        if (is_header(name, "content-length")) {
            length = number(value, 10);
        } else if (is_header(name, "transfer-encoding")) {
            is_chunked = value.find("chunked") != value.npos;
        } else if (is_header(name, "connection")) {
            request.is_last = value.find("close") != value.npos;
        } else if (is_header(name, "expect")) {
            expects_continue = true;
        }
    });
    const std::size_t body_start = end + head_end.size();
    std::optional<std::size_t> body_end;
    if (is_chunked) {
        body_end = read_chunks(in, body_start);
        request.body = chunked_;
    } else if (in.size() >= body_start + length) {
        body_end = body_start + length;
        request.body = std::string_view(in).substr(body_start, length);
    } else {
        num_needed_ = body_start + length;
    }
    if (!body_end) {
        const bool is_first = expects_continue && !is_continue_told_;
        is_continue_told_ = is_continue_told_ || expects_continue;
        return is_first ? State::wants_continue : State::incomplete;
    }
    num_needed_ = 0;
    is_continue_told_ = false;
    request.num_bytes = *body_end;
    request.method = head.substr(0, method_end);
    const std::string_view target = head.substr(method_end + 1, target_end - method_end - 1);
    const std::size_t mark = target.find('?');
    request.path = target.substr(0, mark);
    request.query = mark == target.npos ? std::string_view{} : target.substr(mark + 1);
    return State::complete;
}

std::optional<std::size_t> RequestReader::read_chunks(const std::string& in, std::size_t position) {
    chunked_.clear();
    for (;;) {
        const std::size_t end = in.find(line_end, position);
        if (end == std::string::npos) {
            return std::nullopt;
        }
        const std::size_t size = number(std::string_view(in).substr(position, end - position), 16);
        const std::size_t start = end + line_end.size();
        if (in.size() < start + size + line_end.size()) {
            return std::nullopt;
        }
        chunked_.append(in, start, size);
        position = start + size + line_end.size();
        if (size == 0) {
            return position;
        }
    }
}

std::optional<bool> ResponseReader::read_framing(std::string_view rest, std::size_t& position) {
    switch (state_) {
        case State::head: {
            const std::size_t end = rest.find(head_end);
            if (end == rest.npos) {
                return std::nullopt;
            }
            read_head(rest.substr(0, end));
            position += end + head_end.size();
            if (status_ == 100) {
                start();
                return false;
            }
            state_ = is_chunked_ ? State::chunk_size : State::body;
            return false;
        }
        case State::chunk_size: {
            const std::size_t end = rest.find(line_end);
            if (end == rest.npos) {
                return std::nullopt;
            }
            num_left_ = number(rest.substr(0, end), 16);
            position += end + line_end.size();
            state_ = num_left_ > 0 ? State::chunk : State::trailer;
            return false;
        }
        case State::chunk_end:
            if (rest.size() < line_end.size()) {
                return std::nullopt;
            }
            position += line_end.size();
            state_ = State::chunk_size;
            return false;
        default: {
            const std::size_t end = rest.find(line_end);
            if (end == rest.npos) {
                return std::nullopt;
            }
            position += end + line_end.size();
            return end == 0;
        }
    }
}

void ResponseReader::read_head(std::string_view head) {
    const std::size_t space = head.find(' ');
    status_ = space == head.npos ? 0 : static_cast<int>(number(head.substr(space), 10));
    is_until_close_ = true;
    for_each_header(head, [&](std::string_view name, std::string_view value) {
        if (is_header(name, "content-length")) {
            num_left_ = number(value, 10);
            is_until_close_ = false;
        } else if (is_header(name, "transfer-encoding")) {
            is_chunked_ = value.find("chunked") != value.npos;
        } else if (is_header(name, "connection")) {
            is_last_ = value.find("close") != value.npos;
        }
    });
    is_until_close_ = is_until_close_ && !is_chunked_;
}

}  // namespace bench
