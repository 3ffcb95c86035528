"""A worker process for tests: says the prompt word by word, and writes down every attempt that it runs.

Arguments: NATS URL, actor id, seconds per word, requests at once, file for the attempts.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from sage_actor import ActorContext, ActorRuntime
from sage_bus import connect
from sage_core import BusSettings
from sage_core.settings import ActorSettings
from sage_wire.messages import Completed, Event, Generate, ServedModel, TextPrompt, Tokens, Usage
from sage_worker import Assigned, Worker


class CountingWorker(Worker):
    """Continues after what was delivered before."""

    kind = "counting-worker"

    def __init__(self, context: ActorContext, seconds: float, limit: int, log: Path) -> None:
        super().__init__(context)
        self.max_in_flight = limit
        self._seconds = seconds
        self._log = log.open("a", buffering=1)

    async def on_stop(self) -> None:
        self._log.close()

    def models(self) -> list[ServedModel]:
        return [ServedModel(name="words", task="generate")]

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        self._log.write(f"{request.request_id}/{request.attempt}\n")
        work = request.work
        assert isinstance(work, Generate)
        assert isinstance(work.prompt, TextPrompt)
        done = 0 if work.resume is None else work.resume.num_tokens
        words = work.prompt.text.split()
        for word in words[done:]:
            await asyncio.sleep(self._seconds)
            yield Tokens(text=f"{word} ")
        yield Completed(usage=Usage(completion_tokens=len(words)))


async def main(url: str, actor_id: str, seconds: str, limit: str, log: str) -> int:
    bus = await connect(BusSettings(url=url), name=actor_id)
    control = await connect(BusSettings(url=url), name=f"{actor_id}-control")
    runtime = ActorRuntime(
        lambda context: CountingWorker(context, float(seconds), int(limit), Path(log)),
        actor_id=actor_id,
        kind=CountingWorker.kind,
        bus=bus,
        control=control,
        settings=ActorSettings(announce_interval=0.2),
    )
    await runtime.start()
    print("ready", flush=True)
    return await runtime.run_until_stopped()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(*sys.argv[1:6])))
