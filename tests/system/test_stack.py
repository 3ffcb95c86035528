"""The stack of deploy/compose, asked from outside: what those who run it rely on."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from system.stack import ACTORS, ROOT, Stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

DOCUMENTS = {
    "penguins.md": "# Penguins\n\nEmperor penguins breed during the Antarctic winter and keep one egg on their feet.\n",
    "volcanoes.md": "# Volcanoes\n\nKilauea on the island of Hawaii has erupted almost continuously since 1983.\n",
}
SCRAPE = "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen('http://127.0.0.1:9464/metrics').read().decode())"


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.gateway_url}/v1", api_key=stack.api_key, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def indexed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    folder = tmp_path_factory.mktemp("documents")
    for name, text in DOCUMENTS.items():
        (folder / name).write_text(text)
    done = stack.sage("index", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_indexed"] == len(DOCUMENTS)
    return stack


@pytest.mark.parametrize("service", ["nats", *ACTORS])
def test_a_container_is_healthy_and_locked_down(stack: Stack, service: str) -> None:
    assert stack.health(service) == "healthy"
    container = stack.container(service)
    status = stack.exec(service, "cat", "/proc/1/status")
    ids = re.search(r"^Uid:\s+(\d+)\s+(\d+)", status, re.MULTILINE)
    assert ids is not None
    assert "0" not in ids.groups(), "it runs as root"
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), "it has capabilities"
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert container.attrs["HostConfig"]["ReadonlyRootfs"]


@pytest.mark.parametrize("service", ACTORS)
def test_an_actor_sees_its_own_seed_and_no_other(stack: Stack, service: str) -> None:
    assert stack.exec(service, "ls", "/run/secrets").split() == ["nkey"]
    assert stack.exec(service, "cat", "/run/secrets/nkey") == (stack.secrets / f"{service}.nk").read_text()


@pytest.mark.parametrize("service", ACTORS)
def test_an_image_has_what_its_actor_needs_and_nothing_that_installs_or_compiles(
    stack: Stack, service: str
) -> None:
    installed = set(stack.exec(service, "ls", "/opt/sage/lib/python3.11/site-packages").split())
    assert "sage_core" in installed
    assert "pip" not in installed
    assert ("torch" in installed) == (service in ("llm-worker", "embedding-worker"))
    assert not stack.exec(service, "sh", "-c", "command -v pip g++ gcc || true")


def test_a_chat_is_answered_whole_and_streamed_alike(client: openai.OpenAI) -> None:
    question = [{"role": "user", "content": "Hello"}]
    whole = client.chat.completions.create(model="auto", messages=question)  # type: ignore[call-overload]
    stream = client.chat.completions.create(model="auto", messages=question, stream=True)  # type: ignore[call-overload]
    chunks = [chunk for chunk in stream if chunk.choices]
    assert len(chunks) > 2
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    )
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_embeddings_tell_what_is_alike(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model="all-MiniLM-L6-v2", input=["a cat", "a kitten", "the stock market"]
    )
    vectors = np.array([item.embedding for item in answer.data])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.2


def test_without_a_key_nothing_is_served(stack: Stack) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}
    assert httpx.post(f"{stack.gateway_url}/v1/chat/completions", json=body, timeout=30).status_code == 401
    assert httpx.get(f"{stack.gateway_url}/metrics", timeout=30).status_code == 401


def test_a_pipeline_answers_from_indexed_documents_with_its_source(indexed: Stack) -> None:
    body = {
        "model": "pipeline/rag-docs",
        "messages": [{"role": "user", "content": "When do emperor penguins breed?"}],
    }
    with indexed.http() as http:
        message = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]
    assert "winter" in message["content"]
    assert message["sources"][0]["source"].endswith("penguins.md")


def test_a_pipeline_request_is_one_connected_trace_that_every_container_exports(indexed: Stack) -> None:
    trace_id, parent_id = secrets.token_hex(16), secrets.token_hex(8)
    body = {
        "model": "pipeline/rag-docs",
        "messages": [{"role": "user", "content": "When do emperor penguins breed?"}],
    }
    with indexed.http() as http:
        headers = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
        http.post("/v1/chat/completions", json=body, headers=headers).raise_for_status()
    spans = indexed.trace(trace_id, parent_id, set(ACTORS))
    hosts = {span.service: span.resource["host.name"] for span in spans}
    assert hosts == {kind: indexed.container(kind).attrs["Config"]["Hostname"] for kind in ACTORS}


def test_a_job_published_on_nats_from_outside_is_answered(indexed: Stack) -> None:
    done = indexed.run(
        "publisher",
        sys.executable, str(ROOT / "examples" / "publish_job.py"), "Which island has Kilauea?",
        "--url", indexed.nats_url, "--nkey-seed", str(indexed.secrets / "publisher.nk"), "--timeout", "90",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Hawaii" in done.stdout
    assert "volcanoes.md" in done.stdout


def test_status_from_outside_shows_all_actors_ready_with_their_containers(stack: Stack) -> None:
    actors = {actor["kind"]: actor for actor in stack.status()["actors"]}
    assert set(actors) == set(ACTORS)
    for kind, actor in actors.items():
        assert actor["state"] == "ready"
        assert actor["host"] == stack.container(kind).attrs["Config"]["Hostname"]


def test_the_command_line_in_its_container_sees_the_actors_and_chats(stack: Stack) -> None:
    actors = json.loads(stack.compose_run("sage", "status", "--json"))["actors"]
    assert {actor["kind"] for actor in actors} == set(ACTORS)
    assert stack.compose_run("sage", "chat", "Hello", "--api-key", stack.api_key).strip()


def test_a_new_key_is_good_without_a_restart(stack: Stack) -> None:
    key = stack.create_key("second")
    deadline = time.monotonic() + 10
    headers = {"authorization": f"Bearer {key}"}
    while httpx.get(f"{stack.gateway_url}/v1/models", headers=headers, timeout=30).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_gateway_counts_its_requests_in_its_metrics(stack: Stack) -> None:
    with stack.http() as http:
        http.get("/v1/models").raise_for_status()
        metrics = http.get("/metrics")
    assert metrics.status_code == 200
    assert re.search(r"^sage_gateway_\w+\{.*\} [1-9]", metrics.text, re.MULTILINE)


@pytest.mark.parametrize("service", ACTORS)
def test_an_actor_shows_metrics_on_the_port_that_prometheus_scrapes(stack: Stack, service: str) -> None:
    assert "process_resident_memory_bytes" in stack.exec(service, "/opt/sage/bin/python", "-c", SCRAPE)


def test_prometheus_finds_and_scrapes_every_actor(stack: Stack) -> None:
    stack.start_prometheus()
    deadline = time.monotonic() + 90
    while True:
        targets = stack.prometheus("/api/v1/targets")["activeTargets"]
        if {target["labels"]["actor"] for target in targets if target["health"] == "up"} == set(ACTORS):
            break
        assert time.monotonic() < deadline, [(target["labels"], target["lastError"]) for target in targets]
        time.sleep(1)
    found = stack.prometheus("/api/v1/query", query="process_resident_memory_bytes")["result"]
    assert {sample["metric"]["actor"] for sample in found} == set(ACTORS)


@pytest.mark.parametrize("service", ACTORS)
def test_every_log_line_of_an_actor_is_json_with_an_event(stack: Stack, service: str) -> None:
    lines = stack.logs(service).splitlines()
    assert lines
    for line in lines:
        assert json.loads(line)["event"]


def test_a_second_replica_of_a_worker_joins_under_an_id_of_its_own(stack: Stack) -> None:
    stack.scale("embedding-worker", 2)
    try:
        status = stack.status()
        assert len({actor["id"] for actor in status["actors"] if actor["kind"] == "embedding-worker"}) == 2
    finally:
        stack.scale("embedding-worker", 1)


def test_a_worker_that_is_killed_comes_back_and_serves(stack: Stack, client: openai.OpenAI) -> None:
    before = stack.container("embedding-worker").attrs["RestartCount"]
    stack.exec("embedding-worker", "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)")
    stack.wait_until_healthy("embedding-worker", restarts=before + 1)
    stack.status()
    assert client.embeddings.create(model="all-MiniLM-L6-v2", input="a cat").data[0].embedding


def test_a_stopped_actor_drains_and_ends_clean(stack: Stack) -> None:
    container = stack.container("planner")
    container.stop(timeout=30)
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 0
    container.start()
    stack.wait_until_healthy("planner", restarts=0)
    assert stack.status()["is_ready"]


def test_no_image_remembers_the_secrets_of_its_build(stack: Stack) -> None:
    settings = Path(ROOT / "build" / "system" / "pip.conf").read_text().split()
    secrets = [word for word in settings if "://" in word]
    for service in ("nats", *ACTORS):
        image = stack.container(service).image
        told = json.dumps([image.history(), image.attrs])
        assert not [secret for secret in secrets if secret in told]
    assert stack.exec("gateway", "sh", "-c", "ls -A /build /cache") == "/build:\n\n/cache:\n"
