// What a policy is made of: one choice per layer. Baselines and the hybrid policy differ in nothing else.
#pragma once

#include <cstdint>

namespace sage::policy {

// How an instance is chosen. Sources: docs/explanation/scheduling.md.
enum class Placement : std::uint8_t {
    round_robin,
    random,
    least_outstanding,
    least_tokens,
    power_of_two,
    cache_aware,   // SGLang router: best prefix match unless the load is out of balance
    dynamo_cost,   // NVIDIA Dynamo KV router: prefill blocks to compute + decode blocks held
    lmetric,       // LMetric (arXiv 2603.15202): new prefill tokens x batch size
    headroom,      // llm-d predicted latency: least positive headroom first
    predicted,     // ours: own predicted lateness + the requests in flight that the choice would make late
};

// Who is next. `hybrid` slides from least laxity to shortest first as backlog exceeds slack.
enum class Order : std::uint8_t { fcfs, edf, sjf, hybrid };

// How batches are formed for embed, rerank and operator pools.
enum class Batching : std::uint8_t {
    eager,         // all that waits, in order of arrival, as soon as an executor is idle
    fixed_window,  // `window` seconds after the first arrival, or once `window_items` wait
    deadline,      // ours: earliest deadline first, filled with inputs of like length, up to the knee of the curve
};

struct Config {
    Placement placement = Placement::predicted;
    Order order = Order::hybrid;
    Batching batching = Batching::deadline;
    bool hold = true;   // keep work above the engine until it fits there; false: push at arrival
    bool shed = true;   // refuse what cannot meet its target any more
    bool fair = true;   // tenants by virtual token counters; false: one queue for all
    bool learn = true;  // correct the cost profiles by what is seen

    std::uint32_t max_queued = 1024;  // per pool; more is refused
    std::uint64_t seed = 0;

    // Hold gate.
    double hold_prefill_tokens = 8192;  // upper bound of uncomputed prompt tokens per engine
    double hold_prefill_share = 0.5;    // of the TTFT target, spent on uncomputed prompts already there
    double reserve_quantile = 0.7;      // of the output length that memory is kept for
    double memory_share = 0.97;         // of the KV cache that is filled by intention
    std::uint32_t backfill_depth = 16;  // requests looked at behind one that fits nowhere

    // Placement score.
    double knee = 0.85;           // share of a target from which lateness costs
    double lateness_weight = 10;  // its slope there
    double harm_weight = 10;      // per request in flight whose TPOT target would be missed
    double future_load = 0.25; // share of the prefill load expected to go on while what decodes now does
    double harm_floor = 0.02;     // less than this is no reason to wait
    double patience = 0.95;       // share of the slack for which a request waits for a place without harm

    // Order.
    double backlog_alpha = 50;   // weight of service time in the key at full backlog
    double tenant_quantum = 2;   // seconds of service a tenant may be ahead of the least served
    double lower_tier_share = 0.05;
    double share_spread = 0.35;  // see TenantLoads: who offers more only gets what others leave, in overload
    double share_backlog = 0.02;  // seconds of work that wait per instance, from which shares are enforced
    double patience_below_share = 0.1;  // as `patience`, for others while a tenant asks for more
    double quiet_tpot = 0.5;    // share of the TPOT target up to which an engine takes such a tenant's work
    double quiet_memory = 0.7;  // of the KV cache, likewise

    // Shedding.
    double shed_margin = 1.0;  // a request is refused once margin x best predicted time exceeds its slack

    // Batcher.
    double window = 0.005;
    std::uint32_t window_items = 32;
    double batch_guard = 0.002;  // seconds kept between a batch's predicted end and its earliest deadline

    double scale_hint_interval = 0;  // seconds; 0: none
    double scale_target = 0.75;      // utilisation that hints aim at
};

}  // namespace sage::policy
