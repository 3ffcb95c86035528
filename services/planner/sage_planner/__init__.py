"""The planner: declared pipelines, served like models and as durable jobs."""

from sage_planner.actor import PlannerActor
from sage_planner.library import PipelineLibrary, load_library
from sage_planner.settings import PlannerSection, PlannerSettings

__all__ = ["PipelineLibrary", "PlannerActor", "PlannerSection", "PlannerSettings", "load_library"]
