"""Frames: what one worker produced for one consumer in one turn of its event loop leaves as one message.

Here sequence numbers are given, deltas gathered, large frames split, and a full outbound queue waited out. What is
not here: when a request starts or ends (`worker`), and what a consumer makes of its frames (`sage_client`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from sage_core import LimitExceeded, Overloaded, SageError
from sage_wire import encode
from sage_wire.messages import Completed, Delta, Event, Failed, Message, Tokens

__all__ = ["MAX_FRAME_BYTES", "FrameWriter", "Outlet"]

MAX_FRAME_BYTES: Final = 256 * 1024
MAX_DELTA_BYTES: Final = 8 * 10**6 - 4096
RETRY_SECONDS: Final = 0.005
_ENVELOPE_BYTES: Final = 16

Publish = Callable[[str, bytes], None]


class _EncodedFrame(Message, frozen=True):
    """`Frame` with its deltas already encoded, so that each is encoded once and its size is known."""

    deltas: list[msgspec.Raw]


class _Gathered:
    __slots__ = ("deltas", "num_bytes")

    def __init__(self) -> None:
        self.deltas: list[msgspec.Raw] = []
        self.num_bytes = _ENVELOPE_BYTES


class Outlet:
    """Where one attempt's events go in. Numbers them from 0 without gaps; takes nothing after the last one."""

    __slots__ = ("_writer", "attempt", "has_text", "is_ended", "next_seq", "reply_to", "request_id")

    def __init__(self, writer: FrameWriter, request_id: str, attempt: int, reply_to: str) -> None:
        self._writer = writer
        self.request_id = request_id
        self.attempt = attempt
        self.reply_to = reply_to
        self.next_seq = 0
        self.has_text = False
        self.is_ended = False

    def emit(self, event: Event) -> bool:
        """Send `event`; the first `Tokens` leaves at once, everything else with its turn of the loop.

        Returns False, and sends nothing, after `Completed` or `Failed`: there is exactly one of them. Raises
        LimitExceeded, and sends nothing, for an event that no message of the bus can carry.
        """
        if self.is_ended:
            return False
        payload = encode(
            Delta(request_id=self.request_id, attempt=self.attempt, seq=self.next_seq, event=event)
        )
        kind = type(event)
        is_urgent = kind is Tokens and not self.has_text
        self._writer.add(self.reply_to, payload, is_urgent=is_urgent)
        self.next_seq += 1
        if is_urgent:
            self.has_text = True
        elif kind is Completed or kind is Failed:
            self.is_ended = True
        return True


class FrameWriter:
    """Gathers deltas per consumer and publishes them as frames. Used from one event loop.

    Where `publish` raises Overloaded, frames wait, in order, and are tried again every few milliseconds; producers
    await `writable` and so slow down with the bus. Any other error is the connection's end: the frame is dropped
    and counted, and its consumers find a gap.
    """

    def __init__(
        self,
        publish: Publish,
        *,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        max_delta_bytes: int = MAX_DELTA_BYTES,
        call_soon: Callable[[Callable[[], None]], object] | None = None,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        """`call_soon` and `call_later` default to those of the loop that runs at the time of use."""
        self._publish = publish
        self._max_frame_bytes = max_frame_bytes
        self._max_delta_bytes = max_delta_bytes
        self._call_soon = call_soon or (lambda callback: asyncio.get_running_loop().call_soon(callback))
        self._call_later = call_later or (
            lambda delay, callback: asyncio.get_running_loop().call_later(delay, callback)
        )
        self._gathered: dict[str, _Gathered] = {}
        self._is_scheduled = False
        self._backlog: deque[tuple[str, bytes]] = deque()
        self._waiters: list[asyncio.Future[None]] = []
        self.num_frames = 0
        self.num_dropped = 0

    def open(self, request_id: str, attempt: int, reply_to: str) -> Outlet:
        """Return the outlet of one attempt, whose consumer listens on `reply_to`."""
        return Outlet(self, request_id, attempt, reply_to)

    def add(self, reply_to: str, delta: bytes, *, is_urgent: bool = False) -> None:
        """Add one encoded delta to its consumer's frame; an urgent one takes the frame with it at once.

        Raises LimitExceeded where the delta alone is more than a message may be.
        """
        size = len(delta)
        if size > self._max_delta_bytes:
            raise LimitExceeded(
                f"one result is {size} bytes; at most {self._max_delta_bytes} can be sent at once"
            )
        gathered = self._gathered.get(reply_to)
        if gathered is None:
            gathered = self._gathered[reply_to] = _Gathered()
        elif gathered.num_bytes + size > self._max_frame_bytes:
            self._send(reply_to, gathered)
            gathered = self._gathered[reply_to] = _Gathered()
        gathered.deltas.append(msgspec.Raw(delta))
        gathered.num_bytes += size
        if is_urgent:
            del self._gathered[reply_to]
            self._send(reply_to, gathered)
        elif not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._on_turn_end)

    def flush(self) -> None:
        """Publish everything gathered so far, in the order in which consumers first appeared."""
        gathered, self._gathered = self._gathered, {}
        for reply_to, frame in gathered.items():
            self._send(reply_to, frame)

    @property
    def is_blocked(self) -> bool:
        """True while the outbound queue of the bus is full; producers should await `writable`."""
        return bool(self._backlog)

    async def writable(self) -> None:
        """Return once nothing waits for the bus; at once where nothing does."""
        while self._backlog:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _on_turn_end(self) -> None:
        self._is_scheduled = False
        self.flush()

    def _send(self, reply_to: str, frame: _Gathered) -> None:
        payload = encode(_EncodedFrame(deltas=frame.deltas))
        if self._backlog:
            self._backlog.append((reply_to, payload))
        elif not self._try(reply_to, payload):
            self._backlog.append((reply_to, payload))
            self._call_later(RETRY_SECONDS, self._on_retry)

    def _try(self, reply_to: str, payload: bytes) -> bool:
        try:
            self._publish(reply_to, payload)
        except Overloaded:
            return False
        except SageError:
            self.num_dropped += 1
        else:
            self.num_frames += 1
        return True

    def _on_retry(self) -> None:
        while self._backlog:
            if not self._try(*self._backlog[0]):
                self._call_later(RETRY_SECONDS, self._on_retry)
                return
            self._backlog.popleft()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
