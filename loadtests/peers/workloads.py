"""What every system is asked for: the same bodies in the same ways."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["MODEL", "TOKEN_GAP_US", "WORKLOADS", "Workload", "body"]

MODEL: Final = "mock-model"
TOKEN_GAP_US: Final = 10_000
_CHAT: Final = "/v1/chat/completions"
_EMBED: Final = "/v1/embeddings"
_TEXT: Final = (
    "the quick brown fox jumps over a lazy dog while seven bright engines hum along quiet rails "
    "toward distant cities"
)
_WORDS: Final = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Workload:
    """One way to ask. Closed loop with `num_connections`, or open loop with `rate` arrivals a second.

    Seconds `warmup` and `duration` are those of the load generator; connections start spread over `ramp` seconds.
    A stream has `num_tokens` tokens `gap_us` microseconds apart; 0 tokens: whole answers.
    """

    name: str
    title: str
    path: str
    num_connections: int
    duration: float
    warmup: float = 1.0
    ramp: float = 0.0
    rate: float = 0.0
    num_tokens: int = 0
    gap_us: int = 0
    num_texts: int = 0
    min_bytes: int = 0
    is_fast_only: bool = False
    """Systems that are slow are left out."""

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.warmup + self.duration

    def load_arguments(self) -> list[str]:
        """Return the load generator's options, but for address and body."""
        arguments = [
            "--path", self.path, "-c", str(self.num_connections), "--duration", str(self.duration),
            "--warmup", str(self.warmup), "--min-bytes", str(self.min_bytes),
        ]  # fmt: skip
        if self.ramp:
            arguments += ["--ramp", str(self.ramp)]
        if self.rate:
            arguments += ["--rate", str(self.rate)]
        if self.num_tokens:
            arguments += ["--stream", "--tokens", str(self.num_tokens)]
        return arguments


def _whole(num_connections: int, duration: float = 1.0, warmup: float = 0.3) -> Workload:
    return Workload(
        f"chat16-c{num_connections}",
        f"chat, 16 tokens, not streamed, {num_connections} connections",
        _CHAT,
        num_connections,
        duration,
        warmup,
    )


def _at_rate(rate: int, duration: float, *, is_fast_only: bool) -> Workload:
    return Workload(
        f"chat16-r{rate}",
        f"chat, 16 tokens, not streamed, open loop, {rate} requests/s",
        _CHAT,
        64,
        duration,
        0.3,
        rate=float(rate),
        is_fast_only=is_fast_only,
    )


def _paced(num_streams: int, num_rounds: int, *, is_fast_only: bool = False) -> Workload:
    seconds = 128 * TOKEN_GAP_US / 1e6
    return Workload(
        f"paced-c{num_streams}",
        f"chat, {num_streams} streams of 128 tokens, 10 ms between tokens",
        _CHAT,
        num_streams,
        num_rounds * seconds,
        seconds + 0.1,
        ramp=seconds,
        num_tokens=128,
        gap_us=TOKEN_GAP_US,
        is_fast_only=is_fast_only,
    )


def _stream(num_streams: int, *, is_fast_only: bool = False) -> Workload:
    return Workload(
        f"stream-c{num_streams}",
        f"chat, {num_streams} streams of 128 tokens without delay",
        _CHAT,
        num_streams,
        1.2,
        0.4,
        num_tokens=128,
        is_fast_only=is_fast_only,
    )


def _embed(num_texts: int) -> Workload:
    return Workload(
        f"embed{num_texts}-c16",
        f"embeddings, texts per request: {num_texts}; 384 floats each, 16 connections",
        _EMBED,
        16,
        1.0,
        0.3,
        num_texts=num_texts,
        min_bytes=2000 * num_texts,
    )


WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        _whole(1),
        _whole(16),
        _whole(64),
        _whole(256, 1.2, 0.6),
        _at_rate(50, 2.0, is_fast_only=False),
        _at_rate(1000, 1.5, is_fast_only=True),
        _paced(16, 2),
        _paced(64, 3),
        _paced(256, 2, is_fast_only=True),
        _stream(64),
        _stream(256, is_fast_only=True),
        _embed(1),
        _embed(32),
    )
}
"""Short, so that five runs of all systems take less than half an hour; the medians of many short runs differ less than
single long ones do."""


def body(workload: Workload, model: str) -> bytes:
    """Return the request's JSON: about 1 KB of chat, or texts of 12 words."""
    generator = random.Random(1)

    def text(num_words: int) -> str:
        return " ".join(generator.choice(_WORDS) for _ in range(num_words))

    request: dict[str, Any] = {"model": model}
    if workload.num_texts:
        texts = [text(12) for _ in range(workload.num_texts)]
        request |= {"input": texts if len(texts) > 1 else texts[0], "encoding_format": "float"}
        return json.dumps(request).encode()
    request["messages"] = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text(180)},
    ]
    request |= {"max_tokens": workload.num_tokens or 16, "temperature": 0.7}
    if workload.num_tokens:
        request["stream"] = True
    return json.dumps(request).encode()
