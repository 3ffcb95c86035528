"""The planner: serves each pipeline as a pool of its own, and runs durable jobs over the same machinery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import ClassVar

from sage_actor import ActorContext, Roster
from sage_client import RequestPort
from sage_core import BadRequest, Budget
from sage_pipeline import Plan
from sage_planner.driver import Origin, RunDriver
from sage_planner.estimates import NodeTimes
from sage_planner.jobs import JobPuller
from sage_planner.library import PipelineLibrary
from sage_planner.pools import PoolDirectory
from sage_planner.settings import PlannerSection
from sage_telemetry import current_traceparent
from sage_wire.messages import BATCH_CLASS, Event, RunPipeline, ServedModel
from sage_wire.roles import Role
from sage_worker import Assigned, Worker

__all__ = ["PlannerActor"]


class PlannerActor(Worker):
    """A worker whose work is pipelines. It holds no state that outlives a run; jobs keep theirs in the bucket."""

    kind: ClassVar[str] = "planner"

    def __init__(self, context: ActorContext, settings: PlannerSection, library: PipelineLibrary) -> None:
        super().__init__(context)
        self.max_in_flight = settings.max_runs
        self._settings = settings
        self._library = library
        self._roster = Roster(context.control, context.clock)
        self._times = NodeTimes()
        self._pools = PoolDirectory(lambda: self._roster.actors.values())
        self._port = RequestPort(
            context.bus,
            consumer_id=f"{context.actor_id}-{context.epoch}",
            role=Role.PLANNER,
            clock=context.clock,
            roster=self._roster,
        )
        self._jobs = JobPuller(
            context.bus,
            settings,
            planner_id=context.actor_id,
            make_plan=self._plan,
            make_driver=self._driver,
            clock=context.clock,
        )
        self._pulling: asyncio.Task[None] | None = None

    async def on_start(self) -> None:
        """Listen for frames and presence, then for jobs."""
        await self._port.start()
        await self._roster.start()
        if self._settings.max_jobs:
            self._pulling = self.context.spawn(self._jobs.run(), name="jobs")

    async def on_drain(self) -> None:
        """Take no more runs and jobs; return when those that run have ended."""
        self._jobs.stop()
        await super().on_drain()
        if self._pulling is not None:
            await asyncio.wait([self._pulling])

    async def on_stop(self) -> None:
        """Cancel what is still open."""
        await self._port.close()
        await self._roster.stop()

    def models(self) -> list[ServedModel]:
        """Announce one pool per pipeline."""
        return self._library.models()

    def health(self) -> str:
        """Say where jobs cannot be served."""
        return self._jobs.trouble or "ok"

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        """Run a pipeline; its events as `RunPipeline` describes them."""
        if not isinstance(request.work, RunPipeline):
            raise BadRequest(f"pool {request.pool!r} runs pipelines; found {type(request.work).__name__}")
        traceparent = current_traceparent() or request.traceparent
        is_batch = request.slo_class == BATCH_CLASS
        origin = Origin(
            tenant=request.tenant,
            slo_class=request.slo_class,
            # What a worker gets has the rank of its class taken off; its caller's own is passed on.
            priority=request.priority + is_batch,
            targets=request.targets,
            traceparent=traceparent,
        )
        driver = self._driver(self._plan(request.work), request.work, request.budget, origin)
        async with aclosing(driver.events()) as events:
            async for event in events:
                yield event

    def _plan(self, run: RunPipeline) -> Plan:
        return self._library.plan(run.pipeline, run.parameters)

    def _driver(self, plan: Plan, run: RunPipeline, budget: Budget, origin: Origin) -> RunDriver:
        return RunDriver(
            plan,
            run,
            self._port,
            self._pools.resolve,
            budget,
            origin,
            max_attempts=self._settings.max_node_attempts,
            clock=self.context.clock,
            times=self._times,
        )
