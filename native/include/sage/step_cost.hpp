// How long one step of an LLM engine takes, and what limits it. Shared by policies, simulator and emulated engine.
//
// With c prefill tokens on a context of ctx tokens, N decoding sequences and K tokens in the KV cache:
//
//   decode only (c = 0):  T = h + a0 + a1*N + a2*K
//   mixed       (c > 0):  T = h + m0 + m1*(c+N) + m2*K + m3*SUM c*(ctx + c/2) + m4*N
//
// h is the host's overhead per step. For executors that run whole batches (embed, rerank, operators) one batch of
// `items` inputs padded to `tokens` tokens in all takes T = h + m0 + m1*tokens + m4*items.
#pragma once

#include <cstdint>

namespace sage {

// Coefficients in seconds per unit.
struct StepCost {
    double a0 = 0, a1 = 0, a2 = 0;
    double m0 = 0, m1 = 0, m2 = 0, m3 = 0, m4 = 0;
    double host = 0;

    bool operator==(const StepCost&) const = default;

    [[nodiscard]] double decode(double decoding, double resident) const {
        return host + a0 + a1 * decoding + a2 * resident;
    }
    // `work` is SUM c*(ctx + c/2) over the prefill chunks of the step.
    [[nodiscard]] double mixed(double prefill, double decoding, double resident, double work) const {
        return host + m0 + m1 * (prefill + decoding) + m2 * resident + m3 * work + m4 * decoding;
    }
    [[nodiscard]] double batch(double tokens, double items) const { return host + m0 + m1 * tokens + m4 * items; }
};

// Limits of one engine, as it reports them.
struct EngineLimits {
    std::uint32_t max_sequences = 256;     // sequences in a step; items in a batch
    std::uint32_t max_step_tokens = 2048;  // tokens in a step; padded tokens in a batch
    std::uint32_t max_context = 32768;
    std::uint64_t kv_tokens = 1'000'000;
    std::uint32_t block_tokens = 16;
    double watermark = 0;  // share of the KV cache that admission leaves free
    bool async_scheduling = true;  // it plans a step while the one before it still runs
};

}  // namespace sage
