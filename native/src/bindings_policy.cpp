// Python face of the policies. Events go in as one call per kind with plain numbers, commands come out as tuples;
// libs/sage_policy gives both their names. The same calls, made on a Python object, let a Python policy run in the
// native simulator.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "sage/policy/configured_policy.hpp"

namespace py = pybind11;
namespace policy = sage::policy;

namespace {

using policy::Command;
using policy::Event;
using policy::EventKind;

py::tuple to_tuple(const Command& command) {
    py::list candidates;
    for (const policy::Candidate& candidate : command.decision.candidates) {
        candidates.append(py::make_tuple(candidate.instance_id, candidate.score, candidate.blocked));
    }
    const policy::Decision& why = command.decision;
    return py::make_tuple(
        static_cast<int>(command.kind), command.id, command.instance_id, command.pool, command.batch,
        static_cast<int>(command.code), command.retry_after, command.at, command.num_instances,
        py::make_tuple(
            why.reason, why.queue_seconds, why.num_queued, why.predicted_ttft, why.predicted_tpot, why.predicted_e2e,
            candidates));
}

Command from_tuple(const py::tuple& item) {
    Command command;
    command.kind = static_cast<policy::CommandKind>(item[0].cast<int>());
    command.id = item[1].cast<policy::RequestId>();
    command.instance_id = item[2].cast<policy::InstanceId>();
    command.pool = item[3].cast<policy::PoolId>();
    command.batch = item[4].cast<std::uint64_t>();
    command.code = static_cast<policy::ShedCode>(item[5].cast<int>());
    command.retry_after = item[6].cast<double>();
    command.at = item[7].cast<double>();
    command.num_instances = item[8].cast<std::uint32_t>();
    const auto why = item[9].cast<py::tuple>();
    command.decision.reason = why[0].cast<std::string>();
    command.decision.queue_seconds = why[1].cast<double>();
    command.decision.num_queued = why[2].cast<std::uint32_t>();
    command.decision.predicted_ttft = why[3].cast<double>();
    command.decision.predicted_tpot = why[4].cast<double>();
    command.decision.predicted_e2e = why[5].cast<double>();
    return command;
}

py::list run(policy::Policy& self, const Event& event, double now) {
    std::vector<Command> commands;
    self.handle(event, now, commands);
    py::list result;
    for (const Command& command : commands) {
        result.append(to_tuple(command));
    }
    return result;
}

Event about(EventKind kind, policy::RequestId id) {
    Event event;
    event.kind = kind;
    event.id = id;
    return event;
}

// A policy written in Python: an object with the calls that `bind_policy` gives to native ones.
class PythonPolicy final : public policy::Policy {
public:
    explicit PythonPolicy(py::object target) : target_(std::move(target)) {}
    ~PythonPolicy() override {
        const py::gil_scoped_acquire gil;
        target_ = py::object();
    }

    void handle(const Event& event, double now, std::vector<Command>& commands) override {
        const py::gil_scoped_acquire gil;
        const py::object answer = call(event, now);
        for (const py::handle item : answer) {
            commands.push_back(from_tuple(item.cast<py::tuple>()));
        }
    }

private:
    py::object call(const Event& event, double now) {
        switch (event.kind) {
            case EventKind::submitted: {
                const policy::Request& r = *event.request;
                return target_.attr("submitted")(
                    now, r.id, r.pool, r.tenant, static_cast<int>(r.tier), r.may_shed, r.priority, r.started_at,
                    r.deadline, r.ttft_slo, r.tpot_slo, r.e2e_slo, r.downstream, r.num_prompt_tokens, r.max_tokens,
                    r.num_items, r.route, py::cast(r.blocks));
            }
            case EventKind::started:
                return target_.attr("started")(now, event.id);
            case EventKind::first_token:
                return target_.attr("first_token")(now, event.id, event.num_cached);
            case EventKind::progressed:
                return target_.attr("progressed")(now, event.id, event.num_tokens);
            case EventKind::finished:
                return target_.attr("finished")(now, event.id, event.num_tokens);
            case EventKind::cancelled:
                return target_.attr("cancelled")(now, event.id);
            case EventKind::instance_up: {
                const policy::Instance& i = *event.instance;
                const auto& l = i.limits;
                const auto& c = i.cost;
                return target_.attr("instance_up")(
                    now, i.id, i.pool, i.device, i.work == policy::Work::batch, i.is_gpu, i.max_in_flight,
                    i.usd_per_hour, i.prefix_block,
                    py::make_tuple(
                        l.max_sequences, l.max_step_tokens, l.max_context, l.kv_tokens, l.block_tokens, l.watermark),
                    py::make_tuple(c.a0, c.a1, c.a2, c.m0, c.m1, c.m2, c.m3, c.m4, c.host),
                    event.running == nullptr ? py::list() : py::cast(*event.running));
            }
            case EventKind::instance_down:
                return target_.attr("instance_down")(now, event.instance_id, event.pool, event.is_lost);
            case EventKind::telemetry:
                return target_.attr("telemetry")(
                    now, event.instance_id, event.pool, event.num_running, event.num_waiting, event.kv_used);
            case EventKind::pool_closed:
                return target_.attr("pool_closed")(now, event.pool);
            case EventKind::timer:
                return target_.attr("timer")(now);
        }
        return py::list();
    }

    py::object target_;
};

template <typename E>
void set_choice(E& field, const py::handle& value) {
    field = static_cast<E>(value.cast<int>());
}

policy::Config config_from(const py::kwargs& options) {
    policy::Config config;
    for (const auto& [key, value] : options) {
        const auto name = key.cast<std::string>();
#define SAGE_OPTION(field)                                           \
    if (name == #field) {                                            \
        config.field = value.template cast<decltype(config.field)>(); \
        continue;                                                    \
    }
        if (name == "placement") {
            set_choice(config.placement, value);
            continue;
        }
        if (name == "order") {
            set_choice(config.order, value);
            continue;
        }
        if (name == "batching") {
            set_choice(config.batching, value);
            continue;
        }
        SAGE_OPTION(hold)
        SAGE_OPTION(shed)
        SAGE_OPTION(fair)
        SAGE_OPTION(learn)
        SAGE_OPTION(max_queued)
        SAGE_OPTION(seed)
        SAGE_OPTION(hold_prefill_tokens)
        SAGE_OPTION(hold_prefill_share)
        SAGE_OPTION(reserve_quantile)
        SAGE_OPTION(memory_share)
        SAGE_OPTION(backfill_depth)
        SAGE_OPTION(knee)
        SAGE_OPTION(lateness_weight)
        SAGE_OPTION(harm_weight)
        SAGE_OPTION(future_load)
        SAGE_OPTION(harm_floor)
        SAGE_OPTION(patience)
        SAGE_OPTION(backlog_alpha)
        SAGE_OPTION(tenant_quantum)
        SAGE_OPTION(lower_tier_share)
        SAGE_OPTION(share_spread)
        SAGE_OPTION(share_backlog)
        SAGE_OPTION(patience_below_share)
        SAGE_OPTION(quiet_tpot)
        SAGE_OPTION(quiet_memory)
        SAGE_OPTION(shed_margin)
        SAGE_OPTION(window)
        SAGE_OPTION(window_items)
        SAGE_OPTION(batch_guard)
        SAGE_OPTION(scale_hint_interval)
        SAGE_OPTION(scale_target)
#undef SAGE_OPTION
        throw py::type_error("policy option " + name + " is unknown");
    }
    return config;
}

policy::Instance instance_from(
    policy::InstanceId id, policy::PoolId pool, std::uint32_t device, bool is_batched, bool is_gpu,
    std::uint32_t max_in_flight, double usd_per_hour, std::uint32_t prefix_block,
    const std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint64_t, std::uint32_t, double>& limits,
    const std::vector<double>& cost) {
    if (cost.size() != 9) {
        throw py::value_error("cost has " + std::to_string(cost.size()) + " coefficients; expected 9: a0 .. m4, host");
    }
    policy::Instance instance;
    instance.id = id;
    instance.pool = pool;
    instance.device = device;
    instance.work = is_batched ? policy::Work::batch : policy::Work::generate;
    instance.is_gpu = is_gpu;
    instance.max_in_flight = max_in_flight;
    instance.usd_per_hour = usd_per_hour;
    instance.prefix_block = prefix_block;
    std::tie(
        instance.limits.max_sequences, instance.limits.max_step_tokens, instance.limits.max_context,
        instance.limits.kv_tokens, instance.limits.block_tokens, instance.limits.watermark) = limits;
    instance.cost = {cost[0], cost[1], cost[2], cost[3], cost[4], cost[5], cost[6], cost[7], cost[8]};
    return instance;
}

}  // namespace

void bind_policy(py::module_& module) {
    using policy::InstanceId;
    using policy::PoolId;
    using policy::RequestId;
    auto base = py::class_<policy::Policy, py::smart_holder>(module, "Policy");
    base.def("keep_receipts", &policy::Policy::keep_receipts, py::arg("keep"))
        .def(
            "submitted",
            [](policy::Policy& self, double now, RequestId id, PoolId pool, policy::TenantId tenant, int tier,
               bool may_shed, std::int32_t priority, double started_at, double deadline, double ttft_slo,
               double tpot_slo, double e2e_slo, double downstream, std::uint32_t num_prompt_tokens,
               std::uint32_t max_tokens, std::uint32_t num_items, std::uint64_t route,
               std::vector<std::uint64_t> blocks) {
                const policy::Request request{
                    id,       pool,     tenant,  static_cast<policy::Tier>(tier), may_shed,          priority,
                    started_at, deadline, ttft_slo, tpot_slo,                      e2e_slo,           downstream,
                    num_prompt_tokens, max_tokens, num_items, route, std::move(blocks)};
                Event event = about(EventKind::submitted, id);
                event.request = &request;
                return run(self, event, now);
            })
        .def(
            "started", [](policy::Policy& self, double now, RequestId id) {
                return run(self, about(EventKind::started, id), now);
            })
        .def(
            "first_token",
            [](policy::Policy& self, double now, RequestId id, std::uint32_t num_cached) {
                Event event = about(EventKind::first_token, id);
                event.num_cached = num_cached;
                return run(self, event, now);
            })
        .def(
            "progressed",
            [](policy::Policy& self, double now, RequestId id, std::uint32_t num_tokens) {
                Event event = about(EventKind::progressed, id);
                event.num_tokens = num_tokens;
                return run(self, event, now);
            })
        .def(
            "finished",
            [](policy::Policy& self, double now, RequestId id, std::uint32_t num_tokens) {
                Event event = about(EventKind::finished, id);
                event.num_tokens = num_tokens;
                return run(self, event, now);
            })
        .def(
            "cancelled", [](policy::Policy& self, double now, RequestId id) {
                return run(self, about(EventKind::cancelled, id), now);
            })
        .def(
            "instance_up",
            [](policy::Policy& self, double now, InstanceId id, PoolId pool, std::uint32_t device, bool is_batched,
               bool is_gpu, std::uint32_t max_in_flight, double usd_per_hour, std::uint32_t prefix_block,
               const std::tuple<std::uint32_t, std::uint32_t, std::uint32_t, std::uint64_t, std::uint32_t, double>&
                   limits,
               const std::vector<double>& cost, const std::vector<RequestId>& running) {
                const policy::Instance instance = instance_from(
                    id, pool, device, is_batched, is_gpu, max_in_flight, usd_per_hour, prefix_block, limits, cost);
                Event event;
                event.kind = EventKind::instance_up;
                event.instance_id = id;
                event.pool = pool;
                event.instance = &instance;
                event.running = &running;
                return run(self, event, now);
            })
        .def(
            "instance_down",
            [](policy::Policy& self, double now, InstanceId id, PoolId pool, bool is_lost) {
                Event event;
                event.kind = EventKind::instance_down;
                event.instance_id = id;
                event.pool = pool;
                event.is_lost = is_lost;
                return run(self, event, now);
            })
        .def(
            "telemetry",
            [](policy::Policy& self, double now, InstanceId id, PoolId pool, std::uint32_t num_running,
               std::uint32_t num_waiting, double kv_used) {
                Event event;
                event.kind = EventKind::telemetry;
                event.instance_id = id;
                event.pool = pool;
                event.num_running = num_running;
                event.num_waiting = num_waiting;
                event.kv_used = kv_used;
                return run(self, event, now);
            })
        .def(
            "pool_closed",
            [](policy::Policy& self, double now, PoolId pool) {
                Event event;
                event.kind = EventKind::pool_closed;
                event.pool = pool;
                return run(self, event, now);
            })
        .def("timer", [](policy::Policy& self, double now) { return run(self, Event{}, now); });
    py::class_<policy::ConfiguredPolicy, policy::Policy, py::smart_holder>(module, "ConfiguredPolicy")
        .def(py::init([](const py::kwargs& options) {
            return std::make_shared<policy::ConfiguredPolicy>(config_from(options));
        }))
        .def("num_queued", &policy::ConfiguredPolicy::num_queued, py::arg("pool"))
        .def("knows", &policy::ConfiguredPolicy::knows, py::arg("request"));
    py::class_<PythonPolicy, policy::Policy, py::smart_holder>(module, "PythonPolicy")
        .def(py::init<py::object>(), py::arg("target"));
}
