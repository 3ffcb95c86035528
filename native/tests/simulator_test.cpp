// Invariants of the simulator, meant to run under ASan and UBSan. The engine model's values are checked against a
// Python twin in tests/unit/sage_native.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "sage/simulator/batch_executor.hpp"
#include "sage/simulator/calendar.hpp"
#include "sage/simulator/engine_model.hpp"
#include "sage/simulator/noise.hpp"
#include "sage/simulator/simulation.hpp"

using namespace sage::simulator;
namespace policy = sage::policy;

namespace {

int num_failed = 0;

void check(bool holds, const char* claim, int line) {
    if (!holds) {
        std::fprintf(stderr, "simulator_test.cpp:%d: does not hold: %s\n", line, claim);
        ++num_failed;
    }
}

template <typename Error>
void check_raises(const std::function<void()>& call, const char* claim, int line) {
    try {
        call();
    } catch (const Error&) {
        return;
    }
    check(false, claim, line);
}

#define CHECK(claim) check((claim), #claim, __LINE__)
#define CHECK_REFUSED(expression) \
    check_raises<std::invalid_argument>([&] { (void)(expression); }, #expression " is refused", __LINE__)
#define CHECK_LOGIC_ERROR(expression) \
    check_raises<std::logic_error>([&] { (void)(expression); }, #expression " is an error", __LINE__)

constexpr sage::StepCost kCost{
    .a0 = 0.0169, .a1 = 4.2e-5, .a2 = 1.49e-7, .m0 = 0.0142, .m1 = 7.7e-5, .m2 = 3.4e-7, .m3 = 5.4e-9, .m4 = 5e-6};

// ---- parts ----

void noise_has_mean_one_and_known_bits() {
    for (double x = -5; x < 5; x += 0.01) CHECK(std::abs(exponential(x) / std::exp(x) - 1) < 1e-14);
    CHECK(exponential(0) == 1);
    LogNormal noise(7, 0.2);
    double sum = 0;
    double squares = 0;
    const int count = 200000;
    for (int i = 0; i < count; ++i) {
        const double value = noise.next();
        sum += value;
        squares += value * value;
    }
    CHECK(std::abs(sum / count - 1) < 0.003);
    CHECK(std::abs(squares / count - std::exp(0.04)) < 0.01);
    LogNormal again(7, 0.2);
    CHECK(again.next() == 0x1.b6c399c99ca7cp-1);
    CHECK(LogNormal(7, 0).next() == 1);
}

void calendar_gives_back_by_time_then_by_order() {
    std::mt19937 random(1);
    Calendar calendar;
    std::vector<std::pair<double, std::uint64_t>> expected;
    double last = -1;
    std::uint64_t last_id = 0;
    for (std::uint64_t id = 0; id < 5000; ++id) {
        calendar.add(static_cast<double>(random() % 50), Happening::kick, id);
        if (random() % 3 == 0) (void)calendar.take();
    }
    while (!calendar.empty()) {
        const Calendar::Entry entry = calendar.take();
        CHECK(entry.time > last || (entry.time == last && entry.id > last_id));
        last = entry.time;
        last_id = entry.id;
    }
}

void durations_fall_between_the_edges_of_their_bin() {
    const std::vector<double> edges = DurationHistogram::edges();
    for (double seconds = 1e-7; seconds < 4000; seconds *= 1.01) {
        DurationHistogram histogram;
        histogram.add(seconds, 3);
        const auto found = std::ranges::find(histogram.counts(), 3U) - histogram.counts().begin();
        const double* edge = &edges[static_cast<std::size_t>(found)];
        CHECK(edge[0] <= seconds && seconds < edge[1]);
    }
    DurationHistogram ends;
    ends.add(0);
    ends.add(1e9);
    CHECK(ends.counts().front() == 1 && ends.counts().back() == 1);
}

void batches_keep_to_the_limits_of_their_executor() {
    const sage::StepCost cost{.m0 = 1, .m1 = 0.001, .m4 = 0.1, .host = 0.5};
    BatchExecutor executor(cost, {.max_sequences = 4, .max_step_tokens = 100});
    executor.submit({.tag = 1, .num_items = 2, .item_tokens = 10});
    executor.submit({.tag = 2, .num_items = 1, .item_tokens = 25});
    executor.submit({.tag = 3, .num_items = 1, .item_tokens = 26});  // 4 items of 26 are more than 100 tokens
    CHECK(std::abs(executor.start() - (1.5 + 0.001 * 75 + 0.1 * 3)) < 1e-12);
    CHECK(executor.running().size() == 2);
    executor.finish();
    CHECK(std::abs(executor.start() - (1.5 + 0.001 * 26 + 0.1)) < 1e-12);
    executor.finish();
    CHECK(executor.is_idle());
    // Alone, and too large: two passes. A batch of the policy's own is never cut into several.
    executor.submit({.tag = 4, .num_items = 8, .item_tokens = 10});
    CHECK(std::abs(executor.start() - (2 * 1.5 + 0.001 * 80 + 0.1 * 8)) < 1e-12);
    executor.finish();
    for (std::uint64_t tag = 5; tag < 11; ++tag) {
        executor.submit({.tag = tag, .item_tokens = 5, .batch = tag < 8 ? 1U : 2U});
    }
    (void)executor.start();
    CHECK(executor.running().size() == 3 && executor.waiting().size() == 3);
    CHECK(executor.remove(5) && executor.remove(10) && !executor.remove(5));
}

// ---- engine ----

void every_sequence_gets_its_tokens_whatever_is_removed() {
    std::mt19937 random(5);
    const auto below = [&random](std::uint32_t bound) { return static_cast<std::uint32_t>(random() % bound); };
    for (int round = 0; round < 60; ++round) {
        const sage::EngineLimits limits{
            .max_sequences = 1 + below(12),
            .max_step_tokens = 64,
            .kv_tokens = 16 * (20 + below(60)),
            .block_tokens = 16,
            .watermark = round % 3 == 0 ? 0.05 : 0,
            .async_scheduling = round % 2 == 0};
        EngineModel engine(kCost, limits);
        std::deque<std::vector<std::uint64_t>> groups;
        std::vector<std::uint32_t> wanted;
        std::vector<std::uint32_t> got;
        std::vector<Slot> slots;
        for (int turn = 0; turn < 40000 && (turn < 100 || !engine.is_idle()); ++turn) {
            if (turn < 100 && below(2) == 0) {
                const std::uint32_t prompt = 1 + below(engine.max_sequence_tokens() / 2);
                const std::uint32_t output = 1 + below(engine.max_sequence_tokens() / 3);
                groups.emplace_back(below(2 + prompt / 32));
                groups.back().resize(std::min<std::size_t>(groups.back().size(), prompt / 32));
                std::iota(groups.back().begin(), groups.back().end(), 1000ULL * below(3));
                slots.push_back(engine.submit(
                    {.tag = wanted.size(),
                     .num_prompt = prompt,
                     .num_output = output,
                     .groups = groups.back(),
                     .group_tokens = 32}));
                wanted.push_back(output);
                got.push_back(0);
            }
            if (engine.is_idle()) continue;
            for (const Slot slot : engine.step().emitting) ++got[engine.tag(slot)];
            if (below(60) == 0) {
                const std::size_t victim = below(static_cast<std::uint32_t>(wanted.size()));
                if (got[victim] < wanted[victim]) {
                    engine.remove(slots[victim]);
                    wanted[victim] = got[victim];
                }
            }
            engine.check();
        }
        CHECK(got == wanted);
        CHECK(engine.is_idle() && engine.num_waiting() == 0);
        engine.complete();
        CHECK(engine.kv_used() == 0);
    }
}

void limits_and_sequences_that_cannot_be_are_refused() {
    CHECK_REFUSED(EngineModel(kCost, {.max_sequences = 0}));
    CHECK_REFUSED(EngineModel(kCost, {.max_sequences = 100, .max_step_tokens = 99}));
    CHECK_REFUSED(EngineModel(kCost, {.block_tokens = 0}));
    CHECK_REFUSED(EngineModel(kCost, {.kv_tokens = 31}));
    CHECK_REFUSED(EngineModel(kCost, {.watermark = 1}));
    EngineModel engine(kCost, {.max_context = 100, .kv_tokens = 64});
    const std::vector<std::uint64_t> groups{1, 2, 3};
    CHECK(engine.max_sequence_tokens() == 48);
    CHECK_REFUSED(engine.submit({.num_prompt = 0}));
    CHECK_REFUSED(engine.submit({.num_prompt = 48}));
    CHECK_REFUSED(engine.submit({.num_prompt = 40, .num_output = 9}));
    CHECK_REFUSED(engine.submit({.num_prompt = 10, .num_generated = 5, .num_output = 5}));
    CHECK_REFUSED(engine.submit({.num_prompt = 40, .groups = groups, .group_tokens = 24}));
    CHECK_REFUSED(engine.submit({.num_prompt = 40, .groups = groups, .group_tokens = 32}));
    CHECK(engine.is_idle());
    const Slot slot = engine.submit({.num_prompt = 10, .num_output = 2});
    engine.remove(slot);
    engine.remove(slot);
    CHECK(engine.is_idle());
}

// ---- whole simulations ----

// Sends everything at once to the instance of its pool with the fewest requests; the lowest number wins ties.
class LeastOutstanding : public policy::Policy {
public:
    void handle(const policy::Event& event, double now, std::vector<policy::Command>& commands) override {
        CHECK(now >= last_);
        last_ = now;
        switch (event.kind) {
            case policy::EventKind::instance_up: instances_.push_back({event.instance_id, event.pool, {}}); break;
            case policy::EventKind::instance_down:
                std::erase_if(instances_, [&event](const Load& load) { return load.id == event.instance_id; });
                break;
            case policy::EventKind::submitted: held_.push_back(*event.request); break;
            case policy::EventKind::finished:
                for (Load& load : instances_) std::erase(load.requests, event.id);
                break;
            default: break;
        }
        std::erase_if(held_, [&](const policy::Request& request) { return place(request, commands); });
    }

    std::vector<policy::RequestId> seen;

private:
    struct Load {
        policy::InstanceId id;
        policy::PoolId pool;
        std::vector<policy::RequestId> requests;
    };

    bool place(const policy::Request& request, std::vector<policy::Command>& commands) {
        Load* best = nullptr;
        for (Load& load : instances_) {
            if (load.pool != request.pool) continue;
            if (best == nullptr || load.requests.size() < best->requests.size()) best = &load;
        }
        if (best == nullptr) return false;
        best->requests.push_back(request.id);
        seen.push_back(request.id);
        commands.push_back(
            {.kind = policy::CommandKind::dispatch, .id = request.id, .instance_id = best->id, .decision = {}});
        return true;
    }

    std::vector<Load> instances_;
    std::vector<policy::Request> held_;
    double last_ = -policy::kNever;
};

// Owns the columns of a workload; `make` says what each run looks like.
struct Runs {
    std::vector<double> arrival, budget, ttft_slo, tpot_slo, e2e_slo, downstream;
    std::vector<std::uint32_t> tenant, stage_start{0}, pool, prompt, output, max_tokens, items, block_start{0};
    std::vector<std::uint8_t> tier, may_shed;
    std::vector<std::uint64_t> route, blocks;

    void add_run(double at) {
        arrival.push_back(at);
        budget.push_back(policy::kNever);
        tenant.push_back(0);
        tier.push_back(0);
        may_shed.push_back(1);
        stage_start.push_back(stage_start.back());
    }
    void add_stage(
        std::uint32_t of_pool, std::uint32_t prompt_tokens, std::uint32_t output_tokens, std::uint32_t num_items = 1) {
        ++stage_start.back();
        pool.push_back(of_pool);
        prompt.push_back(prompt_tokens);
        output.push_back(output_tokens);
        max_tokens.push_back(0);
        items.push_back(num_items);
        ttft_slo.push_back(policy::kNever);
        tpot_slo.push_back(policy::kNever);
        e2e_slo.push_back(policy::kNever);
        downstream.push_back(0);
        route.push_back(0);
        block_start.push_back(static_cast<std::uint32_t>(blocks.size()));
    }
    [[nodiscard]] Workload columns() const {
        return {
            .arrival = arrival, .tenant = tenant, .tier = tier, .may_shed = may_shed, .budget = budget,
            .stage_start = stage_start, .pool = pool, .prompt_tokens = prompt, .output_tokens = output,
            .max_tokens = max_tokens, .items = items, .ttft_slo = ttft_slo, .tpot_slo = tpot_slo, .e2e_slo = e2e_slo,
            .downstream = downstream, .route = route, .block_start = block_start, .blocks = blocks};
    }
};

Runs chat(std::size_t count, double rate, std::uint32_t seed) {
    std::mt19937 random(seed);
    Runs runs;
    double at = 0;
    for (std::size_t i = 0; i < count; ++i) {
        at += 2.0 * static_cast<double>(random() % 1000) / 1000 / rate;
        runs.add_run(at);
        runs.add_stage(0, 1 + random() % 2000, 1 + random() % 300);
        runs.ttft_slo.back() = 1.5;
    }
    return runs;
}

std::vector<InstanceSpec> engines(std::uint32_t count, double noise_sigma = 0) {
    std::vector<InstanceSpec> fleet(count);
    for (std::uint32_t i = 0; i < count; ++i) {
        fleet[i].noise_sigma = noise_sigma;
        fleet[i].instance.id = i;
        fleet[i].instance.device = i;
        fleet[i].instance.cost = kCost;
        fleet[i].instance.limits.kv_tokens = 20000;
    }
    return fleet;
}

SimulationOptions checked() {
    SimulationOptions options;
    options.check = true;
    options.dispatch_latency = 0.002;
    options.report_latency = 0.003;
    return options;
}

SimulationResult simulate(
    const Runs& runs, const std::vector<InstanceSpec>& fleet, const SimulationOptions& options = checked()) {
    LeastOutstanding least_outstanding;
    const Workload workload = runs.columns();
    return Simulation(least_outstanding, fleet, workload, options).run();
}

std::size_t count_of(const SimulationResult& result, Outcome outcome) {
    return static_cast<std::size_t>(std::ranges::count(result.stages.outcome, static_cast<std::uint8_t>(outcome)));
}

void everything_finishes_in_order_of_cause() {
    const Runs runs = chat(800, 12, 1);
    const SimulationResult result = simulate(runs, engines(3, 0.1));
    CHECK(count_of(result, Outcome::finished) == 800);
    std::uint64_t wanted = 0;
    std::uint64_t generated = 0;
    for (std::size_t i = 0; i < 800; ++i) {
        CHECK(result.stages.submitted_at[i] == runs.arrival[i]);
        CHECK(result.stages.dispatched_at[i] >= result.stages.submitted_at[i]);
        CHECK(result.stages.first_token_at[i] > result.stages.dispatched_at[i] + 0.005);
        CHECK(result.stages.finished_at[i] >= result.stages.first_token_at[i]);
        CHECK(result.stages.num_tokens[i] == runs.output[i]);
        wanted += runs.output[i];
    }
    for (const InstanceTotals& totals : result.instances) {
        generated += totals.num_generated;
        CHECK(totals.busy_seconds <= result.ended_at);
    }
    CHECK(generated == wanted);
    // Every token but a request's first follows a gap.
    const std::vector<std::uint64_t>& gaps = result.token_gaps.counts();
    CHECK(std::accumulate(gaps.begin(), gaps.end(), std::uint64_t{0}) == wanted - 800);
}

void one_request_takes_the_time_of_its_steps() {
    Runs runs;
    runs.add_run(1);
    runs.add_stage(0, 1000, 3);
    std::vector<InstanceSpec> fleet = engines(1);
    const SimulationResult result = simulate(runs, fleet);
    const double prefill = kCost.mixed(1000, 0, 0, 1000.0 * 500);
    CHECK(std::abs(result.stages.first_token_at[0] - (1.005 + prefill)) < 1e-12);
    const double decode = kCost.decode(1, 1000) + kCost.decode(1, 1001);
    CHECK(std::abs(result.stages.finished_at[0] - (1.005 + prefill + decode)) < 1e-12);
    CHECK(result.instances[0].num_steps == 3);
}

void the_same_seed_gives_the_same_result() {
    const Runs runs = chat(300, 10, 2);
    SimulationOptions options = checked();
    const SimulationResult first = simulate(runs, engines(2, 0.2), options);
    const SimulationResult second = simulate(runs, engines(2, 0.2), options);
    CHECK(first.stages.finished_at == second.stages.finished_at);
    CHECK(first.num_events == second.num_events);
    options.seed = 1;
    CHECK(simulate(runs, engines(2, 0.2), options).stages.finished_at != first.stages.finished_at);
}

void what_a_dying_instance_ran_is_done_again_with_its_tokens_kept() {
    const Runs runs = chat(600, 12, 3);
    for (const double detection : {0.0, 2.0}) {
        SimulationOptions options = checked();
        options.detection_latency = detection;
        options.telemetry_interval = 1;
        options.telemetry_latency = 5;
        using enum DisturbanceKind;
        options.disturbances = {{10, 0, down, 1}, {10.5, 0, up, 1}, {20, 1, down, 1},
                                {25, 0, down, 1}, {26, 1, up, 1},   {26, 0, up, 1},
                                {30, 2, drain, 1}, {30, 1, slow, 2}, {40, 1, normal, 1}};
        const SimulationResult result = simulate(runs, engines(3), options);
        CHECK(count_of(result, Outcome::finished) + count_of(result, Outcome::failed) == 600);
        CHECK(count_of(result, Outcome::finished) > 590);
        std::uint64_t generated = 0;
        std::uint64_t lost = 0;
        for (const InstanceTotals& totals : result.instances) {
            generated += totals.num_generated;
            lost += totals.num_lost;
        }
        const std::vector<std::uint32_t>& tokens = result.stages.num_tokens;
        CHECK(lost > 20);
        CHECK(generated == std::accumulate(tokens.begin(), tokens.end(), std::uint64_t{0}));
        CHECK(*std::ranges::max_element(result.stages.num_attempts) >= 2);
        options.max_attempts = 1;
        const SimulationResult impatient = simulate(runs, engines(3), options);
        std::uint64_t num_lost = 0;
        for (const InstanceTotals& totals : impatient.instances) num_lost += totals.num_lost;
        CHECK(count_of(impatient, Outcome::failed) >= num_lost && num_lost > 20);
    }
}

void stages_follow_each_other_through_their_pools() {
    Runs runs;
    for (int i = 0; i < 50; ++i) {
        runs.add_run(0.1 * i);
        runs.add_stage(1, 200, 0, 4);
        runs.add_stage(0, 500, 20);
        runs.add_stage(1, 64, 0, 8);
    }
    std::vector<InstanceSpec> fleet = engines(3);
    fleet[2].instance.pool = 1;
    fleet[2].instance.device = 0;
    fleet[2].instance.work = policy::Work::batch;
    SimulationOptions options = checked();
    options.hop_latency = 0.01;
    const SimulationResult result = simulate(runs, fleet, options);
    CHECK(count_of(result, Outcome::finished) == 150);
    for (std::size_t i = 0; i < 150; i += 3) {
        for (std::size_t stage = i; stage < i + 2; ++stage) {
            CHECK(std::abs(result.stages.submitted_at[stage + 1] - result.stages.finished_at[stage] - 0.01) < 1e-9);
        }
        CHECK(result.stages.first_token_at[i] == result.stages.finished_at[i]);
        CHECK(result.stages.instance[i] == 2 && result.stages.instance[i + 1] < 2);
    }
    fleet[0].interference = 3;
    const auto step_seconds = [](const InstanceTotals& totals) {
        return totals.busy_seconds / static_cast<double>(totals.num_steps);
    };
    CHECK(step_seconds(simulate(runs, fleet, options).instances[0]) > 1.3 * step_seconds(result.instances[0]));
}

void a_hopeless_simulation_stops_early() {
    const Runs runs = chat(2000, 100, 4);
    SimulationOptions options = checked();
    options.max_bad = 20;
    const SimulationResult result = simulate(runs, engines(1), options);
    CHECK(result.stopped_early && result.num_bad >= 20);
    CHECK(result.ended_at < 10);
    options.max_bad = 5000;
    options.until = 7;
    const SimulationResult cut = simulate(runs, engines(1), options);
    CHECK(!cut.stopped_early && cut.ended_at == 7);
    CHECK(count_of(cut, Outcome::unfinished) > 1000);
}

void a_prompt_that_fits_nowhere_fails_and_a_long_answer_is_cut() {
    Runs runs;
    runs.add_run(0);
    runs.add_stage(0, 30000, 5);
    runs.add_run(0);
    runs.add_stage(0, 10000, 50000);
    const SimulationResult result = simulate(runs, engines(1));
    CHECK(result.stages.outcome[0] == static_cast<std::uint8_t>(Outcome::failed));
    CHECK(result.stages.outcome[1] == static_cast<std::uint8_t>(Outcome::finished));
    CHECK(result.stages.num_tokens[1] == 19984 - 10000);
}

// Answers each submit with the command that it was made with.
class Fixed : public policy::Policy {
public:
    explicit Fixed(std::vector<policy::Command> commands) : commands_(std::move(commands)) {}
    void handle(const policy::Event& event, double now, std::vector<policy::Command>& commands) override {
        if (event.kind == policy::EventKind::timer) timers.push_back(now);
        if (event.kind != policy::EventKind::submitted) return;
        for (policy::Command command : commands_) {
            if (command.id == 0) command.id = event.id;
            commands.push_back(command);
        }
    }
    std::vector<double> timers;

private:
    std::vector<policy::Command> commands_;
};

policy::Command command(policy::CommandKind kind, policy::RequestId id = 0, policy::InstanceId instance = 0) {
    policy::Command made;
    made.kind = kind;
    made.id = id;
    made.instance_id = instance;
    return made;
}

SimulationResult obey(std::vector<policy::Command> commands) {
    Runs runs;
    runs.add_run(0);
    runs.add_stage(0, 1000, 100);
    Fixed fixed(std::move(commands));
    const Workload workload = runs.columns();
    return Simulation(fixed, engines(1), workload, checked()).run();
}

void commands_that_make_no_sense_are_errors() {
    using enum policy::CommandKind;
    CHECK_LOGIC_ERROR(obey({command(dispatch, 99)}));
    CHECK_LOGIC_ERROR(obey({command(dispatch, 0, 7)}));
    CHECK_LOGIC_ERROR(obey({command(dispatch), command(dispatch)}));
    CHECK_LOGIC_ERROR(obey({command(shed), command(dispatch)}));
    CHECK_LOGIC_ERROR(obey({command(shed), command(shed)}));
    CHECK_LOGIC_ERROR(obey({command(abort, 99)}));
    CHECK(obey({}).stages.outcome[0] == static_cast<std::uint8_t>(Outcome::unfinished));
}

void what_is_refused_or_aborted_is_accounted_for() {
    using enum policy::CommandKind;
    CHECK(count_of(obey({command(shed)}), Outcome::shed) == 1);
    const SimulationResult aborted = obey({command(dispatch), command(abort)});
    CHECK(count_of(aborted, Outcome::shed) == 1);
    CHECK(aborted.stages.code[0] == static_cast<std::uint8_t>(policy::ShedCode::cancelled));
    CHECK(count_of(obey({command(dispatch), command(shed)}), Outcome::shed) == 1);
}

void the_newest_timer_replaces_the_others() {
    Runs runs;
    runs.add_run(0);
    runs.add_stage(0, 10, 1);
    policy::Command first = command(policy::CommandKind::set_timer);
    first.at = 5;
    policy::Command second = first;
    second.at = 9;
    Fixed fixed({first, second});
    const Workload workload = runs.columns();
    (void)Simulation(fixed, engines(1), workload, checked()).run();
    CHECK(fixed.timers == std::vector<double>{9});
}

void a_workload_whose_columns_do_not_fit_is_refused() {
    LeastOutstanding least_outstanding;
    Runs runs = chat(5, 1, 1);
    runs.arrival[2] = 0;
    CHECK_REFUSED(runs.columns().validate());
    runs = chat(5, 1, 1);
    runs.tenant.pop_back();
    CHECK_REFUSED(runs.columns().validate());
    runs = chat(5, 1, 1);
    runs.stage_start[3] = 2;
    CHECK_REFUSED(runs.columns().validate());
    runs = chat(5, 1, 1);
    runs.budget[4] = std::numeric_limits<double>::quiet_NaN();
    CHECK_REFUSED(runs.columns().validate());
    runs = chat(5, 1, 1);
    std::vector<InstanceSpec> fleet = engines(2);
    fleet[1].instance.id = 5;
    const Workload workload = runs.columns();
    CHECK_REFUSED(Simulation(least_outstanding, fleet, workload, {}));
    Simulation once(least_outstanding, engines(1), workload, {});
    (void)once.run();
    CHECK_LOGIC_ERROR(once.run());
}

}  // namespace

int main() {
    noise_has_mean_one_and_known_bits();
    calendar_gives_back_by_time_then_by_order();
    durations_fall_between_the_edges_of_their_bin();
    batches_keep_to_the_limits_of_their_executor();
    every_sequence_gets_its_tokens_whatever_is_removed();
    limits_and_sequences_that_cannot_be_are_refused();
    everything_finishes_in_order_of_cause();
    one_request_takes_the_time_of_its_steps();
    the_same_seed_gives_the_same_result();
    what_a_dying_instance_ran_is_done_again_with_its_tokens_kept();
    stages_follow_each_other_through_their_pools();
    a_hopeless_simulation_stops_early();
    a_prompt_that_fits_nowhere_fails_and_a_long_answer_is_cut();
    commands_that_make_no_sense_are_errors();
    what_is_refused_or_aborted_is_accounted_for();
    the_newest_timer_replaces_the_others();
    a_workload_whose_columns_do_not_fit_is_refused();
    if (num_failed > 0) {
        std::fprintf(stderr, "%d checks failed\n", num_failed);
        return 1;
    }
    return 0;
}
