"""What is promised of the cluster that site.yml leaves behind; each check raises Failed where it is not so."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rollout.controller import COLLECTION, Controller
from rollout.hosts import HOSTS, Hosts
from rollout.machine import ROOT, Failed, output_of, say
from rollout.traffic import Api, Load

__all__ = ["ACTORS", "Cluster"]

ACTORS: Final[dict[str, tuple[str, ...]]] = {
    "gateway": ("sage-1",),
    "scheduler": ("sage-1",),
    "planner": ("sage-2",),
    "llm-worker": ("sage-2", "sage-3"),
    "embedding-worker": ("sage-2", "sage-3"),
    "operator-worker": ("sage-3",),
}
"""Where the inventory cpu-only puts each kind."""
BUS_HOST: Final = "sage-1"

_QUESTION: Final = "Which colour has the lighthouse of Ny-Ålesund?"
_DOCUMENTS: Final = {
    "lighthouse.md": "# The lighthouse\n\nThe lighthouse of Ny-Ålesund is painted ochre and was built of driftwood.\n",
    "harbour.md": "# The harbour\n\nThe harbour freezes in November, and ships leave before the ice comes.\n",
}
_FACT: Final = "ochre"
_LONG_TEXT: Final = "The harbour freezes in November, and ships leave before the ice comes. " * 12
_RECOVERY_LIMIT: Final = 90.0


class Cluster:
    """The cluster on the hosts, seen from outside: its API with a key, its bus with the operator's seed."""

    def __init__(self, hosts: Hosts, controller: Controller) -> None:
        self.hosts = hosts
        self.controller = controller
        self.api = Api(
            f"http://{hosts.addresses['sage-1']}:8080", controller.vault_value("credentials_first_api_key")
        )
        self._keys = controller.work / "keys"

    # ---- answers -----------------------------------------------------------------------------------------------

    def chat(self) -> dict[str, object]:
        """An answer of the llm-workers, by the API over the network."""
        passage = "<context>\n[1] ferry.md\nThe ferry to the island sails at dawn.\n</context>"
        text = self.api.chat("auto", f"{passage}\n\nWhen does the ferry sail?")
        if "dawn" not in text:
            raise Failed(f"the answer: {text}")
        return {"answer": text[:200]}

    def embedding(self) -> dict[str, object]:
        """Vectors of real meaning: a text is nearer to its paraphrase than to another text."""
        cat, kitten, tax = self.api.embed(["A cat sleeps.", "A kitten is asleep.", "Taxes are due in May."])

        def product(left: list[float], right: list[float]) -> float:
            return sum(a * b for a, b in zip(left, right, strict=True))

        if len(cat) != 384 or product(cat, kitten) < product(cat, tax) + 0.2:
            raise Failed(
                f"{len(cat)} dimensions, likeness {product(cat, kitten):.2f} and {product(cat, tax):.2f}"
            )
        return {
            "dimensions": len(cat),
            "likeness": [round(product(cat, kitten), 3), round(product(cat, tax), 3)],
        }

    def job(self) -> dict[str, object]:
        """Durable jobs over the bus: documents are indexed as operator, a question is answered as publisher."""
        folder = self.controller.work / "documents"
        folder.mkdir(exist_ok=True)
        for name, text in _DOCUMENTS.items():
            (folder / name).write_text(text, "utf-8")
        indexed = json.loads(self.sage("index", str(folder), "--json"))
        if indexed["num_indexed"] != len(_DOCUMENTS) or indexed["num_failed"]:
            raise Failed(f"indexing: {indexed}")
        answer = output_of(
            [
                *(self.controller.venv / "bin" / "python", ROOT / "examples" / "publish_job.py", _QUESTION),
                *("--url", self._bus_url(), "--nkey-seed", self._seed("publisher"), "--timeout", "60"),
            ],
            environ={"SSL_CERT_FILE": str(self._authority())},
        )
        if _FACT not in answer or "lighthouse.md" not in answer:
            raise Failed(f"the job answered: {answer}")
        return {"num_indexed": indexed["num_indexed"], "answer": answer.strip()}

    def pipeline(self) -> dict[str, object]:
        """The same question, asked of the pipeline by the API."""
        text = self.api.chat("pipeline/rag-docs", _QUESTION)
        if _FACT not in text:
            raise Failed(f"the pipeline answered: {text}")
        return {"answer": text[:200]}

    # ---- what runs ---------------------------------------------------------------------------------------------

    def status(self) -> dict[str, object]:
        """`sage status` names every actor with its host, version, models and health, from a host and from outside."""
        report = json.loads(self.sage("status", "--wait-ready", "60", "--json"))
        found = Counter((actor["kind"], actor["host"]) for actor in report["actors"])
        expected = Counter((kind, host) for kind, where in ACTORS.items() for host in where)
        if found != expected:
            raise Failed(f"actors {dict(found)}; expected {dict(expected)}")
        version = self.controller.versions()["sage-serve"]
        for actor in report["actors"]:
            if actor["state"] != "ready" or actor["health"] != "ok" or actor["version"] != version:
                raise Failed(
                    f"{actor['id']}: {actor['state']}, {actor['health']}, version {actor['version']}"
                )
        models = sorted({model["name"] for actor in report["actors"] for model in actor["models"]})
        if "all-MiniLM-L6-v2" not in models or "pipeline/rag-docs" not in models:
            raise Failed(f"models: {models}")
        on_host = self.hosts.on(BUS_HOST, "COLUMNS=150 sage status").output
        return {"num_actors": len(report["actors"]), "models": models, "sage status": on_host}

    def rights(self) -> dict[str, object]:
        """The bus refuses who has no seed, and a gateway's seed may not do what only a worker may."""
        without = self._nats("no-seed", ["--url", self._bus_url()])
        if without.returncode == 0:
            raise Failed("a client without a seed was let in")
        seed = self._seed("gateway")
        as_gateway = self._nats(
            "gateway", ["--url", self._bus_url(), "--seed", str(seed), "--denied", "sage.v1.>"]
        )
        if as_gateway.returncode != 0:
            raise Failed(f"as gateway: {as_gateway.stdout}{as_gateway.stderr}")
        configuration = self.hosts.on(BUS_HOST, "cat /etc/sage/nats/nats.conf").output
        if not re.search(r"^\s*sync_interval: always$", configuration, re.MULTILINE):
            raise Failed("nats.conf lacks sync_interval: always")
        closed = self._status_without_key()
        if closed != 401:
            raise Failed(f"status {closed} without an API key")
        return {"no seed": without.stdout.strip(), "gateway": as_gateway.stdout.strip(), "no API key": closed}

    def sandbox(self) -> dict[str, object]:
        """The units' sandboxes are in force: nothing outside its own folders can be written, even by root in there."""
        exposure: dict[str, str] = {}
        for kind, where in {**ACTORS, "nats": (BUS_HOST,)}.items():
            unit = f"sage-{kind}.service"
            pid = self._property(where[0], unit, "MainPID")
            written = self.hosts.on(
                where[0], f"nsenter --mount --target {pid} touch /opt/sage/probe /etc/probe", is_checked=False
            )
            status = self.hosts.on(
                where[0], f"grep -E '^(CapEff|NoNewPrivs|Seccomp|Uid):' /proc/{pid}/status"
            ).output
            facts = dict(line.split(":", 1) for line in status.splitlines())
            if written.status == 0 or int(facts["CapEff"], 16) or facts["NoNewPrivs"].strip() != "1":
                raise Failed(f"{unit} on {where[0]} is not in its sandbox: {status}")
            if facts["Seccomp"].strip() != "2" or facts["Uid"].split()[0] == "0":
                raise Failed(f"{unit} on {where[0]}: {status}")
            found = self.hosts.on(where[0], f"systemd-analyze security {unit} --no-pager | tail -n 1").output
            exposure[kind] = " ".join(re.findall(r"[\d.]+ [A-Z]+", found))
        return {"systemd-analyze security": exposure}

    def secrets(self) -> dict[str, object]:
        """What no host needs is on none, and what one actor needs no other actor of its host can read."""
        seeds = json.loads(self.controller.vault_value("credentials_seeds"))
        authority = self.controller.vault_value("credentials_ca_key").splitlines()[1]
        key = self.controller.vault_value("credentials_first_api_key")
        unwanted = {"provisioner": seeds["provisioner"], "publisher": seeds["publisher"]}
        unwanted |= {"the authority's key": authority, "the API key": key}
        wanted = {host: set[str]() for host in HOSTS}
        for kind, where in ACTORS.items():
            for host in where:
                wanted[host].add(kind)
        for host in HOSTS:
            forbidden = {**unwanted, **{kind: seeds[kind] for kind in ACTORS.keys() - wanted[host]}}
            for name, secret in forbidden.items():
                found = self.hosts.on(
                    host, f"grep -rlF '{secret}' /etc /run /var/lib /var/log /tmp /root", is_checked=False
                )
                if found.status == 0:
                    raise Failed(f"{name} is on {host}: {found.output}")
            for kind in wanted[host]:
                for other in wanted[host]:
                    command = f"runuser -u sage-{kind} -- head -c 1 /etc/sage/{other}/bus.nk"
                    done = self.hosts.on(host, command, is_checked=False)
                    if (done.status == 0) != (kind == other):
                        raise Failed(f"{kind} on {host} and the seed of {other}: status {done.status}")
        return {"secrets looked for": len(unwanted) + len(ACTORS)}

    def no_cuda(self) -> dict[str, object]:
        """No host has CUDA libraries, and torch is a CPU build."""
        for host in HOSTS:
            found = self.hosts.on(
                host, "ls -d /opt/sage/*/*/lib/python3*/site-packages/nvidia* 2>&1", is_checked=False
            )
            if found.status == 0:
                raise Failed(f"{host} has {found.output}")
        torch = self.hosts.on(
            "sage-2",
            "/opt/sage/embedding-worker/current/bin/python -c "
            "'import torch; print(torch.__version__, torch.version.cuda)'",
        ).output.strip()
        if not torch.endswith(" None"):
            raise Failed(f"torch {torch}")
        return {"torch": torch.removesuffix(" None")}

    def mixed(self) -> dict[str, object]:
        """By the inventory `mixed`, the GPU host gets vLLM and its devices; hosts without a GPU refuse CUDA."""
        wheelhouse = self.controller.work / "cuda-wheelhouse"
        (wheelhouse / "locks").mkdir(parents=True)
        (wheelhouse / "manifest.json").write_text('{"version": "1", "python": "3.11", "locks": {}}', "utf-8")
        (wheelhouse / "locks" / "llm-worker-vllm.txt").write_text(
            "nvidia-cublas==13.0\ntorch==2.13.0\n", "utf-8"
        )
        run = self.controller.play(
            Path(__file__).with_name("mixed.yml"),
            self.hosts,
            "--extra-vars",
            f"collection={COLLECTION} cuda_wheelhouse={wheelhouse}",
            name="mixed",
            inventory="mixed",
            names=("sage-1", "sage-2", "sage-gpu-1"),
        )
        if set(run.ok) != {"sage-1", "sage-2", "sage-gpu-1"} or run.num_changed:
            raise Failed(f"asked {sorted(run.ok)}, changed {run.changed}")
        return {"hosts asked": len(run.ok)}

    # ---- what goes wrong ---------------------------------------------------------------------------------------

    def killed(self) -> dict[str, object]:
        """Every kind of actor, and the bus, is killed with SIGKILL; systemd brings it back and everything answers."""
        seconds = {kind: self._kill(kind, where[0]) for kind, where in ACTORS.items()}
        seconds["nats"] = self._kill("nats", BUS_HOST)
        return {"seconds until everything answers": seconds}

    def _kill(self, kind: str, host: str) -> float:
        unit = f"sage-{kind}.service"
        pid = self._property(host, unit, "MainPID")
        restarts = int(self._property(host, unit, "NRestarts"))
        started = time.monotonic()
        self.hosts.on(host, f"kill -9 {pid}")
        self._wait_for(lambda: self._is_back(host, unit, pid), f"{unit} on {host} after kill -9")
        counted = int(self._property(host, unit, "NRestarts"))
        if counted != restarts + 1:
            raise Failed(f"systemd counts {counted} restarts of {unit} on {host}, {restarts} before kill -9")
        self._wait_for(self._answers, f"answers after kill -9 of {kind}")
        seconds = round(time.monotonic() - started, 1)
        say(f"  {kind} on {host}: killed, back and answering after {seconds} s")
        return seconds

    def drained_restart(self, kind: str) -> dict[str, object]:
        """All workers of a kind are restarted drained, one after the other, under light load: no request fails."""
        if kind == "embedding-worker":
            load = Load(
                lambda number: self.api.embed([f"{number}.{part} {_LONG_TEXT}" for part in range(16)]), 3
            )
        else:
            load = Load(lambda number: self.api.chat("pipeline/rag-docs", f"{_QUESTION} {number}"), 4)
        pids = [self._property(host, f"sage-{kind}.service", "MainPID") for host in ACTORS[kind]]
        with load:
            time.sleep(2.0)
            before = load.num_done
            run = self.controller.play(
                "restart.yml", self.hosts, "--extra-vars", f"kind={kind}", name=f"restart-{kind}"
            )
            during = load.num_done - before
            time.sleep(2.0)
        after = [self._property(host, f"sage-{kind}.service", "MainPID") for host in ACTORS[kind]]
        if set(pids) & set(after) or set(run.changed) != set(ACTORS[kind]):
            raise Failed(f"not all of {kind} were restarted: {run.changed}")
        if load.failures:
            raise Failed(
                f"{len(load.failures)} of {load.num_done} requests failed, the first: {load.failures[0]}"
            )
        if during < 10:
            raise Failed(f"only {during} requests during the restarts: they prove nothing")
        return {
            "workers restarted": len(after),
            "requests": load.num_done,
            "requests during restarts": during,
            "failed": 0,
            "slowest request": round(load.longest, 2),
            "seconds": run.seconds,
        }

    # ---- how it is done ----------------------------------------------------------------------------------------

    def sage(self, *arguments: str) -> str:
        """Run the sage command here, as operator of the cluster."""
        return output_of(
            [self.controller.venv / "bin" / "sage", *arguments],
            environ={
                "SAGE_BUS__URL": self._bus_url(),
                "SAGE_BUS__NKEY_SEED_FILE": str(self._seed("operator")),
                "SAGE_BUS__TLS_CA_FILE": str(self._authority()),
                "SAGE_BUS__IS_PROVISIONED": "true",
                "XDG_DATA_HOME": str(self.controller.work / "data"),
            },
            limit=180.0,
        )

    def _bus_url(self) -> str:
        return f"tls://{self.hosts.addresses[BUS_HOST]}:4222"

    def _seed(self, role: str) -> Path:
        seeds = json.loads(self.controller.vault_value("credentials_seeds"))
        return self._private(f"{role}.nk", seeds[role] + "\n")

    def _authority(self) -> Path:
        return self._private("bus-ca.pem", self.controller.vault_value("credentials_ca_certificate"))

    def _private(self, name: str, content: str) -> Path:
        self._keys.mkdir(mode=0o700, exist_ok=True)
        file = self._keys / name
        if not file.exists():
            with open(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as stream:
                stream.write(content)
        return file

    def _nats(self, name: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        script = Path(__file__).with_name("bus_client.py")
        return subprocess.run(
            [self.controller.venv / "bin" / "python", script, *arguments, "--name", name],
            env={**os.environ, "SSL_CERT_FILE": str(self._authority())},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def _status_without_key(self) -> int:
        try:
            Api(self.api.url, "sk-sage-wrong").get("/v1/models")
        except Failed as error:
            found = re.match(r"status (\d+)", str(error))
            return int(found[1]) if found else 0
        return 200

    def _property(self, host: str, unit: str, name: str) -> str:
        return self.hosts.on(host, f"systemctl show --value --property {name} {unit}").output.strip()

    def _is_back(self, host: str, unit: str, before: str) -> bool:
        shown = self.hosts.on(host, f"systemctl show --property ActiveState,MainPID {unit}").output
        facts: dict[str, Any] = dict(line.split("=", 1) for line in shown.split())
        return facts["ActiveState"] == "active" and facts["MainPID"] not in ("0", before)

    def _answers(self) -> bool:
        try:
            self.api.embed(["still there?"])
            return _FACT in self.api.chat("pipeline/rag-docs", _QUESTION)
        except Failed:
            return False

    def _wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _RECOVERY_LIMIT
        while not is_so():
            if time.monotonic() > deadline:
                raise Failed(f"waited {_RECOVERY_LIMIT:.0f} s in vain for: {what}")
            time.sleep(0.2)
