"""Requests to the cluster from outside its hosts, one at a time or as a light load that counts what fails."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from rollout.machine import Failed

__all__ = ["Api", "Load"]

_LIMIT: Final = 60.0
_PAUSE: Final = 0.1
"""Between two requests of one user of a load."""


class Api:
    """The OpenAI API of a gateway, with a key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._key = key

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer. Raises Failed for every status but 200."""
        return self._send(path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer. Raises Failed for every status but 200."""
        return self._send(path, json.dumps(body).encode())

    def chat(self, model: str, question: str) -> str:
        """Return the text of an answer."""
        messages = [{"role": "user", "content": question}]
        answer = self.post("/v1/chat/completions", {"model": model, "messages": messages})
        text = answer["choices"][0]["message"]["content"]
        if not isinstance(text, str) or not text:
            raise Failed(f"an answer without text: {answer}")
        return text

    def embed(self, texts: list[str]) -> list[list[float]]:
        """Return a vector per text."""
        answer = self.post("/v1/embeddings", {"model": "all-MiniLM-L6-v2", "input": texts})
        vectors = [item["embedding"] for item in answer["data"]]
        if len(vectors) != len(texts):
            raise Failed(f"{len(vectors)} vectors for {len(texts)} texts")
        return vectors

    def _send(self, path: str, body: bytes | None) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=_LIMIT) as response:
                found = json.load(response)
        except urllib.error.HTTPError as error:
            raise Failed(
                f"status {error.code} from {path}: {error.read().decode(errors='replace')[:500]}"
            ) from None
        except (OSError, ValueError) as error:
            raise Failed(f"no answer from {path}: {error}") from None
        if not isinstance(found, dict):
            raise Failed(f"{path} answered {found!r}")
        return found


@dataclass
class Load:
    """Users that send one request after the other while inside the block."""

    send: Callable[[int], object]
    """One request; the argument numbers them. It raises Failed where the request failed."""
    num_users: int
    num_done: int = 0
    failures: list[str] = field(default_factory=list)
    longest: float = 0.0
    """Seconds of the slowest request."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._number = 0

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._use, daemon=True) for _ in range(self.num_users)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(_LIMIT)

    def _use(self) -> None:
        while not self._is_over.wait(_PAUSE):
            with self._lock:
                self._number += 1
                number = self._number
            started = time.monotonic()
            failure = None
            try:
                self.send(number)
            except Failed as error:
                failure = str(error)
            with self._lock:
                self.num_done += 1
                self.longest = max(self.longest, time.monotonic() - started)
                if failure is not None:
                    self.failures.append(failure)
