// Python face of what policies keep inside, for the tests that compare it with twins. Nothing else uses it.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "sage/policy/fair_queue.hpp"
#include "sage/policy/instance_state.hpp"

namespace py = pybind11;
namespace policy = sage::policy;

namespace {

void bind_fair_queue(py::module_& module) {
    using policy::FairQueue;
    py::class_<FairQueue>(module, "FairQueue")
        .def(
            py::init<bool, double, double>(), py::kw_only(), py::arg("fair"), py::arg("quantum"),
            py::arg("lower_tier_share"))
        .def(
            "push",
            [](FairQueue& queue, policy::RequestId request, policy::TenantId tenant, int tier, std::int32_t priority,
               double key, double service) {
                queue.push(request, tenant, static_cast<policy::Tier>(tier), priority, key, service);
            },
            py::arg("request"), py::arg("tenant"), py::arg("tier"), py::arg("priority"), py::arg("key"),
            py::arg("service"))
        .def("remove", &FairQueue::remove, py::arg("request"))
        .def("serve", &FairQueue::serve, py::arg("request"))
        .def(
            "charge",
            [](FairQueue& queue, policy::TenantId tenant, int tier, double service) {
                queue.charge(tenant, static_cast<policy::Tier>(tier), service);
            },
            py::arg("tenant"), py::arg("tier"), py::arg("service"))
        .def(
            "first",
            [](const FairQueue& queue, std::size_t count) {
                std::vector<policy::RequestId> requests;
                queue.first(count, requests);
                return requests;
            },
            py::arg("count"))
        .def("__len__", &FairQueue::size)
        .def("__contains__", &FairQueue::contains, py::arg("request"));
}

policy::Ask ask(double prompt, double cached, double expected_tokens, double reserved_tokens) {
    policy::Ask result;
    result.prompt = prompt;
    result.cached = cached;
    result.expected_tokens = expected_tokens;
    result.reserved_tokens = reserved_tokens;
    return result;
}

void bind_instance_state(py::module_& module) {
    using policy::InstanceState;
    using Coefficients = std::array<double, 9>;  // a0 a1 a2 m0 m1 m2 m3 m4 host
    py::class_<InstanceState>(module, "InstanceState")
        .def(
            py::init([](const Coefficients& c, std::uint32_t max_step_tokens, std::uint64_t kv_tokens, double now) {
                policy::Instance spec;
                spec.cost = {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]};
                spec.limits.max_step_tokens = max_step_tokens;
                spec.limits.kv_tokens = kv_tokens;
                return std::make_unique<InstanceState>(spec, now);
            }),
            py::arg("cost"), py::kw_only(), py::arg("max_step_tokens") = 2048, py::arg("kv_tokens") = 1'000'000,
            py::arg("now") = 0.0)
        .def(
            "add",
            [](InstanceState& state, policy::RequestId request, std::uint32_t prompt, std::uint32_t uncached,
               float expected_tokens, float reserved_tokens, double tpot_slo, double now) {
                policy::Flight flight;
                flight.id = request;
                flight.prompt = prompt;
                flight.uncached = uncached;
                flight.expected_tokens = expected_tokens;
                flight.reserved_tokens = reserved_tokens;
                flight.length.at.fill(expected_tokens);
                flight.tpot_slo = tpot_slo;
                flight.dispatched_at = now;
                state.add(flight, {}, now);
            },
            py::arg("request"), py::kw_only(), py::arg("prompt"), py::arg("uncached"), py::arg("expected_tokens"),
            py::arg("reserved_tokens"), py::arg("tpot_slo") = policy::kNever, py::arg("now"))
        .def(
            "first_token",
            [](InstanceState& state, policy::RequestId request, double now) {
                state.first_token(request, 0, now, false);
            },
            py::arg("request"), py::arg("now"))
        .def(
            "remove",
            [](InstanceState& state, policy::RequestId request, double now) {
                return state.remove(request, 0, now, false);
            },
            py::arg("request"), py::arg("now"))
        .def("refresh", &InstanceState::refresh, py::arg("now"))
        .def(
            "predict",
            [](const InstanceState& state, double prompt, double cached, double expected_tokens) {
                const policy::Prediction found = state.predict(ask(prompt, cached, expected_tokens, expected_tokens));
                return std::array<double, 3>{found.ttft, found.tpot, found.memory_wait};
            },
            py::arg("prompt"), py::arg("cached"), py::arg("expected_tokens"))
        .def(
            "peak_memory",
            [](const InstanceState& state, double prompt, double reserved_tokens) {
                return state.peak_memory(ask(prompt, 0, reserved_tokens, reserved_tokens));
            },
            py::arg("prompt"), py::arg("reserved_tokens"))
        .def("harmed_by", &InstanceState::harmed_by, py::arg("stall"), py::arg("future_load"), py::arg("now"))
        .def_readonly("capacity", &InstanceState::capacity)
        .def_readonly("pending", &InstanceState::pending)
        .def_readonly("pending_work", &InstanceState::pending_work)
        .def_readonly("decoding", &InstanceState::decoding)
        .def_readonly("resident", &InstanceState::resident)
        .def_readonly("reserved", &InstanceState::reserved_)
        .def_readonly("prefill_load", &InstanceState::prefill_load);
}

}  // namespace

void bind_policy_testing(py::module_& module) {
    bind_fair_queue(module);
    bind_instance_state(module);
}
