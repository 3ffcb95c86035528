// Python face of whole simulations: scenario in, columns out. Columns are shared with numpy, never copied.

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "sage/simulator/simulation.hpp"

namespace py = pybind11;
namespace policy = sage::policy;
namespace simulator = sage::simulator;

namespace {

// The numpy arrays behind a workload's columns.
class Columns {
public:
    explicit Columns(const py::kwargs& columns) {
        take(columns, "arrival", workload_.arrival);
        take(columns, "tenant", workload_.tenant);
        take(columns, "tier", workload_.tier);
        take(columns, "may_shed", workload_.may_shed);
        take(columns, "budget", workload_.budget);
        take(columns, "stage_start", workload_.stage_start);
        take(columns, "pool", workload_.pool);
        take(columns, "prompt_tokens", workload_.prompt_tokens);
        take(columns, "output_tokens", workload_.output_tokens);
        take(columns, "max_tokens", workload_.max_tokens);
        take(columns, "items", workload_.items);
        take(columns, "ttft_slo", workload_.ttft_slo);
        take(columns, "tpot_slo", workload_.tpot_slo);
        take(columns, "e2e_slo", workload_.e2e_slo);
        take(columns, "downstream", workload_.downstream);
        take(columns, "route", workload_.route);
        take(columns, "block_start", workload_.block_start);
        take(columns, "blocks", workload_.blocks);
        if (columns.size() > arrays_.size()) {
            for (const auto& [name, value] : columns) {
                if (names_.contains(name)) continue;
                throw py::type_error("a workload has no column " + std::string(py::str(name)));
            }
        }
        workload_.validate();
    }

    [[nodiscard]] const simulator::Workload& workload() const { return workload_; }

private:
    template <typename T>
    void take(const py::kwargs& columns, const char* name, std::span<const T>& column) {
        if (!columns.contains(name)) throw py::type_error(std::string("a workload needs the column ") + name);
        const auto array = columns[name].cast<py::array>();
        const py::dtype expected = py::dtype::of<T>();
        if (!array.dtype().equal(expected) || array.ndim() != 1 || (array.flags() & py::array::c_style) == 0) {
            throw py::value_error(
                std::string(name) + " is " + std::string(py::str(array.dtype())) + " with " +
                std::to_string(array.ndim()) + " dimensions; expected a contiguous " +
                std::string(py::str(expected)) + " column");
        }
        column = {static_cast<const T*>(array.data()), static_cast<std::size_t>(array.size())};
        arrays_.push_back(array);
        names_.add(py::str(name));
    }

    simulator::Workload workload_;
    std::vector<py::array> arrays_;
    py::set names_;
};

simulator::InstanceSpec make_spec(
    policy::InstanceId id, policy::PoolId pool, std::uint32_t device, bool is_batched, bool is_gpu,
    std::uint32_t max_in_flight, double usd_per_hour, std::uint32_t prefix_block, double noise_sigma,
    double interference, double a0, double a1, double a2, double m0, double m1, double m2, double m3, double m4,
    double host, std::uint32_t max_sequences, std::uint32_t max_step_tokens, std::uint32_t max_context,
    std::uint64_t kv_tokens, std::uint32_t block_tokens, double watermark, bool async_scheduling) {
    simulator::InstanceSpec spec;
    spec.noise_sigma = noise_sigma;
    spec.interference = interference;
    spec.instance.id = id;
    spec.instance.pool = pool;
    spec.instance.device = device;
    spec.instance.work = is_batched ? policy::Work::batch : policy::Work::generate;
    spec.instance.is_gpu = is_gpu;
    spec.instance.max_in_flight = max_in_flight;
    spec.instance.usd_per_hour = usd_per_hour;
    spec.instance.prefix_block = prefix_block;
    spec.instance.cost = {a0, a1, a2, m0, m1, m2, m3, m4, host};
    spec.instance.limits = {.max_sequences = max_sequences,
                            .max_step_tokens = max_step_tokens,
                            .max_context = max_context,
                            .kv_tokens = kv_tokens,
                            .block_tokens = block_tokens,
                            .watermark = watermark,
                            .async_scheduling = async_scheduling};
    return spec;
}

void bind_instance_spec(py::module_& module) {
    using Spec = simulator::InstanceSpec;
    const policy::Instance usual;
    const sage::EngineLimits& limits = usual.limits;
    py::class_<Spec>(module, "InstanceSpec")
        .def(
            py::init(&make_spec), py::kw_only(), py::arg("id"), py::arg("pool"), py::arg("device") = 0,
            py::arg("is_batched") = false, py::arg("is_gpu") = true, py::arg("max_in_flight") = usual.max_in_flight,
            py::arg("usd_per_hour") = 0.0, py::arg("prefix_block") = usual.prefix_block, py::arg("noise_sigma") = 0.0,
            py::arg("interference") = 1.0, py::arg("a0") = 0.0, py::arg("a1") = 0.0, py::arg("a2") = 0.0,
            py::arg("m0") = 0.0, py::arg("m1") = 0.0, py::arg("m2") = 0.0, py::arg("m3") = 0.0, py::arg("m4") = 0.0,
            py::arg("host") = 0.0, py::arg("max_sequences") = limits.max_sequences,
            py::arg("max_step_tokens") = limits.max_step_tokens, py::arg("max_context") = limits.max_context,
            py::arg("kv_tokens") = limits.kv_tokens, py::arg("block_tokens") = limits.block_tokens,
            py::arg("watermark") = limits.watermark, py::arg("async_scheduling") = limits.async_scheduling)
        .def_property_readonly("id", [](const Spec& self) { return self.instance.id; })
        .def_property_readonly("pool", [](const Spec& self) { return self.instance.pool; })
        .def_property_readonly("device", [](const Spec& self) { return self.instance.device; });
}

using DisturbanceTuple = std::tuple<double, std::uint32_t, std::string, double>;

simulator::Disturbance disturbance_from(const DisturbanceTuple& given) {
    using Kind = simulator::DisturbanceKind;
    const auto& [at, instance, name, factor] = given;
    static constexpr std::pair<const char*, Kind> kKinds[] = {
        {"down", Kind::down}, {"drain", Kind::drain}, {"up", Kind::up}, {"slow", Kind::slow}, {"normal", Kind::normal}};
    for (const auto& [known, kind] : kKinds) {
        if (name == known) return {.at = at, .instance = instance, .kind = kind, .factor = factor};
    }
    throw py::value_error("disturbance kind is '" + name + "'; expected one of down, drain, up, slow, normal");
}

simulator::SimulationOptions make_options(
    std::uint64_t seed, double dispatch_latency, double report_latency, double hop_latency, double detection_latency,
    double telemetry_interval, double telemetry_latency, std::uint32_t max_attempts,
    const std::vector<DisturbanceTuple>& disturbances, std::uint64_t max_bad, double until, bool check,
    bool send_started, bool time_decisions) {
    simulator::SimulationOptions options{
        .seed = seed,
        .dispatch_latency = dispatch_latency,
        .report_latency = report_latency,
        .hop_latency = hop_latency,
        .detection_latency = detection_latency,
        .telemetry_interval = telemetry_interval,
        .telemetry_latency = telemetry_latency,
        .max_attempts = max_attempts,
        .disturbances = {},
        .max_bad = max_bad,
        .until = until,
        .check = check,
        .send_started = send_started,
        .time_decisions = time_decisions};
    for (const DisturbanceTuple& given : disturbances) options.disturbances.push_back(disturbance_from(given));
    return options;
}

void bind_options(py::module_& module) {
    const simulator::SimulationOptions usual;
    py::class_<simulator::SimulationOptions>(module, "SimulationOptions")
        .def(
            py::init(&make_options), py::kw_only(), py::arg("seed") = usual.seed,
            py::arg("dispatch_latency") = usual.dispatch_latency, py::arg("report_latency") = usual.report_latency,
            py::arg("hop_latency") = usual.hop_latency, py::arg("detection_latency") = usual.detection_latency,
            py::arg("telemetry_interval") = usual.telemetry_interval,
            py::arg("telemetry_latency") = usual.telemetry_latency, py::arg("max_attempts") = usual.max_attempts,
            py::arg("disturbances") = std::vector<DisturbanceTuple>(), py::arg("max_bad") = usual.max_bad,
            py::arg("until") = usual.until, py::arg("check") = usual.check,
            py::arg("send_started") = usual.send_started, py::arg("time_decisions") = usual.time_decisions);
}

// Keeps what a running simulation points at.
class OwnedSimulation {
public:
    OwnedSimulation(
        std::shared_ptr<policy::Policy> policy, const std::vector<simulator::InstanceSpec>& instances,
        std::shared_ptr<Columns> workload, const simulator::SimulationOptions& options)
        : policy_(std::move(policy)),
          workload_(std::move(workload)),
          simulation_(*policy_, instances, workload_->workload(), options) {}

    std::unique_ptr<simulator::SimulationResult> run() {
        const py::gil_scoped_release release;
        return std::make_unique<simulator::SimulationResult>(simulation_.run([] {
            const py::gil_scoped_acquire acquire;
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        }));
    }

private:
    std::shared_ptr<policy::Policy> policy_;
    std::shared_ptr<Columns> workload_;
    simulator::Simulation simulation_;
};

using Result = simulator::SimulationResult;

// An array over a vector inside the result, which it keeps alive.
template <typename T>
py::array view(const py::object& self, const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data(), self);
}

template <typename T>
void bind_column(py::class_<Result>& type, const char* name, std::vector<T> simulator::StageColumns::* column) {
    type.def_property_readonly(name, [column](const py::object& self) {
        return view(self, self.cast<const Result&>().stages.*column);
    });
}

template <typename T>
void bind_total(py::class_<Result>& type, const char* name, T simulator::InstanceTotals::* total) {
    type.def_property_readonly(name, [total](const Result& self) {
        py::array_t<T> values(static_cast<py::ssize_t>(self.instances.size()));
        for (std::size_t i = 0; i < self.instances.size(); ++i) values.mutable_data()[i] = self.instances[i].*total;
        return values;
    });
}

void bind_result(py::module_& module) {
    using Stages = simulator::StageColumns;
    using Totals = simulator::InstanceTotals;
    py::class_<Result> type(module, "SimulationResult");
    bind_column(type, "submitted_at", &Stages::submitted_at);
    bind_column(type, "dispatched_at", &Stages::dispatched_at);
    bind_column(type, "first_token_at", &Stages::first_token_at);
    bind_column(type, "finished_at", &Stages::finished_at);
    bind_column(type, "instance", &Stages::instance);
    bind_column(type, "outcome", &Stages::outcome);
    bind_column(type, "code", &Stages::code);
    bind_column(type, "cached_tokens", &Stages::cached_tokens);
    bind_column(type, "num_attempts", &Stages::num_attempts);
    bind_column(type, "num_tokens", &Stages::num_tokens);
    bind_column(type, "predicted_ttft", &Stages::predicted_ttft);
    bind_column(type, "predicted_tpot", &Stages::predicted_tpot);
    bind_column(type, "retry_after", &Stages::retry_after);
    bind_total(type, "instance_busy_seconds", &Totals::busy_seconds);
    bind_total(type, "instance_num_steps", &Totals::num_steps);
    bind_total(type, "instance_num_preemptions", &Totals::num_preemptions);
    bind_total(type, "instance_num_generated", &Totals::num_generated);
    bind_total(type, "instance_cached_tokens", &Totals::cached_tokens);
    bind_total(type, "instance_num_finished", &Totals::num_finished);
    bind_total(type, "instance_num_lost", &Totals::num_lost);
    type.def_property_readonly(
        "histogram_edges", [](const Result&) { return py::array(py::cast(simulator::DurationHistogram::edges())); });
    type.def_property_readonly("itl_counts", [](const py::object& self) {
        return view(self, self.cast<const Result&>().token_gaps.counts());
    });
    type.def_property_readonly("decision_counts", [](const py::object& self) {
        return view(self, self.cast<const Result&>().decisions.counts());
    });
    type.def_readonly("num_events", &Result::num_events)
        .def_readonly("num_bad", &Result::num_bad)
        .def_readonly("ended_at", &Result::ended_at)
        .def_readonly("wall_seconds", &Result::wall_seconds)
        .def_readonly("cpu_seconds", &Result::cpu_seconds)
        .def_readonly("stopped_early", &Result::stopped_early);
}

}  // namespace

void bind_simulation(py::module_& module) {
    bind_instance_spec(module);
    bind_options(module);
    bind_result(module);
    py::class_<Columns, std::shared_ptr<Columns>>(module, "Workload")
        .def(py::init([](const py::kwargs& columns) { return std::make_shared<Columns>(columns); }))
        .def_property_readonly("num_runs", [](const Columns& self) { return self.workload().num_runs(); })
        .def_property_readonly("num_stages", [](const Columns& self) { return self.workload().num_stages(); });
    py::class_<OwnedSimulation>(module, "Simulation")
        .def(
            py::init<
                std::shared_ptr<policy::Policy>, const std::vector<simulator::InstanceSpec>&, std::shared_ptr<Columns>,
                const simulator::SimulationOptions&>(),
            py::arg("policy"), py::arg("instances"), py::arg("workload"),
            py::arg("options") = simulator::SimulationOptions())
        .def("run", &OwnedSimulation::run);
}
