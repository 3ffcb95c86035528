// A mock OpenAI engine: what stands behind every gateway that is measured, on one thread.
//
//   mock_engine --port 9100 [--model mock-model] [--dim 384]
//
// Answers chat, completions and embeddings, and the probes that routers send. Each streamed token is a system call of
// its own, as engines send them; see clock.hpp for what its text is. `GET /_pace?itl_us=10000&ttft_us=0` changes the
// pace of streams that begin from then on; whole answers and embeddings come at once in any case.
#include <signal.h>

#include <cstdio>
#include <deque>
#include <iostream>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "channel.hpp"
#include "clock.hpp"
#include "http.hpp"
#include "json_fields.hpp"
#include "options.hpp"
#include "pacing.hpp"
#include "vectors.hpp"

namespace bench {
namespace {

constexpr const char* usage = "mock_engine --port PORT [--model NAME] [--dim N]\n";
constexpr int default_tokens = 16;
constexpr int prompt_tokens = 200;
constexpr std::size_t max_pending = 32 * 1024;  // a stream whose reader is slower waits
constexpr std::string_view stream_head =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    "Transfer-Encoding: chunked\r\n\r\n";
constexpr std::string_view stream_end = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
constexpr std::string_view engine_metrics =
    "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"mock-model\"} 0\n"
    "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=\"mock-model\"} 0\n"
    "# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc{model_name=\"mock-model\"} 0\n";

struct Connection : Channel {
    using Channel::Channel;

    std::string in;
    RequestReader reader;
    bool is_answering = false;  // a stream is being written: requests behind it wait
    bool is_last = false;
};

struct Answer {
    std::shared_ptr<Connection> connection;
    std::uint64_t received = 0;
    bool is_chat = true;
    bool has_usage = false;
    int num_tokens = 0;
    int num_sent = 0;
    Pace pace;
};

std::string vector_json(const std::vector<float>& vector) {
    std::string json = "[";
    for (const float value : vector) {
        char text[40];
        std::snprintf(text, sizeof text, "%s%.17g", json.size() > 1 ? "," : "", static_cast<double>(value));
        json += text;
    }
    return json + ']';
}

std::string vector_base64(const std::vector<float>& vector) {
    constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const std::string bytes(reinterpret_cast<const char*>(vector.data()), vector.size() * sizeof(float));
    std::string json = "\"";
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t group = 0;
        for (std::size_t k = 0; k < 3; ++k) {
            group = group << 8 | (i + k < bytes.size() ? static_cast<std::uint8_t>(bytes[i + k]) : 0U);
        }
        for (std::size_t k = 0; k < 4; ++k) {
            json += i + k <= bytes.size() ? alphabet[group >> (18 - 6 * k) & 63] : '=';
        }
    }
    return json + '"';
}

class MockEngine {
public:
    MockEngine(std::uint16_t port, std::string model, std::size_t dim)
        : model_(std::move(model)),
          vector_json_(vector_json(make_vector(dim))),
          vector_base64_(vector_base64(make_vector(dim))) {
        listener_.fd = listen_on(port);
        poller_.add(listener_, false);
    }

    [[noreturn]] void run() {
        for (;;) {
            for (const epoll_event& event : poller_.wait(turns_.deadline_ns())) {
                auto* watched = static_cast<Watched*>(event.data.ptr);
                if (watched == &listener_) {
                    accept_all();
                } else {
                    on_event(static_cast<Connection*>(watched), event.events);
                }
            }
            turns_.run(now_ns(), [this](Answer* answer) { go_on(answer); });
            for (const auto& connection : std::exchange(resumed_, {})) {
                serve(connection);
            }
            std::erase_if(connections_, [](const auto& entry) { return is_over(*entry.second); });
        }
    }

private:
    // True, and the socket closed, where nothing more can be written to it. An answer may still hold the object.
    static bool is_over(Connection& connection) {
        const bool is_done = connection.is_last && !connection.is_answering && connection.num_pending() == 0;
        if (connection.is_usable() && !is_done) {
            return false;
        }
        connection.close();
        return true;
    }

    void accept_all() {
        for (int socket = accept_from(listener_.fd); socket >= 0; socket = accept_from(listener_.fd)) {
            auto connection = std::make_shared<Connection>(poller_);
            connection->open(socket);
            connections_.emplace(connection.get(), std::move(connection));
        }
    }

    void on_event(Connection* key, std::uint32_t events) {
        const auto found = connections_.find(key);
        if (found == connections_.end()) {
            return;
        }
        const std::shared_ptr<Connection> connection = found->second;
        if ((events & EPOLLOUT) != 0) {
            connection->on_writable();
        }
        if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0 && connection->receive(connection->in)) {
            serve(connection);
        }
    }

    void serve(const std::shared_ptr<Connection>& connection) {
        Request request;
        while (!connection->is_answering && connection->is_usable() && !connection->in.empty()) {
            switch (connection->reader.next(connection->in, request)) {
                case RequestReader::State::incomplete:
                    return;
                case RequestReader::State::wants_continue:
                    connection->send("HTTP/1.1 100 Continue\r\n\r\n");
                    return;
                case RequestReader::State::malformed:
                    connection->close();
                    return;
                case RequestReader::State::complete:
                    answer(connection, request);
                    connection->in.erase(0, request.num_bytes);
            }
        }
    }

    void answer(const std::shared_ptr<Connection>& connection, const Request& request) {
        connection->is_last = request.is_last;
        if (request.method == "POST" && request.path == "/v1/chat/completions") {
            generate(connection, request.body, true);
        } else if (request.method == "POST" && request.path == "/v1/completions") {
            generate(connection, request.body, false);
        } else if (request.method == "POST" && request.path == "/v1/embeddings") {
            embed(*connection, request.body);
        } else if (request.path == "/_pace") {
            pace_.read(request.query);
            reply(*connection, "200 OK", "{}");
        } else {
            answer_probe(*connection, request.path);
        }
    }

    void generate(const std::shared_ptr<Connection>& connection, std::string_view body, bool is_chat) {
        const std::uint64_t received = now_ns();
        const int limit = number_of(body, "max_completion_tokens", number_of(body, "max_tokens", default_tokens));
        if (!is_true(body, "stream")) {
            reply(*connection, "200 OK", whole_answer(received, limit, is_chat));
            return;
        }
        connection->is_answering = true;
        connection->send(stream_head);
        auto* stream = new Answer{
            .connection = connection,
            .received = received,
            .is_chat = is_chat,
            .has_usage = is_true(body, "include_usage"),
            .num_tokens = limit,
            .pace = pace_,
        };
        proceed(stream);
    }

    std::string whole_answer(std::uint64_t received, int num_tokens, bool is_chat) {
        std::string text;
        append_stamp(text, now_ns(), received);
        for (int i = 1; i < num_tokens; ++i) {
            text += " token";
        }
        std::string json = is_chat ? "{\"id\":\"chatcmpl-" : "{\"id\":\"cmpl-";
        append_hex(json, received);
        json += is_chat ? "\",\"object\":\"chat.completion\"" : "\",\"object\":\"text_completion\"";
        json += ",\"created\":1700000000,\"model\":\"" + model_ + "\",\"choices\":[{\"index\":0,";
        json +=
            is_chat ? "\"message\":{\"role\":\"assistant\",\"content\":\"" + text + "\"}" : "\"text\":\"" + text + '"';
        json += ",\"logprobs\":null,\"finish_reason\":\"stop\"}]," + usage_json(num_tokens) + '}';
        return json;
    }

    static std::string usage_json(int num_tokens) {
        return "\"usage\":{\"prompt_tokens\":" + std::to_string(prompt_tokens) +
               ",\"completion_tokens\":" + std::to_string(num_tokens) +
               ",\"total_tokens\":" + std::to_string(prompt_tokens + num_tokens) + '}';
    }

    // Have the answer's next token written when it is due, or in the next turn.
    void proceed(Answer* answer) {
        if (answer->pace.is_instant()) {
            turns_.push_ready(answer);
        } else {
            turns_.push_at(answer->pace.due_ns(answer->received, static_cast<std::uint64_t>(answer->num_sent)), answer);
        }
    }

    void go_on(Answer* answer) {
        Connection& connection = *answer->connection;
        if (connection.is_usable() && answer->pace.is_instant() && connection.num_pending() > max_pending) {
            turns_.push_ready(answer);
            return;
        }
        if (connection.is_usable() && answer->num_sent < answer->num_tokens) {
            write_token(*answer);
            if (answer->num_sent < answer->num_tokens) {
                proceed(answer);
                return;
            }
        }
        end(answer);
    }

    void write_token(Answer& answer) {
        if (answer.num_sent == 0 && answer.is_chat) {
            write_event(answer, "{\"role\":\"assistant\",\"content\":\"\"}", "null");
        }
        token_.clear();
        append_stamp(token_, now_ns(), answer.num_sent == 0 ? answer.received : 0);
        ++answer.num_sent;
        write_event(answer, answer.is_chat ? "{\"content\":\"" + token_ + "\"}" : token_, "null");
    }

    void write_event(const Answer& answer, const std::string& delta, std::string_view finish_reason) {
        event_ = answer.is_chat ? "{\"id\":\"chatcmpl-" : "{\"id\":\"cmpl-";
        append_hex(event_, answer.received);
        event_ += answer.is_chat ? "\",\"object\":\"chat.completion.chunk\"" : "\",\"object\":\"text_completion\"";
        event_ += ",\"created\":1700000000,\"model\":\"" + model_ + "\",\"choices\":[{\"index\":0,";
        event_ += answer.is_chat ? "\"delta\":" + delta : "\"text\":\"" + delta + '"';
        event_ += ",\"logprobs\":null,\"finish_reason\":";
        event_ += finish_reason;
        event_ += "}]}";
        send_event(*answer.connection, event_);
    }

    void send_event(Connection& connection, const std::string& json) {
        char head[32];
        const int size = std::snprintf(head, sizeof head, "%zx\r\ndata: ", json.size() + 8);
        chunk_.assign(head, static_cast<std::size_t>(size));
        chunk_ += json;
        chunk_ += "\n\n\r\n";
        connection.send(chunk_);
    }

    void end(Answer* ended) {
        const std::unique_ptr<Answer> answer(ended);
        Connection& connection = *answer->connection;
        write_event(*answer, answer->is_chat ? "{}" : "", "\"stop\"");
        if (answer->has_usage) {
            send_event(
                connection,
                "{\"id\":\"chatcmpl-0\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"" +
                    model_ + "\",\"choices\":[]," + usage_json(answer->num_tokens) + '}');
        }
        connection.send(stream_end);
        connection.is_answering = false;
        if (!connection.in.empty()) {
            resumed_.push_back(answer->connection);
        }
    }

    void embed(Connection& connection, std::string_view body) {
        const std::size_t num = count_inputs(body);
        const std::string& vector =
            find_value(body, "encoding_format").starts_with("\"base64") ? vector_base64_ : vector_json_;
        std::string json = "{\"object\":\"list\",\"data\":[";
        json.reserve(num * (vector.size() + 64) + 256);
        for (std::size_t i = 0; i < num; ++i) {
            json += i > 0 ? "," : "";
            json += "{\"object\":\"embedding\",\"index\":" + std::to_string(i) + ",\"embedding\":" + vector + '}';
        }
        const std::string num_tokens = std::to_string(8 * num);
        json += "],\"model\":\"" + model_ + "\",\"usage\":{\"prompt_tokens\":" + num_tokens +
                ",\"total_tokens\":" + num_tokens + "}}";
        reply(connection, "200 OK", json);
    }

    void answer_probe(Connection& connection, std::string_view path) {
        if (path == "/v1/models") {
            reply(
                connection, "200 OK",
                "{\"object\":\"list\",\"data\":[{\"id\":\"" + model_ +
                    "\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"vllm\",\"root\":\"" + model_ +
                    "\",\"parent\":null,\"max_model_len\":32768}]}");
        } else if (path == "/version") {
            reply(connection, "200 OK", "{\"version\":\"0.11.0\"}");
        } else if (path == "/get_model_info" || path == "/model_info") {
            reply(
                connection, "200 OK",
                "{\"model_path\":\"" + model_ +
                    "\",\"tokenizer_path\":\"\",\"is_generation\":true,\"served_model_name\":\"" + model_ + "\"}");
        } else if (path == "/get_server_info" || path == "/server_info") {
            reply(
                connection, "200 OK",
                "{\"model_path\":\"" + model_ + "\",\"model_id\":\"" + model_ + "\",\"served_model_name\":\"" + model_ +
                    "\",\"dp_size\":1,\"tp_size\":1,\"version\":\"0.5.0\"}");
        } else if (path == "/get_load") {
            reply(
                connection, "200 OK",
                "[{\"rank\":0,\"dp_rank\":0,\"num_reqs\":0,\"num_waiting_reqs\":0,\"num_tokens\":0}]");
        } else if (path == "/metrics") {
            reply(connection, "200 OK", engine_metrics, "text/plain; version=0.0.4");
        } else if (path == "/health" || path == "/ping" || path == "/health_generate" || path == "/") {
            reply(connection, "200 OK", "{\"status\":\"ok\"}");
        } else {
            reply(
                connection, "404 Not Found",
                "{\"error\":{\"message\":\"not found\",\"type\":\"invalid_request_error\"}}");
        }
    }

    static void reply(
        Connection& connection, std::string_view status, std::string_view body,
        std::string_view content_type = "application/json") {
        std::string response = "HTTP/1.1 ";
        response += status;
        response += "\r\nContent-Type: ";
        response += content_type;
        response += "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n";
        response += body;
        connection.send(response);
    }

    std::string model_;
    std::string vector_json_;
    std::string vector_base64_;
    Pace pace_;
    Poller poller_;
    Watched listener_;
    std::unordered_map<Connection*, std::shared_ptr<Connection>> connections_;
    std::vector<std::shared_ptr<Connection>> resumed_;
    Turns<Answer*> turns_;
    std::string token_;
    std::string event_;
    std::string chunk_;
};

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
    signal(SIGPIPE, SIG_IGN);
    std::uint16_t port = 9100;
    std::string model = "mock-model";
    std::size_t dim = bench::default_dim;
    bench::read_options(argc, argv, bench::usage, [&](const std::string& key, const auto& value) {
        if (key == "--port") {
            port = static_cast<std::uint16_t>(std::stoi(value()));
        } else if (key == "--model") {
            model = value();
        } else if (key == "--dim") {
            dim = std::stoul(value());
        } else {
            return false;
        }
        return true;
    });
    bench::MockEngine(port, model, dim).run();
}
