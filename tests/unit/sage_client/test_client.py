"""The inference client over a bus: chat, embed, rerank, retrieve, and what it raises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from sage_actor import ActorContext, ActorRuntime
from sage_client import UnifiedInferenceClient, measure, resolve_pool, served_models
from sage_core import NotFound, Unavailable
from sage_core.settings import ActorSettings
from sage_wire import raw
from sage_wire.messages import (
    Annotated,
    Announcement,
    ChatMessage,
    ChatPrompt,
    Completed,
    Embed,
    Event,
    Generate,
    Hit,
    Image,
    Index,
    Message,
    Output,
    Rerank,
    Retrieve,
    Retrieved,
    RunPipeline,
    Sampling,
    Scores,
    ServedModel,
    Split,
    Tokenize,
    TokenPrompt,
    Tokens,
    ToolCall,
    ToolDefinition,
    Usage,
    Vectors,
    WorkSize,
)
from sage_wire.samples import SAMPLES
from sage_worker import Assigned, Worker

MODELS = [
    ServedModel(name="minilm", task="embed", dim=2),
    ServedModel(name="minilm", task="rerank"),
    ServedModel(name="parrot", task="generate"),
    ServedModel(name="operator/retrieve", task="operator"),
    ServedModel(name="pipeline/rag", task="pipeline"),
]
HIT = Hit(source="a.md", position=0, text="passage", score=0.5)


class AnyWorker(Worker):
    """Does every kind of work in the plainest way."""

    kind = "any-worker"
    max_in_flight = 64
    seen: list[Message]

    def __init__(self, context: ActorContext) -> None:
        super().__init__(context)
        self.seen = []

    def models(self) -> list[ServedModel]:
        return MODELS

    async def perform(self, request: Assigned) -> AsyncIterator[Event]:
        work = request.work
        self.seen.append(work)
        match work:
            case Generate(prompt=ChatPrompt(messages=turns)):
                for word in turns[-1].content.split():
                    yield Tokens(text=f"{word} ")
            case RunPipeline():
                yield Annotated(sources=[HIT])
                yield Tokens(text=work.pipeline)
            case Embed():
                for offset in range(0, len(work.texts), 100):
                    part = work.texts[offset : offset + 100]
                    rows = np.array([[float(text), 1.0] for text in part], "<f4")
                    yield Vectors(offset=offset, dim=2, data=rows.tobytes())
            case Rerank():
                yield Scores(scores=[float(len(document)) for document in work.documents])
            case Retrieve():
                yield Output(value=raw(Retrieved(hits=[HIT][: work.top_k])))
            case _:
                raise AssertionError(work)
        yield Completed(finish_reason="length", usage=Usage(completion_tokens=3))


@pytest.fixture
async def client(cluster) -> AsyncIterator[UnifiedInferenceClient]:
    runtime = ActorRuntime(
        AnyWorker,
        actor_id="any",
        bus=cluster.broker.connect("any"),
        control=cluster.broker.connect("any-control"),
        settings=ActorSettings(),
    )
    cluster.workers["any"] = runtime
    await runtime.start()
    cluster.scheduler.worker_id = "any"
    cluster.scheduler.pools |= {model.name for model in MODELS}
    cluster.any = runtime
    async with UnifiedInferenceClient(cluster.broker.connect("client")) as client:
        yield client


async def test_chat_returns_the_whole_answer(client) -> None:
    result = await client.chat("parrot", "hello there", max_tokens=5, temperature=0.0)
    assert result.text == "hello there "
    assert (result.model, result.worker_id, result.finish_reason) == ("parrot", "any", "length")
    assert result.usage.completion_tokens == 3


async def test_sampling_and_turns_reach_the_worker(client, cluster) -> None:
    await client.chat(
        "parrot",
        [{"role": "system", "content": "be kind"}, ChatMessage(role="user", content="hi")],
        max_tokens=5,
        stop=["."],
    )
    work = cluster.any.actor.seen[-1]
    assert work.sampling == Sampling(max_tokens=5, stop=["."])
    assert [turn.role for turn in work.prompt.messages] == ["system", "user"]


async def test_auto_is_the_pool_that_generates(client) -> None:
    assert (await client.chat("auto", "hello")).model == "parrot"


async def test_a_pipeline_is_called_like_a_model_and_names_its_sources(client) -> None:
    result = await client.chat("pipeline/rag", "what?")
    assert result.text == "rag"
    assert result.sources == [HIT]


async def test_streamed_chat_can_be_left_early(client) -> None:
    async with await client.stream_chat("parrot", "one two three") as stream:
        assert (await anext(stream)).text == "one "
    assert stream.is_finished


async def test_embeddings_come_in_order_whatever_the_parts(client, cluster) -> None:
    vectors = await client.embed("minilm", [str(index) for index in range(1300)])
    assert vectors.dtype == np.float32
    assert vectors.shape == (1300, 2)
    assert np.array_equal(vectors[:, 0], np.arange(1300, dtype=np.float32))
    assert [len(work.texts) for work in cluster.any.actor.seen] == [512, 512, 276]


async def test_no_texts_give_no_vectors(client) -> None:
    assert (await client.embed("minilm", [])).shape == (0, 0)


async def test_rerank_scores_in_the_order_given(client) -> None:
    assert await client.rerank("minilm", "q", ["a", "bbb", "cc"]) == [1.0, 3.0, 2.0]
    assert await client.rerank("minilm", "q", []) == []


async def test_retrieve_embeds_the_query_first(client, cluster) -> None:
    assert await client.retrieve("docs", "7", top_k=1) == [HIT]
    retrieve = cluster.any.actor.seen[-1]
    assert np.frombuffer(retrieve.vector, "<f4").tolist() == [7.0, 1.0]


async def test_models_are_listed_once_each(client) -> None:
    assert {(model.name, model.task) for model in client.models()} >= {("parrot", "generate")}


async def test_an_unknown_model_is_not_found(client) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await client.chat("nobody", "hi")


async def test_a_closed_client_says_so(client) -> None:
    await client.close()
    with pytest.raises(Unavailable):
        await client.chat("parrot", "hi")
    with pytest.raises(Unavailable):
        client.models()


async def test_cancelling_a_call_cancels_its_work(client, cluster) -> None:
    cluster.scheduler.is_holding = True
    call = asyncio.create_task(client.chat("parrot", "hi"))
    await cluster.until(lambda: len(cluster.scheduler.submits) == 1)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await cluster.until(lambda: len(cluster.scheduler.cancels) == 1)


def announcement(state: str, *models: ServedModel) -> Announcement:
    return Announcement(
        actor_id="w",
        kind="k",
        epoch="e",
        sequence=0,
        state=state,
        version="",
        host="",
        pid=0,
        models=list(models),
    )


def test_pools_are_resolved_from_what_serving_workers_announce() -> None:
    present = [
        announcement("ready", ServedModel(name="b", task="generate"), ServedModel(name="e", task="embed")),
        announcement("draining", ServedModel(name="a", task="generate")),
        announcement("starting", ServedModel(name="0", task="generate")),
        announcement("ready", ServedModel(name="b", task="generate")),
    ]
    assert [model.name for model in served_models(present)] == ["a", "b", "e"]
    assert resolve_pool(present, "auto", "generate").name == "a"
    assert resolve_pool(present, "b", "generate").name == "b"
    with pytest.raises(NotFound, match="served: a, b"):
        resolve_pool(present, "e", "generate")
    with pytest.raises(Unavailable):
        resolve_pool(present, "auto", "rerank")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Generate", WorkSize(num_chars=16 + 10, max_tokens=64 - 3, num_prompt_tokens=4 + 4 + 3)),
        ("Embed", WorkSize(num_items=2, num_chars=14, num_prompt_tokens=2 * (2 + 2))),
        ("Rerank", WorkSize(num_items=2, num_chars=18, num_prompt_tokens=2 * (4 + 1 + 2))),
        ("Split", WorkSize(num_items=1, num_chars=23, num_prompt_tokens=6 + 2)),
        ("Index", WorkSize(num_items=1, num_chars=23, num_prompt_tokens=6 + 2)),
        ("Retrieve", WorkSize(num_items=1, num_chars=16, num_prompt_tokens=4 + 2)),
        ("RunPipeline", WorkSize(num_items=1, num_chars=39, max_tokens=64, num_prompt_tokens=4 + 2 + 6 + 2)),
    ],
)
def test_work_is_measured_without_being_sent(name: str, size: WorkSize) -> None:
    work = SAMPLES[name]
    assert isinstance(work, Generate | Embed | Rerank | Split | Index | Retrieve | RunPipeline)
    assert measure(work) == size


def test_token_prompts_count_as_the_text_they_stand_for() -> None:
    assert measure(Generate(model="m", prompt=TokenPrompt(token_ids=[1] * 10))).num_chars == 40


def test_tools_and_calls_and_images_count_as_part_of_the_prompt() -> None:
    def size(*messages: ChatMessage, tools: list[ToolDefinition] | None = None) -> WorkSize:
        return measure(Generate(model="m", prompt=ChatPrompt(messages=list(messages), tools=tools or [])))

    plain = size(ChatMessage(role="user", content="x" * 40))
    assert plain.num_prompt_tokens == 4 + 10
    tool = ToolDefinition(name="find", description="d" * 20, parameters="p" * 40)
    with_tool = size(ChatMessage(role="user", content="x" * 40), tools=[tool])
    assert with_tool.num_prompt_tokens == plain.num_prompt_tokens + 16 + 64 // 4
    assert with_tool.num_chars == plain.num_chars + 64
    call = ToolCall(id="1", name="find", arguments="a" * 36)
    with_call = size(ChatMessage(role="assistant", content="", tool_calls=[call], reasoning="r" * 8))
    assert with_call.num_prompt_tokens == 4 + 2 + 8 + 10
    image = Image(media_type="image/png", data=b"x" * 100_000)
    assert size(ChatMessage(role="user", content="", images=[image] * 2)).num_prompt_tokens == 4 + 2 * 256
    work = Tokenize(model="m", prompt=ChatPrompt(messages=[ChatMessage(role="user", content="x" * 40)]))
    assert measure(work).num_chars == 40
