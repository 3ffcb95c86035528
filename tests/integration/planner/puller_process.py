"""A planner's job puller as a process that can be killed: url, name, mode (work, slow, hang), ack wait in seconds."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

from sage_bus import connect
from sage_core import Budget, BusSettings
from sage_pipeline import Plan
from sage_planner.driver import Origin, RunDriver
from sage_planner.jobs import JobPuller
from sage_planner.library import load_library
from sage_planner.settings import PlannerSection
from sage_planner.testing import Handler, small_cluster
from sage_wire.messages import Event, RunPipeline, Work


def held_up(inner: Handler, mode: str) -> Handler:
    """Let an embedding take its time, or never end."""

    async def handler(work: Work) -> AsyncIterator[Event]:
        await asyncio.sleep(3600 if mode == "hang" else 0.05)
        async for event in inner(work):
            yield event

    return handler


async def main(url: str, name: str, mode: str, ack_wait: float) -> None:
    pools, library = small_cluster(), load_library()
    if mode != "work":
        pools.serve("minilm", held_up(pools._handlers["minilm"], mode))

    def make_driver(plan: Plan, run: RunPipeline, budget: Budget, origin: Origin) -> RunDriver:
        return RunDriver(plan, run, pools, pools.resolve, budget, origin)

    bus = await connect(BusSettings(url=url), name=name)
    puller = JobPuller(
        bus,
        PlannerSection(job_ack_wait=ack_wait, job_max_attempts=20, job_retry_delay=0.05),
        planner_id=name,
        make_plan=lambda run: library.plan(run.pipeline, run.parameters),
        make_driver=make_driver,
    )
    task = asyncio.create_task(puller.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    print("pulling", flush=True)
    await asyncio.gather(task, return_exceptions=True)
    await bus.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])))
