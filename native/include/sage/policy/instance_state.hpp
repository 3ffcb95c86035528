// What a policy knows of one instance: what it sent there, reckoned forward, and what that predicts. Telemetry only
// corrects; nothing is decided on polled metrics alone.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "sage/policy/online_cost.hpp"
#include "sage/policy/policy.hpp"
#include "sage/policy/quantile_factor.hpp"

namespace sage::policy {

// What is known of an output's length: quantiles, straight lines between them.
struct LengthShape {
    static constexpr std::array<double, 7> kLevels{0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98};
    std::array<float, 7> at{};

    // The share of outputs shorter than `tokens`.
    [[nodiscard]] double below(double tokens) const;
};

// One request on an instance. Times are absolute; first_token_at < 0 until it is seen.
struct Flight {
    RequestId id = 0;
    TenantId tenant = 0;
    Tier tier = Tier::interactive;
    std::uint64_t route = 0;
    double service = 0;  // seconds, what its tenant was charged
    double dispatched_at = 0;
    double first_token_at = -1;
    double unlisted_since = -1;  // since when the instance's own list lacks it; < 0: it does not
    double started_at = 0;
    double ttft_slo = kNever;
    double tpot_slo = kNever;
    double predicted_ttft = 0;  // from dispatch, with the learned speeds of that moment; 0: not predicted
    double predicted_tpot = 0;
    double prior_ttft = 0;  // the same by the profile alone, what speeds are learned against
    double prior_tpot = 0;
    std::uint32_t prompt = 0;
    std::uint32_t uncached = 0;
    float expected_tokens = 0;  // median output length
    float reserved_tokens = 0;  // the quantile that memory is kept for
    bool is_batch_tier = false;
    std::uint32_t num_blocks = 0;
    std::uint64_t order = 0;  // of its dispatch, among those of the instance
    double batch_tokens = 0;  // padded, and items: of the batch that it is the first member of, else 0
    double batch_items = 0;
    double stall = 0;        // seconds for which its prompt stalls the sequences that decode there
    double stalled_from = 0;  // of all prompts computed there before its first token
    LengthShape length;
};

struct Prediction {
    double ttft = 0;  // seconds from dispatch to first token (batch work: to completion)
    double tpot = 0;
    double memory_wait = 0;
};

// What is asked of an instance when it is considered.
struct Ask {
    double prompt = 0;
    double cached = 0;
    double shared = 0;  // of the cached tokens: held by requests in flight there
    double expected_tokens = 0;
    double reserved_tokens = 0;
    [[nodiscard]] double uncached() const { return prompt - cached; }
};

class InstanceState {
public:
    InstanceState(const Instance& spec, double now);

    void update(const Instance& spec);
    void add(const Flight& flight, const std::vector<std::uint64_t>& blocks, double now);
    // The factor that nine in ten first tokens stay within. Relative errors are largest for short waits, so each order of
    // magnitude has its own: below 0.25, 1, 4 seconds, and above.
    [[nodiscard]] QuantileFactor& ttft_factor(double predicted);
    // Return the flight's position, or -1.
    [[nodiscard]] int find(RequestId id) const;
    void first_token(RequestId id, std::uint32_t num_cached, double now, bool learn);
    void progressed(RequestId id, std::uint32_t num_tokens, double now);
    // Remove a flight. `num_tokens` of 0: failed or unknown, nothing is learned.
    bool remove(RequestId id, std::uint32_t num_tokens, double now, bool learn);
    void telemetry(std::uint32_t num_running, std::uint32_t num_waiting, double kv_used, double now);

    // Reckon the counts below forward to `now`. Costs O(flights) at most every 50 ms, else O(1).
    void refresh(double now);
    [[nodiscard]] Prediction predict(const Ask& ask) const;
    // How long a prefill keeps the sequences that decode there waiting.
    [[nodiscard]] double stall_seconds(const Ask& ask) const;
    // How many requests in flight will miss their TPOT target because of a stall, and would not without: the sum of the
    // probabilities that their outputs end before the stall is made good by the tokens that follow.
    // Read from a curve over the stall that is drawn when it is first asked for and for at most 20 ms.
    [[nodiscard]] double harmed_by(double stall, double future_load, double now);
    // Leading blocks of a prompt that requests in flight there hold already: they cost no memory again.
    [[nodiscard]] std::uint32_t num_held_blocks(const std::vector<std::uint64_t>& blocks) const;
    // Tokens of KV cache at the fullest moment to come, were the request added and all lengths as estimated: when the
    // k-th longest ends, it and the k - 1 longer ones hold what they have plus as many tokens as it still generates
    // (Gong et al., "Past-Future Scheduler for LLM Serving under SLA Guarantees", ASPLOS 2025).
    [[nodiscard]] double peak_memory(const Ask& ask) const;

    Instance spec;
    bool is_open = true;
    std::vector<Flight> flights;
    std::uint32_t num_batch_tier = 0;
    StepCost cost;  // what `online` believes
    OnlineCost online;  // spec.cost, corrected by batch times, times to first token and times per output token
    double capacity = 0;  // tokens of KV cache that may be used, corrected by preemptions seen

    // Reckoned at the last refresh.
    double pending = 0;       // P: uncached prompt tokens not computed yet
    double pending_work = 0;  // SUM c*(ctx + c/2) of these
    std::uint32_t num_pending = 0;
    double decoding = 0;  // N
    double resident = 0;  // K
    double reserved_ = 0;  // R: tokens at most held by what is in flight, all at their longest
    double prefill_load = 0;  // u: share of time spent on prefill, decayed
    double outstanding_tokens = 0;  // prompt + expected output of everything in flight
    double busy_until = 0;          // batch executors: predicted end of the running batch
    double stalled = 0;             // seconds of prompts computed there so far, as predicted
    std::uint64_t changed_at = 1;  // number of its last change, counted by the pool
    std::uint32_t prefix_slot = ~0U;  // in the pool's prefix index
    double routed_tokens = 0;  // uncached prompt tokens ever sent there
    double foreign_running = 0;     // sequences of other clients, from telemetry

private:
    std::array<QuantileFactor, 4> ttft_factors_;

    struct Hold {
        double remaining;  // tokens still to come
        double held;
    };

    // Stalls at which the curve of harm is known, seconds.
    static constexpr std::array<double, 14> kStalls{0,    0.01, 0.02, 0.04, 0.08, 0.16, 0.24,
                                                    0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 40.96};

    void draw_harm(double future_load, double now);
    void release_blocks(RequestId id);
    void dirty() { refreshed_at_ = harm_at_ = -1; }
    void decay_load(double now);

    std::vector<Hold> holds_;  // longest remaining first
    std::array<double, kStalls.size()> harm_{};
    double harm_at_ = -1;
    // Prompt blocks of the requests in flight, with the number of their holders.
    std::unordered_map<std::uint64_t, std::uint32_t> held_blocks_;
    std::unordered_map<RequestId, std::vector<std::uint64_t>> blocks_;
    std::size_t num_nominal_blocks_ = 0;
    std::uint64_t num_added_ = 0;
    double refreshed_at_ = -1;
    double progress_from_ = 0;  // since when the head of the pending prompts is being computed
    double load_at_ = 0;
    double foreign_at_ = -1;
};

}  // namespace sage::policy
