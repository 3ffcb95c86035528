"""Write loadtests/results/system.json and system.md from a run: `report.py JUNIT_XML KEY=VALUE …`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "loadtests" / "results"
IN_IMAGES = {
    "gateway": ["sage-serve", "nats-py"],
    "embedding-worker": ["torch", "sentence-transformers", "transformers"],
}


def facts(junit: Path, given: dict[str, str]) -> dict[str, Any]:
    """Return what is known of this run: versions, durations, image sizes, the tests."""
    suite = ET.parse(junit).getroot().find("testsuite")
    assert suite is not None
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "system": f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs",
        "engine": given["engine"],
        "base_image": given["base"],
        "prometheus_image": given["prometheus"],
        "versions": versions(),
        "seconds": {
            "engine and base image": int(given["seconds_engine"]),
            given["built"]: int(given["seconds_build"]),
            "stack up, tests, stack down": round(float(suite.attrib["time"])),
        },
        "images": images(),
        "tests": {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")},
        "passed": [case.attrib["name"] for case in suite.iter("testcase") if not len(case)],
    }


def versions() -> dict[str, str]:
    """Return the versions of the engine's parts and of what is in the images."""
    found = {
        "docker": output("docker", "version", "--format", "{{.Server.Version}}"),
        "compose": output("docker", "compose", "version", "--short"),
        "buildx": output("docker", "buildx", "version").split()[1],
        "nats-server": run_image("nats", "nats-server", "--version").split(":")[-1].strip().removeprefix("v"),
        "python": run_image("gateway", "python3", "--version").split()[-1],
    }
    for image, packages in IN_IMAGES.items():
        script = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {packages}}}))"
        found |= json.loads(run_image(image, "/opt/sage/bin/python", "-c", script))
    return found


def images() -> dict[str, dict[str, float]]:
    """Return each image's size in MB, and the part of it that is not in the layers that another image shares."""
    names = output(
        "docker",
        "image",
        "ls",
        "--filter",
        f"reference=sage/*:{os.environ['TAG']}",
        "--format",
        "{{.Repository}}",
    )
    layers: dict[str, list[tuple[str, int]]] = {}
    for name in sorted(names.split()):
        inspected = json.loads(output("docker", "image", "inspect", f"{name}:{os.environ['TAG']}"))[0]
        history = output(
            "docker",
            "history",
            "--no-trunc",
            "--human=false",
            "--format",
            "{{.Size}}",
            f"{name}:{os.environ['TAG']}",
        )
        sizes = [int(line) for line in reversed(history.split()) if int(line)]
        layers[name] = list(zip(inspected["RootFS"]["Layers"][-len(sizes) :], sizes, strict=True))
    owners: dict[str, int] = {}
    for found in layers.values():
        for digest, _ in found:
            owners[digest] = owners.get(digest, 0) + 1
    return {
        name: {
            "mb": round(sum(size for _, size in found) / 1e6, 1),
            "own_mb": round(sum(size for digest, size in found if owners[digest] == 1) / 1e6, 1),
        }
        for name, found in layers.items()
    }


def run_image(role: str, *command: str) -> str:
    return output(
        "docker", "run", "--rm", "--entrypoint", command[0], f"sage/{role}:{os.environ['TAG']}", *command[1:]
    )


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def page(found: dict[str, Any]) -> str:
    """Return the facts as Markdown."""
    tests = found["tests"]
    passed = tests["tests"] - tests["failures"] - tests["errors"] - tests["skipped"]
    lines = [
        "# The stack in containers",
        "",
        "Written by `make system`: all images of `deploy/compose` built, the stack up, asked from outside, taken down.",
        "",
        f"{found['date']}: {passed} of {tests['tests']} tests passed. {found['system']}; engine: {found['engine']}; "
        f"base image: {found['base_image']}; Prometheus: {found['prometheus_image']}. Spans went to a collector of the "
        "test; Jaeger and the GPU override were not run.",
        "",
        "| step | seconds |",
        "|---|---|",
        *(f"| {step} | {seconds} |" for step, seconds in found["seconds"].items()),
        "",
        "| image | MB | of it in no other image |",
        "|---|---|---|",
        *(f"| {name} | {image['mb']} | {image['own_mb']} |" for name, image in found["images"].items()),
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()) + ".",
        "",
        "Passed:",
        "",
        *(f"- {name}" for name in found["passed"]),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    report = facts(Path(sys.argv[1]), dict(argument.split("=", 1) for argument in sys.argv[2:]))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "system.json").write_text(json.dumps(report, indent=2) + "\n")
    (RESULTS / "system.md").write_text(page(report))
