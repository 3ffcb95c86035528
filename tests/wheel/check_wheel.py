"""Run in an environment that holds only the built wheel: what is installed works, and torch is not there."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

BIN = Path(sys.executable).parent
PACKAGES = [
    "sage_core",
    "sage_wire",
    "sage_pipeline",
    "sage_policy",
    "sage_telemetry",
    "sage_bus",
    "sage_actor",
    "sage_worker",
    "sage_client",
    "sage_cli",
    "sage_native",
    "sage_gateway",
    "sage_planner",
    "sage_scheduler",
    "sage_llm_worker",
    "sage_operator_worker",
]


def main() -> int:
    """Print one line per check; the exit status is the number of failed ones."""
    failed = 0
    for name in PACKAGES:
        module = importlib.import_module(name)
        location = str(module.__file__)
        if "site-packages" not in location:
            print(f"FAILED {name} was imported from {location}")
            failed += 1
    failed += 0 if is_compiled() else 1
    if importlib.util.find_spec("torch") is not None:
        print("FAILED torch was installed on a gateway host")
        failed += 1
    failed += 0 if answers() else 1
    print(f"{4 - min(failed, 4)} passed, {min(failed, 4)} failed")
    return failed


def is_compiled() -> bool:
    """Every module that is to be compiled is."""
    paths = [Path(line) for line in Path("modules.txt").read_text().splitlines() if not line.startswith("#")]
    interpreted = [
        name
        for name in (
            re.sub(r".*/(?=sage_[a-z]+/)", "", str(path.with_suffix(""))).replace("/", ".") for path in paths
        )
        if not str(importlib.import_module(name).__file__).endswith(".so")
    ]
    if interpreted:
        print(f"FAILED {len(interpreted)} of {len(paths)} modules are not compiled: {', '.join(interpreted)}")
    return not interpreted


def answers() -> bool:
    """Start an instance from the wheel and get one answer."""
    with tempfile.TemporaryDirectory(prefix="sage-wheel-") as home:
        folders = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")
        environment = os.environ | dict.fromkeys(folders, home)
        up = subprocess.Popen(
            [
                BIN / "sage",
                "up",
                "--name",
                "wheel",
                "--engine",
                "emulated",
                "--without",
                "embedding-worker",
            ],
            env=environment,
        )
        try:
            done = subprocess.run(
                [BIN / "sage", "status", "--name", "wheel", "--wait-ready", "60", "--json"],
                env=environment, stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
            url = json.loads(done.stdout)["gateway_url"]
            body = {"model": "auto", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
            request = urllib.request.Request(
                f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=30) as response:
                answer = json.loads(response.read())
            print("answered:", answer["choices"][0]["message"]["content"])
            return True
        except (OSError, subprocess.SubprocessError, KeyError) as error:
            print(f"FAILED no answer from the installed wheel: {error}")
            return False
        finally:
            up.terminate()
            up.wait(60)


if __name__ == "__main__":
    sys.exit(main())
