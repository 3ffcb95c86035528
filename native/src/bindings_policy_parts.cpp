// Python face of the parts that policies are made of, for their tests and benchmarks. Not thread-safe, keeps the GIL.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "sage/policy/bounded_least_squares.hpp"
#include "sage/policy/knee.hpp"
#include "sage/policy/length_histogram.hpp"
#include "sage/policy/online_cost.hpp"
#include "sage/policy/prefix_index.hpp"
#include "sage/policy/quantile_factor.hpp"
#include "sage/policy/speed_factor.hpp"

namespace py = pybind11;
namespace policy = sage::policy;

namespace {

using Blocks = py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>;
using Coefficients = std::array<double, 9>;  // a0 a1 a2 m0 m1 m2 m3 m4 host

std::span<const std::uint64_t> view(const Blocks& blocks) {
    return {blocks.data(), static_cast<std::size_t>(blocks.size())};
}

sage::StepCost step_cost(const Coefficients& c) { return {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8]}; }

Coefficients coefficients(const sage::StepCost& cost) {
    return {cost.a0, cost.a1, cost.a2, cost.m0, cost.m1, cost.m2, cost.m3, cost.m4, cost.host};
}

policy::Regime regime(bool is_decode) { return is_decode ? policy::Regime::decode : policy::Regime::mixed; }

void bind_prefix_index(py::module_& module) {
    using policy::PrefixIndex;
    py::class_<PrefixIndex>(module, "PrefixIndex")
        .def(py::init<std::size_t>(), py::arg("max_blocks_per_instance") = 4096)
        .def("add_instance", &PrefixIndex::add_instance, py::arg("instance"), py::arg("max_blocks") = 0)
        .def("remove_instance", &PrefixIndex::remove_instance, py::arg("instance"))
        .def(
            "insert",
            [](PrefixIndex& index, policy::InstanceId instance, const Blocks& blocks) {
                index.insert(instance, view(blocks));
            },
            py::arg("instance"), py::arg("blocks"))
        .def(
            "matched",
            [](const PrefixIndex& index, policy::InstanceId instance, const Blocks& blocks) {
                return index.matched(instance, view(blocks));
            },
            py::arg("instance"), py::arg("blocks"))
        .def(
            "match_all",
            [](const PrefixIndex& index, const Blocks& blocks) {
                std::vector<std::uint32_t> num_matched;
                index.match_all(view(blocks), num_matched);
                return num_matched;
            },
            py::arg("blocks"))
        .def("slot", &PrefixIndex::slot, py::arg("instance"))
        .def(
            "num_blocks",
            [](const PrefixIndex& index, policy::InstanceId instance) { return index.num_blocks(instance); },
            py::arg("instance"))
        .def_property_readonly("num_distinct", [](const PrefixIndex& index) { return index.num_blocks(); })
        .def_property_readonly("num_bytes", &PrefixIndex::num_bytes);
}

void bind_length_histogram(py::module_& module) {
    using policy::LengthHistogram;
    py::class_<LengthHistogram>(module, "LengthHistogram")
        .def(
            py::init([](double decay, double parent_weight, double prior_median, double prior_shape,
                        std::size_t max_keys) {
                return LengthHistogram({decay, parent_weight, prior_median, prior_shape, max_keys});
            }),
            py::kw_only(), py::arg("decay") = 0.995, py::arg("parent_weight") = 16.0, py::arg("prior_median") = 200.0,
            py::arg("prior_shape") = 2.0, py::arg("max_keys") = 4096)
        .def(
            "record", &LengthHistogram::record, py::arg("tenant"), py::arg("route"), py::arg("pool"),
            py::arg("num_tokens"))
        .def(
            "quantile", &LengthHistogram::quantile, py::arg("tenant"), py::arg("route"), py::arg("pool"),
            py::arg("q"), py::arg("max_tokens") = 0, py::arg("so_far") = 0)
        .def(
            "mean", &LengthHistogram::mean, py::arg("tenant"), py::arg("route"), py::arg("pool"),
            py::arg("max_tokens") = 0, py::arg("so_far") = 0)
        .def_property_readonly("num_keys", &LengthHistogram::num_keys)
        .def_static("edges", &LengthHistogram::edges);
}

void bind_least_squares(py::module_& module) {
    using policy::BoundedLeastSquares;
    py::class_<BoundedLeastSquares>(module, "BoundedLeastSquares")
        .def(
            py::init([](std::size_t num_coefficients, double forgetting, double prior_weight, double lowest,
                        double highest) {
                return BoundedLeastSquares(num_coefficients, {forgetting, prior_weight, lowest, highest});
            }),
            py::arg("num_coefficients"), py::kw_only(), py::arg("forgetting") = 0.995, py::arg("prior_weight") = 1.0,
            py::arg("lowest") = 0.3, py::arg("highest") = 3.0)
        .def(
            "observe",
            [](BoundedLeastSquares& squares, const BoundedLeastSquares::Vector& inputs, double output) {
                squares.observe(inputs, output);
            },
            py::arg("inputs"), py::arg("output"))
        .def("solve", &BoundedLeastSquares::solve);
}

void bind_online_cost(py::module_& module) {
    using policy::OnlineCost;
    py::class_<OnlineCost>(module, "OnlineCost")
        .def(
            py::init([](const Coefficients& prior, double forgetting, double lowest, double highest,
                        double prior_weight) {
                return OnlineCost(step_cost(prior), {forgetting, lowest, highest, prior_weight});
            }),
            py::arg("prior"), py::kw_only(), py::arg("forgetting") = 0.995, py::arg("lowest") = 0.3,
            py::arg("highest") = 3.0, py::arg("prior_weight") = 1.0)
        .def(
            "observe_decode", &OnlineCost::observe_decode, py::arg("decoding"), py::arg("resident"),
            py::arg("seconds"))
        .def(
            "observe_mixed", &OnlineCost::observe_mixed, py::arg("prefill"), py::arg("decoding"),
            py::arg("resident"), py::arg("work"), py::arg("seconds"))
        .def("observe_batch", &OnlineCost::observe_batch, py::arg("tokens"), py::arg("items"), py::arg("seconds"))
        .def(
            "observe_scale",
            [](OnlineCost& cost, bool is_decode, double predicted, double actual) {
                cost.observe_scale(regime(is_decode), predicted, actual);
            },
            py::arg("is_decode"), py::arg("predicted"), py::arg("actual"))
        .def_property_readonly("cost", [](const OnlineCost& cost) { return coefficients(cost.cost()); })
        .def(
            "num_observed",
            [](const OnlineCost& cost, bool is_decode) { return cost.num_observed(regime(is_decode)); },
            py::arg("is_decode"));
}

void bind_factors(py::module_& module) {
    using policy::QuantileFactor;
    using policy::SpeedFactor;
    py::class_<SpeedFactor>(module, "SpeedFactor")
        .def(
            py::init([](double forgetting, double quick_forgetting, double lowest, double highest,
                        double prior_weight) {
                return SpeedFactor({forgetting, quick_forgetting, lowest, highest, prior_weight});
            }),
            py::kw_only(), py::arg("forgetting") = 0.995, py::arg("quick_forgetting") = 0.9, py::arg("lowest") = 0.3,
            py::arg("highest") = 3.0, py::arg("prior_weight") = 4.0)
        .def("observe", &SpeedFactor::observe, py::arg("predicted"), py::arg("actual"))
        .def_property_readonly("value", &SpeedFactor::value)
        .def_property_readonly("num_observed", &SpeedFactor::num_observed);
    py::class_<QuantileFactor>(module, "QuantileFactor")
        .def(
            py::init([](double q, double step, double lowest, double highest, double coverage_decay) {
                return QuantileFactor({q, step, lowest, highest, coverage_decay});
            }),
            py::kw_only(), py::arg("q") = 0.9, py::arg("step") = 0.02, py::arg("lowest") = 0.5,
            py::arg("highest") = 3.0, py::arg("coverage_decay") = 0.99)
        .def("observe", &QuantileFactor::observe, py::arg("predicted"), py::arg("actual"))
        .def_property_readonly("value", &QuantileFactor::value)
        .def_property_readonly("coverage", &QuantileFactor::coverage)
        .def_property_readonly("num_observed", &QuantileFactor::num_observed);
}

}  // namespace

void bind_policy_parts(py::module_& module) {
    bind_prefix_index(module);
    bind_length_histogram(module);
    bind_least_squares(module);
    bind_online_cost(module);
    bind_factors(module);
    module.def(
        "batch_throughput",
        [](const Coefficients& cost, double tokens, double tokens_per_item) {
            return policy::batch_throughput(step_cost(cost), tokens, tokens_per_item);
        },
        py::arg("cost"), py::arg("tokens"), py::arg("tokens_per_item"));
    module.def(
        "knee_tokens",
        [](const Coefficients& cost, double tokens_per_item, double max_tokens, double min_gain) {
            return policy::knee_tokens(step_cost(cost), tokens_per_item, max_tokens, min_gain);
        },
        py::arg("cost"), py::arg("tokens_per_item"), py::arg("max_tokens"), py::arg("min_gain") = 0.05);
}
