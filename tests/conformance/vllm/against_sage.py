"""A pytest plugin that lets vLLM's HTTP tests talk to SAGE: `pytest -p against_sage` in vLLM's source folder.

It replaces `tests.utils.RemoteOpenAIServer`, which starts `vllm serve`, by one that starts `sage up` with the same
model and the settings that the arguments of `vllm serve` ask for, and leaves out the tests that selection.toml names.
With CONFORMANCE_CONTROL=1 the tests talk to vLLM's own server instead, on the same tiny models: what fails there asks
for trained weights, another tokenizer or another machine, not for another gateway.
"""

from __future__ import annotations

import base64
import fnmatch
import inspect
import json
import os
import signal
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
import tests.utils
from model_hub import CROSS_ENCODERS, ENCODERS
from tests.utils import RemoteOpenAIServer, RemoteVLLMServer

from conformance.recorder import Recorder

HERE = Path(__file__).resolve().parent
RESULTS = Path(os.environ["CONFORMANCE_RESULTS"])
IS_CONTROL = os.environ.get("CONFORMANCE_CONTROL") == "1"
_LEFT_OUT = {"--enable-lora": 0, "--lora-modules": 1, "--max-lora-rank": 1, "--max-cpu-loras": 1}
"""Arguments, with how many values follow: no adapter is loaded, their tests are left out."""

exchanged: list[dict[str, Any]] = []
outcomes: dict[str, dict[str, str]] = {}


class SageServer(RemoteVLLMServer):
    """Runs `sage up` for one model, where vLLM's tests expect `vllm serve`."""

    def __init__(self, model: str, vllm_serve_args: Sequence[str], **asked: Any) -> None:
        arguments = _values(vllm_serve_args)
        self.model, self.host, self.uds = model, "127.0.0.1", None
        self.home = tempfile.TemporaryDirectory(prefix="sage-vllm-")
        is_pooling = model in ENCODERS or model in CROSS_ENCODERS
        environment = os.environ | _settings(model, arguments, is_pooling=is_pooling)
        folders = ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME")
        self.environment = environment | dict.fromkeys(folders, self.home.name)
        self.sage = os.environ["CONFORMANCE_SAGE" if is_pooling else "CONFORMANCE_SAGE_VLLM"]
        without = ["llm-worker", "planner", "operator-worker"] if is_pooling else [
            "embedding-worker", "planner", "operator-worker",
        ]  # fmt: skip
        command = [self.sage, "up", "--name", "vllm", "--port", "0"]
        command += [part for kind in without for part in ("--without", kind)]
        if not is_pooling:
            command += ["--engine", "vllm", "--model", model]
        with open(RESULTS.with_suffix(".sage.log"), "ab") as log:
            self.proc = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        with ExitStack() as undo:
            undo.callback(self._end)
            status = self._run("status", "--wait-ready", "120", "--json")
            self.recorder = Recorder(int(json.loads(status)["gateway_url"].rpartition(":")[2]))
            undo.pop_all()
        self.recorder.__enter__()
        self.port = self.recorder.port

    def __exit__(self, *_: object) -> None:
        self._end()
        self.recorder.__exit__()

    def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        """Return a client that names the model where a test leaves it out: vLLM lets it, OpenAI's API does not."""
        client: openai.AsyncOpenAI = super().get_async_client(**options)
        responses: Any = client.responses
        for name in ("create", "parse"):
            setattr(responses, name, partial(_ask, getattr(responses, name), self.model))
        return client

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.sage, *arguments, "--name", "vllm"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(
                f"sage {' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}"
            )
        return done.stdout

    def _end(self) -> None:
        self.proc.send_signal(signal.SIGINT)
        try:
            self.proc.wait(40)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        if hasattr(self, "recorder"):
            for found in self.recorder.take():
                fields = asdict(found)
                for name in ("request_body", "body"):
                    fields[name] = base64.b64encode(fields[name]).decode()
                exchanged.append(fields)
        self.home.cleanup()


def _ask(call: Callable[..., Any], served: str, /, **asked: Any) -> Any:
    return call(**asked | {"model": asked.get("model") or served})


class PlainServer(RemoteOpenAIServer):
    """vLLM's own server, without adapters."""

    def __init__(self, model: str, vllm_serve_args: Sequence[str], **asked: Any) -> None:
        kept = []
        skip = 0
        for argument in vllm_serve_args:
            if argument in _LEFT_OUT:
                skip = _LEFT_OUT[argument]
            elif skip:
                skip -= 1
            else:
                kept.append(argument)
        super().__init__(model, kept, **asked)


def _values(arguments: Sequence[str]) -> dict[str, str]:
    """Return the options of a command line: the value that follows each, empty for flags."""
    found = {}
    for i, argument in enumerate(arguments):
        if argument.startswith("--"):
            following = arguments[i + 1] if i + 1 < len(arguments) else "--"
            found[argument.replace("_", "-")] = "" if following.startswith("--") else following
    return found


def _settings(model: str, arguments: dict[str, str], *, is_pooling: bool) -> dict[str, str]:
    """Return the settings of SAGE, as environment variables, for what `vllm serve` was asked for."""
    if is_pooling:
        return {
            "SAGE_EMBEDDING_WORKER__DTYPE": "float32",
            "SAGE_EMBEDDING_WORKER__MODELS": json.dumps([model] if model in ENCODERS else []),
            "SAGE_EMBEDDING_WORKER__RERANKERS": json.dumps([model] if model in CROSS_ENCODERS else []),
        }
    found = {"SAGE_LLM_WORKER__DTYPE": "float32", "SAGE_LLM_WORKER__REASONING_FORMAT": "none"}
    if limit := arguments.get("--max-model-len"):
        found["SAGE_LLM_WORKER__MAX_CONTEXT"] = limit
    if limit := arguments.get("--max-num-seqs"):
        found["SAGE_LLM_WORKER__MAX_SEQUENCES"] = limit
    if parser := arguments.get("--tool-call-parser"):
        found["SAGE_LLM_WORKER__TOOL_FORMAT"] = parser
    if "--reasoning-parser" in arguments:
        found["SAGE_LLM_WORKER__REASONING_FORMAT"] = "think"
    extra = {}
    if limit := arguments.get("--max-logprobs"):
        extra["max_logprobs"] = int(limit)
    if "--no-enable-prefix-caching" in arguments:
        extra["enable_prefix_caching"] = False
    if extra:
        found["SAGE_LLM_WORKER__VLLM__EXTRA"] = json.dumps(extra)
    return found


# At once, not in a hook: vLLM's own conftest files take the class when they are imported.
tests.utils.RemoteOpenAIServer = PlainServer if IS_CONTROL else SageServer


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if IS_CONTROL:
        return
    with open(HERE / "selection.toml", "rb") as file:
        selection = tomllib.load(file)
    kept, left = [], []
    for item in items:
        reason = (
            _reason(selection, item.nodeid)
            if _uses_http(item)
            else "no HTTP: tests of vLLM's own Python classes"
        )
        if reason is None:
            kept.append(item)
        else:
            left.append(item)
            outcomes[item.nodeid] = {"outcome": "excluded", "detail": reason}
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def _uses_http(item: pytest.Item) -> bool:
    """Whether a test starts a server itself or takes one, or a client, as a fixture."""
    fixtures = getattr(item, "fixturenames", ())
    if any("server" in name or "client" in name for name in fixtures):
        return True
    return "RemoteOpenAIServer(" in inspect.getsource(item.function)  # type: ignore[attr-defined]


def _reason(selection: dict[str, Any], nodeid: str) -> str | None:
    """Return why a test is left out; None where it is run."""
    path, _, name = nodeid.partition("::")
    for file in selection["file"]:
        if path.endswith("/" + file["path"]):
            for rule in file.get("exclude", ()):
                if any(_matches(name, pattern) for pattern in rule["tests"]):
                    return str(selection["reasons"][rule["why"]])
    return None


def _matches(name: str, pattern: str) -> bool:
    escaped = pattern.replace("[", "[[]")
    return any(fnmatch.fnmatchcase(each, escaped) for each in (name, name.partition("[")[0]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report = yield
    if report.failed or (report.when == "call" and report.passed) or report.skipped:
        known = outcomes.get(item.nodeid)
        if known is None or known["outcome"] == "passed":
            outcomes[item.nodeid] = {"outcome": report.outcome, "detail": _detail(report)}
    return report


def _detail(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return f"{Path(crash.path).name}:{crash.lineno}: {crash.message}"[:2000]
    return "" if report.longrepr is None else str(report.longrepr)[-500:]


def pytest_sessionfinish(session: pytest.Session) -> None:
    RESULTS.write_text(json.dumps({"outcomes": outcomes, "exchanges": exchanged}))
