// A NATS client for one thread: https://docs.nats.io/reference/reference-protocols/nats-protocol
#pragma once

#include <string>
#include <string_view>

#include "channel.hpp"

namespace bench {

class NatsClient : public Channel {
public:
    using Channel::Channel;

    struct Message {
        std::string_view subject;
        std::string_view reply;
        std::string_view payload;
        int subscription = 0;
    };

    // Connect and log in; `token` may be empty. Throws std::system_error.
    void connect_and_login(std::uint16_t port, std::string_view token, std::string_view name);
    void subscribe(int subscription, std::string_view subject);
    // Written with the next `flush`.
    void publish(std::string_view subject, std::string_view payload);

    // Take what has arrived, calling `on_message` for each message. Throws std::runtime_error at the connection's end
    // and for errors of the server.
    template <typename OnMessage>
    void read(OnMessage on_message) {
        const bool is_alive = receive(in_);
        std::size_t position = 0;
        Message message;
        while (next(position, message)) {
            if (message.subscription != 0) {
                on_message(message);
            }
        }
        in_.erase(0, position);
        if (!is_alive) {
            lost();
        }
    }

private:
    // Move `position` behind the next whole line or message; `subscription` is 0 for what is no message.
    bool next(std::size_t& position, Message& message);
    [[noreturn]] static void lost();

    std::string in_;
};

}  // namespace bench
