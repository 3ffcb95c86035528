// One pool: its queue, its instances, and the loop that brings them together. What differs between token-by-token and
// batch work is in GeneratePool and BatchPool.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>

#include "sage/policy/config.hpp"
#include "sage/policy/fair_queue.hpp"
#include "sage/policy/instance_state.hpp"
#include "sage/policy/length_histogram.hpp"
#include "sage/policy/policy.hpp"
#include "sage/policy/random.hpp"

namespace sage::policy {

// A dispatch that its instance does not list counts as lost, on its way there or back, after this many seconds ...
inline constexpr double kReconcileAfter = 3.0;
// ... if it has been missing for this long: the last report of a request may be behind the announcement.
inline constexpr double kUnlistedAfter = 1.0;

// What pools share: configuration, randomness, learned output lengths, and who is on which device.
struct Shared {
    explicit Shared(const Config& from) : config(from), random(from.seed) {}

    Config config;
    SplitMix64 random;
    LengthHistogram lengths;
    std::unordered_map<std::uint32_t, std::vector<InstanceState*>> devices;
    bool receipts = true;
};

struct Queued {
    Request request;
    Tier tier = Tier::interactive;  // that it waits in
    double since = 0;
    double service = 0;  // seconds on the reference instance, what fairness charges
    bool is_relegated = false;
    double looked_until = -kNever;     // that it fits nowhere holds until then, but for instances that change
    std::uint64_t looked_changes = 0;  // number of the last change that was considered
    double wake_at = kNever;
    double stuck_since = -1;  // since when it is next and fits nowhere; < 0: it was never so
};

class Pool {
public:
    Pool(PoolId id, Shared& shared);
    virtual ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    void submit(const Request& request, double now, std::vector<Command>& out);
    void cancel(RequestId id, double now, std::vector<Command>& out);
    // False: it does not run here (it may wait here: the report is on an earlier scheduler's dispatch).
    bool finish(RequestId id, std::uint32_t num_tokens, double now);
    void first_token(RequestId id, std::uint32_t num_cached, double now);
    void progressed(RequestId id, std::uint32_t num_tokens, double now);
    void instance_up(
        const Instance& instance, const std::vector<RequestId>& running, double now, std::vector<Command>& out);
    void instance_down(InstanceId id, bool is_lost, std::vector<Command>& out);
    void telemetry(const Event& event, double now);
    // Shed what expired and dispatch what may be.
    void pump(double now, std::vector<Command>& out);
    // When to call pump again although nothing happened; kNever: no need.
    [[nodiscard]] double next_wake() const;
    void scale_hint(double now, std::vector<Command>& out);

    [[nodiscard]] bool knows(RequestId id) const { return queued_.contains(id) || placed_.contains(id); }
    [[nodiscard]] std::size_t num_queued() const { return queued_.size(); }
    [[nodiscard]] bool is_idle() const { return queued_.empty() && placed_.empty(); }

protected:
    virtual void dispatch(double now, std::vector<Command>& out) = 0;
    // Seconds that one instance of this pool spends on the request; what fairness charges and laxity subtracts.
    [[nodiscard]] virtual double service_seconds(const Request& request) const = 0;
    // A request ended on its instance; `num_tokens` of 0: failed or unknown.
    virtual void finished(const Flight&, std::uint32_t) {}
    virtual void instance_added(InstanceState&) {}
    virtual void instance_removed(InstanceId) {}
    // The tier that a request waits in: its own, unless its tenant asks for more than its share.
    [[nodiscard]] virtual Tier effective_tier(const Request& request, double) { return request.tier; }
    virtual void arrived(const Request&, double, double) {}
    // Refuse on arrival what cannot be met even by the optimistic best; false: queue it.
    virtual bool refuse_on_arrival(const Request&, double, std::vector<Command>&) { return false; }

    void place(
        const Queued& queued, InstanceState& instance, Flight flight, std::uint64_t batch, Decision decision,
        double now, std::vector<Command>& out);
    void shed(RequestId id, ShedCode code, Decision decision, double now, std::vector<Command>& out);
    // Put work that may not be shed behind everything else.
    void relegate(RequestId id);
    [[nodiscard]] Decision decision(const char* reason, double since, double now) const;
    [[nodiscard]] double predicted_wait() const;
    [[nodiscard]] bool has_slot(const InstanceState& instance, const Request& request) const;

    PoolId id_;
    Shared& shared_;
    const Config& config_;
    FairQueue queue_;
    std::unordered_map<RequestId, Queued> queued_;
    std::vector<std::unique_ptr<InstanceState>> instances_;
    std::unordered_map<RequestId, InstanceState*> placed_;
    double wake_at_ = kNever;  // set by dispatch()
    void changed(InstanceState& instance) { instance.changed_at = ++num_changes_; }

    std::uint64_t num_changes_ = 0;  // of the instances and what they run

private:
    using Deadline = std::pair<double, RequestId>;

    void enqueue(const Request& request, Tier tier, double now);
    void expire(double now, std::vector<Command>& out);
    void compact();
    [[nodiscard]] double order_key(const Request& request, double service) const;
    [[nodiscard]] double alpha() const;
    InstanceState* instance(InstanceId id);
    void forget_if_closed(InstanceState* instance);
    void count_finish(double now);

    std::priority_queue<Deadline, std::vector<Deadline>, std::greater<>> deadlines_;
    // Served work per second, decayed, for Retry-After and scale hints.
    double demand_ = 0;
    double demand_at_ = 0;
    std::uint32_t hinted_ = 0;
};

// Make the pool for the kind of work of its first instance.
std::unique_ptr<Pool> make_pool(const Instance& instance, Shared& shared);

}  // namespace sage::policy
