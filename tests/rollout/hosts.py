"""Three hosts: systemd containers on a network of their own, without a way out, reached by SSH with throw-away keys."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rollout.image import DEPLOY_USER, host_image
from rollout.machine import Failed, output_of, say

__all__ = ["HOSTS", "Hosts"]

HOSTS: Final = ("sage-1", "sage-2", "sage-3")
_LABEL: Final = "sage-rollout"
_READY_LIMIT: Final = 60.0
# Older podman brings crun, which does not start systemd on every kernel. Default limits of a container may be above
# what this process may hand on.
_CONTAINERS_CONF: Final = """\
[engine]
runtime = "runc"

[containers]
default_ulimits = ["nofile=20000:20000", "nproc=16384:16384"]
"""


@dataclass(frozen=True)
class Result:
    """How a command on a host ended."""

    status: int
    output: str


class Hosts:
    """The hosts of one run, from `with` to the end of the block; `keep` leaves them running."""

    def __init__(self, work: Path, *, keep: bool = False) -> None:
        self._work = work
        self._keep = keep
        self._run_id = f"sage-rollout-{os.getpid()}"
        self._key = work / "id_ed25519"
        self._known_hosts = work / "known_hosts"
        self.addresses: dict[str, str] = {}

    def __enter__(self) -> Self:
        (self._work / "containers.conf").write_text(_CONTAINERS_CONF, "utf-8")
        with ExitStack() as undo:
            undo.callback(self._remove)
            self._remove_orphans()
            self._start()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keep:
            say(f"the hosts are left running; remove them with: podman rm -f -t 5 {' '.join(self._names())}")
        else:
            self._remove()

    @property
    def environ(self) -> dict[str, str]:
        """The environment that podman is called with."""
        return {**os.environ, "CONTAINERS_CONF": str(self._work / "containers.conf")}

    @property
    def ssh_arguments(self) -> str:
        """Options of ssh, for Ansible and for us."""
        return (
            f"-o IdentityFile={self._key} -o IdentitiesOnly=yes -o UserKnownHostsFile={self._known_hosts} "
            f"-o StrictHostKeyChecking=yes -o ControlMaster=auto -o ControlPersist=60s "
            f"-o ControlPath={self._work}/ssh-%C"
        )

    def on(self, host: str, command: str, *, is_checked: bool = True, limit: float = 120.0) -> Result:
        """Run a shell command as root on a host, over SSH. Raises Failed where it ends with another status than 0."""
        done = subprocess.run(
            ["ssh", *self.ssh_arguments.split(), f"{DEPLOY_USER}@{self.addresses[host]}", "sudo -n sh -s"],
            input=command,
            capture_output=True,
            text=True,
            timeout=limit,
        )
        if is_checked and done.returncode != 0:
            raise Failed(f"status {done.returncode} on {host} of: {command}\n{done.stdout}{done.stderr}")
        return Result(done.returncode, done.stdout)

    def inventory(self, folder: Path, names: Sequence[str] = HOSTS) -> None:
        """Write what a checked-in inventory cannot know, addresses and keys, calling the hosts `names`."""
        lines = ["---", "sage:", "  vars:", f"    ansible_user: {DEPLOY_USER}"]
        lines += [f"    ansible_ssh_common_args: {json.dumps(self.ssh_arguments)}", "  hosts:"]
        for name, address in zip(names, self.addresses.values(), strict=True):
            lines += [f"    {name}:", f"      ansible_host: {address}"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.yml").write_text("\n".join(lines) + "\n", "utf-8")

    def _names(self) -> list[str]:
        return [f"{self._run_id}-{host}" for host in HOSTS]

    def _podman(self, *arguments: str | Path) -> str:
        return output_of(["podman", *arguments], environ=self.environ)

    def _start(self) -> None:
        image = host_image(self.environ)
        output_of(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self._run_id, "-f", self._key])
        public = self._key.with_suffix(".pub").read_text("utf-8").strip()
        # `--internal`: what cannot be installed from the wheelhouse cannot be installed.
        self._podman("network", "create", "--internal", "--label", f"{_LABEL}={os.getpid()}", self._run_id)
        started = time.monotonic()
        for host, name in zip(HOSTS, self._names(), strict=True):
            # SYS_ADMIN within the container: without it systemd leaves out the sandbox of every unit and says nothing.
            self._podman(
                *("run", "--detach", "--systemd=always", "--cap-add=SYS_ADMIN"),
                *("--name", name, "--hostname", host, "--network", self._run_id),
                *("--label", f"{_LABEL}={os.getpid()}", image, "/sbin/init"),
            )
        known = []
        for host, name in zip(HOSTS, self._names(), strict=True):
            self._wait_until_up(name)
            self.addresses[host] = self._address(name)
            self._podman("exec", name, "sh", "-c", _ssh_set_up(public))
            public_keys = self._podman("exec", name, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub")
            known += [
                f"{self.addresses[host]} {line.rpartition(' ')[0]}" for line in public_keys.splitlines()
            ]
        self._known_hosts.write_text("\n".join(known) + "\n", "utf-8")
        for host in HOSTS:
            self.on(host, "true")
        where = ", ".join(f"{host} {address}" for host, address in self.addresses.items())
        say(f"hosts are up after {time.monotonic() - started:.1f} s: {where}")

    def _wait_until_up(self, name: str) -> None:
        deadline = time.monotonic() + _READY_LIMIT
        state = ""
        while time.monotonic() < deadline:
            done = subprocess.run(
                ["podman", "exec", name, "systemctl", "is-system-running"],
                env=self.environ,
                capture_output=True,
                text=True,
            )
            state = done.stdout.strip() or done.stderr.strip()
            if state == "running":
                return
            if state == "degraded":
                break
            time.sleep(0.3)
        failed = subprocess.run(
            ["podman", "exec", name, "systemctl", "--failed", "--no-legend"],
            env=self.environ,
            capture_output=True,
            text=True,
        )
        raise Failed(f"systemd of {name} is {state!r}\n{failed.stdout}{failed.stderr}".rstrip())

    def _address(self, name: str) -> str:
        found = self._podman(
            "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name
        )
        return str(ipaddress.ip_address(found.strip()))

    def _remove(self) -> None:
        say("removing the hosts")
        _quietly(
            ["podman", "rm", "--force", "--time", "5", "--volumes", "--ignore", *self._names()], self.environ
        )
        _quietly(["podman", "network", "rm", "--force", self._run_id], self.environ)

    def _remove_orphans(self) -> None:
        """Remove hosts whose run was killed before it could."""
        template = '{{.Names}} {{index .Labels "' + _LABEL + '"}}'
        for line in self._podman(
            "ps", "--all", "--filter", f"label={_LABEL}", "--format", template
        ).splitlines():
            name, _, pid = line.strip().partition(" ")
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                say(f"removing {name}, left by a run that was killed")
                _quietly(["podman", "rm", "--force", "--time", "2", "--volumes", name], self.environ)
        networks = self._podman("network", "ls", "--filter", f"label={_LABEL}", "--format", "{{.Name}}")
        for name in networks.splitlines():
            pid = name.rpartition("-")[2]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                _quietly(["podman", "network", "rm", "--force", name], self.environ)


def _ssh_set_up(public: str) -> str:
    home = f"/home/{DEPLOY_USER}/.ssh"
    return (
        f"set -e; install -d -m 0700 -o {DEPLOY_USER} -g {DEPLOY_USER} {home}; "
        f"echo '{public}' >{home}/authorized_keys; chown {DEPLOY_USER}: {home}/authorized_keys"
    )


def _quietly(command: Sequence[str], environ: dict[str, str]) -> None:
    subprocess.run(command, env=environ, capture_output=True, check=False)
