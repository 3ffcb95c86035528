"""Every actor with the rights of its own role and no more, over TLS: all of it works, and the server denies nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from guarded_cluster import KINDS, Certificates, Cluster, GuardedServer, closing
from sage_bus import connect
from sage_bus.server_config import ServerTls
from sage_cli.key_file_changes import create_key
from sage_client import JobClient, UnifiedInferenceClient
from sage_core import new_id
from sage_gateway.access.keys_file import KeyRecord
from sage_wire import subjects
from sage_wire.codec import encode
from sage_wire.messages import Document, FindReceipt, FindSpans, JobStatus, Ping, RunPipeline, SubmitJob
from sage_wire.roles import Role

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[3]
PENGUINS = Document(
    source="penguins.md",
    text="Emperor penguins breed during the Antarctic winter, with one egg on their feet.",
)
QUESTION = "When do emperor penguins breed?"
SERVED = {"all-MiniLM-L6-v2", "pipeline/rag-docs"}


class Guests:
    """The cluster, ready, with an API key of it."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self.cluster, self.guarded = cluster, cluster.guarded
        self._headers = {"authorization": f"Bearer {key}"}

    def post(self, path: str, body: dict[str, object]) -> httpx.Response:
        return httpx.post(f"{self.cluster.url}{path}", json=body, headers=self._headers, timeout=60)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        while not self.cluster.models(self._headers) >= SERVED:
            ended = self.cluster.ended()
            assert not ended, ended
            assert time.monotonic() < deadline, {kind: self.cluster.log(kind) for kind in KINDS}
            time.sleep(0.2)


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Guests]:
    home = tmp_path_factory.mktemp("rights")
    tls = ServerTls(certificates.server_cert, certificates.server_key)
    guarded = GuardedServer(home / "secrets", tls, certificates.ca)
    # With a key that has limits, quotas are kept on the bus; without any, the gateway never asks for them.
    keys = home / "keys.toml"
    key = create_key(keys, "guest", KeyRecord((), rpm=1000), datetime.now(UTC), None)
    with guarded.server:
        guarded.provision()
        with Cluster(guarded, home, {"SAGE_GATEWAY__KEYS_FILE": str(keys)}) as cluster:
            made = Guests(cluster, key)
            made.wait_until_ready()
            yield made
            statuses = {kind: cluster.stop(kind) for kind in KINDS}
        assert statuses == dict.fromkeys(KINDS, 0)
        # After the drain, too: what a stopping actor says must be allowed.
        assert guarded.violations == []


@pytest.fixture(autouse=True)
def nothing_is_denied(guests: Guests) -> Iterator[None]:
    yield
    assert guests.guarded.violations == []
    for kind in KINDS:
        assert "bus_permission_denied" not in guests.cluster.log(kind)


async def index(guests: Guests) -> None:
    run = RunPipeline(pipeline="index-docs", documents=[PENGUINS])
    job = SubmitJob(job_id=new_id("index"), run=run, budget_ms=60_000)
    settings = guests.guarded.settings(Role.OPERATOR)
    async with closing(await connect(settings, name="test", role=Role.OPERATOR)) as bus:
        jobs = JobClient(bus)
        await jobs.submit(job)
        state = await jobs.wait(job.job_id, 60)
    assert state.status is JobStatus.SUCCEEDED, state.error


def test_a_chat_is_answered(guests: Guests) -> None:
    answer = guests.post(
        "/v1/chat/completions", {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def test_a_stream_whose_reader_goes_away_is_cancelled(guests: Guests) -> None:
    body = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    with httpx.stream(
        "POST", f"{guests.cluster.url}/v1/chat/completions", json=body, headers=guests._headers, timeout=60
    ) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())


def test_texts_are_embedded(guests: Guests) -> None:
    answer = guests.post("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": ["a text", "another"]})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["data"]) == 2


async def test_documents_are_indexed_by_a_durable_job_and_answered_from(guests: Guests) -> None:
    await index(guests)
    answer = guests.post(
        "/v1/chat/completions",
        {"model": "pipeline/rag-docs", "messages": [{"role": "user", "content": QUESTION}]},
    )
    assert answer.status_code == 200, answer.text
    assert "winter" in answer.json()["choices"][0]["message"]["content"]


async def test_a_publisher_runs_a_pipeline_as_a_job_with_nothing_but_nats(
    guests: Guests, certificates: Certificates
) -> None:
    await index(guests)
    done = await asyncio.to_thread(
        subprocess.run,
        [
            sys.executable, ROOT / "examples" / "publish_job.py", QUESTION, "--url", guests.guarded.url,
            "--nkey-seed", guests.guarded.folder / "publisher.nk", "--timeout", "60",
        ],
        env=guests.cluster.environment | {"SSL_CERT_FILE": str(certificates.ca)},
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "winter" in done.stdout


def test_a_response_is_stored_found_and_deleted(guests: Guests) -> None:
    made = guests.post("/v1/responses", {"model": "auto", "input": "Hello"})
    assert made.status_code == 200, made.text
    url = f"{guests.cluster.url}/v1/responses/{made.json()['id']}"
    assert httpx.get(url, headers=guests._headers, timeout=30).status_code == 200
    assert httpx.delete(url, headers=guests._headers, timeout=30).status_code == 200
    assert httpx.get(url, headers=guests._headers, timeout=30).status_code == 404


def test_a_request_is_cancelled_by_id_through_any_gateway(guests: Guests) -> None:
    assert guests.post("/v1/requests/unknown/cancel", {}).status_code in (404, 405)
    assert guests.post("/v1/responses/resp_unknown/cancel", {}).status_code == 404


def test_the_command_line_has_the_rights_of_the_operator(guests: Guests) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "sage", "status", "--json"],
        env=guests.cluster.environment | guests.guarded.environment(Role.OPERATOR),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all(f'"{kind}-1"' in done.stdout for kind in KINDS)


async def test_an_operator_sees_actors_asks_them_and_uses_the_client(guests: Guests) -> None:
    settings = guests.guarded.settings(Role.OPERATOR)
    async with closing(await connect(settings, name="test", role=Role.OPERATOR)) as bus:
        for kind in KINDS:
            await bus.request(subjects.actor(f"{kind}-1", "ping"), encode(Ping()), timeout=10)
        spans = await bus.request_many(
            subjects.every("find_spans"),
            encode(FindSpans(trace_id="", request_id="x")),
            timeout=10,
            max_replies=6,
        )
        assert len(spans) == len(KINDS)
        await bus.request(subjects.RECEIPTS_FIND, encode(FindReceipt(request_id="x")), timeout=10)
        async with UnifiedInferenceClient(bus) as client:
            assert len(await client.embed("all-MiniLM-L6-v2", ["a text"])) == 1

    def test_the_sage_command_reaches_the_cluster_as_operator(guests: Guests, tmp_path: Path) -> None:
        environment = guests.cluster.environment | guests.guarded.environment(Role.OPERATOR)
        (tmp_path / "otters.md").write_text("# Otters\n\nSea otters hold hands while they sleep.\n")

        def sage(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "sage_cli", *arguments],
                env=environment, capture_output=True, text=True, timeout=90, check=False,
            )  # fmt: skip

        shown = sage("status", "--wait-ready", "30", "--json")
        assert shown.returncode == 0, shown.stderr
        found = json.loads(shown.stdout)
        assert (found["is_cluster"], found["is_ready"], found["bus"]) == (
            True,
            True,
            guests.guarded.url[len("tls://") :],
        )
        indexed = sage("index", str(tmp_path / "otters.md"), "--json")
        assert indexed.returncode == 0, indexed.stderr
        assert json.loads(indexed.stdout)["num_indexed"] == 1
        assert "no actor remembers" in sage("trace", "0" * 32).stderr
