// The load generator: one thread, HTTP/1.1 keep-alive, closed or open loop. Prints one JSON object.
//
// Closed loop: each of C connections sends its next request when the last one ended. Open loop (--rate): arrivals come
// evenly over up to C connections, and latency counts from the time a request was due, not from when it could be sent.
// Only what happens after --warmup and within --duration counts; `all` counts every finished request, for CPU per
// request. Times are in microseconds; see clock.hpp for the stamps behind `to_engine`, `transit` and `added`.
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "channel.hpp"
#include "clock.hpp"
#include "distribution.hpp"
#include "http.hpp"
#include "options.hpp"

namespace bench {
namespace {

constexpr const char* usage =
    "load --port PORT --path PATH --body FILE [-c CONNECTIONS] [--duration S] [--warmup S] [--ramp S] [--rate PER_S]\n"
    "     [--stream] [--tokens N: expected in each stream] [--min-bytes N: of a good answer] [--header 'K: V']...\n";
constexpr std::size_t max_error_bytes = 300;

struct Options {
    std::uint16_t port = 0;
    std::string path = "/";
    std::string body;
    std::string headers;
    std::size_t num_connections = 1;
    double duration = 5;
    double warmup = 1;
    double ramp = 0;
    double rate = 0;
    int num_tokens = -1;
    std::size_t min_bytes = 0;
    bool is_stream = false;
};

std::uint64_t seconds_to_ns(double seconds) {
    return static_cast<std::uint64_t>(seconds * 1e9);
}

double us(std::uint64_t from, std::uint64_t to) {
    return (static_cast<double>(to) - static_cast<double>(from)) / 1000.0;
}

struct Connection : Channel {
    using Channel::Channel;

    std::string in;
    std::string line;  // of server-sent events, as far as it has arrived; else the start of an error's body
    ResponseReader reader;
    bool is_busy = false;
    bool has_end = false;
    std::uint64_t due = 0;
    std::uint64_t sent = 0;
    std::uint64_t last_token = 0;
    int num_tokens = 0;
    std::size_t num_bytes = 0;
};

class Load {
public:
    explicit Load(const Options& options)
        : options_(options),
          start_(now_ns()),
          measured_from_(start_ + seconds_to_ns(options.warmup)),
          end_(measured_from_ + seconds_to_ns(options.duration)) {
        request_ = "POST " + options.path + " HTTP/1.1\r\nHost: 127.0.0.1:" + std::to_string(options.port) +
                   "\r\nUser-Agent: load\r\nAccept: */*\r\n" + options.headers +
                   "Content-Type: application/json\r\nContent-Length: " + std::to_string(options.body.size()) +
                   "\r\n\r\n" + options.body;
        for (std::size_t i = 0; i < options.num_connections; ++i) {
            connections_.push_back(std::make_unique<Connection>(poller_));
            idle_.push_back(connections_.back().get());
        }
        std::reverse(idle_.begin(), idle_.end());
    }

    void run() {
        for (std::uint64_t now = start_; now < end_ && !is_hopeless(); now = now_ns()) {
            const std::uint64_t wake = begin_requests(now);
            for (const epoll_event& event : poller_.wait(std::min(wake, end_))) {
                on_event(*static_cast<Connection*>(static_cast<Watched*>(event.data.ptr)), event.events);
            }
        }
    }

    std::string report() {
        rusage used{};
        getrusage(RUSAGE_SELF, &used);
        const double cpu = static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                           static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
        std::erase_if(error_, [](char c) { return c < ' ' || c == '"' || c == '\\' || c > '~'; });
        char text[512];
        std::snprintf(
            text, sizeof text,
            "{\"good\":%zu,\"all\":%zu,\"failed\":%zu,\"wrong\":%zu,\"requests_per_s\":%.2f,\"tokens_per_s\":%.1f,"
            "\"all_tokens\":%zu,\"reconnects\":%zu,\"max_waiting\":%zu,\"cpu_s\":%.3f",
            num_good_, num_all_, num_failed_, num_wrong_, static_cast<double>(num_good_) / options_.duration,
            static_cast<double>(num_tokens_) / options_.duration, num_all_tokens_, num_reconnects_, max_waiting_, cpu);
        std::string out = text;
        out += ",\"error\":\"" + error_ + '"';
        latency_.append_json(out, "latency_us");
        ttft_.append_json(out, "ttft_us");
        added_.append_json(out, "added_us");
        to_engine_.append_json(out, "to_engine_us");
        from_engine_.append_json(out, "from_engine_us");
        transit_.append_json(out, "transit_us");
        gap_.append_json(out, "gap_us");
        return out + '}';
    }

private:
    [[nodiscard]] bool is_measured(std::uint64_t time) const { return time >= measured_from_ && time < end_; }
    // A server that does not answer at all is not worth the whole duration.
    [[nodiscard]] bool is_hopeless() const { return is_refused_ || (num_reconnects_ > 20000 && num_all_ == 0); }

    // Start what is due by `now`; returns when to look again.
    std::uint64_t begin_requests(std::uint64_t now) {
        if (options_.rate > 0) {
            const auto step = static_cast<std::uint64_t>(1e9 / options_.rate);
            for (; start_ + num_arrivals_ * step <= now; ++num_arrivals_) {
                waiting_.push_back(start_ + num_arrivals_ * step);
            }
            max_waiting_ = std::max(max_waiting_, waiting_.size());
            while (!waiting_.empty() && !idle_.empty()) {
                begin(*take_idle(), waiting_.front());
                waiting_.pop_front();
            }
            return start_ + num_arrivals_ * step;
        }
        const double step = options_.ramp * 1e9 / static_cast<double>(options_.num_connections);
        while (num_ramped_ < options_.num_connections &&
               now >= start_ + static_cast<std::uint64_t>(step * static_cast<double>(num_ramped_))) {
            begin(*take_idle(), 0);
            ++num_ramped_;
        }
        return num_ramped_ < options_.num_connections
                   ? start_ + static_cast<std::uint64_t>(step * static_cast<double>(num_ramped_))
                   : end_;
    }

    Connection* take_idle() {
        Connection* connection = idle_.back();
        idle_.pop_back();
        return connection;
    }

    void begin(Connection& connection, std::uint64_t due) {
        connection.is_busy = true;
        connection.has_end = false;
        connection.num_tokens = 0;
        connection.num_bytes = 0;
        connection.line.clear();
        connection.reader.start();
        connection.sent = now_ns();
        connection.due = due != 0 ? due : connection.sent;
        is_refused_ = !connection.is_usable() && !connection.connect(options_.port);
        if (is_refused_) {
            fail("cannot connect");
            return;
        }
        connection.send(request_);
    }

    void on_event(Connection& connection, std::uint32_t events) {
        if (!connection.is_usable()) {
            return;
        }
        if ((events & EPOLLOUT) != 0) {
            connection.on_writable();
        }
        if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) == 0) {
            return;
        }
        const bool is_alive = connection.receive(connection.in);
        const std::uint64_t now = now_ns();
        bool is_complete = connection.is_busy && connection.reader.read(connection.in, [&](std::string_view piece) {
            on_body(connection, piece, now);
        });
        if (!is_alive && connection.is_busy && !is_complete) {
            if (connection.reader.is_until_close()) {
                is_complete = true;
            } else if (is_measured(now)) {
                fail("the connection ended within a response");
            }
        }
        if (is_complete) {
            on_response(connection, now);
        }
        if (!is_alive || (is_complete && connection.reader.is_last())) {
            connection.close();
            connection.in.clear();
            ++num_reconnects_;
        }
        if (is_complete || (!is_alive && connection.is_busy)) {
            finish_with(connection);
        }
    }

    void finish_with(Connection& connection) {
        connection.is_busy = false;
        if (options_.rate > 0) {
            idle_.push_back(&connection);
        } else if (!is_hopeless()) {
            begin(connection, 0);
        }
    }

    void on_body(Connection& connection, std::string_view piece, std::uint64_t now) {
        connection.num_bytes += piece.size();
        if (connection.reader.status() != 200) {
            connection.line += piece.substr(0, max_error_bytes);
            return;
        }
        if (!options_.is_stream) {
            if (connection.num_bytes == piece.size()) {
                on_answer(connection, read_whole_stamp(piece), now);
            }
            return;
        }
        for (std::size_t end = piece.find('\n'); end != piece.npos; end = piece.find('\n')) {
            if (connection.line.empty()) {
                on_line(connection, piece.substr(0, end), now);
            } else {
                connection.line += piece.substr(0, end);
                on_line(connection, connection.line, now);
                connection.line.clear();
            }
            piece.remove_prefix(end + 1);
        }
        connection.line += piece;
    }

    void on_line(Connection& connection, std::string_view line, std::uint64_t now) {
        if (!line.starts_with("data:")) {
            return;
        }
        line.remove_prefix(5);
        if (line.starts_with(' ')) {
            line.remove_prefix(1);
        }
        if (line.starts_with("[DONE]")) {
            connection.has_end = true;
            return;
        }
        constexpr std::string_view key = "\"content\":";
        std::size_t position = line.find(key);
        if (position == line.npos) {
            if (line.find("\"error\"") != line.npos && error_.empty()) {
                error_ = line.substr(0, max_error_bytes);
            }
            return;
        }
        position = line.find_first_not_of(' ', position + key.size());
        if (position == line.npos || line[position] != '"' || line.substr(position, 2) == "\"\"") {
            return;
        }
        on_token(connection, line.substr(position), now);
    }

    void on_token(Connection& connection, std::string_view text, std::uint64_t now) {
        ++connection.num_tokens;
        ++num_all_tokens_;
        const bool counts = is_measured(now);
        const Stamp stamp = read_stamp(text);
        if (connection.num_tokens == 1) {
            on_answer(connection, stamp, now);
        } else if (counts) {
            gap_.add(us(connection.last_token, now));
        }
        connection.last_token = now;
        if (counts) {
            ++num_tokens_;
            if (stamp.sent != 0 && stamp.sent <= now) {
                transit_.add(us(stamp.sent, now));
            }
        }
    }

    // The first token of a stream, or a whole answer, has arrived.
    void on_answer(const Connection& connection, const Stamp& stamp, std::uint64_t now) {
        if (!is_measured(now)) {
            return;
        }
        if (options_.is_stream) {
            ttft_.add(us(connection.due, now));
        }
        if (stamp.received != 0 && stamp.sent <= now) {
            to_engine_.add(us(connection.due, stamp.received));
            from_engine_.add(us(stamp.sent, now));
            added_.add(us(connection.due, stamp.received) + us(stamp.sent, now));
        }
    }

    void on_response(const Connection& connection, std::uint64_t now) {
        ++num_all_;
        if (!is_measured(now)) {
            return;
        }
        if (connection.reader.status() != 200) {
            fail("status " + std::to_string(connection.reader.status()) + ' ' + connection.line);
            return;
        }
        const bool is_right = options_.is_stream ? connection.has_end && (options_.num_tokens < 0 ||
                                                                          connection.num_tokens == options_.num_tokens)
                                                 : connection.num_bytes >= options_.min_bytes;
        if (!is_right) {
            ++num_wrong_;
            if (error_.empty()) {
                error_ = "answer with " + std::to_string(connection.num_tokens) + " tokens, " +
                         std::to_string(connection.num_bytes) + " bytes, end " +
                         (connection.has_end ? "seen" : "not seen");
            }
        }
        ++num_good_;
        latency_.add(us(connection.due, now));
    }

    void fail(const std::string& reason) {
        ++num_failed_;
        if (error_.empty()) {
            error_ = reason.substr(0, max_error_bytes);
        }
    }

    Options options_;
    std::string request_;
    std::uint64_t start_;
    std::uint64_t measured_from_;
    std::uint64_t end_;
    Poller poller_;
    std::vector<std::unique_ptr<Connection>> connections_;
    std::vector<Connection*> idle_;
    std::deque<std::uint64_t> waiting_;
    std::uint64_t num_arrivals_ = 0;
    std::size_t num_ramped_ = 0;
    bool is_refused_ = false;
    std::size_t max_waiting_ = 0;
    std::size_t num_good_ = 0;
    std::size_t num_all_ = 0;
    std::size_t num_failed_ = 0;
    std::size_t num_wrong_ = 0;
    std::size_t num_tokens_ = 0;
    std::size_t num_all_tokens_ = 0;
    std::size_t num_reconnects_ = 0;
    std::string error_;
    Distribution latency_;
    Distribution ttft_;
    Distribution added_;
    Distribution to_engine_;
    Distribution from_engine_;
    Distribution transit_;
    Distribution gap_;
};

std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        std::cerr << "cannot read " << path << '\n';
        std::exit(2);
    }
    std::ostringstream content;
    content << file.rdbuf();
    return content.str();
}

Options parse(int argc, char** argv) {
    Options options;
    read_options(argc, argv, usage, [&](const std::string& key, const auto& value) {
        if (key == "--port") {
            options.port = static_cast<std::uint16_t>(std::stoi(value()));
        } else if (key == "--path") {
            options.path = value();
        } else if (key == "--body") {
            options.body = read_file(value());
        } else if (key == "--header") {
            options.headers += value() + "\r\n";
        } else if (key == "-c") {
            options.num_connections = std::stoul(value());
        } else if (key == "--duration") {
            options.duration = std::stod(value());
        } else if (key == "--warmup") {
            options.warmup = std::stod(value());
        } else if (key == "--ramp") {
            options.ramp = std::stod(value());
        } else if (key == "--rate") {
            options.rate = std::stod(value());
        } else if (key == "--tokens") {
            options.num_tokens = std::stoi(value());
        } else if (key == "--min-bytes") {
            options.min_bytes = std::stoul(value());
        } else if (key == "--stream") {
            options.is_stream = true;
        } else {
            return false;
        }
        return true;
    });
    return options;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
    signal(SIGPIPE, SIG_IGN);
    bench::Load load(bench::parse(argc, argv));
    load.run();
    std::cout << load.report() << std::endl;
    return 0;
}
