// A mock of everything behind SAGE's gateway, on one thread: scheduler and worker of one pool in one process.
//
//   mock_pool --port 4222 [--token T] [--model mock-model] [--dim 384]
//
// So the gateway can be measured alone in front of answers that cost as little as those of `mock_engine`. It announces
// itself as a scheduler that leads the pool and as a worker that generates and embeds, takes `Submits`, and answers
// with frames of Started, Tokens and Completed, or Vectors and Completed. All that one turn has for a consumer is one
// frame; a stream without delay has one token a turn, and so has one with delay when it is due. Work with `gather_ms`,
// whose reader takes whole answers, gets its text in one piece. The text of tokens is that of clock.hpp. What is told
// on `bench.pace`, e.g. `itl_us=10000 ttft_us=0`, is the pace of answers from then on.
#include <signal.h>
#include <unistd.h>

#include <iostream>
#include <memory>
#include <string>
#include <unordered_map>

#include "channel.hpp"
#include "clock.hpp"
#include "messagepack.hpp"
#include "nats.hpp"
#include "options.hpp"
#include "pacing.hpp"
#include "vectors.hpp"

namespace bench {
namespace {

constexpr const char* usage = "mock_pool --port PORT [--token T] [--model NAME] [--dim N]\n";
constexpr int default_tokens = 16;
constexpr std::uint64_t prompt_tokens = 200;
constexpr std::size_t max_pending = 1 << 20;
constexpr std::uint64_t announce_ns = 1'000'000'000;
constexpr std::uint64_t interval_ms = 1000;
constexpr const char* scheduler_id = "mock-scheduler";
constexpr const char* worker_id = "mock-worker";

enum Subscription { submits = 1, pool_cancels, worker_cancels, discovers, paces };

// What a consumer gets with the frame of this turn.
struct Frame {
    std::string deltas;
    std::size_t num_deltas = 0;
};

struct Request {
    std::string id;
    std::string reply_to;
    std::uint64_t attempt = 0;
    std::uint64_t received = 0;
    std::uint64_t seq = 0;
    int num_tokens = default_tokens;
    int num_sent = 0;
    std::size_t num_texts = 0;  // of an embedding request; 0: this generates
    bool is_gathered = false;   // nobody reads it token by token
    Pace pace;
    bool is_cancelled = false;
};

class MockPool {
public:
    MockPool(std::uint16_t port, const std::string& token, std::string model, std::size_t dim)
        : model_(std::move(model)), epoch_(std::to_string(now_ns())), started_(now_ns()), nats_(poller_), dim_(dim) {
        const std::vector<float> vector = make_vector(dim);
        vector_.assign(reinterpret_cast<const char*>(vector.data()), vector.size() * sizeof(float));
        nats_.connect_and_login(port, token, "mock-pool");
        nats_.subscribe(submits, "sage.v1.pool.*.submit");
        nats_.subscribe(pool_cancels, "sage.v1.pool.*.cancel");
        nats_.subscribe(worker_cancels, std::string("sage.v1.worker.") + worker_id + ".cancel");
        nats_.subscribe(discovers, "sage.v1.every.discover");
        nats_.subscribe(paces, "bench.pace");
    }

    [[noreturn]] void run() {
        for (;;) {
            const std::uint64_t due = turns_.deadline_ns();
            const std::uint64_t wake = due == 0 ? announce_at_ : std::min(due, announce_at_);
            for (const epoll_event& event : poller_.wait(std::max<std::uint64_t>(wake, 1))) {
                if ((event.events & EPOLLOUT) != 0) {
                    nats_.on_writable();
                }
                nats_.read([this](const NatsClient::Message& message) { on_message(message); });
            }
            // While the server takes no more, neither do we produce more.
            if (nats_.num_pending() < max_pending) {
                turns_.run(now_ns(), [this](const std::shared_ptr<Request>& request) { go_on(request); });
            }
            send_frames();
            if (now_ns() >= announce_at_) {
                announce();
            }
            nats_.flush();
        }
    }

private:
    void on_message(const NatsClient::Message& message) {
        PackReader reader(message.payload);
        switch (message.subscription) {
            case submits:
                read_submits(reader);
                break;
            case discovers:
                announce();
                break;
            case paces:
                pace_ = {};
                pace_.read(message.payload);
                break;
            default:
                read_cancel(reader);
        }
    }

    // Read one map. `take(key)` reads the value, or returns false to have it skipped.
    template <typename Take>
    static void read_fields(PackReader& reader, Take take) {
        for (std::size_t num = reader.map(); num > 0; --num) {
            if (!take(reader.text())) {
                reader.skip();
            }
        }
    }

    void read_submits(PackReader& reader) {
        read_fields(reader, [&](std::string_view key) {
            if (key != "submits") {
                return false;
            }
            for (std::size_t num = reader.array(); num > 0; --num) {
                accept(reader);
            }
            return true;
        });
    }

    void read_cancel(PackReader& reader) {
        read_fields(reader, [&](std::string_view key) {
            if (key != "request_id") {
                return false;
            }
            const auto found = requests_.find(std::string(reader.text()));
            if (found != requests_.end()) {
                found->second->is_cancelled = true;
            }
            return true;
        });
    }

    void accept(PackReader& reader) {
        auto request = std::make_shared<Request>();
        request->received = now_ns();
        request->pace = pace_;
        read_fields(reader, [&](std::string_view key) {
            if (key == "request_id") {
                request->id = reader.text();
            } else if (key == "attempt") {
                request->attempt = static_cast<std::uint64_t>(reader.integer());
            } else if (key == "reply_to") {
                request->reply_to = reader.text();
            } else if (key == "work") {
                read_work(reader, *request);
            } else {
                return false;
            }
            return true;
        });
        emit(*request, [&](PackWriter& event) {
            event.map(3).text("type").text("started").text("worker_id").text(worker_id).text("model").text(model_);
        });
        if (request->num_texts > 0) {
            answer_embedding(*request);
            return;
        }
        const auto [known, is_new] = requests_.try_emplace(request->id, request);
        if (!is_new) {  // another attempt
            known->second->is_cancelled = true;
            known->second = request;
        }
        proceed(request);
    }

    static void read_work(PackReader& reader, Request& request) {
        read_fields(reader, [&](std::string_view key) {
            if (key == "texts" || key == "token_ids") {
                request.num_texts += skip_array(reader);
            } else if (key == "sampling") {
                read_sampling(reader, request);
            } else if (key == "gather_ms") {
                request.is_gathered = reader.integer() > 0;
            } else {
                return false;
            }
            return true;
        });
    }

    static void read_sampling(PackReader& reader, Request& request) {
        read_fields(reader, [&](std::string_view key) {
            if (key != "max_tokens" || reader.nil()) {
                return key == "max_tokens";
            }
            request.num_tokens = static_cast<int>(reader.integer());
            return true;
        });
    }

    static std::size_t skip_array(PackReader& reader) {
        const std::size_t num = reader.array();
        for (std::size_t i = 0; i < num; ++i) {
            reader.skip();
        }
        return num;
    }

    void proceed(const std::shared_ptr<Request>& request) {
        if (request->pace.is_instant()) {
            turns_.push_ready(request);
        } else {
            turns_.push_at(
                request->pace.due_ns(request->received, static_cast<std::uint64_t>(request->num_sent)), request);
        }
    }

    void go_on(const std::shared_ptr<Request>& request) {
        if (request->num_sent < request->num_tokens && !request->is_cancelled) {
            emit_tokens(*request, request->is_gathered && request->pace.is_instant() ? request->num_tokens : 1);
            if (request->num_sent < request->num_tokens) {
                proceed(request);
                return;
            }
        }
        if (!request->is_cancelled) {
            complete(*request, prompt_tokens, static_cast<std::uint64_t>(request->num_sent));
        }
        const auto found = requests_.find(request->id);
        if (found != requests_.end() && found->second == request) {
            requests_.erase(found);
        }
    }

    void emit_tokens(Request& request, int num) {
        text_.clear();
        append_stamp(text_, now_ns(), request.num_sent == 0 ? request.received : 0);
        for (int i = 1; i < num; ++i) {
            text_ += " token";
        }
        emit(request, [&](PackWriter& event) {
            event.map(num > 1 ? 4 : 3).text("type").text("tokens").text("text").text(text_).text("token_ids");
            event.array(static_cast<std::size_t>(num));
            for (int i = 0; i < num; ++i) {
                event.integer(static_cast<std::uint64_t>(request.num_sent + i));
            }
            if (num > 1) {
                event.text("num_tokens").integer(static_cast<std::uint64_t>(num));
            }
        });
        request.num_sent += num;
    }

    void answer_embedding(Request& request) {
        emit(request, [&](PackWriter& event) {
            std::string data;
            data.reserve(request.num_texts * vector_.size());
            for (std::size_t i = 0; i < request.num_texts; ++i) {
                data += vector_;
            }
            event.map(4).text("type").text("vectors").text("offset").integer(0).text("dim").integer(dim_);
            event.text("data").binary(data);
        });
        complete(request, 8 * request.num_texts, 0);
    }

    void complete(Request& request, std::uint64_t num_prompt, std::uint64_t num_generated) {
        emit(request, [&](PackWriter& event) {
            event.map(3).text("type").text("completed").text("finish_reason").text("stop").text("usage");
            event.map(2).text("prompt_tokens").integer(num_prompt);
            event.text("completion_tokens").integer(num_generated);
        });
    }

    template <typename Write>
    void emit(Request& request, Write write) {
        Frame& frame = frames_[request.reply_to];
        PackWriter writer(frame.deltas);
        writer.map(4).text("request_id").text(request.id).text("attempt").integer(request.attempt);
        writer.text("seq").integer(request.seq++).text("event");
        write(writer);
        ++frame.num_deltas;
    }

    void send_frames() {
        for (auto& [reply_to, frame] : frames_) {
            if (frame.num_deltas == 0) {
                continue;
            }
            payload_.clear();
            PackWriter(payload_).map(1).text("deltas").array(frame.num_deltas);
            payload_ += frame.deltas;
            nats_.publish(reply_to, payload_);
            frame.deltas.clear();
            frame.num_deltas = 0;
        }
    }

    void announce() {
        announce_at_ = now_ns() + announce_ns;
        ++sequence_;
        announce_as("scheduler", scheduler_id, [&](PackWriter& writer) {
            writer.text("models").array(0).text("leads").array(1).text(model_);
        });
        announce_as("llm-worker", worker_id, [&](PackWriter& writer) {
            writer.text("models").array(2);
            writer.map(4).text("name").text(model_).text("task").text("generate").text("engine").text("mock");
            writer.text("max_context").integer(32768);
            writer.map(4).text("name").text(model_).text("task").text("embed").text("engine").text("mock");
            writer.text("dim").integer(dim_);
            writer.text("max_in_flight").integer(4096);
        });
    }

    template <typename WriteMore>
    void announce_as(const std::string& kind, const char* id, WriteMore write_more) {
        payload_.clear();
        PackWriter writer(payload_);
        writer.map(12).text("actor_id").text(id).text("kind").text(kind).text("epoch").text(epoch_);
        writer.text("sequence").integer(sequence_).text("state").text("ready").text("version").text("0");
        writer.text("host").text("localhost").text("pid").integer(static_cast<std::uint64_t>(getpid()));
        writer.text("interval_ms").integer(interval_ms).text("started_s_ago");
        writer.real(static_cast<double>(now_ns() - started_) / 1e9);
        write_more(writer);
        nats_.publish("sage.v1.announce." + kind + '.' + id, payload_);
    }

    std::string model_;
    std::string epoch_;
    std::uint64_t started_;
    std::uint64_t sequence_ = 0;
    std::uint64_t announce_at_ = 0;
    Poller poller_;
    NatsClient nats_;
    std::size_t dim_;
    std::string vector_;
    Pace pace_;
    std::unordered_map<std::string, std::shared_ptr<Request>> requests_;
    Turns<std::shared_ptr<Request>> turns_;
    std::unordered_map<std::string, Frame> frames_;
    std::string text_;
    std::string payload_;
};

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
    signal(SIGPIPE, SIG_IGN);
    std::uint16_t port = 4222;
    std::string token;
    std::string model = "mock-model";
    std::size_t dim = bench::default_dim;
    bench::read_options(argc, argv, bench::usage, [&](const std::string& key, const auto& value) {
        if (key == "--port") {
            port = static_cast<std::uint16_t>(std::stoi(value()));
        } else if (key == "--token") {
            token = value();
        } else if (key == "--model") {
            model = value();
        } else if (key == "--dim") {
            dim = std::stoul(value());
        } else {
            return false;
        }
        return true;
    });
    try {
        bench::MockPool(port, token, model, dim).run();
    } catch (const std::exception& error) {
        std::cerr << "mock_pool: " << error.what() << '\n';
        return 1;
    }
}
