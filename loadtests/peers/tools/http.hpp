// Just enough HTTP/1.1 for the two ends of a benchmark: requests as a server reads them, responses as a client does.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace bench {

struct Request {
    std::string_view method;
    std::string_view path;
    std::string_view query;
    std::string_view body;
    bool is_last = false;       // the client closes the connection after the answer
    std::size_t num_bytes = 0;  // what it takes at the front of the input
};

// Reads requests with a length or in chunks.
class RequestReader {
public:
    enum class State { incomplete, wants_continue, complete, malformed };

    // Look for a whole request at the front of `in`; its views point into `in` and into this reader.
    State next(const std::string& in, Request& request);

private:
    std::optional<std::size_t> read_chunks(const std::string& in, std::size_t position);

    std::size_t num_needed_ = 0;
    bool is_continue_told_ = false;
    std::string chunked_;
};

// Reads one response after the other: with a length, in chunks, or to the end of the connection.
class ResponseReader {
public:
    // Take what has arrived, calling `on_body` with each piece of the body. Returns true at the end of the response:
    // then nothing after it has been taken, and `start` makes this ready for the next.
    template <typename OnBody>
    bool read(std::string& in, OnBody on_body) {
        std::size_t position = 0;
        const bool is_complete = advance(in, position, on_body);
        in.erase(0, position);
        return is_complete;
    }

    void start() { *this = ResponseReader{}; }
    [[nodiscard]] int status() const { return status_; }
    [[nodiscard]] bool is_last() const { return is_last_ || is_until_close_; }
    // True where the end of the connection is the end of the response.
    [[nodiscard]] bool is_until_close() const { return is_until_close_ && state_ == State::body; }

private:
    enum class State { head, body, chunk_size, chunk, chunk_end, trailer };

    template <typename OnBody>
    bool advance(const std::string& in, std::size_t& position, OnBody on_body) {
        for (;;) {
            const std::string_view rest = std::string_view(in).substr(position);
            if (state_ == State::body || state_ == State::chunk) {
                const std::size_t num = is_until_close_ ? rest.size() : std::min(rest.size(), num_left_);
                if (num > 0) {
                    on_body(rest.substr(0, num));
                }
                position += num;
                num_left_ -= is_until_close_ ? 0 : num;
                if (is_until_close_ || num_left_ > 0) {
                    return false;
                }
                if (state_ == State::body) {
                    return true;
                }
                state_ = State::chunk_end;
                continue;
            }
            const std::optional<bool> is_complete = read_framing(rest, position);
            if (!is_complete) {
                return false;
            }
            if (*is_complete) {
                return true;
            }
        }
    }

    // Take a head, the size or the end of a chunk. nullopt: more must arrive. True: the response has ended.
    std::optional<bool> read_framing(std::string_view rest, std::size_t& position);
    void read_head(std::string_view head);

    State state_ = State::head;
    std::size_t num_left_ = 0;
    int status_ = 0;
    bool is_chunked_ = false;
    bool is_last_ = false;
    bool is_until_close_ = false;
};

// True where `header` is `name` (lower case), whatever its own case.
bool is_header(std::string_view header, std::string_view name);

}  // namespace bench
