// Non-blocking TCP connections on one epoll instance: what cannot be written at once waits in a buffer.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

// Whatever epoll watches; `Poller` hands it back with its events.
struct Watched {
    int fd = -1;
};

class Poller {
public:
    Poller();
    ~Poller();
    Poller(const Poller&) = delete;
    Poller& operator=(const Poller&) = delete;

    void add(Watched& watched, bool wants_write);
    void change(Watched& watched, bool wants_write);
    // Wait for events, at most until `deadline_ns` of the monotonic clock; 0 waits for ever.
    std::span<const epoll_event> wait(std::uint64_t deadline_ns);

private:
    int fd_;
    std::vector<epoll_event> events_;
};

class Channel : public Watched {
public:
    explicit Channel(Poller& poller) : poller_(&poller) {}
    ~Channel() { close(); }
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;

    // Take over a connected, non-blocking socket.
    void open(int socket);
    // Start to connect without waiting. Returns false where the system refuses at once.
    bool connect(std::uint16_t port);
    void close();

    // Write now what the socket takes, keep the rest.
    void send(std::string_view data);
    // Keep `data` until the next `flush` or `send`: many messages, one system call.
    void append(std::string_view data) { pending_ += data; }
    void flush();
    [[nodiscard]] std::size_t num_pending() const { return pending_.size() - offset_; }

    // Append what has arrived to `in`. Returns false at the connection's end.
    bool receive(std::string& in);

    // True from `open` or `connect` until the end of the connection is noticed, or `close`.
    [[nodiscard]] bool is_usable() const { return fd >= 0 && !is_broken_; }
    // Take note that the socket is writable: a connection that was being made is made, or has failed.
    void on_writable();

private:
    void want_write(bool wants);

    Poller* poller_;
    std::string pending_;
    std::size_t offset_ = 0;
    bool wants_write_ = false;
    bool is_connecting_ = false;
    bool is_broken_ = false;
};

// Listen on the loopback. Throws std::system_error where the port is taken.
int listen_on(std::uint16_t port);
// Return the next connection that waits on `listener`, non-blocking, or -1.
int accept_from(int listener);
// Connect to a loopback port and wait for it. Throws std::system_error.
int connect_to(std::uint16_t port);

}  // namespace bench
