"""`python -m sage_planner`: one planner process."""

from __future__ import annotations

import sys

from sage_actor import ActorContext, run_service
from sage_planner.actor import PlannerActor
from sage_planner.library import load_library
from sage_planner.settings import PlannerSettings


def build(settings: PlannerSettings, context: ActorContext) -> PlannerActor:
    """Load and check every pipeline, then make the actor. Raises ConfigurationError naming file, line and column."""
    section = settings.planner
    return PlannerActor(context, section, load_library(section.pipelines_dir))


def main() -> int:
    """Run until stopped; return the exit status."""
    return run_service(
        kind=PlannerActor.kind,
        settings_type=PlannerSettings,
        build=build,
        description="Runs declared pipelines, called like models or submitted as durable jobs.",
    )


if __name__ == "__main__":
    sys.exit(main())
