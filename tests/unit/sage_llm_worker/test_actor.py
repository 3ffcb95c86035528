"""The llm-worker on a bus."""

from __future__ import annotations

import asyncio

import pytest

from sage_actor import ActorRuntime
from sage_bus import MemoryBroker
from sage_core import ConfigurationError
from sage_core.settings import ActorSettings
from sage_llm_worker.actor import LlmWorker
from sage_llm_worker.settings import EmulatedSection, ExtractiveSection, LlmWorkerSection
from sage_wire import codec, subjects
from sage_wire.messages import (
    Cancel,
    ChatMessage,
    ChatPrompt,
    Completed,
    Detokenize,
    Detokenized,
    Dispatch,
    Dispatches,
    Embed,
    Failed,
    Frame,
    Generate,
    Output,
    Sampling,
    Started,
    TextPrompt,
    Tokenize,
    Tokenized,
    Tokens,
)

EMULATED = LlmWorkerSection(engine="emulated", served_name="m", emulated=EmulatedSection(default_tokens=20))


class Cluster:
    """One llm-worker and one consumer on an in-memory broker."""

    def __init__(self, section):
        self.broker = MemoryBroker()
        self.section = section
        self.num_deaths = 0
        self.events = {}
        self.changed = asyncio.Event()

    async def __aenter__(self):
        self.bus = self.broker.connect("test")
        control = self.broker.connect("control")
        self.runtime = ActorRuntime(
            lambda context: LlmWorker(context, self.section, on_dead_engine=self._died),
            actor_id="worker",
            bus=self.bus,
            control=control,
            settings=ActorSettings(),
            kind="llm-worker",
        )
        await self.bus.subscribe(subjects.frames("consumer"), self._received)
        await self.runtime.start()
        return self

    async def __aexit__(self, *_):
        await self.runtime.stop(drain=False)

    @property
    def engine(self):
        return self.runtime.actor._engine

    def _died(self):
        self.num_deaths += 1

    def _received(self, received):
        for delta in codec.decode(Frame, received.payload).deltas:
            self.events.setdefault(delta.request_id, []).append(delta.event)
        self.changed.set()

    def dispatch(self, request_id, work=None, **sampling):
        if work is None:
            prompt = ChatPrompt(messages=[ChatMessage(role="user", content="hello")])
            work = Generate(model="m", prompt=prompt, sampling=Sampling(**sampling))
        message = Dispatch(
            request_id=request_id,
            attempt=1,
            pool="m",
            reply_to=subjects.frames("consumer"),
            work=codec.raw(work),
        )
        self.bus.publish(subjects.worker_dispatch("worker"), codec.encode(Dispatches(dispatches=[message])))

    async def until(self, request_id, kind):
        async with asyncio.timeout(5):
            while True:
                for event in self.events.get(request_id, []):
                    if isinstance(event, kind):
                        return event
                self.changed.clear()
                await self.changed.wait()


async def test_a_dispatch_is_answered_with_started_tokens_and_completed():
    async with Cluster(EMULATED) as cluster:
        cluster.dispatch("a")
        completed = await cluster.until("a", Completed)
        first, *tokens, last = cluster.events["a"]
        assert isinstance(first, Started)
        assert all(isinstance(event, Tokens) for event in tokens)
        assert last is completed
        assert completed.usage.completion_tokens == 20


async def test_presence_names_the_model_and_the_engines_limit():
    async with Cluster(EMULATED.model_copy(update={"max_sequences": 5})) as cluster:
        presence = cluster.runtime.actor.presence()
        assert [(model.name, model.task, model.engine) for model in presence.models] == [
            ("m", "generate", "emulated")
        ]
        assert presence.max_in_flight == 5
        assert presence.health == "ok"


async def test_presence_says_how_the_model_writes_calls_and_reasoning_and_that_it_takes_images():
    async with Cluster(EMULATED) as cluster:
        (model,) = cluster.runtime.actor.presence().models
        assert (model.tool_format, model.reasoning_format, model.takes_images) == ("hermes", "think", True)


async def test_texts_become_tokens_and_tokens_texts():
    async with Cluster(EMULATED) as cluster:
        cluster.dispatch("t", Tokenize(model="m", prompt=TextPrompt(text="Größe"), with_strings=True))
        completed = await cluster.until("t", Completed)
        tokenized = codec.decode(Tokenized, (await cluster.until("t", Output)).value)
        assert completed.usage.prompt_tokens == len(tokenized.token_ids) == len(tokenized.strings)
        cluster.dispatch("d", Detokenize(model="m", token_ids=tokenized.token_ids))
        found = codec.decode(Detokenized, (await cluster.until("d", Output)).value)
        assert found.text == "Größe"
        cluster.dispatch("bad", Detokenize(model="m", token_ids=[-1]))
        failed = await cluster.until("bad", Failed)
        assert (failed.error.code, failed.error.param) == ("bad_request", "tokens")


async def test_tokens_that_do_not_fit_a_message_are_refused():
    async with Cluster(EMULATED) as cluster:
        cluster.broker.max_payload = 100_000
        cluster.dispatch("t", Tokenize(model="m", prompt=TextPrompt(text="x" * 60_000)))
        failed = await cluster.until("t", Failed)
        assert failed.error.code == "limit_exceeded"


async def test_a_cancel_frees_the_sequence():
    async with Cluster(EMULATED) as cluster:
        cluster.dispatch("a", max_tokens=30_000)
        await cluster.until("a", Tokens)
        assert cluster.engine.stats().num_running == 1
        cancel = Cancel(request_id="a")
        cluster.bus.publish(subjects.worker_cancel("worker"), codec.encode(cancel))
        failed = await cluster.until("a", Failed)
        assert failed.error.code == "cancelled"
        assert cluster.engine.stats().num_running == 0


async def test_other_work_is_a_bad_request():
    async with Cluster(EMULATED) as cluster:
        cluster.dispatch("a", Embed(model="m", texts=["x"]))
        assert (await cluster.until("a", Failed)).error.code == "bad_request"


async def test_a_dead_engine_hands_its_requests_over_and_ends_the_process_once(monkeypatch):
    async with Cluster(EMULATED) as cluster:
        for name in ("a", "b"):
            cluster.dispatch(name, max_tokens=30_000)
        await cluster.until("b", Tokens)

        def broken(*_):
            raise RuntimeError("broken")

        monkeypatch.setattr(cluster.engine, "_emit", broken)
        for name in ("a", "b"):
            failed = await cluster.until(name, Failed)
            assert failed.error.code == "worker_lost"
            assert failed.error.retryable
        assert cluster.runtime.actor.presence().health != "ok"
        assert cluster.num_deaths == 1


async def test_a_model_that_does_not_exist_stops_the_start():
    cluster = Cluster(LlmWorkerSection(engine="transformers", model="/no/such/model"))
    with pytest.raises(ConfigurationError, match="does not exist"):
        await cluster.__aenter__()


async def test_the_reader_answers_without_an_embedding_pool():
    section = LlmWorkerSection(engine="extractive", extractive=ExtractiveSection(embed_budget=0.05))
    async with Cluster(section) as cluster:
        text = "<context>\n[1] facts\nThe sky is blue. Grass is green.\n</context>\nWhat colour is grass?"
        prompt = ChatPrompt(messages=[ChatMessage(role="user", content=text)])
        cluster.dispatch("a", Generate(model="sage-extractive-reader", prompt=prompt))
        await cluster.until("a", Completed)
        answer = "".join(event.text for event in cluster.events["a"] if isinstance(event, Tokens))
        assert "“Grass is green.” [1]" in answer
