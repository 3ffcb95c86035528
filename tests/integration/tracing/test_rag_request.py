"""One connected trace of a pipeline request: every hop, under the right parent, at times that add up.

The same promises are kept with OTLP over HTTP, OTLP over gRPC, and a Jaeger where `SAGE_TEST_JAEGER_QUERY` names one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import httpx
import pytest

from integration_instances import Instance
from sage_bus import connect
from sage_client import JobClient
from sage_core import BusSettings
from sage_telemetry import use_parent
from sage_wire.messages import ChatMessage, JobState, JobStatus, RunPipeline, SubmitJob
from trace_backends import (
    JAEGER_QUERY,
    GrpcCollector,
    HttpCollector,
    JaegerBackend,
    SeenSpan,
    TraceBackend,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

KINDS = {"gateway", "planner", "scheduler", "embedding-worker", "operator-worker", "llm-worker"}
QUESTION = "When do emperor penguins breed?"
PASSAGE = "Emperor penguins breed during the Antarctic winter and keep one egg on their feet."
NODES = ["question", "query_vector", "passages", "prompt", "answer"]

SLACK_NS = 50_000
"""Starts are read from the wall clock of one host, durations in part from its monotonic clock; the two drift apart
by microseconds within a request."""

BACKENDS: dict[str, Callable[[], TraceBackend]] = {
    "http": HttpCollector,
    "grpc": GrpcCollector,
    "jaeger": JaegerBackend,
}


def traceparent(flags: str) -> str:
    """Return the header of a trace that begins at the client; Jaeger keeps what earlier runs sent."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{flags}"


@dataclass(frozen=True)
class Made:
    """What was asked, under which headers, and what the backend got to see of it."""

    sampled: str
    unsampled: str
    job: str
    reply: httpx.Response
    job_state: JobState
    spans: list[SeenSpan]
    job_spans: list[SeenSpan]
    unsampled_spans: list[SeenSpan]
    slack_ns: int

    @property
    def root(self) -> SeenSpan:
        """The gateway's span."""
        (root,) = [span for span in self.spans if span.name.startswith("POST ")]
        return root

    def below(self, parent: SeenSpan) -> list[SeenSpan]:
        """The children of a span, by start."""
        found = [span for span in self.spans if span.parent_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_ns)

    def child(self, parent: SeenSpan, name: str) -> SeenSpan:
        """The one child that begins with `name`."""
        (found,) = [span for span in self.below(parent) if span.name.startswith(name)]
        return found

    def run(self) -> SeenSpan:
        """The planner's work."""
        return self.child(self.child(self.root, "submit"), "perform")

    def work_of(self, node: str) -> SeenSpan:
        """What the worker did for a node of the pipeline."""
        return self.child(self.child(self.child(self.run(), f"node {node}"), "submit"), "perform")


@pytest.fixture(scope="module", params=BACKENDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    if request.param == "jaeger" and not os.environ.get(JAEGER_QUERY):
        pytest.skip(
            f"{JAEGER_QUERY} is not set: it names the query API of a Jaeger, e.g. http://127.0.0.1:16686"
        )
    backend = BACKENDS[request.param]()
    home = tmp_path_factory.mktemp("sage")
    (home / "documents").mkdir()
    (home / "documents" / "penguins.md").write_text(f"# Penguins\n\n{PASSAGE}\n")
    sampled, unsampled, job = traceparent("01"), traceparent("00"), traceparent("01")
    body = {"model": "pipeline/rag-docs", "messages": [{"role": "user", "content": QUESTION}]}
    try:
        with Instance(
            "traced", home, "--model", "auto", "--port", "0", environment=backend.environment()
        ) as instance:
            instance.json("index", str(home / "documents"))
            replies = [
                httpx.post(
                    f"{instance.url}/v1/chat/completions",
                    json=body,
                    headers={"traceparent": header},
                    timeout=60,
                )
                for header in (unsampled, sampled)
            ]
            assert [reply.status_code for reply in replies] == [200, 200]
            (runtime,) = home.rglob("instance.json")
            state = asyncio.run(run_job(json.loads(runtime.read_text())["bus_url"], job))
        # Every actor has stopped by now, and has sent what it had.
        yield Made(
            sampled=sampled,
            unsampled=unsampled,
            job=job,
            reply=replies[1],
            job_state=state,
            spans=backend.trace(sampled[3:35]),
            job_spans=backend.trace(job[3:35]),
            unsampled_spans=backend.look(unsampled[3:35]),
            slack_ns=SLACK_NS + backend.clock_slack_ns,
        )
    finally:
        backend.stop()


async def run_job(bus_url: str, header: str) -> JobState:
    bus = await connect(BusSettings(url=bus_url), name="publisher")
    try:
        client = JobClient(bus)
        run = RunPipeline(pipeline="rag-docs", messages=[ChatMessage(role="user", content=QUESTION)])
        with use_parent(header):
            await client.submit(SubmitJob(job_id="traced-job", run=run))
        return await client.wait("traced-job", 60.0)
    finally:
        await bus.close()


def end_of(spans: list[SeenSpan]) -> int:
    return max(span.end_ns for span in spans)


def test_one_connected_trace_holds_every_actor_under_the_callers_span(made: Made) -> None:
    assert made.reply.headers["x-sage-trace-id"] == made.sampled[3:35]
    assert {span.service for span in made.spans} == KINDS
    ids = {span.span_id for span in made.spans}
    assert len(ids) == len(made.spans)
    assert [span for span in made.spans if span.parent_id not in ids] == [made.root]
    assert made.root.parent_id == made.sampled[36:52]
    assert {span.trace_id for span in made.spans} == {made.sampled[3:35]}
    assert not any(span.is_error or span.links for span in made.spans)


def test_every_hop_is_a_span_of_the_actor_that_made_it(made: Made) -> None:
    hops = [made.child(made.root, "submit")]
    hops += [
        made.child(made.child(made.run(), f"node {node}"), "submit")
        for node in ("query_vector", "passages", "answer")
    ]
    performers = ["planner", "embedding-worker", "operator-worker", "llm-worker"]
    for hop, performer in zip(hops, performers, strict=True):
        below = made.below(hop)
        assert [(span.name, span.service, span.kind) for span in below] == [
            ("queue", "scheduler", "internal"),
            ("dispatch", "scheduler", "producer"),
            ("perform", performer, "consumer"),
        ]
    assert [hop.name for hop in hops] == [
        "submit pipeline/rag-docs",
        "submit all-MiniLM-L6-v2",
        "submit operator/retrieve",
        "submit sage-extractive-reader",
    ]
    assert {(hop.kind, hop.service) for hop in hops} == {("client", "gateway"), ("client", "planner")}
    assert (made.root.kind, made.root.service) == ("server", "gateway")
    nodes = [span.name for span in made.below(made.run())]
    assert nodes == [f"node {node}" for node in NODES]
    stages = [
        (span.name, span.service, span.kind)
        for span in made.below(made.work_of("answer"))
        if not span.name.startswith("submit")
    ]
    assert stages == [("prefill", "llm-worker", "internal"), ("decode", "llm-worker", "internal")]


def test_children_lie_inside_their_parents(made: Made) -> None:
    by_id = {span.span_id: span for span in made.spans}
    for span in made.spans:
        parent = by_id.get(span.parent_id)
        assert span.start_ns <= span.end_ns, span
        if parent is not None:
            assert parent.start_ns - made.slack_ns <= span.start_ns, (parent, span)
            assert span.end_ns <= parent.end_ns + made.slack_ns, (parent, span)


def test_what_follows_one_another_does_not_overlap_and_sums_to_no_more_than_the_whole(made: Made) -> None:
    run = made.run()
    nodes = made.below(run)
    for earlier, later in itertools.pairwise(nodes):
        assert earlier.end_ns <= later.start_ns + made.slack_ns, (earlier.name, later.name)
    assert sum(node.ms for node in nodes) <= run.ms + made.slack_ns * len(nodes) / 1e6
    for hop in (span for span in made.spans if span.name.startswith("submit ")):
        queue, dispatch, perform = made.below(hop)
        assert queue.end_ns <= dispatch.start_ns + made.slack_ns
        assert dispatch.end_ns <= perform.start_ns + made.slack_ns
        assert queue.ms + dispatch.ms + perform.ms <= hop.ms + 3 * made.slack_ns / 1e6


def test_queue_prefill_and_decode_account_for_the_whole_generation(made: Made) -> None:
    work = made.work_of("answer")
    prefill, decode = made.child(work, "prefill"), made.child(work, "decode")
    assert abs(prefill.end_ns - decode.start_ns) <= made.slack_ns
    assert abs(prefill.ms + decode.ms - work.ms) <= 5
    hop = made.child(made.child(made.run(), "node answer"), "submit")
    stages = made.child(hop, "queue").ms + made.child(hop, "dispatch").ms + prefill.ms + decode.ms
    # What is missing are four passages of a message, on a machine that does other things.
    assert hop.ms - 100 <= stages <= hop.ms + made.slack_ns / 1e6


def test_the_scheduler_says_what_waited_and_where_it_went(made: Made) -> None:
    work = made.work_of("passages")
    hop = made.child(made.child(made.run(), "node passages"), "submit")
    dispatch = made.child(hop, "dispatch").attributes
    assert dispatch["messaging.system"] == "nats"
    assert dispatch["messaging.operation.type"] == "send"
    assert dispatch["messaging.destination.name"] == "sage.v1.worker.operator-worker.dispatch"
    assert work.attributes["messaging.destination.name"] == dispatch["messaging.destination.name"]
    assert work.attributes["messaging.message.id"] == dispatch["messaging.message.id"]
    assert work.attributes["messaging.operation.type"] == "process"
    assert made.child(hop, "queue").attributes["sage.pool"] == "operator/retrieve"


def test_spans_speak_the_genai_conventions(made: Made) -> None:
    usage = made.reply.json()["usage"]
    root, answer = made.root.attributes, made.work_of("answer").attributes
    assert root["http.route"] == "/v1/chat/completions"
    assert root["http.response.status_code"] == 200
    assert root["sage.request.id"] == made.reply.json()["id"]
    assert answer["gen_ai.operation.name"] == "chat"
    assert answer["gen_ai.request.model"] == "sage-extractive-reader"
    assert answer["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert made.run().attributes["gen_ai.operation.name"] == "invoke_workflow"
    assert made.work_of("query_vector").attributes["gen_ai.operation.name"] == "embeddings"
    assert made.work_of("passages").attributes["gen_ai.operation.name"] == "retrieval"


def test_every_span_says_which_actor_of_which_version_on_which_host_recorded_it(made: Made) -> None:
    for span in (*made.spans, *made.job_spans):
        assert span.resource["service.name"] == f"sage-{span.service}"
        assert span.resource["service.version"] == version("sage-serve")
        assert span.resource["host.name"] == socket.gethostname()
        assert span.resource["service.instance.id"]


def test_no_span_has_a_word_of_the_question_or_the_answer(made: Made) -> None:
    assert PASSAGE in made.reply.text
    shown = repr(made.spans) + repr(made.job_spans)
    for text in (QUESTION, PASSAGE, "emperor", "Antarctic"):
        assert text not in shown


def test_an_unsampled_request_exports_nothing(made: Made) -> None:
    assert made.unsampled_spans == []


def test_a_durable_job_continues_its_submitters_trace_into_every_node(made: Made) -> None:
    assert made.job_state.status is JobStatus.SUCCEEDED
    by_id = {span.span_id: span for span in made.job_spans}
    (job,) = [span for span in made.job_spans if span.parent_id not in by_id]
    assert (job.name, job.kind, job.service, job.parent_id) == ("job", "consumer", "planner", made.job[36:52])
    nodes = [span for span in made.job_spans if span.parent_id == job.span_id]
    assert [span.name for span in sorted(nodes, key=start)] == [f"node {node}" for node in NODES]
    assert {span.service for span in made.job_spans} == KINDS - {"gateway"}
    assert end_of(nodes) <= job.end_ns + made.slack_ns
    assert job.attributes["sage.job.id"] == "traced-job"


def start(span: SeenSpan) -> Any:
    return span.start_ns
