// Random histories through every kind of policy, meant to run under ASan and UBSan: nothing crashes, every request
// leaves exactly once, slots and batches keep to their limits, timers lie ahead, and in the end nothing waits.
// What decisions are made is tested in tests/unit/sage_policy.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "sage/policy/configured_policy.hpp"

using namespace sage::policy;

namespace {

constexpr PoolId kLlm = 1, kEmbed = 2;
constexpr int kNumKeys = 24;

std::string context;  // what is being tried, for the message

void check(bool holds, const char* claim, int line) {
    if (!holds) {
        std::fprintf(stderr, "policy_test.cpp:%d: does not hold: %s (%s)\n", line, claim, context.c_str());
        std::exit(1);  // everything after it would be noise
    }
}

#define CHECK(claim) check((claim), #claim, __LINE__)

class Chance {
public:
    explicit Chance(std::uint64_t seed) : engine_(seed) {}
    std::uint32_t below(std::uint32_t bound) { return static_cast<std::uint32_t>(engine_() % bound); }
    bool one_in(std::uint32_t count) { return below(count) == 0; }
    double uniform(double low, double high) {
        return low + (high - low) * static_cast<double>(engine_() >> 11U) * 0x1.0p-53;
    }
    // Sometimes none, sometimes tight, sometimes far away.
    double target() {
        constexpr std::array<double, 5> kScales{0.01, 0.3, 2, 20, kNever};
        return kScales[below(5)] * uniform(0.5, 2);
    }

private:
    std::mt19937_64 engine_;
};

Config any_config(Chance& chance) {
    Config config;
    config.placement = static_cast<Placement>(chance.below(10));
    config.order = static_cast<Order>(chance.below(4));
    config.batching = static_cast<Batching>(chance.below(3));
    config.hold = !chance.one_in(3);
    config.shed = !chance.one_in(3);
    config.fair = !chance.one_in(3);
    config.learn = !chance.one_in(4);
    config.max_queued = chance.one_in(3) ? 1 + chance.below(6) : 1000;
    config.seed = chance.below(1000);
    config.backfill_depth = chance.one_in(4) ? chance.below(3) : 16;
    config.tenant_quantum = chance.one_in(3) ? 0 : 2;
    config.window_items = 1 + chance.below(40);
    config.scale_hint_interval = chance.one_in(2) ? 0 : 10;
    return config;
}

Request any_request(Chance& chance, RequestId id, double now) {
    Request request;
    request.id = id;
    request.pool = id % 2 == 0 ? kLlm : kEmbed;
    request.tenant = chance.below(3);
    request.tier = static_cast<Tier>(chance.below(3));
    request.may_shed = !chance.one_in(3);
    request.priority = static_cast<std::int32_t>(chance.below(3)) - 1;
    request.started_at = now - (chance.one_in(3) ? chance.uniform(0, 5) : 0);
    request.deadline = chance.one_in(4) ? kNever : now + chance.uniform(-0.1, 60);
    request.ttft_slo = chance.target();
    request.tpot_slo = chance.target() / 20;
    request.e2e_slo = chance.target();
    request.downstream = chance.one_in(3) ? chance.uniform(0, 3) : 0;
    constexpr std::array<std::uint32_t, 6> kPrompts{0, 1, 300, 5000, 40'000, 4'000'000'000};
    request.num_prompt_tokens = chance.one_in(2) ? chance.below(3000) : kPrompts[chance.below(6)];
    request.max_tokens = chance.one_in(3) ? 0 : chance.below(4000);
    request.num_items = chance.one_in(3) ? chance.below(100) : 1;
    request.num_items = std::max(1U, request.num_items);
    request.route = chance.below(3);
    const std::uint64_t conversation = std::uint64_t{chance.below(5)} << 32U;
    for (std::uint32_t block = 0; block < chance.below(10); ++block) {
        request.blocks.push_back(conversation + block);
    }
    return request;
}

Instance any_instance(Chance& chance, InstanceId id, PoolId pool) {
    Instance instance;
    instance.id = id;
    instance.pool = pool;
    instance.device = chance.below(3);
    instance.work = pool == kLlm ? Work::generate : Work::batch;
    instance.is_gpu = !chance.one_in(3);
    instance.max_in_flight = chance.below(8);
    instance.prefix_block = 1 + chance.below(1000);
    if (!chance.one_in(3)) {
        const double slow = chance.uniform(0.5, 3);
        instance.cost = {0.011 * slow, 2e-5, 9e-8, 0.012 * slow, 3e-5, 2e-7, 2e-9, 1e-5, chance.uniform(0, 0.003)};
    }
    instance.limits.max_sequences = 1 + chance.below(64);
    instance.limits.max_step_tokens = 1 + chance.below(8192);
    instance.limits.max_context = 1 + chance.below(32768);
    instance.limits.kv_tokens = 1 + chance.below(100'000);
    instance.limits.watermark = chance.one_in(2) ? 0 : 0.05;
    return instance;
}

// What a correct driver would know, checked against every command.
class Ledger {
public:
    explicit Ledger(const Config& config) : config_(config), policy_(config), twin_(config) {
        policy_.keep_receipts(config.seed % 2 == 0);
        twin_.keep_receipts(config.seed % 2 == 0);
    }

    double now = 0;

    void give(const Event& event) {
        book(event);
        std::vector<Command> commands, again;
        policy_.handle(event, now, commands);
        twin_.handle(event, now, again);
        CHECK(is_same(commands, again));
        for (const Command& command : commands) {
            obey(command, event);
        }
        for (const auto& [id, request] : waiting_) {
            CHECK(event.kind != EventKind::timer || request.deadline > now);
        }
        CHECK(waiting_in(kLlm) <= config_.max_queued && waiting_in(kEmbed) <= config_.max_queued);
        CHECK(policy_.num_queued(kLlm) == waiting_in(kLlm) && policy_.num_queued(kEmbed) == waiting_in(kEmbed));
    }

    void pass(double seconds) {
        const double until = now + seconds;
        for (int calls = 0; timer_at_ <= until; ++calls) {
            CHECK(calls < 100'000);  // else the timer is asked for again and again
            now = std::max(now, timer_at_);
            timer_at_ = kNever;
            give({});
        }
        now = until;
    }

    [[nodiscard]] bool is_waiting(RequestId id) const { return waiting_.contains(id); }
    [[nodiscard]] bool is_running(RequestId id) const { return running_.contains(id); }
    [[nodiscard]] bool runs_elsewhere(RequestId id, PoolId pool, InstanceId instance) const {
        const auto at = running_.find(id);
        return at != running_.end() && at->second != Place{pool, instance};
    }
    [[nodiscard]] std::size_t num_waiting() const { return waiting_.size(); }
    [[nodiscard]] std::vector<RequestId> running() const {
        std::vector<RequestId> ids;
        for (const auto& [id, place] : running_) {
            ids.push_back(id);
        }
        return ids;
    }

private:
    using Place = std::pair<PoolId, InstanceId>;
    struct Worker {
        Instance spec;
        bool is_open = true;
        std::map<RequestId, std::uint64_t> running;  // with its batch
    };

    static bool is_same(const std::vector<Command>& left, const std::vector<Command>& right) {
        return std::equal(left.begin(), left.end(), right.begin(), right.end(), [](const Command& a, const Command& b) {
            return a.kind == b.kind && a.id == b.id && a.instance_id == b.instance_id && a.batch == b.batch &&
                   a.code == b.code && a.retry_after == b.retry_after && a.at == b.at &&
                   a.num_instances == b.num_instances && a.decision.reason == b.decision.reason;
        });
    }

    [[nodiscard]] std::size_t waiting_in(PoolId pool) const {
        return static_cast<std::size_t>(std::count_if(
            waiting_.begin(), waiting_.end(), [pool](const auto& item) { return item.second.pool == pool; }));
    }

    void leave(RequestId id) {
        const auto at = running_.find(id);
        if (at == running_.end()) {
            return;
        }
        const auto worker = workers_.find(at->second);
        if (worker != workers_.end()) {
            worker->second.running.erase(id);
            forget_if_closed(worker);
        }
        running_.erase(at);
    }

    void forget_if_closed(std::map<Place, Worker>::iterator at) {
        if (!at->second.is_open && at->second.running.empty()) {
            workers_.erase(at);
        }
    }

    void book(const Event& event) {
        switch (event.kind) {
            case EventKind::submitted:
                if (pools_.contains(event.request->pool) && !is_waiting(event.id) && !is_running(event.id)) {
                    waiting_.emplace(event.id, *event.request);
                }
                return;
            case EventKind::finished:
                leave(event.id);
                return;
            case EventKind::instance_up: {
                const Place place{event.instance->pool, event.instance->id};
                pools_.insert(place.first);
                Worker& worker = workers_[place];
                worker.spec = *event.instance;
                worker.is_open = true;
                for (const RequestId id : *event.running) {
                    if (!is_running(id)) {
                        waiting_.erase(id);
                        running_.emplace(id, place);
                        worker.running.emplace(id, 0);
                    }
                }
                return;
            }
            case EventKind::instance_down: {
                const auto at = workers_.find({event.pool, event.instance_id});
                if (at != workers_.end()) {
                    at->second.is_open = false;
                    if (event.is_lost) {
                        at->second.running.clear();
                    }
                    forget_if_closed(at);
                }
                return;
            }
            case EventKind::pool_closed:
                pools_.erase(event.pool);
                std::erase_if(waiting_, [&](const auto& item) { return item.second.pool == event.pool; });
                std::erase_if(running_, [&](const auto& item) { return item.second.first == event.pool; });
                std::erase_if(workers_, [&](const auto& item) { return item.first.first == event.pool; });
                return;
            default:
                return;
        }
    }

    void obey(const Command& command, const Event& event) {
        switch (command.kind) {
            case CommandKind::dispatch: {
                CHECK(is_waiting(command.id));
                const Place place{command.pool, command.instance_id};
                CHECK(workers_.contains(place));
                Worker& worker = workers_.at(place);
                CHECK(worker.is_open);
                const Request request = waiting_.at(command.id);
                if (command.batch != 0) {
                    CHECK(worker.spec.work == Work::batch);
                    for (const auto& [id, batch] : worker.running) {
                        CHECK(batch == command.batch);  // one batch at a time
                    }
                } else {
                    CHECK(worker.spec.work == Work::generate || !config_.hold);
                }
                if (worker.spec.work == Work::generate) {
                    CHECK(request.num_prompt_tokens < worker.spec.limits.max_context);
                }
                worker.running.emplace(command.id, command.batch);
                CHECK(worker.running.size() <= worker.spec.max_in_flight);
                running_.emplace(command.id, place);
                waiting_.erase(command.id);
                return;
            }
            case CommandKind::shed:
                CHECK(command.retry_after >= 0 && command.retry_after <= 60);
                if (is_waiting(command.id)) {
                    waiting_.erase(command.id);
                } else if (is_running(command.id)) {
                    CHECK(command.code == ShedCode::worker_lost);
                    leave(command.id);
                } else {
                    CHECK(event.kind == EventKind::submitted && command.id == event.id);
                }
                return;
            case CommandKind::abort:
                CHECK(event.kind == EventKind::cancelled && is_running(command.id));
                return;
            case CommandKind::set_timer:
                CHECK(std::isfinite(command.at) && command.at >= now);
                timer_at_ = command.at;
                return;
            case CommandKind::scale_hint:
                CHECK(command.num_instances >= 1);
                return;
        }
    }

    Config config_;
    ConfiguredPolicy policy_, twin_;
    double timer_at_ = kNever;
    std::set<PoolId> pools_;
    std::map<Place, Worker> workers_;
    std::map<RequestId, Request> waiting_;
    std::map<RequestId, Place> running_;
};

void submit(Ledger& ledger, Chance& chance) {
    const Request request = any_request(chance, 1 + chance.below(kNumKeys), ledger.now);
    Event event;
    event.kind = EventKind::submitted;
    event.id = request.id;
    event.request = &request;
    ledger.give(event);
}

void bring_up(Ledger& ledger, const Instance& instance, const std::vector<RequestId>& running) {
    Event event;
    event.kind = EventKind::instance_up;
    event.instance_id = instance.id;
    event.pool = instance.pool;
    event.instance = &instance;
    event.running = &running;
    ledger.give(event);
}

void announce(Ledger& ledger, Chance& chance) {
    const PoolId pool = chance.one_in(2) ? kLlm : kEmbed;
    const Instance instance = any_instance(chance, chance.below(4), pool);
    std::vector<RequestId> running;
    for (RequestId id = 1; id <= kNumKeys; ++id) {
        // A worker lists what it runs; another's work it cannot run.
        const bool is_of_pool = (id % 2 == 0 ? kLlm : kEmbed) == pool;
        const bool is_listed = ledger.is_running(id) ? !chance.one_in(5) : chance.one_in(30);
        if (is_of_pool && is_listed && !ledger.runs_elsewhere(id, pool, instance.id)) {
            running.push_back(id);
        }
    }
    bring_up(ledger, instance, running);
}

void anything_else(Ledger& ledger, Chance& chance) {
    Event event;
    event.id = 1 + chance.below(kNumKeys);
    event.pool = chance.one_in(2) ? kLlm : kEmbed;
    event.instance_id = chance.below(4);
    event.num_tokens = chance.one_in(4) ? 0 : chance.below(3000);
    event.num_cached = chance.below(5000);
    event.num_running = chance.below(300);
    event.num_waiting = chance.below(300);
    event.kv_used = chance.uniform(0, 1);
    event.is_lost = chance.one_in(2);
    constexpr std::array<EventKind, 14> kKinds{
        EventKind::started,   EventKind::first_token, EventKind::first_token, EventKind::progressed,
        EventKind::finished,  EventKind::finished,    EventKind::finished,    EventKind::finished,
        EventKind::cancelled, EventKind::cancelled,   EventKind::instance_down, EventKind::telemetry,
        EventKind::timer,     EventKind::pool_closed};
    event.kind = kKinds[chance.below(14)];
    if (event.kind == EventKind::pool_closed && !chance.one_in(5)) {
        event.kind = EventKind::finished;
    }
    ledger.give(event);
}

// Once there is room and requests end, the queues empty.
void drain(Ledger& ledger, Chance& chance) {
    Instance roomy;
    roomy.id = 99;
    roomy.max_in_flight = 256;
    for (const PoolId pool : {kLlm, kEmbed}) {
        roomy.pool = pool;
        roomy.work = pool == kLlm ? Work::generate : Work::batch;
        roomy.limits.max_step_tokens = 8192;
        bring_up(ledger, roomy, {});
    }
    for (int second = 0; second < 200; ++second) {
        ledger.pass(1.0);
        for (const RequestId id : ledger.running()) {
            Event event;
            event.kind = EventKind::finished;
            event.id = id;
            event.num_tokens = chance.below(2000);
            ledger.give(event);
        }
        if (ledger.num_waiting() == 0) {
            return;
        }
    }
    CHECK(ledger.num_waiting() == 0);
}

void random_histories_keep_every_promise(std::uint64_t first_seed, std::uint64_t num_seeds, int num_events) {
    for (std::uint64_t seed = first_seed; seed < first_seed + num_seeds; ++seed) {
        Chance chance(seed);
        const Config config = any_config(chance);
        context = "seed " + std::to_string(seed) + ", placement " +
                  std::to_string(static_cast<int>(config.placement)) + ", order " +
                  std::to_string(static_cast<int>(config.order)) + (config.hold ? ", hold" : "") +
                  (config.shed ? ", shed" : "");
        Ledger ledger(config);
        for (int number = 0; number < num_events; ++number) {
            constexpr std::array<double, 5> kSteps{0, 0.0005, 0.02, 0.3, 4};
            ledger.pass(kSteps[chance.below(5)] * chance.uniform(0.5, 1));
            const std::uint32_t kind = chance.below(10);
            if (kind < 4) {
                submit(ledger, chance);
            } else if (kind < 6) {
                announce(ledger, chance);
            } else {
                anything_else(ledger, chance);
            }
        }
        drain(ledger, chance);
    }
}

}  // namespace

int main(int count, char** arguments) {
    // policy_test [first seed] [number of seeds] [events each]
    const auto number = [&](int at, std::uint64_t otherwise) {
        return count > at ? std::strtoull(arguments[at], nullptr, 10) : otherwise;
    };
    random_histories_keep_every_promise(number(1, 1), number(2, 1000), static_cast<int>(number(3, 150)));
    std::puts("policy_test: all promises hold");
    return 0;
}
