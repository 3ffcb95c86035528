"""`python -m rollout`: bring up three hosts, roll out, check, and remove everything again."""

from __future__ import annotations

import argparse
import inspect
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rollout.cluster import Cluster
from rollout.controller import Controller
from rollout.hosts import Hosts
from rollout.machine import BUILD, ROOT, CannotRun, Failed, install_packages, say
from rollout.report import Check, Report

__all__ = ["main"]

_RESULTS = ROOT / "loadtests" / "results"


def main() -> int:
    """Run it; return 0 where everything held, 1 where not, 2 where this machine cannot run it."""
    parser = argparse.ArgumentParser(
        prog="make rollout",
        description="Roll SAGE out to three hosts in containers with deploy/ansible, check what runs, clean up.",
        epilog="Needs root on Debian or Ubuntu; installs podman, debootstrap and runc where they are missing. "
        f"What can be used again (image, wheelhouse, Ansible) and the logs stay in {BUILD.relative_to(ROOT)}, "
        "build/wheelhouse and podman's storage.",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the hosts running at the end, and say how to reach them"
    )
    parser.add_argument(
        "--skip-lint", action="store_true", help="do not run ansible-lint; nothing is written down then"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _roll_out(is_kept=options.keep, is_linted=not options.skip_lint)
    except CannotRun as reason:
        say(f"cannot run here: {reason}")
        return 2
    except Failed as failure:
        say(f"FAILED: {failure}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


def _roll_out(*, is_kept: bool, is_linted: bool) -> None:
    report = Report(datetime.now(UTC).strftime("%Y-%m-%d"), _machine())
    install_packages()
    BUILD.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # Short: ssh's control sockets lie in it.
        work = Path(tempfile.mkdtemp(prefix="sage-rollout-"))
        if not is_kept:
            stack.callback(shutil.rmtree, work, ignore_errors=True)
        controller = Controller(work)
        _timed(report, "Ansible and the wheelhouse", controller.install)
        report.versions = controller.versions()
        if is_linted:
            _timed(report, "ansible-lint, production profile", controller.lint)
            say("ansible-lint: production profile, no findings")
        started = time.monotonic()
        hosts = stack.enter_context(Hosts(work, keep=is_kept))
        report.seconds["three hosts"] = round(time.monotonic() - started, 1)
        vault = f"credentials_vault_file={controller.vault}"
        report.runs["secrets.yml"] = controller.play("secrets.yml", hosts, "--extra-vars", vault)
        report.runs["site.yml, bare hosts"] = controller.play("site.yml", hosts, name="site-1")
        cluster = Cluster(hosts, controller)
        if is_kept:
            say(f"files of this run: {work}; API: {cluster.api.url}")
        for check in (cluster.status, cluster.chat, cluster.embedding, cluster.job, cluster.pipeline):
            _check(report, check)
        second = controller.play("site.yml", hosts, name="site-2")
        report.runs["site.yml, second run"] = second
        again = controller.play("secrets.yml", hosts, "--extra-vars", vault, name="secrets-2")
        if second.num_changed or again.num_changed:
            raise Failed(
                f"a second run changed something: {second.changed}, {again.changed}; see {BUILD / 'logs'}"
            )
        for check in (
            cluster.rights,
            cluster.secrets,
            cluster.sandbox,
            cluster.no_cuda,
            cluster.mixed,
            cluster.killed,
        ):
            _check(report, check)
        for kind in ("llm-worker", "embedding-worker"):
            _check(report, cluster.drained_restart, kind)
        if is_linted:
            report.write(_RESULTS)
            say(f"all checks passed; wrote {(_RESULTS / 'rollout.md').relative_to(ROOT)}")


def _timed(report: Report, name: str, step: Callable[[], object]) -> None:
    started = time.monotonic()
    step()
    report.seconds[name] = round(time.monotonic() - started, 1)


def _check(report: Report, check: Callable[..., dict[str, object]], *arguments: str) -> None:
    started = time.monotonic()
    facts = check(*arguments)
    name = " ".join([check.__name__.replace("_", " "), *arguments])
    promise = " ".join((inspect.getdoc(check) or "").split())
    report.checks.append(Check(name, promise, round(time.monotonic() - started, 1), facts))
    say(f"ok: {name}: {promise}")


def _machine() -> str:
    release = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return f"{os.cpu_count()} CPUs, {release}, Linux {platform.release().split('-')[0]}"


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
