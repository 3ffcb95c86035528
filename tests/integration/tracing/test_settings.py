"""What `[telemetry]` decides: which requests are sampled, whether text is recorded, what a dead collector costs."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from integration_instances import Instance
from trace_backends import HttpCollector

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

FLEET = """
[profiles.quick]
a0 = 0.001
m0 = 0.001
[[group]]
name = "quick"
pool = "chat"
profile = "quick"
"""
CANARY = "canary-heliotrope"
WITHOUT = ("--without", "embedding-worker", "--without", "operator-worker", "--without", "planner")


@pytest.fixture
def collector() -> Iterator[HttpCollector]:
    made = HttpCollector()
    yield made
    made.stop()


def instance(name: str, home: Path, environment: dict[str, str]) -> Instance:
    (home / "fleet.toml").write_text(FLEET)
    return Instance(
        name, home, "--fleet", str(home / "fleet.toml"), "--port", "0", *WITHOUT, environment=environment
    )


def ask(url: str, headers: dict[str, str] | None = None) -> httpx.Response:
    content = f"Tell me of {CANARY}.\nsage-output-tokens: 5"
    body = {"model": "chat", "messages": [{"role": "user", "content": content}], "max_tokens": 9}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers or {}, timeout=30)
    assert reply.status_code == 200, reply.text
    return reply


def test_the_gateways_ratio_decides_where_the_caller_did_not_and_text_is_recorded_only_on_request(
    tmp_path: Path, collector: HttpCollector
) -> None:
    header = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    settings = {"SAGE_TELEMETRY__SAMPLE_RATIO": "0", "SAGE_TELEMETRY__RECORD_CONTENT": "true"}
    with instance("settings", tmp_path, collector.environment() | settings) as running:
        unsampled = ask(running.url)
        sampled = ask(running.url, {"traceparent": header})
    assert "x-sage-trace-id" not in unsampled.headers
    # The caller's decision stands, and its request is all that was exported.
    assert {span.trace_id for span in collector.spans()} == {header[3:35]}
    (work,) = [span for span in collector.spans() if span.name == "perform"]
    (asked,) = json.loads(work.attributes["gen_ai.input.messages"])
    assert asked["role"] == "user"
    assert CANARY in asked["parts"][0]["content"]
    (answered,) = json.loads(work.attributes["gen_ai.output.messages"])
    assert answered["parts"][0]["content"] == sampled.json()["choices"][0]["message"]["content"]
    assert answered["finish_reason"] == "stop"


def test_text_is_not_recorded_by_default(tmp_path: Path, collector: HttpCollector) -> None:
    with instance("default", tmp_path, collector.environment()) as running:
        reply = ask(running.url)
        shown = running.run("trace", reply.headers["x-sage-trace-id"], "--json").stdout
    spans = collector.trace(reply.headers["x-sage-trace-id"])
    assert {span.service for span in spans} == {"gateway", "scheduler", "llm-worker"}
    answer = reply.json()["choices"][0]["message"]["content"]
    for text in (CANARY, answer, "gen_ai.input.messages", "gen_ai.output.messages"):
        assert text not in repr(spans)
        assert text not in shown


def test_a_collector_that_is_down_costs_spans_that_are_counted_and_no_request(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: whoever connects is refused
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with instance("down", tmp_path, {"SAGE_TELEMETRY__OTLP_ENDPOINT": endpoint}) as running:
            for _ in range(3):
                ask(running.url)
            deadline = time.monotonic() + 30
            while dropped(running.url) < 6 and time.monotonic() < deadline:
                time.sleep(0.2)
            # A request's span and that of its one attempt, of each of three requests; no other actor is asked.
            assert dropped(running.url) == 6


def dropped(url: str) -> float:
    lines = httpx.get(f"{url}/metrics", timeout=10).text.splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("sage_spans_dropped_total")]
    return float(value)
