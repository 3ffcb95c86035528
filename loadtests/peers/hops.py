"""Where SAGE's own time goes: one request after the other on an idle system, watched where it crosses the bus.

The client notes when it wrote a request and when the answer's first token arrived; subscriptions beside it note when
Submits, Dispatches and the first frame passed nats-server; the token's stamps say when the engine took the request and
gave the token. All times are of one clock; arrivals are the kernel's, so it does not matter when this process runs.
"""

from __future__ import annotations

import select
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import msgspec
import workloads
from nats_text import NatsText, receive_stamped, stamp_arrivals
from sage_systems import SageCore, SageWhole
from systems import Running

__all__ = ["Hop", "hops", "watch"]

NUM_REQUESTS: Final = 400
NUM_WARM: Final = 50
PAUSE: Final = 0.002
LIMIT_SECONDS: Final = 5.0
_TOKEN: Final = b" @"
_STAMP_DIGITS: Final = 16
_END: Final = b"[DONE]"
_SUBJECTS: Final = {
    "submit": "sage.v1.pool.*.submit",
    "dispatch": "sage.v1.worker.*.dispatch",
    "frame": "sage.v1.frames.*.*",
}
_TITLES: Final = {
    ("sent", "submit"): "client to the bus: HTTP, key, limits, plan, encode",
    ("submit", "dispatch"): "scheduler: decode, decide, dispatch",
    ("submit", "received"): "bus to the mock pool",
    ("dispatch", "received"): "worker: decode, start",
    ("received", "made"): "engine",
    ("made", "frame"): "worker to the bus: frame",
    ("frame", "seen"): "bus to the client: decode, chunk, write",
}


class Hop(msgspec.Struct, frozen=True):
    """One part of a request's way, microseconds over all requests watched."""

    title: str
    p50_us: float
    p90_us: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """When one request was where: names of places with monotonic nanoseconds, in the order of the way."""

    times: dict[str, int]


def hops(crossings: Sequence[Crossing]) -> list[Hop]:
    """Return the parts of the way, and the whole of it last. At least one crossing, all through the same places."""
    parts: dict[tuple[str, str], list[float]] = {}
    for crossing in crossings:
        places = list(crossing.times)
        for pair in [*pairwise(places), (places[0], places[-1])]:
            parts.setdefault(pair, []).append((crossing.times[pair[1]] - crossing.times[pair[0]]) / 1000)
    return [
        Hop(_TITLES.get(pair, "the whole way"), statistics.median(values), _share(values, 0.9))
        for pair, values in parts.items()
    ]


def watch(running: Running) -> list[Hop]:
    """Send requests to a running SAGE one by one; return the parts of their way."""
    system = running.system
    assert isinstance(system, SageCore | SageWhole)
    workload = replace(workloads.WORKLOADS["stream-c64"], num_tokens=1)
    system.set_pace(running.ground, workload)
    body = workloads.body(workload, system.model(workload))
    head = "".join(f"{name}: {value}\r\n" for name, value in running.plan.headers.items())
    request = (
        f"POST {workload.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{head}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    with ExitStack() as stack:
        client = stack.enter_context(
            socket.create_connection(("127.0.0.1", running.plan.port), LIMIT_SECONDS)
        )
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stamp_arrivals(client)
        taps: dict[str, NatsText] = {}
        for place, subject in _SUBJECTS.items():
            taps[place] = stack.enter_context(NatsText(system.bus.port, system.bus.token))
            taps[place].subscribe(subject)
            stamp_arrivals(taps[place].socket)
        found = list(_cross(client, taps, request))[NUM_WARM:]
    places = max((crossing.times.keys() for crossing in found), key=len)
    return hops([crossing for crossing in found if crossing.times.keys() == places])


def _cross(client: socket.socket, taps: dict[str, NatsText], request: bytes) -> Iterator[Crossing]:
    sockets = {client: "client", **{tap.socket: place for place, tap in taps.items()}}
    for _ in range(NUM_REQUESTS + NUM_WARM):
        time.sleep(PAUSE)
        seen: dict[str, int] = {"sent": time.monotonic_ns()}
        answer = b""
        client.sendall(request)
        until = time.monotonic() + LIMIT_SECONDS
        while _END not in answer or "frame" not in seen:
            readable, _, _ = select.select(list(sockets), [], [], max(0.0, until - time.monotonic()))
            if not readable:
                raise TimeoutError("a watched request was not answered")
            for ready in readable:
                data, arrived = receive_stamped(ready)
                place = sockets[ready]
                if place == "client":
                    answer += data
                    if _TOKEN in answer:
                        seen.setdefault("seen", arrived)
                    continue
                for message in taps[place].take(data):
                    if place != "frame" or _TOKEN in message.payload:
                        seen.setdefault(place, arrived)
        made, received = _stamps(answer)
        seen |= {"made": made, "received": received}
        order = ("sent", "submit", "dispatch", "received", "made", "frame", "seen")
        yield Crossing({place: seen[place] for place in order if place in seen})


def _stamps(answer: bytes) -> tuple[int, int]:
    """Return when the first token was made and its request received; see tools/clock.hpp."""
    start = answer.index(_TOKEN) + len(_TOKEN)
    made = int(answer[start : start + _STAMP_DIGITS], 16)
    received = answer[start + _STAMP_DIGITS + 1 : start + 2 * _STAMP_DIGITS + 1]
    return made, int(received, 16)


def _share(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
