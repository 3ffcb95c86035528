"""Simulations of fleets under a scheduling policy: traces in, attainment and latencies out, with the live code."""

from sage_simulator.capacity import Capacity, Probe, capacity
from sage_simulator.fleet import Disturbance, DisturbanceKind, Fleet, FleetInstance, Network
from sage_simulator.fleet_file import find_fleet, read_fleet
from sage_simulator.metrics import Level, Percentiles
from sage_simulator.mistakes import FileMistake
from sage_simulator.policies import PolicyChoice, policy_choice
from sage_simulator.report import Report
from sage_simulator.resampling import Resampling, resampled
from sage_simulator.runner import Outcome, simulate
from sage_simulator.shaping import Moment, as_embeddings, at_rate, cut, limited, mixed, with_tenants
from sage_simulator.slo_classes import DEFAULT_CLASSES, WorkClass, parse_class, read_classes
from sage_simulator.sweep import Point, Summary, sweep
from sage_simulator.text_files import Limits
from sage_simulator.traces import ServegenOptions, Trace, TraceFormat, TraceOptions, read_trace
from sage_simulator.workload import Workload, WorkloadOptions, build_workload

__all__ = [
    "DEFAULT_CLASSES",
    "Capacity",
    "Disturbance",
    "DisturbanceKind",
    "FileMistake",
    "Fleet",
    "FleetInstance",
    "Level",
    "Limits",
    "Moment",
    "Network",
    "Outcome",
    "Percentiles",
    "Point",
    "PolicyChoice",
    "Probe",
    "Report",
    "Resampling",
    "ServegenOptions",
    "Summary",
    "Trace",
    "TraceFormat",
    "TraceOptions",
    "WorkClass",
    "Workload",
    "WorkloadOptions",
    "as_embeddings",
    "at_rate",
    "build_workload",
    "capacity",
    "cut",
    "find_fleet",
    "limited",
    "mixed",
    "parse_class",
    "policy_choice",
    "read_classes",
    "read_fleet",
    "read_trace",
    "resampled",
    "simulate",
    "sweep",
    "with_tenants",
]
