#include "channel.hpp"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <system_error>

#include "clock.hpp"

namespace bench {
namespace {

constexpr std::size_t max_events = 1024;
constexpr std::size_t receive_bytes = 256 * 1024;
constexpr int backlog = 4096;

sockaddr_in loopback(std::uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

void send_without_delay(int socket) {
    const int on = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

[[noreturn]] void fail(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

Poller::Poller() : fd_(epoll_create1(EPOLL_CLOEXEC)), events_(max_events) {
    if (fd_ < 0) {
        fail("epoll_create1");
    }
}

Poller::~Poller() {
    ::close(fd_);
}

void Poller::add(Watched& watched, bool wants_write) {
    epoll_event event{.events = EPOLLIN | (wants_write ? EPOLLOUT : 0U), .data = {.ptr = &watched}};
    if (epoll_ctl(fd_, EPOLL_CTL_ADD, watched.fd, &event) != 0) {
        fail("epoll_ctl");
    }
}

void Poller::change(Watched& watched, bool wants_write) {
    epoll_event event{.events = EPOLLIN | (wants_write ? EPOLLOUT : 0U), .data = {.ptr = &watched}};
    epoll_ctl(fd_, EPOLL_CTL_MOD, watched.fd, &event);
}

std::span<const epoll_event> Poller::wait(std::uint64_t deadline_ns) {
    timespec limit{};
    if (deadline_ns != 0) {
        const std::uint64_t now = now_ns();
        const std::uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
        limit.tv_sec = static_cast<time_t>(left / 1'000'000'000ULL);
        limit.tv_nsec = static_cast<long>(left % 1'000'000'000ULL);
    }
    const int num = epoll_pwait2(
        fd_, events_.data(), static_cast<int>(events_.size()), deadline_ns != 0 ? &limit : nullptr, nullptr);
    return {events_.data(), num > 0 ? static_cast<std::size_t>(num) : 0};
}

void Channel::open(int socket) {
    fd = socket;
    send_without_delay(fd);
    poller_->add(*this, false);
}

bool Channel::connect(std::uint16_t port) {
    fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    send_without_delay(fd);
    const sockaddr_in address = loopback(port);
    if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 && errno != EINPROGRESS) {
        close();
        return false;
    }
    is_connecting_ = wants_write_ = true;
    poller_->add(*this, true);
    return true;
}

void Channel::close() {
    if (fd >= 0) {
        ::close(fd);
    }
    fd = -1;
    pending_.clear();
    offset_ = 0;
    wants_write_ = is_connecting_ = is_broken_ = false;
}

void Channel::send(std::string_view data) {
    if (is_broken_ || fd < 0) {
        return;
    }
    if (pending_.empty() && !is_connecting_) {
        const ssize_t sent = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
        if (sent == static_cast<ssize_t>(data.size())) {
            return;
        }
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            is_broken_ = true;
            return;
        }
        data.remove_prefix(sent > 0 ? static_cast<std::size_t>(sent) : 0);
        pending_ = data;
        want_write(true);
        return;
    }
    pending_ += data;
    flush();
}

void Channel::flush() {
    if (fd < 0 || is_broken_ || is_connecting_) {
        return;
    }
    while (offset_ < pending_.size()) {
        const ssize_t sent = ::send(fd, pending_.data() + offset_, pending_.size() - offset_, MSG_NOSIGNAL);
        if (sent > 0) {
            offset_ += static_cast<std::size_t>(sent);
        } else if (errno == EAGAIN) {
            want_write(true);
            return;
        } else if (errno != EINTR) {
            is_broken_ = true;
            return;
        }
    }
    pending_.clear();
    offset_ = 0;
    want_write(false);
}

bool Channel::receive(std::string& in) {
    static char buffer[receive_bytes];
    for (;;) {
        const ssize_t num = recv(fd, buffer, sizeof buffer, 0);
        if (num > 0) {
            in.append(buffer, static_cast<std::size_t>(num));
            if (num < static_cast<ssize_t>(sizeof buffer)) {
                return true;
            }
        } else if (num < 0 && (errno == EAGAIN || errno == EINTR)) {
            return true;
        } else {
            is_broken_ = true;
            return false;
        }
    }
}

void Channel::on_writable() {
    if (is_connecting_) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        is_connecting_ = false;
        is_broken_ = error != 0;
    }
    flush();
}

void Channel::want_write(bool wants) {
    if (wants_write_ != wants) {
        wants_write_ = wants;
        poller_->change(*this, wants);
    }
}

int listen_on(std::uint16_t port) {
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const sockaddr_in address = loopback(port);
    if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
        listen(listener, backlog) != 0) {
        fail("listen");
    }
    return listener;
}

int accept_from(int listener) {
    return accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

int connect_to(std::uint16_t port) {
    const int connected = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const sockaddr_in address = loopback(port);
    if (::connect(connected, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        fail("connect");
    }
    fcntl(connected, F_SETFL, O_NONBLOCK);
    return connected;
}

}  // namespace bench
