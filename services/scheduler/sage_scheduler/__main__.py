"""`python -m sage_scheduler`: one scheduler process."""

from __future__ import annotations

import sys

from sage_actor import run_service
from sage_scheduler.actor import SchedulerActor
from sage_scheduler.settings import SchedulerSettings


def main() -> int:
    """Run until stopped; return the exit status."""
    return run_service(
        kind=SchedulerActor.kind,
        settings_type=SchedulerSettings,
        build=lambda settings, context: SchedulerActor(context, settings),
        description="Queues requests per pool, decides where each one runs, and keeps a receipt of every decision.",
    )


if __name__ == "__main__":
    sys.exit(main())
