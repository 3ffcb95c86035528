// Python face of the engine model. Whole simulations: bindings_simulation.cpp.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sage/simulator/engine_model.hpp"

namespace py = pybind11;
using sage::EngineLimits;
using sage::StepCost;
namespace simulator = sage::simulator;

void bind_simulation(py::module_& module);

namespace {

// Gives the engine model's sequences the caller's numbers, and keeps their blocks alive.
class NumberedEngine {
public:
    NumberedEngine(const StepCost& cost, const EngineLimits& limits) : engine_(cost, limits) {}

    void submit(
        std::uint64_t request, std::uint32_t num_prompt, std::uint32_t num_generated, std::int32_t priority,
        std::vector<std::uint64_t> blocks, std::uint32_t prefix_block, std::uint32_t num_output) {
        const auto [position, is_new] = known_.try_emplace(request);
        if (!is_new) throw py::value_error("request " + std::to_string(request) + " is already in the engine");
        position->second.blocks = std::move(blocks);
        try {
            position->second.slot = engine_.submit({
                .tag = request,
                .num_prompt = num_prompt,
                .num_generated = num_generated,
                .num_output = num_output,
                .priority = priority,
                .groups = position->second.blocks,
                .group_tokens = prefix_block,
            });
        } catch (...) {
            known_.erase(position);
            throw;
        }
    }

    void remove(std::uint64_t request) {
        const auto found = known_.find(request);
        if (found == known_.end()) return;
        engine_.remove(found->second.slot);
        known_.erase(found);
        std::erase(finished_, request);
    }

    std::pair<double, std::vector<std::uint64_t>> step() {
        const simulator::Step& step = engine_.step();
        for (const std::uint64_t request : finished_) known_.erase(request);
        finished_.clear();
        for (const simulator::Slot slot : step.finished) finished_.push_back(engine_.tag(slot));
        std::vector<std::uint64_t> emitting;
        emitting.reserve(step.emitting.size());
        for (const simulator::Slot slot : step.emitting) emitting.push_back(engine_.tag(slot));
        return {step.seconds, std::move(emitting)};
    }

    [[nodiscard]] std::uint32_t num_cached(std::uint64_t request) const { return engine_.num_cached(slot(request)); }
    [[nodiscard]] const simulator::EngineModel& engine() const { return engine_; }

private:
    struct Known {
        simulator::Slot slot = 0;
        std::vector<std::uint64_t> blocks;
    };

    [[nodiscard]] simulator::Slot slot(std::uint64_t request) const {
        const auto found = known_.find(request);
        if (found == known_.end()) throw py::key_error("request " + std::to_string(request) + " is not in the engine");
        return found->second.slot;
    }

    simulator::EngineModel engine_;
    std::unordered_map<std::uint64_t, Known> known_;
    std::vector<std::uint64_t> finished_;  // in the step in flight; gone at the next
};

NumberedEngine make_engine(
    double a0, double a1, double a2, double m0, double m1, double m2, double m3, double m4, double host,
    std::uint32_t max_sequences, std::uint32_t max_step_tokens, std::uint32_t max_context, std::uint64_t kv_tokens,
    std::uint32_t block_tokens, double watermark, bool async_scheduling) {
    return {
        {.a0 = a0, .a1 = a1, .a2 = a2, .m0 = m0, .m1 = m1, .m2 = m2, .m3 = m3, .m4 = m4, .host = host},
        {.max_sequences = max_sequences,
         .max_step_tokens = max_step_tokens,
         .max_context = max_context,
         .kv_tokens = kv_tokens,
         .block_tokens = block_tokens,
         .watermark = watermark,
         .async_scheduling = async_scheduling}};
}

void bind_engine_model(py::module_& module) {
    const EngineLimits limits;
    py::class_<NumberedEngine>(module, "EngineModel")
        .def(
            py::init(&make_engine), py::kw_only(), py::arg("a0") = 0.0, py::arg("a1") = 0.0, py::arg("a2") = 0.0,
            py::arg("m0") = 0.0, py::arg("m1") = 0.0, py::arg("m2") = 0.0, py::arg("m3") = 0.0, py::arg("m4") = 0.0,
            py::arg("host") = 0.0, py::arg("max_sequences") = limits.max_sequences,
            py::arg("max_step_tokens") = limits.max_step_tokens, py::arg("max_context") = limits.max_context,
            py::arg("kv_tokens") = limits.kv_tokens, py::arg("block_tokens") = limits.block_tokens,
            py::arg("watermark") = limits.watermark, py::arg("async_scheduling") = limits.async_scheduling)
        .def(
            "submit", &NumberedEngine::submit, py::arg("request"), py::arg("num_prompt"), py::arg("num_generated") = 0,
            py::arg("priority") = 0, py::arg("blocks") = std::vector<std::uint64_t>(), py::arg("prefix_block") = 512,
            py::arg("num_output") = 0)
        .def("remove", &NumberedEngine::remove, py::arg("request"))
        .def("step", &NumberedEngine::step)
        .def("num_cached", &NumberedEngine::num_cached, py::arg("request"))
        .def("check", [](const NumberedEngine& self) { self.engine().check(); })
        .def_property_readonly("is_idle", [](const NumberedEngine& self) { return self.engine().is_idle(); })
        .def_property_readonly("num_running", [](const NumberedEngine& self) { return self.engine().num_running(); })
        .def_property_readonly("num_waiting", [](const NumberedEngine& self) { return self.engine().num_waiting(); })
        .def_property_readonly("num_resident", [](const NumberedEngine& self) { return self.engine().num_resident(); })
        .def_property_readonly(
            "num_preemptions", [](const NumberedEngine& self) { return self.engine().num_preemptions(); })
        .def_property_readonly("kv_used", [](const NumberedEngine& self) { return self.engine().kv_used(); })
        .def_property_readonly(
            "max_sequence_tokens", [](const NumberedEngine& self) { return self.engine().max_sequence_tokens(); });
}

}  // namespace

void bind_simulator(py::module_& module) {
    bind_engine_model(module);
    bind_simulation(module);
}
