"""The operator-worker: runs each call in a bounded pool of threads, so that nothing blocks its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Final

from sage_actor import ActorContext
from sage_core import BadRequest, LimitExceeded
from sage_operator_worker import operators
from sage_operator_worker.settings import OperatorWorkerSection
from sage_operator_worker.store import VectorStore
from sage_telemetry import metrics
from sage_wire import raw
from sage_wire.messages import Completed, Event, Index, Message, Output, Retrieve, ServedModel, Split
from sage_worker import Assigned, Worker
from sage_worker.device import CPU

__all__ = ["OperatorWorker"]

_POOLS: Final = {
    "operator/split": "cuts documents into passages",
    "operator/index": "stores passages and their vectors in a collection",
    "operator/retrieve": "finds passages by vector and by words",
}
_HEADROOM_BYTES: Final = 64 * 1024

_SECONDS = metrics.histogram("sage_operator_seconds", "Time to do one call, in its thread.", ["operator"])


class OperatorWorker(Worker):
    """Serves split, index and retrieve. `open_store` blocks; it runs in a thread."""

    kind: ClassVar[str] = "operator-worker"

    def __init__(
        self, context: ActorContext, section: OperatorWorkerSection, *, open_store: Callable[[], VectorStore]
    ) -> None:
        super().__init__(context)
        self.max_in_flight = section.max_in_flight
        self._section = section
        self._open_store = open_store
        self._store: VectorStore | None = None
        self._threads = ThreadPoolExecutor(section.threads, thread_name_prefix="operator")

    async def on_start(self) -> None:
        """Open the store."""
        self._store = await asyncio.get_running_loop().run_in_executor(self._threads, self._open_store)
        self.context.log.info(
            "store_opened", num_collections=len(await asyncio.to_thread(self._store.collections))
        )

    async def on_stop(self) -> None:
        """Let calls that run in a thread finish, then close the store."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    def models(self) -> list[ServedModel]:
        """Announce one pool per operator."""
        return [
            ServedModel(name=name, task="operator", engine="native", description=description, device=CPU)
            for name, description in _POOLS.items()
        ]

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        """Answer Split, Index and Retrieve.

        A call whose caller gives up while its thread runs finishes unheard; all three may be repeated.
        """
        work, section, store = request.work, self._section, self._store
        assert store is not None, "performs only after on_start"
        call: Callable[[], Message]
        match work:
            case Split():
                name, call = "split", lambda: operators.split(work, section)
            case Index():
                name, call = "index", lambda: operators.index(work, section, store)
            case Retrieve():
                name, call = "retrieve", lambda: operators.retrieve(work, section, store)
            case other:
                raise BadRequest(f"found work {type(other).__name__}; expected Split, Index or Retrieve")
        value = await asyncio.get_running_loop().run_in_executor(self._threads, _timed, name, call)
        encoded = raw(value)
        limit = self.context.bus.max_payload - _HEADROOM_BYTES
        if len(bytes(encoded)) > limit:
            raise LimitExceeded(
                f"the answer has {len(bytes(encoded))} bytes; at most {limit} fit: ask for less at once"
            )
        yield Output(value=encoded)
        yield Completed()


def _timed(name: str, call: Callable[[], Message]) -> Message:
    with _SECONDS.labels(name).time():
        return call()
