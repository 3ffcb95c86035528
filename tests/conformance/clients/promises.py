"""What every client script needs: where SAGE is, and a way to say which promises it kept.

Scripts run in the client's own environment, so this file needs nothing but Python.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

URL = os.environ["CONFORMANCE_URL"] + "/v1"
KEY = os.environ["CONFORMANCE_KEY"]
LIMITED_KEY = os.environ["CONFORMANCE_LIMITED_KEY"]
"""A key that may ask once a minute."""
MODEL = os.environ["CONFORMANCE_MODEL"]
EMBEDDING_MODEL = os.environ["CONFORMANCE_EMBEDDING_MODEL"]
VECTOR_LENGTH = 384

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
"""Parameters of the tool get_weather, which the model calls when it is asked about the weather."""

_promises: list[tuple[str, Callable[[], Any]]] = []


def promise(check: Callable[[], Any]) -> Callable[[], Any]:
    """Make a function, or coroutine function, one of the checks; its name is the promise."""
    _promises.append((check.__name__, check))
    return check


def raises(expected: type[BaseException], call: Callable[[], Any]) -> Any:
    """Return the error that `call` raises; fail if it is none or another."""
    try:
        call()
    except expected as error:
        return error
    raise AssertionError(f"{expected.__name__} was not raised")


def num_in_flight() -> int:
    """Return how many requests the language model's worker holds."""
    done = subprocess.run(
        json.loads(os.environ["CONFORMANCE_STATUS"]), capture_output=True, text=True, check=True
    )
    (worker,) = [actor for actor in json.loads(done.stdout)["actors"] if actor["kind"] == "llm-worker"]
    return int(worker["num_in_flight"])


def until_in_flight(expected: int) -> None:
    """Wait until the worker holds so many requests; fail after 10 s."""
    deadline = time.monotonic() + 10
    while (found := num_in_flight()) != expected:
        assert time.monotonic() < deadline, f"{found} requests in flight, not {expected}"


def main() -> None:
    """Run the promises that the command line names, or all; print one line of JSON for each."""
    for name, check in _promises:
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        began = time.monotonic()
        try:
            found = check()
            if inspect.isawaitable(found):
                asyncio.run(_awaited(found))
            detail = ""
        except Exception:  # a promise may fail in any way; the next ones are still checked
            detail = traceback.format_exc(limit=-4)
        line = {
            "name": name,
            "is_kept": not detail,
            "detail": detail,
            "seconds": round(time.monotonic() - began, 3),
        }
        print(json.dumps(line), flush=True)


async def _awaited(found: Any) -> None:
    await found
