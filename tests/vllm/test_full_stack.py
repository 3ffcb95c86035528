"""vLLM behind the whole stack on CPU: HTTP, scheduler, NATS, worker, engine, and back."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from integration_instances import Instance
from sage_llm_worker.testing import tiny_llama

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]
# The tiny model, greedy, repeats itself after this prompt and never ends by itself.
PROMPT = [{"role": "user", "content": "count"}]


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    home = tmp_path_factory.mktemp("sage")
    model = home / "tiny-llama"
    tiny_llama(model, max_context=32768)
    arguments = ("--engine", "vllm", "--model", str(model), "--without", "embedding-worker")
    with Instance("vllm", home, *arguments) as running:
        yield running


@pytest.fixture
def client(instance: Instance) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{instance.url}/v1", api_key="unused", max_retries=0, timeout=120) as made:
        yield made


def stream(client: openai.OpenAI, max_tokens: int) -> Iterator[str]:
    chunks = client.chat.completions.create(
        model="auto",
        messages=PROMPT,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,  # type: ignore[arg-type]
    )
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def worker(instance: Instance) -> dict[str, int]:
    (found,) = [actor for actor in instance.json("status")["actors"] if actor["kind"] == "llm-worker"]
    return dict(found)


def test_a_chat_streams_through_the_whole_stack(client: openai.OpenAI) -> None:
    pieces = list(stream(client, 64))
    assert len(pieces) > 1
    assert "".join(pieces) == "".join(stream(client, 64)), "greedy sampling repeats itself"


def test_a_closed_connection_frees_the_sequence(client: openai.OpenAI, instance: Instance) -> None:
    chunks = stream(client, 20_000)
    next(chunks)
    assert worker(instance)["num_in_flight"] >= 1
    client.close()
    deadline = time.monotonic() + 10
    while worker(instance)["num_in_flight"] > 0:
        assert time.monotonic() < deadline, "the sequence still runs"


def test_a_killed_worker_is_replaced_and_the_stream_continues_where_it_was(
    client: openai.OpenAI, instance: Instance, tmp_path: Path
) -> None:
    whole = "".join(stream(client, 3000))
    pid = worker(instance)["pid"]
    text, killed = "", threading.Event()
    for piece in stream(client, 3000):
        text += piece
        if not killed.is_set():
            os.kill(pid, signal.SIGKILL)
            killed.set()
    assert worker(instance)["pid"] != pid
    assert text == whole
