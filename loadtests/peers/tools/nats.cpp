#include "nats.hpp"

#include <charconv>
#include <stdexcept>
#include <vector>

namespace bench {
namespace {

constexpr std::string_view line_end = "\r\n";

std::vector<std::string_view> words(std::string_view line) {
    std::vector<std::string_view> found;
    while (!line.empty()) {
        const std::size_t end = line.find(' ');
        if (end != 0) {
            found.push_back(line.substr(0, end));
        }
        line.remove_prefix(end == line.npos ? line.size() : end + 1);
    }
    return found;
}

std::size_t number(std::string_view digits) {
    std::size_t value = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return value;
}

}  // namespace

void NatsClient::connect_and_login(std::uint16_t port, std::string_view token, std::string_view name) {
    open(connect_to(port));
    std::string login =
        "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true,\"lang\":\"cpp\","
        "\"version\":\"0\",\"protocol\":1,\"name\":\"";
    login += name;
    login += "\",\"auth_token\":\"";
    login += token;
    login += "\"}\r\nPING\r\n";
    append(login);
}

void NatsClient::subscribe(int subscription, std::string_view subject) {
    append("SUB ");
    append(subject);
    append(" ");
    append(std::to_string(subscription));
    append(line_end);
}

void NatsClient::publish(std::string_view subject, std::string_view payload) {
    append("PUB ");
    append(subject);
    append(" ");
    append(std::to_string(payload.size()));
    append(line_end);
    append(payload);
    append(line_end);
}

bool NatsClient::next(std::size_t& position, Message& message) {
    const std::size_t end = in_.find(line_end, position);
    if (end == std::string::npos) {
        return false;
    }
    const std::string_view line = std::string_view(in_).substr(position, end - position);
    const std::size_t after_line = end + line_end.size();
    message = {};
    const bool has_headers = line.starts_with("HMSG ");
    if (has_headers || line.starts_with("MSG ")) {
        // MSG subject sid [reply] size; HMSG subject sid [reply] header-size size
        const std::vector<std::string_view> fields = words(line);
        const std::size_t size = number(fields.back());
        const std::size_t header_size = has_headers ? number(fields[fields.size() - 2]) : 0;
        if (in_.size() < after_line + size + line_end.size()) {
            return false;
        }
        message.subject = fields[1];
        message.subscription = static_cast<int>(number(fields[2]));
        message.reply = fields.size() > (has_headers ? 5U : 4U) ? fields[3] : std::string_view{};
        message.payload = std::string_view(in_).substr(after_line + header_size, size - header_size);
        position = after_line + size + line_end.size();
        return true;
    }
    if (line.starts_with("PING")) {
        append("PONG\r\n");
    } else if (line.starts_with("-ERR")) {
        throw std::runtime_error("nats-server: " + std::string(line));
    }
    position = after_line;
    return true;
}

void NatsClient::lost() {
    throw std::runtime_error("the connection to nats-server was lost");
}

}  // namespace bench
