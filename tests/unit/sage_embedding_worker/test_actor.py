"""What callers of the embedding-worker rely on, with a tiny deterministic encoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import numpy as np
import pytest

from sage_actor import ActorRuntime
from sage_bus import MemoryBroker
from sage_core import BadRequest, Budget, ContextLengthExceeded, LimitExceeded, NotFound
from sage_core.settings import ActorSettings
from sage_embedding_worker import EmbeddingWorker, EmbeddingWorkerSection
from sage_embedding_worker.encoder import Floats, Text
from sage_embedding_worker.locations import ModelSpec
from sage_embedding_worker.vectors import normalise
from sage_wire.codec import decode
from sage_wire.messages import (
    ChatPrompt,
    Completed,
    Detokenize,
    Detokenized,
    Embed,
    Event,
    Generate,
    Output,
    Rerank,
    Scores,
    TextPrompt,
    Tokenize,
    Tokenized,
    Vectors,
    Work,
)
from sage_worker import Assigned, FormedBatch

DIM = 16


class LetterTokenizer:
    """A token is a letter's code point, between `[` and `]` as special tokens."""

    vocab_size = 0x10000

    def tokenize(self, text: str, *, adds_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in (f"[{text}]" if adds_special_tokens else text)]

    def strings(self, token_ids: Sequence[int]) -> list[str]:
        return [f"<{chr(token_id)}>" for token_id in token_ids]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return "".join(map(chr, token_ids))


class LetterEncoder(LetterTokenizer):
    """Counts letters: deterministic, and similar texts are near. `gate` holds up its thread."""

    dim = DIM
    max_tokens = 8

    def __init__(self, spec: ModelSpec) -> None:
        self.name = spec.name
        self.batches: list[list[Text]] = []
        self.threads: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def count_tokens(self, texts: Sequence[Text]) -> list[int]:
        return [2 + len(text.split()) if isinstance(text, str) else len(text) for text in texts]

    def embed(self, texts: Sequence[Text]) -> Floats:
        self.entered.set()
        self.gate.wait()
        self.batches.append(list(texts))
        self.threads.add(threading.current_thread().name)
        rows = np.zeros((len(texts), DIM), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for code in map(ord, text) if isinstance(text, str) else text:
                row[code % DIM] += 1
        return normalise(rows + np.float32(1e-3))


class OverlapReranker(LetterTokenizer):
    """Scores a pair by the words it shares."""

    max_tokens = 8

    def __init__(self, spec: ModelSpec) -> None:
        self.name = spec.name

    def count_tokens(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        return [3 + len(query.split()) + len(document.split()) for query, document in pairs]

    def score(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        return np.array([len({*a.split()} & {*b.split()}) for a, b in pairs], dtype=np.float32)


class Running:
    """A started worker."""

    def __init__(self, runtime: ActorRuntime, encoder: LetterEncoder) -> None:
        self.runtime = runtime
        self.encoder = encoder

    async def perform(self, work: Work, batch: FormedBatch | None = None) -> list[Event]:
        assert isinstance(self.runtime.actor, EmbeddingWorker)
        assigned = Assigned(
            request_id="r", attempt=1, pool="p", work=work, tenant="t", priority=0, budget=Budget.of(5),
            traceparent=None, queue_ms=0.0, batch=batch,
        )  # fmt: skip
        return [event async for event in self.runtime.actor.perform(assigned)]

    async def occupied(self) -> asyncio.Task[tuple[Floats, int]]:
        """Return a request that the encoder is busy with until `gate` is set."""
        self.encoder.gate.clear()
        request = asyncio.create_task(self.embed(["first"]))
        await asyncio.to_thread(self.encoder.entered.wait)
        return request

    async def until_queued(self, num_items: int) -> None:
        assert isinstance(self.runtime.actor, EmbeddingWorker)
        model = self.runtime.actor._encoders["letters"]
        while model.num_queued < num_items:  # noqa: ASYNC110 - texts are counted in a thread first
            await asyncio.sleep(0.001)

    async def embed(self, texts: list[str], dimensions: int | None = None) -> tuple[Floats, int]:
        *events, last = await self.perform(Embed(model="letters", texts=texts, dimensions=dimensions))
        assert isinstance(last, Completed)
        rows = []
        for event in events:
            assert isinstance(event, Vectors)
            rows.append(np.frombuffer(event.data, dtype="<f4").reshape(-1, event.dim))
        return np.concatenate(rows), last.usage.prompt_tokens


class Start(Protocol):
    async def __call__(self, **settings: object) -> Running: ...


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    runtimes: list[ActorRuntime] = []
    encoders: list[LetterEncoder] = []
    broker = MemoryBroker()

    async def begin(**settings: object) -> Running:
        encoder = LetterEncoder(ModelSpec("letters", "letters"))
        section = EmbeddingWorkerSection.model_validate(
            {"models": ("letters",), "rerankers": ("overlap",), **settings}
        )
        runtime = ActorRuntime(
            lambda context: EmbeddingWorker(
                context, section, load_encoder=lambda _: encoder, load_reranker=OverlapReranker
            ),
            actor_id="embedding-worker-1",
            bus=broker.connect("data"),
            control=broker.connect("control"),
            settings=ActorSettings(),
        )
        await runtime.start()
        runtimes.append(runtime)
        encoders.append(encoder)
        return Running(runtime, encoder)

    yield begin
    for encoder in encoders:
        encoder.gate.set()
    for runtime in runtimes:
        await runtime.stop(drain=False)


async def test_every_text_gets_its_unit_vector_in_order(start: Start) -> None:
    running = await start()
    texts = [f"text {i} " + "abc" * (i % 7) for i in range(300)]
    vectors, _ = await running.embed(texts)
    assert vectors.shape == (300, DIM)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    for i in (0, 150, 299):
        np.testing.assert_array_equal(vectors[i], running.encoder.embed([texts[i]])[0])
    assert all(thread.startswith("compute-batches") for thread in running.encoder.threads - {"MainThread"})


async def test_equal_texts_are_computed_once_and_counted_each_time(start: Start) -> None:
    running = await start()
    vectors, num_tokens = await running.embed(["a b", "c", "a b", "a b"])
    assert sorted(str(text) for batch in running.encoder.batches for text in batch) == ["a b", "c"]
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert num_tokens == 4 + 3 + 4 + 4


async def test_batches_share_requests_and_hold_similar_lengths(start: Start) -> None:
    running = await start(max_batch_texts=4)
    first = await running.occupied()
    short, long = ["a", "b", "c", "d"], [f"{letter} x x x x" for letter in "abcd"]
    others = [asyncio.create_task(running.embed([a, b])) for a, b in zip(short, long, strict=True)]
    await running.until_queued(8)
    running.encoder.gate.set()
    await asyncio.gather(first, *others)
    assert [len({len(text) for text in batch}) for batch in running.encoder.batches] == [1, 1, 1]


async def test_a_cancelled_request_is_dropped_before_it_is_computed(start: Start) -> None:
    running = await start()
    first = await running.occupied()
    second = asyncio.create_task(running.embed(["second"]))
    await running.until_queued(1)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    running.encoder.gate.set()
    await first
    assert running.encoder.batches == [["first"]]


async def test_fewer_dimensions_are_unit_vectors_too(start: Start) -> None:
    running = await start()
    vectors, _ = await running.embed(["abc", "xyz"], dimensions=5)
    assert vectors.shape == (2, 5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


async def test_rerank_uses_the_cross_encoder_by_name_and_cosine_otherwise(start: Start) -> None:
    running = await start()
    documents = ["red fish", "blue sky", "the red sky is here"]
    events = await running.perform(Rerank(model="overlap", query="red sky", documents=documents))
    assert isinstance(events[0], Scores)
    assert events[0].scores == [1.0, 1.0, 2.0]
    events = await running.perform(Rerank(model="letters", query="blue sky", documents=documents))
    assert isinstance(events[0], Scores)
    assert isinstance(events[1], Completed)
    assert int(np.argmax(events[0].scores)) == 1
    assert events[0].scores[1] == pytest.approx(1.0)
    assert events[1].usage.prompt_tokens == 4 + 4 + 4 + 7


async def test_long_texts_are_cut_and_counted_as_read_or_refused_by_name(start: Start) -> None:
    long = "w " * 20
    _, num_tokens = await (await start()).embed([long, "x"])
    assert num_tokens == LetterEncoder.max_tokens + 3
    running = await start(overlong="refuse")
    with pytest.raises(ContextLengthExceeded, match=r"input\[1\] has 22 tokens; 'letters' reads at most 8"):
        await running.embed(["x", long, "x"])


async def test_token_ids_are_embedded_as_they_are_and_count_as_many(start: Start) -> None:
    running = await start()
    ids = [[97, 98, 98], [99], [97, 98, 98]]
    *vectors, last = await running.perform(Embed(model="letters", token_ids=ids))
    rows = np.concatenate([np.frombuffer(event.data, "<f4").reshape(-1, DIM) for event in vectors])  # type: ignore[union-attr]
    np.testing.assert_array_equal(rows, running.encoder.embed(["abb", "c", "abb"]))
    assert sorted(running.encoder.batches[0], key=str) == [(97, 98, 98), (99,)]
    assert isinstance(last, Completed)
    assert last.usage.prompt_tokens == 7


@pytest.mark.parametrize(
    ("work", "param", "found"),
    [
        (Embed(model="letters", token_ids=[[1], [2, 0x10000]]), "input", "65536"),
        (Embed(model="letters", token_ids=[[-1]]), "input", "-1"),
        (Embed(model="letters", token_ids=[[]]), "input", "0 tokens"),
        (Embed(model="letters", texts=["a"], token_ids=[[1]]), "input", "both"),
        (Detokenize(model="letters", token_ids=[0x10000]), "tokens", "text may be sent"),
        (Tokenize(model="letters", prompt=ChatPrompt(messages=[])), "messages", "chat template"),
    ],
)
async def test_tokens_that_cannot_be_read_are_refused_by_name(
    start: Start, work: Work, param: str, found: str
) -> None:
    running = await start()
    with pytest.raises(BadRequest, match=found) as refused:
        await running.perform(work)
    assert refused.value.param == param


@pytest.mark.parametrize("model", ["letters", "overlap"])
async def test_texts_become_tokens_and_tokens_texts(start: Start, model: str) -> None:
    running = await start()
    output, last = await running.perform(
        Tokenize(model=model, prompt=TextPrompt(text="ab"), with_strings=True)
    )
    assert isinstance(output, Output)
    assert isinstance(last, Completed)
    tokenized = decode(Tokenized, output.value)
    assert "".join(tokenized.strings) == "<[><a><b><]>"
    assert last.usage.prompt_tokens == len(tokenized.token_ids) == 4
    output, _ = await running.perform(
        Tokenize(model=model, prompt=TextPrompt(text="ab"), adds_special_tokens=False)
    )
    assert isinstance(output, Output)
    assert decode(Tokenized, output.value) == Tokenized(token_ids=[97, 98])
    output, _ = await running.perform(Detokenize(model=model, token_ids=[91, 97, 93]))
    assert isinstance(output, Output)
    assert decode(Detokenized, output.value).text == "[a]"


async def test_what_is_announced_is_what_is_served(start: Start) -> None:
    actor = (await start()).runtime.actor
    assert actor is not None
    served = [(model.name, model.task, model.dim) for model in actor.presence().models]
    assert served == [("letters", "embed", DIM), ("letters", "rerank", DIM), ("overlap", "rerank", 0)]


@pytest.mark.parametrize(
    ("work", "error", "complaint"),
    [
        (
            Embed(model="other", texts=["a"]),
            NotFound,
            "model 'other' is not served here; there are: 'letters'",
        ),
        (Embed(model="overlap", texts=["a"]), NotFound, "there are: 'letters'"),
        (Rerank(model="x", query="q", documents=["a"]), NotFound, "there are: 'letters', 'overlap'"),
        (Embed(model="letters", texts=[]), BadRequest, "input is empty"),
        (Rerank(model="letters", query="q", documents=[]), BadRequest, "documents is empty"),
        (Embed(model="letters", texts=["a"] * 4), LimitExceeded, "input has 4 texts; at most 3"),
        (
            Embed(model="letters", texts=["a", "b" * 11]),
            LimitExceeded,
            r"input\[1\] has 11 characters; at most 10",
        ),
        (
            Embed(model="letters", texts=["a"], dimensions=17),
            BadRequest,
            "dimensions is 17; expected 1 to 16",
        ),
        (Generate(model="letters", prompt=TextPrompt(text="a")), BadRequest, "found work Generate"),
    ],
)
async def test_wrong_work_is_refused_saying_what_was_expected(
    start: Start, work: Work, error: type[Exception], complaint: str
) -> None:
    running = await start(max_texts=3, max_text_chars=10)
    with pytest.raises(error, match=complaint):
        await running.perform(work)


async def test_what_the_scheduler_formed_is_one_batch_of_the_model_and_duplicates_count_once(
    start: Start,
) -> None:
    running = await start()
    first = await running.occupied()
    batch = FormedBatch(fence=1, number=4, size=3)
    members = [
        asyncio.create_task(running.perform(Embed(model="letters", texts=texts), batch))
        for texts in (["a", "b"], ["b", "c"])
    ]
    loose = asyncio.create_task(running.embed(["loose"]))
    await running.until_queued(5)
    # The cosine of a rerank is computed from embeddings: it can be a member, too.
    ranked = Rerank(model="letters", query="a", documents=["d"])
    members.append(asyncio.create_task(running.perform(ranked, batch)))
    await running.until_queued(7)
    running.encoder.gate.set()
    await asyncio.gather(first, loose, *members)
    assert sorted(map(sorted, running.encoder.batches)) == [["a", "b", "c", "d"], ["first"], ["loose"]]


async def test_announcements_say_what_a_scheduler_forms_batches_by(start: Start) -> None:
    running = await start(max_batch_texts=16, max_batch_tokens=512, device="cpu")
    assert running.runtime.actor is not None
    for model in running.runtime.actor.presence().models:
        assert (model.is_batched, model.device, model.is_gpu) == (True, "cpu", False)
        assert model.profile is not None
        assert (model.profile.max_sequences, model.profile.max_step_tokens) == (16, 512)
