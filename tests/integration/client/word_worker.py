"""A worker process for tests: says the prompt word by word. Arguments: NATS URL, actor id, seconds per word."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from sage_actor import ActorContext, ActorRuntime
from sage_bus import connect
from sage_core import BusSettings
from sage_core.settings import ActorSettings
from sage_wire.messages import Completed, Event, Generate, ServedModel, TextPrompt, Tokens, Usage
from sage_worker import Assigned, Worker


class WordWorker(Worker):
    """Continues after what was delivered before."""

    kind = "word-worker"
    max_in_flight = 64

    def __init__(self, context: ActorContext, seconds: float) -> None:
        super().__init__(context)
        self._seconds = seconds

    def models(self) -> list[ServedModel]:
        return [ServedModel(name="words", task="generate")]

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        work = request.work
        assert isinstance(work, Generate)
        text = work.prompt.text if isinstance(work.prompt, TextPrompt) else work.prompt.messages[-1].content
        done = 0 if work.resume is None else work.resume.num_tokens
        words = text.split()
        for word in words[done:]:
            await asyncio.sleep(self._seconds)
            yield Tokens(text=f"{word} ")
        yield Completed(usage=Usage(completion_tokens=len(words)))


async def main(url: str, actor_id: str, seconds: str) -> int:
    bus = await connect(BusSettings(url=url), name=actor_id)
    control = await connect(BusSettings(url=url), name=f"{actor_id}-control")
    runtime = ActorRuntime(
        lambda context: WordWorker(context, float(seconds)),
        actor_id=actor_id,
        kind=WordWorker.kind,
        bus=bus,
        control=control,
        settings=ActorSettings(announce_interval=0.1),
    )
    await runtime.start()
    print("ready", flush=True)
    return await runtime.run_until_stopped()


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main(*sys.argv[1:4])))
