"""Native code (C++20): operator kernels, the scheduling policies, the engine model and the simulator."""

from sage_native._native import (
    ConfiguredPolicy,
    EngineModel,
    InstanceSpec,
    Policy,
    PythonPolicy,
    Simulation,
    SimulationOptions,
    SimulationResult,
    Workload,
    maximal_marginal_relevance,
    reciprocal_rank_fusion,
    split_text,
    top_k,
)

__all__ = [
    "ConfiguredPolicy",
    "EngineModel",
    "InstanceSpec",
    "Policy",
    "PythonPolicy",
    "Simulation",
    "SimulationOptions",
    "SimulationResult",
    "Workload",
    "maximal_marginal_relevance",
    "reciprocal_rank_fusion",
    "split_text",
    "top_k",
]
