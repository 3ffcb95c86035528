"""The stack of deploy/compose while it runs, as an operator outside of the containers sees it."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import docker
import httpx
from docker.models.containers import Container
from testcontainers.compose import DockerCompose

from trace_backends import HttpCollector, SeenSpan

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
ACTORS = ("gateway", "planner", "scheduler", "llm-worker", "embedding-worker", "operator-worker")
READY_LIMIT = 180.0


class Stack:
    """NATS and the six actors, started by `docker compose up --wait`. Use as a context manager."""

    def __init__(self) -> None:
        self.secrets = Path(os.environ["SECRETS_DIR"])
        self.compose = DockerCompose(COMPOSE, compose_file_name="compose.yaml", wait=True)
        self.everything = DockerCompose(
            COMPOSE, compose_file_name="compose.yaml", profiles=["observability", "tools"]
        )
        self.engine = docker.from_env()
        # The address of this host on the engine's bridge: containers reach it, the world does not.
        bridge = self.engine.networks.get("bridge").attrs["IPAM"]["Config"][0]
        self.collector = HttpCollector(
            bridge.get("Gateway") or str(ipaddress.ip_network(bridge["Subnet"])[1])
        )
        self.api_key: str = json.loads((self.secrets / "first-key.json").read_text())["key"]

    def __enter__(self) -> Stack:
        os.environ.update(self.collector.environment())
        try:
            self.compose.start()
        except subprocess.CalledProcessError as error:
            logs = "\n".join(self.logs(service)[-2000:] for service in ("nats", "provision", *ACTORS))
            self.everything.stop()
            raise AssertionError(f"the stack did not start:\n{error.stderr.decode()}\n{logs}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.everything.stop()
        self.engine.close()
        self.collector.stop()

    @property
    def gateway_url(self) -> str:
        """Where the gateway's port was published."""
        return f"http://127.0.0.1:{self.compose.get_service_port('gateway', 8080)}"

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.compose.get_service_port('nats', 4222)}"

    def http(self) -> httpx.Client:
        """Return a client of the gateway that bears the first API key."""
        return httpx.Client(
            base_url=self.gateway_url, headers={"authorization": f"Bearer {self.api_key}"}, timeout=60
        )

    def container(self, service: str) -> Container:
        return self.engine.containers.get(self.compose.get_container(service, include_all=True).ID)

    def start_prometheus(self) -> None:
        """Start Prometheus beside the actors; it is a service of a profile, and goes with the stack."""
        subprocess.run(
            [*self.compose.docker_compose_command(), "up", "-d", "prometheus"], cwd=COMPOSE, check=True
        )

    def prometheus(self, path: str, **query: str) -> Any:
        """Return the data of an answer of Prometheus' HTTP API, empty while it starts."""
        port = self.compose.get_service_port("prometheus", 9090)
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", params=query, timeout=30)
        except httpx.TransportError:
            return {"activeTargets": [], "result": []}
        answer.raise_for_status()
        return answer.json()["data"]

    def trace(self, trace_id: str, parent_id: str, services: set[str]) -> list[SeenSpan]:
        """Return the spans of a trace that began with the client's `parent_id`.

        Fails unless each of `services` exports some, and the parent of every span is there, too.
        """
        deadline = time.monotonic() + 30
        while True:
            spans = self.collector.trace(trace_id)
            missing = services - {span.service for span in spans}
            known = {span.span_id for span in spans} | {parent_id}
            orphans = [span.name for span in spans if span.parent_id not in known]
            if not missing and not orphans:
                return spans
            assert time.monotonic() < deadline, (
                f"nothing came of {sorted(missing)}; without their parent: {orphans}"
            )
            time.sleep(0.2)

    def health(self, service: str) -> str:
        """Return what the engine says: `starting`, `healthy` or `unhealthy`."""
        return str(self.container(service).attrs["State"]["Health"]["Status"])

    def wait_until_healthy(self, service: str, *, restarts: int) -> None:
        """Wait until `service` was restarted `restarts` times in all and is healthy again."""
        deadline = time.monotonic() + READY_LIMIT
        while time.monotonic() < deadline:
            container = self.container(service)
            if container.attrs["RestartCount"] >= restarts and self.health(service) == "healthy":
                return
            time.sleep(0.5)
        raise AssertionError(f"{service} is not healthy again:\n{self.logs(service)[-2000:]}")

    def exec(self, service: str, *command: str) -> str:
        """Run `command` in the container of `service` and return what it printed. Fails where it fails."""
        result = self.container(service).exec_run(list(command))
        output = result.output.decode(errors="replace")
        assert result.exit_code == 0, f"{command} ended with {result.exit_code} in {service}: {output}"
        return str(output)

    def compose_run(self, service: str, *arguments: str) -> str:
        """Run `docker compose run --rm SERVICE …` and return what it printed. Fails where it fails."""
        command = [*self.everything.docker_compose_command(), "run", "--rm", "-T", service, *arguments]
        done = subprocess.run(command, cwd=COMPOSE, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def scale(self, service: str, number: int) -> None:
        """Run `number` containers of `service`, and wait until all are healthy."""
        command = [*self.compose.docker_compose_command(), "up", "--wait", "--no-recreate"]
        subprocess.run(
            [*command, "--scale", f"{service}={number}"], cwd=COMPOSE, check=True, capture_output=True
        )

    def create_key(self, name: str) -> str:
        """Make an API key in the folder that the gateway's container sees, as the owner of that folder."""
        folder = self.secrets / "api-keys"
        owner = folder.stat()
        made = self.engine.containers.run(
            f"sage/cli:{os.environ['TAG']}",
            ["keys", "create", "--name", name, "--file", "/keys/keys.toml", "--json"],
            user=f"{owner.st_uid}:{owner.st_gid}",
            volumes={str(folder): {"bind": "/keys", "mode": "rw"}},
            network_mode="none",
            remove=True,
        )
        return str(json.loads(made)["key"])

    def logs(self, service: str) -> str:
        containers = self.engine.containers.list(
            all=True,
            filters={
                "label": [
                    f"com.docker.compose.project={os.environ['COMPOSE_PROJECT_NAME']}",
                    f"com.docker.compose.service={service}",
                ]
            },
        )
        return "".join(container.logs().decode(errors="replace") for container in containers)

    def run(self, role: str, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a program on this host with the bus address and the seed of `role`; without this test's variables."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SAGE_")}
        environment["SAGE_BUS__URL"] = self.nats_url
        environment["SAGE_BUS__NKEY_SEED_FILE"] = str(self.secrets / f"{role}.nk")
        environment["SAGE_BUS__IS_PROVISIONED"] = "true"
        environment["XDG_DATA_HOME"] = str(self.secrets.parent / "data")
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )  # fmt: skip

    def sage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the `sage` command of this host as the operator of the cluster."""
        return self.run("operator", str(Path(sys.executable).parent / "sage"), *arguments)

    def status(self) -> dict[str, Any]:
        done = self.sage("status", "--wait-ready", "60", "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found
