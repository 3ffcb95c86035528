"""What callers say stays between them and the model: nothing of it is in logs, files, spans, metrics or headers.

A whole `sage up` with debug logs and every request traced is told canaries in each place where a caller can put text.
Afterwards they are searched for in all that it wrote and exported. Excepted are the bodies of the answers, which are
the caller's own, and responses that the caller asked to be stored; none is stored here.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from integration_instances import SAGE, Instance
from sage_bus import Received, connect
from sage_core import BusSettings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

MODEL = "a.b.> * \u00fcn\u00ef\u00e7\u00f6de $SYS." + "x" * 460
"""Served under this name: wildcards, spaces, accents, the server's own prefix, and longer than any subject."""
EMBEDDER = "all-MiniLM-L6-v2"
_SUBJECT = re.compile(r"[A-Za-z0-9_.-]{1,255}")


class Canaries:
    """Makes words that are found nowhere unless they were written down."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def __call__(self, place: str) -> str:
        word = f"canary{len(self.words):02}{place}tweets"
        self.words.append(word)
        return word

    def found_in(self, content: bytes) -> list[str]:
        return [word for word in self.words if word.encode() in content]


class Collector:
    """An OTLP endpoint that keeps the bodies as they come."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass
class Told:
    """What happened in one run of the instance."""

    canaries: Canaries
    home: Path
    spans: bytes = b""
    metrics: bytes = b""
    headers: bytes = b""
    commands: bytes = b""
    statuses: dict[str, int] = field(default_factory=dict)
    bodies: dict[str, str] = field(default_factory=dict)
    request_ids: list[str] = field(default_factory=list)
    subjects: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    home = tmp_path_factory.mktemp("canaries")
    collector = Collector()
    told = Told(Canaries(), home)
    environment = {
        "SAGE_TELEMETRY__LOG_LEVEL": "debug",
        "SAGE_TELEMETRY__OTLP_ENDPOINT": collector.url,
        "SAGE_TELEMETRY__SAMPLE_RATIO": "1.0",
        "SAGE_LLM_WORKER__SERVED_NAME": MODEL,
    }
    try:
        instance = Instance("canaries", home, "--engine", "emulated", "--port", "0", environment=environment)
        made = subprocess.run(
            [SAGE, "keys", "create", "--name", "caller", "--rpm", "1000", "--tpm", "1000000", "--json"],
            env=instance.environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        key: str = json.loads(made.stdout)["key"]
        told.canaries.words.append(key)
        with instance:
            (home / "otters.md").write_text("# Otters\n\nSea otters hold hands while they sleep.\n")
            indexed = instance.run("index", str(home / "otters.md"))
            assert indexed.returncode == 0, indexed.stderr
            (runtime,) = home.rglob("instance.json")
            asyncio.run(_tell(told, instance.url, key, json.loads(runtime.read_text())["bus_url"]))
            for command in (("trace", told.request_ids[0]), ("explain", told.request_ids[0])):
                done = instance.run(*command, "--json")
                assert done.returncode == 0, done.stderr
                told.commands += done.stdout.encode()
        told.spans = b"".join(collector.bodies)
        yield told
    finally:
        collector.stop()


async def _tell(told: Told, url: str, key: str, bus_url: str) -> None:
    bus = await connect(BusSettings(url=bus_url), name="listener")

    def note(message: Received) -> None:
        told.subjects.add(message.subject)

    for pattern in ("sage.v1.>", "sagekv.v1.>", "sagejobs.v1.>"):
        await bus.subscribe(pattern, note)
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
        bearer = {"authorization": f"Bearer {key}"}
        for name, path, body, headers in _requests(told.canaries):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            reply = await client.post(path, content=content, headers=bearer | headers)
            _note(told, name, reply)
        streamed = _chat(told.canaries, stream=True, max_tokens=20_000)
        async with client.stream("POST", "/v1/chat/completions", json=streamed, headers=bearer) as reply:
            assert reply.status_code == 200, await reply.aread()
            async for _ in _some(reply):
                break  # the client leaves in the middle
        told.metrics = (await client.get("/metrics", headers=bearer)).content
    await bus.close()


async def _some(reply: httpx.Response) -> AsyncIterator[bytes]:
    async for part in reply.aiter_raw():
        yield part


def _note(told: Told, name: str, reply: httpx.Response) -> None:
    told.statuses[name] = reply.status_code
    told.bodies[name] = reply.text
    told.headers += b"\n".join(b"%b: %b" % pair for pair in reply.headers.raw) + b"\n"
    told.request_ids.append(reply.headers["x-request-id"])


def _chat(canary: Canaries, **fields: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": canary("system")},
            {"role": "user", "content": [{"type": "text", "text": canary("part")}]},
            {"role": "assistant", "content": canary("assistant")},
            {"role": "user", "content": canary("user")},
        ],
        "max_tokens": 4,
        "stop": [canary("stop")],
        "user": canary("enduser"),
        "metadata": {"note": canary("metadata")},
        canary("field"): canary("unknown"),
    } | fields


def _tool(canary: Canaries) -> dict[str, Any]:
    properties = {canary("property"): {"type": "string", "description": canary("schema")}}
    return {
        "type": "function",
        "function": {
            "name": canary("function"),
            "description": canary("tool"),
            "parameters": {"type": "object", "properties": properties},
        },
    }


def _requests(canary: Canaries) -> list[tuple[str, str, Any, dict[str, str]]]:
    """Every place where a caller can say something: name, path, body, headers."""
    chat, none = "/v1/chat/completions", dict[str, str]()
    document = {
        "model": EMBEDDER,
        "query": canary("query"),
        "documents": [canary("document"), canary("other")],
    }
    return [
        ("chat", chat, _chat(canary), none),
        ("tools", chat, _chat(canary, tools=[_tool(canary)]), none),
        ("schema", chat, _chat(canary, max_tokens=64, response_format={"type": "json_schema", "json_schema": {
            "name": canary("format"), "schema": {"type": "object", "description": canary("about")}}}), none),
        ("echo", "/v1/completions",
         {"model": MODEL, "prompt": canary("prompt"), "echo": True, "max_tokens": 2}, none),
        ("embedding", "/v1/embeddings", {"model": EMBEDDER, "input": [canary("text"), canary("text")]}, none),
        ("rerank", "/v1/rerank", document, none),
        ("score", "/v1/score", {"model": EMBEDDER, "text_1": canary("one"), "text_2": canary("two")}, none),
        ("tokenize", "/tokenize", {"model": MODEL, "prompt": canary("tokens")}, none),
        ("response", "/v1/responses", {"model": MODEL, "input": canary("input"), "store": False,
                                       "instructions": canary("instructions")}, none),
        ("pipeline", chat, _chat(canary, model="pipeline/rag-docs"), none),
        ("wrong type", chat, _chat(canary, temperature=canary("temperature")), none),
        ("wrong role", chat, _chat(canary, messages=[{"role": canary("role"), "content": "x"}]), none),
        ("wrong tool", chat, _chat(canary, tools=[{"type": canary("type")}]), none),
        ("no json", chat, b'{"model": "' + canary("broken").encode(), none),
        ("no unicode", chat, b'{"model": "\xff' + canary("bytes").encode() + b'"}', none),
        ("wrong key", chat, _chat(canary), {"authorization": f"Bearer {canary('key')}"}),
        ("other scheme", chat, _chat(canary), {"authorization": f"Basic {canary('basic')}"}),
        ("in the query", f"{chat}?api_key={canary('parameter')}", _chat(canary), none),
        ("cookie", chat, _chat(canary), {"cookie": canary("cookie"), "x-other": canary("header")}),
        ("wrong header", chat, _chat(canary), {"x-slo-ttft-ms": canary("target")}),
        ("wrong trace", chat, _chat(canary), {"traceparent": canary("trace"), "tracestate": canary("state")}),
    ]  # fmt: skip


def test_every_request_was_answered_as_it_is_meant_to_be(told: Told) -> None:
    refused = {"wrong type": 400, "wrong role": 400, "wrong tool": 400, "no json": 400, "no unicode": 400,
               "wrong key": 401, "other scheme": 401, "wrong header": 400}  # fmt: skip
    expected = {name: refused.get(name, 200) for name in told.statuses}
    assert told.statuses == expected, {
        name: told.bodies[name] for name in expected if told.statuses[name] != expected[name]
    }
    # The search can find something: what is excepted has canaries in it.
    assert told.canaries.found_in(told.bodies["echo"].encode())


def test_no_log_and_no_other_file_has_a_word_of_it(told: Told) -> None:
    logs, places = b"", set()
    for path in told.home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            logs += content if path.suffix == ".log" else b""
            if b"hold hands" in content:
                places.add(path.name)
            assert told.canaries.found_in(content) == [], path
    assert b"gateway_listening" in logs
    # The search reaches what is stored: the document that was indexed is found beside its source.
    assert len(places) > 1, places


def test_no_span_has_a_word_of_it(told: Told) -> None:
    for request_id in told.request_ids[:6]:
        assert request_id.encode() in told.spans
    assert told.canaries.found_in(told.spans) == []
    assert told.canaries.found_in(told.commands) == []


def test_no_metric_and_no_response_header_has_a_word_of_it(told: Told) -> None:
    assert b"sage_gateway_requests_total" in told.metrics
    assert b"x-ratelimit-remaining-requests" in told.headers
    assert told.canaries.found_in(told.metrics) == []
    assert told.canaries.found_in(told.headers) == []


def test_a_hostile_model_name_is_served_and_never_in_a_subject(told: Told) -> None:
    assert told.statuses["chat"] == 200
    assert any(subject.endswith(".submit") for subject in told.subjects)
    for subject in told.subjects:
        assert _SUBJECT.fullmatch(subject) is not None, subject
        assert "xxxx" not in subject
        assert ".b." not in subject
    assert told.canaries.found_in("\n".join(told.subjects).encode()) == []
