"""One instance, six real actors, a real nats-server: what users of the OpenAI endpoint rely on."""

from __future__ import annotations

import base64
import json
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from integration_instances import SAGE, Instance

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

DOCUMENTS = {
    "penguins.md": "# Penguins\n\nEmperor penguins breed during the Antarctic winter and keep one egg on their feet.\n",
    "volcanoes.md": "# Volcanoes\n\nKilauea on the island of Hawaii has erupted almost continuously since 1983.\n",
    "bread.html": "<html><title>Bread</title><body>"
    "<p>Sourdough rises with wild yeast and lactic acid bacteria.</p></body></html>",
}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    home = tmp_path_factory.mktemp("sage")
    documents = home / "documents"
    documents.mkdir()
    for name, text in DOCUMENTS.items():
        (documents / name).write_text(text)
    with Instance("e2e", home, "--model", "auto") as running:
        indexed = running.json("index", str(documents))
        assert indexed["num_indexed"] == len(DOCUMENTS)
        yield running


@pytest.fixture
def client(instance: Instance) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{instance.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def post(instance: Instance, path: str, content: bytes | str) -> httpx.Response:
    return httpx.post(f"{instance.url}{path}", content=content, timeout=60)


def test_models_lists_models_operators_hidden_and_pipelines_as_models(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"all-MiniLM-L6-v2", "pipeline/rag-docs"} <= names
    assert not any(name.startswith("operator/") for name in names)


def test_chat_streams_with_role_first_one_finish_reason_and_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="auto",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    with_choices = [chunk for chunk in chunks if chunk.choices]
    assert with_choices[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in with_choices)
    assert [c.choices[0].finish_reason for c in with_choices if c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert (
        chunks[-1].usage.total_tokens == chunks[-1].usage.prompt_tokens + chunks[-1].usage.completion_tokens
    )
    assert len({chunk.id for chunk in chunks}) == 1


def test_chat_without_stream_gives_the_same_text(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(model="auto", messages=messages)  # type: ignore[call-overload]
    stream = client.chat.completions.create(model="auto", messages=messages, stream=True)  # type: ignore[call-overload]
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert whole.choices[0].message.content == streamed
    assert whole.usage.completion_tokens > 0


def test_embeddings_are_the_same_as_base64_and_as_floats(client: openai.OpenAI, instance: Instance) -> None:
    request = {"model": "all-MiniLM-L6-v2", "input": ["a cat", "a kitten", "the stock market"]}
    floats = post(instance, "/v1/embeddings", json.dumps(request | {"encoding_format": "float"})).json()
    coded = post(instance, "/v1/embeddings", json.dumps(request | {"encoding_format": "base64"})).json()
    for one, other in zip(floats["data"], coded["data"], strict=True):
        data = base64.b64decode(other["embedding"])
        np.testing.assert_array_equal(
            np.float32(one["embedding"]), struct.unpack(f"<{len(data) // 4}f", data)
        )
    vectors = np.array([item.embedding for item in client.embeddings.create(**request).data])  # type: ignore[arg-type]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert floats["usage"]["prompt_tokens"] > 0


def test_rerank_puts_the_relevant_document_first(instance: Instance) -> None:
    body = {
        "model": "all-MiniLM-L6-v2",
        "query": "Which birds live in Antarctica?",
        "documents": ["A recipe for bread.", "Penguins breed on the ice.", "Interest rates rose."],
        "top_n": 2,
    }
    results = post(instance, "/v1/rerank", json.dumps(body)).json()["results"]
    assert results[0]["index"] == 1
    assert len(results) == 2
    assert results[0]["relevance_score"] >= results[1]["relevance_score"]


def test_a_pipeline_answers_as_a_model_with_the_right_source_streamed(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="pipeline/rag-docs",
        messages=[{"role": "user", "content": "When do emperor penguins breed?"}],
        stream=True,
    )
    text, sources = "", []
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        sources += (chunk.model_extra or {}).get("sources") or []
    assert "winter" in text
    assert sources[0]["source"] == "penguins.md"


def test_curl_streams_sse_to_done(instance: Instance) -> None:
    body = json.dumps({"model": "auto", "stream": True, "messages": [{"role": "user", "content": "Hello"}]})
    done = subprocess.run(
        ["curl", "-sN", f"{instance.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    events = [line for line in done.stdout.split("\n\n") if line]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("content", "status", "code", "says"),
    [
        (b'{"model": "auto", ', 400, "invalid_json", "JSON"),
        (
            b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}',
            404,
            "model_not_found",
            "nobody",
        ),
        (b'{"model": "auto", "messages": "x"}', 400, None, "messages"),
        (b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], "n": 17}', 400, None, "n"),
    ],
)
def test_a_bad_request_gets_one_precise_error(
    instance: Instance, content: bytes, status: int, code: str | None, says: str
) -> None:
    response = post(instance, "/v1/chat/completions", content)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert says in error["message"]
    if code is not None:
        assert error["code"] == code


def test_an_oversized_body_is_refused_before_it_is_read(instance: Instance) -> None:
    host, port = instance.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: 999999999\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as raw:
        raw.sendall(head.encode())
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413")


def test_one_trace_holds_every_hop_of_a_pipeline_request(instance: Instance) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    response = httpx.post(
        f"{instance.url}/v1/chat/completions",
        json={
            "model": "pipeline/rag-docs",
            "messages": [{"role": "user", "content": "What makes bread rise?"}],
        },
        headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"},
        timeout=60,
    )
    assert response.status_code == 200
    spans = instance.json("trace", trace_id)["spans"]
    services = {span["service"].removeprefix("sage-") for span in spans}
    assert {
        "gateway",
        "scheduler",
        "planner",
        "embedding-worker",
        "operator-worker",
        "llm-worker",
    } <= services
    by_id = {span["span_id"]: span for span in spans}
    roots = [span for span in spans if span["parent_id"] not in by_id]
    assert [span["service"] for span in roots] == ["sage-gateway"], "every span hangs under the gateway's"
    for span in spans:
        parent = by_id.get(span["parent_id"])
        if parent is not None and parent["service"] == span["service"]:
            assert parent["start_ns"] <= span["start_ns"], (parent["name"], span["name"])
            assert span["end_ns"] <= parent["end_ns"], (parent["name"], span["name"])


def test_metrics_count_requests(instance: Instance) -> None:
    post(instance, "/v1/embeddings", json.dumps({"model": "all-MiniLM-L6-v2", "input": "x"}))
    text = httpx.get(f"{instance.url}/metrics").text
    assert "sage_gateway_requests_total" in text


def test_status_shows_six_ready_actors(instance: Instance) -> None:
    actors = instance.json("status")["actors"]
    kinds = sorted(actor["kind"] for actor in actors if actor["state"] == "ready")
    assert kinds == ["embedding-worker", "gateway", "llm-worker", "operator-worker", "planner", "scheduler"]


def test_a_cluster_is_found_by_the_url_of_its_bus(instance: Instance, tmp_path: Path) -> None:
    (runtime,) = instance.home.rglob("instance.json")
    bus_url = json.loads(runtime.read_text())["bus_url"]
    elsewhere = instance.environment | {"SAGE_BUS__URL": bus_url, "XDG_RUNTIME_DIR": str(tmp_path)}
    asked = subprocess.run(
        [SAGE, "status", "--wait-ready", "20", "--json"],
        env=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    found = json.loads(asked.stdout)
    assert (found["is_cluster"], found["is_ready"], len(found["actors"])) == (True, True, 6)
    assert [(host["name"], len(host["actors"])) for host in found["hosts"]] == [(socket.gethostname(), 6)]
    assert found["bus"] in bus_url
    assert "@" not in found["bus"]
    unknown = subprocess.run(
        [SAGE, "trace", "0" * 32], env=elsewhere, capture_output=True, text=True, check=False
    )
    assert "no actor remembers" in unknown.stderr
    expected = subprocess.run(
        [SAGE, "status", "--wait-ready", "0", "--expect", "gateway", "--expect", "gateway"],
        env=elsewhere, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert expected.returncode == 4
    assert "not ready: gateway" in expected.stdout


def test_indexing_again_removes_what_is_gone_and_takes_whatever_max_bytes_allows(
    instance: Instance, tmp_path: Path
) -> None:
    (tmp_path / "gone.md").write_text("# Gone\n\nThe lighthouse keeper owned a green parrot.\n")
    (tmp_path / "tiny.txt").write_text("word")
    (tmp_path / "big.txt").write_text("\n".join(f"Row {number}: nothing at all." for number in range(15_000)))
    first = instance.json("index", str(tmp_path), "--collection", "again")
    assert (first["num_indexed"], first["num_failed"], first["skipped"]) == (3, 0, {})
    (tmp_path / "gone.md").unlink()
    second = instance.json("index", str(tmp_path), "--collection", "again")
    assert (second["num_removed"], second["num_unchanged"], second["num_indexed"]) == (1, 2, 0)
    answer = instance.run("ask", "Who owned a green parrot?", "--collection", "again")
    assert "gone.md" not in answer.stdout


@pytest.mark.parametrize(("pipeline", "says"), [("nope", "does not exist"), ("rag-docs", "takes messages")])
def test_a_pipeline_that_cannot_index_is_wrong_usage_even_where_nothing_changed(
    instance: Instance, pipeline: str, says: str
) -> None:
    done = instance.run("index", str(instance.home / "documents"), "--pipeline", pipeline)
    assert done.returncode == 2
    assert says in done.stderr
