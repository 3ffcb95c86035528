// The scheduling seam in C++: the twin of libs/sage_policy/policy.py. Live and simulated drivers run the same object.
//
// A policy has no clock, no IO and no threads; randomness comes from its own seeded generator. `now` is in seconds on
// the driver's clock and never goes back. Names are small integers here: the driver keeps the table of strings.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "sage/step_cost.hpp"

namespace sage::policy {

using RequestId = std::uint64_t;
using InstanceId = std::uint32_t;
using PoolId = std::uint32_t;
using TenantId = std::uint32_t;

inline constexpr InstanceId kNoInstance = std::numeric_limits<InstanceId>::max();
inline constexpr double kNever = std::numeric_limits<double>::infinity();

enum class Work : std::uint8_t { generate, batch };  // token by token, or whole batches (embed, rerank, operators)
enum class Tier : std::uint8_t { interactive, normal, batch };

// What is asked for. Times are seconds on the driver's clock, targets seconds from `started_at`.
struct Request {
    RequestId id = 0;
    PoolId pool = 0;
    TenantId tenant = 0;
    Tier tier = Tier::interactive;
    bool may_shed = true;       // false: relegated behind all other work instead of refused, until its deadline
    std::int32_t priority = 0;  // the caller's own rank within the tier, higher first
    double started_at = 0;      // when the clock of its targets started: the submit, or its pipeline's submit
    double deadline = kNever;   // absolute; past it nobody waits any more
    double ttft_slo = kNever;   // first token; for batch work its completion
    double tpot_slo = kNever;   // per output token after the first
    double e2e_slo = kNever;    // completion
    double downstream = 0;      // seconds of work that must follow before the target is met (later pipeline nodes)
    std::uint32_t num_prompt_tokens = 0;
    std::uint32_t max_tokens = 0;  // 0: not limited by the caller
    std::uint32_t num_items = 1;   // texts, documents
    std::uint64_t route = 0;       // what output lengths are learned by, beside tenant and pool
    std::vector<std::uint64_t> blocks;  // chained hashes of the prompt's leading blocks, see Instance::prefix_block
};

// A worker's capacity for one pool. Instances on one `device` slow each other down.
struct Instance {
    InstanceId id = 0;
    PoolId pool = 0;
    std::uint32_t device = 0;
    Work work = Work::generate;
    bool is_gpu = true;
    std::uint32_t max_in_flight = 256;
    double usd_per_hour = 0;
    std::uint32_t prefix_block = 512;  // tokens covered by one entry of Request::blocks
    EngineLimits limits;
    StepCost cost;  // the prior; all zero: unknown, learned from nothing
};

enum class EventKind : std::uint8_t {
    submitted,      // request
    started,        // id
    first_token,    // id, num_cached
    progressed,     // id, num_tokens generated so far
    finished,       // id, num_tokens
    cancelled,      // id
    instance_up,    // instance, running
    instance_down,  // instance_id, pool, is_lost
    telemetry,      // instance_id, pool, num_running, num_waiting, kv_used
    pool_closed,    // pool: another scheduler leads it now
    timer,
};

// One event; which members are set is listed above. Pointers are valid during the call only.
struct Event {
    EventKind kind = EventKind::timer;
    RequestId id = 0;
    PoolId pool = 0;
    InstanceId instance_id = kNoInstance;
    std::uint32_t num_tokens = 0;
    std::uint32_t num_cached = 0;
    std::uint32_t num_running = 0;
    std::uint32_t num_waiting = 0;
    double kv_used = 0;  // share of the KV cache, 0..1
    bool is_lost = false;
    const Request* request = nullptr;
    const Instance* instance = nullptr;
    const std::vector<RequestId>* running = nullptr;
};

enum class CommandKind : std::uint8_t { dispatch, shed, abort, set_timer, scale_hint };

enum class ShedCode : std::uint8_t { overloaded, deadline_exceeded, worker_lost, cancelled, context_length_exceeded };

// An instance that was considered; lower scores win. `blocked` says why it could not be used, empty where it could.
struct Candidate {
    InstanceId instance_id = kNoInstance;
    double score = 0;
    const char* blocked = "";
};

// Why a command was given; becomes the receipt. Predictions are seconds from now, NaN where none was made.
struct Decision {
    std::string reason;
    double queue_seconds = 0;
    std::uint32_t num_queued = 0;
    double predicted_ttft = std::numeric_limits<double>::quiet_NaN();
    double predicted_tpot = std::numeric_limits<double>::quiet_NaN();
    double predicted_e2e = std::numeric_limits<double>::quiet_NaN();
    std::vector<Candidate> candidates;
};

// One command; members by kind: dispatch (id, instance_id, batch), shed (id, code, retry_after), abort (id,
// instance_id), set_timer (at), scale_hint (pool, num_instances).
struct Command {
    CommandKind kind = CommandKind::set_timer;
    RequestId id = 0;
    InstanceId instance_id = kNoInstance;
    PoolId pool = 0;
    std::uint64_t batch = 0;  // dispatches with one non-zero number form one batch, and follow each other
    ShedCode code = ShedCode::overloaded;
    double retry_after = 0;  // seconds; 0: none
    double at = 0;
    std::uint32_t num_instances = 0;
    Decision decision;
};

class Policy {
public:
    virtual ~Policy() = default;
    Policy() = default;
    Policy(const Policy&) = delete;
    Policy& operator=(const Policy&) = delete;

    // Take one event, append what must happen, in order. Unknown requests and instances are ignored.
    virtual void handle(const Event& event, double now, std::vector<Command>& commands) = 0;
    // False (simulations): reasons and candidates need not be filled in.
    virtual void keep_receipts(bool) {}
};

}  // namespace sage::policy
