"""Frames: what one worker produced for one consumer in one turn of its event loop leaves as one message.

Here sequence numbers are given, deltas gathered, large frames split, and a full outbound queue waited out. What is
not here: when a request starts or ends (`worker`), and what a consumer makes of its frames (`sage_client`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from sage_core import LimitExceeded, Overloaded, SageError
from sage_wire import encode, encode_list
from sage_wire.messages import Completed, Delta, Event, Failed, Started, Tokens

__all__ = ["MAX_FRAME_BYTES", "FrameWriter", "Outlet"]

MAX_FRAME_BYTES: Final = 256 * 1024
MAX_DELTA_BYTES: Final = 8 * 10**6 - 4096
RETRY_SECONDS: Final = 0.005
STARTED_SECONDS: Final = 0.01
"""How long `Started` waits for the attempt's first result."""
MAX_HELD: Final = 512
"""Pieces of text that are held back at most, however little time they took."""
_ENVELOPE_BYTES: Final = 16

Publish = Callable[[str, bytes], None]


class _Gathered:
    __slots__ = ("deltas", "num_bytes")

    def __init__(self) -> None:
        self.deltas: list[bytes] = []
        self.num_bytes = _ENVELOPE_BYTES


class Outlet:
    """Where one attempt's events go in. Numbers them from 0 without gaps; takes nothing after the last one."""

    __slots__ = (
        "_held",
        "_held_since",
        "_started",
        "_writer",
        "attempt",
        "gather",
        "has_text",
        "is_ended",
        "next_seq",
        "reply_to",
        "request_id",
    )

    def __init__(self, writer: FrameWriter, request_id: str, attempt: int, reply_to: str) -> None:
        self.gather = 0.0
        """Seconds for which text may be held back; see `Generate.gather_ms`."""
        self._writer = writer
        self._held: list[Tokens] = []
        self._held_since = 0.0
        self.request_id = request_id
        self.attempt = attempt
        self.reply_to = reply_to
        self.next_seq = 0
        self.has_text = False
        self.is_ended = False
        self._started: Started | None = None

    def start(self, event: Started) -> None:
        """Say that the attempt has started: with its first event, or alone in a moment."""
        self._started = event
        self._writer.say_later(self)

    def say(self) -> None:
        """Send `Started` now, where it was not sent yet."""
        event, self._started = self._started, None
        if event is not None and not self.is_ended:
            self._send(event)

    def emit(self, event: Event) -> bool:
        """Send `event`; the first `Tokens` leaves at once, everything else with its turn of the loop.

        Where text may be gathered, `Tokens` wait for more of them, to leave as one piece, or for another event.
        Returns False, and sends nothing, after `Completed` or `Failed`: there is exactly one of them. Raises
        LimitExceeded, and sends nothing, for an event that no message of the bus can carry.
        """
        if self.is_ended:
            return False
        if type(event) is Tokens:
            # An echoed prompt is cut alike in every attempt, so its pieces stay as they are.
            if self.gather and not event.is_prompt:
                self._hold(event)
                return True
            is_urgent, self.has_text = not self.has_text and not self.gather, True
        else:
            is_urgent = False
        if self._held:
            self._send_held()
        self._send(event, is_urgent=is_urgent)
        if type(event) is Completed or type(event) is Failed:
            self.is_ended = True
        return True

    def _hold(self, tokens: Tokens) -> None:
        held, now = self._held, self._writer.now()
        if not held:
            self._held_since = now
        held.append(tokens)
        if now - self._held_since >= self.gather or len(held) >= MAX_HELD:
            self._send_held()

    def _send_held(self) -> None:
        held, self._held = self._held, []
        self._send(held[0] if len(held) == 1 else _joined(held))

    def _send(self, event: Event, *, is_urgent: bool = False) -> None:
        if self._started is not None:
            self.say()
        payload = encode(
            Delta(request_id=self.request_id, attempt=self.attempt, seq=self.next_seq, event=event)
        )
        self._writer.add(self.reply_to, payload, is_urgent=is_urgent)
        self.next_seq += 1


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
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`call_soon` and `call_later` default to those of the loop that runs at the time of use."""
        self.now = now
        self._publish = publish
        self._max_frame_bytes = max_frame_bytes
        self._max_delta_bytes = max_delta_bytes
        self._call_soon = call_soon or (lambda callback: asyncio.get_running_loop().call_soon(callback))
        self._call_later = call_later or (
            lambda delay, callback: asyncio.get_running_loop().call_later(delay, callback)
        )
        self._gathered: dict[str, _Gathered] = {}
        self._is_scheduled = False
        self._unsaid: list[Outlet] = []
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
        gathered.deltas.append(delta)
        gathered.num_bytes += size
        if is_urgent:
            del self._gathered[reply_to]
            self._send(reply_to, gathered)
        elif not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._on_turn_end)

    def say_later(self, outlet: Outlet) -> None:
        """Have `outlet` say that it started, in a moment: most have an event by then that takes it along.

        With that a request without delay takes one frame less of three, which costs worker, server and consumer alike.
        """
        if not self._unsaid:
            self._call_later(STARTED_SECONDS, self._on_unsaid)
        self._unsaid.append(outlet)

    def _on_unsaid(self) -> None:
        unsaid, self._unsaid = self._unsaid, []
        for outlet in unsaid:
            outlet.say()

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
        payload = encode_list("deltas", frame.deltas)
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


def _joined(pieces: list[Tokens]) -> Tokens:
    # Ids are of use only where they stand for all of the text.
    has_all_ids = all([piece.token_ids or not piece.num_tokens for piece in pieces])
    return Tokens(
        text="".join([piece.text for piece in pieces]),
        token_ids=[token_id for piece in pieces for token_id in piece.token_ids] if has_all_ids else [],
        num_tokens=sum([piece.num_tokens for piece in pieces]),
        num_cached=pieces[0].num_cached,
        logprobs=[logprob for piece in pieces for logprob in piece.logprobs],
    )
