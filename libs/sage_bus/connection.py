"""One connection to NATS: reconnects for ever, notices silence, asks and answers without checks of its own.

Internal to this package: subjects are bytes and may be the server's (`$JS.…`). `NatsBus` is the checked face.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from nats import errors
from nats.aio.client import Server

from sage_bus.bus import NO_HEADERS, BusEvent
from sage_bus.checks import check_size
from sage_bus.denials import Denials, find_denial
from sage_bus.header_block import encode_headers
from sage_bus.nats_client import Handler, NatsClient
from sage_bus.outbound import Outbound, Postponed, publish_command
from sage_bus.requests import Answer, Answers, ReplyInbox
from sage_core import BusUnavailable, DeadlineExceeded, SageError, Unavailable
from sage_wire.headers import BUDGET
from sage_wire.roles import Role

__all__ = ["Connection", "EventListener"]

log = structlog.get_logger("sage_bus")

EventListener = Callable[[BusEvent, str], None]

SILENT_TICKS = 5
"""Half ping intervals without a byte after which the server counts as dead; it owes us a PONG every two."""
_MAX_RECONNECT_DELAY = 2.0
_REFUSED = "authorization violation"


class Connection:
    """Owns the client, the writer and the watchdog."""

    def __init__(
        self,
        client: NatsClient,
        *,
        inbox: ReplyInbox,
        ping_interval: float,
        max_messages: int,
        max_bytes: int,
        role: str = "",
        is_provisioned: bool = False,
    ) -> None:
        self.client = client
        self.inbox = inbox
        self.is_provisioned = is_provisioned
        self.outbound = Outbound(client, max_messages=max_messages, max_bytes=max_bytes)
        self.num_reconnects = 0
        self.denials = Denials(role, may_create=not is_provisioned and role != Role.PROVISIONER)
        self.last_error = ""
        self.is_closing = False
        self.is_closed = False
        self._ping_interval = ping_interval
        self._listeners: list[EventListener] = []
        self._proofs: set[asyncio.Future[bool]] = set()
        self._subscribing: dict[str, asyncio.Future[bool]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # Life

    async def open(
        self, servers: list[str], *, name: str, tls: ssl.SSLContext | None, seed_file: Path | None
    ) -> None:
        """Connect, trying for ever, and prove both directions. Raises BusError, BusUnavailable."""
        await self.client.connect(
            servers,
            name=name,
            tls=tls,
            nkeys_seed=str(seed_file) if seed_file is not None else None,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_closed,
            reconnect_to_server_handler=self._next_server,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.2,  # type: ignore[arg-type] # annotated int, used as seconds of a sleep
            ping_interval=self._ping_interval,  # type: ignore[arg-type] # the same
            max_outstanding_pings=2,
            connect_timeout=2,
        )
        self._tasks.append(asyncio.create_task(self._watch(), name="bus-watchdog"))
        for task in self._tasks:
            task.add_done_callback(self._on_task_done)
        await self.subscribe(self.inbox.pattern, "", self.inbox.dispatch, timeout=10.0)

    async def close(self, timeout: float) -> None:
        """Write what is queued, prove that it arrived, close. Idempotent."""
        if self.is_closing:
            return
        self.is_closing = True
        if self.client.is_connected:
            try:
                await self.prove(timeout)
            except SageError as error:
                log.warning("bus_close_incomplete", num_unsent=len(self.outbound), reason=error.message)
        self._end(BusUnavailable("the bus is closed"))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self.client.is_started:
            return
        self.client.socket.abort()
        # nats-py waits here for its own reconnect task, at most one reconnect_time_wait.
        with contextlib.suppress(errors.Error, OSError, TimeoutError):
            await asyncio.wait_for(self.client.close(), 2.0)

    def _end(self, error: SageError) -> None:
        self.is_closed = True
        self.outbound.is_closed = True
        for task in self._tasks:
            task.cancel()
        self.inbox.fail(error)
        for proof in self._proofs:
            if not proof.done():
                proof.set_exception(error)

    # Sending

    def send(
        self,
        subject: bytes,
        payload: bytes,
        headers: Mapping[str, str] = NO_HEADERS,
        reply: bytes = b"",
        is_wanted: Callable[[], bool] | None = None,
    ) -> None:
        """Queue a message; `is_wanted` is asked again when it is written. Raises what `Bus.publish` raises."""
        block = encode_headers(headers) if headers else b""
        check_size(len(payload) + len(block), self.client.max_payload)
        command = publish_command(subject, reply, block, payload)
        if self.outbound.is_direct:
            if is_wanted is None or is_wanted():
                self.outbound.write(command)
        elif is_wanted is None and BUDGET not in headers:
            self.outbound.push(command)
        else:
            now = asyncio.get_running_loop().time()
            self.outbound.push(Postponed(command, subject, reply, payload, headers, now, is_wanted))

    def send_or_tell(
        self,
        subject: bytes,
        payload: bytes,
        headers: Mapping[str, str],
        reply: bytes,
        max_wait: float | None,
        unheard: Callable[[], None] | None,
    ) -> None:
        """See `Bus.publish`."""
        loop = asyncio.get_running_loop()
        if unheard is not None:
            if reply:
                raise ValueError("a message with a reply subject of its own cannot be told of as unheard")
            reply = self.inbox.open_unheard(unheard, loop.time())
        if max_wait is None:
            is_wanted = None
        else:
            gives_up_at = loop.time() + max_wait

            def is_wanted() -> bool:
                if loop.time() <= gives_up_at:
                    return True
                if unheard is not None:
                    self.inbox.close(reply)
                    loop.call_soon(unheard)
                return False

        try:
            self.send(subject, payload, headers, reply, is_wanted)
        except SageError:
            self.inbox.close(reply)
            raise

    async def gather(
        self,
        subject: bytes,
        payload: bytes,
        headers: Mapping[str, str],
        timeout: float,
        max_answers: int | None,
        ends: Callable[[Answer], bool] | None = None,
        *,
        is_repeatable: bool = False,
    ) -> Answers:
        """Publish and take answers until `timeout`, `max_answers`, one that `ends` or no responders."""
        answers = Answers(subject.decode("ascii"), max_answers, ends, is_repeatable=is_repeatable)
        reply = self.inbox.open_answers(answers)

        def is_wanted() -> bool:
            answers.is_written = True
            return self.inbox.is_open(reply)

        try:
            async with asyncio.timeout(timeout):
                self.send(subject, payload, headers, reply, is_wanted)
                await answers.done
                while answers.is_interrupted:
                    answers.restart()
                    self.send(subject, payload, headers, reply, is_wanted)
                    await answers.done
        except TimeoutError:
            pass
        finally:
            self.inbox.close(reply)
            answers.finish()
        return answers

    async def ask(
        self,
        subject: bytes,
        payload: bytes,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        timeout: float,
        is_repeatable: bool = False,
    ) -> Answer:
        """Publish and wait for one answer. Raises Unavailable for no responders, DeadlineExceeded."""
        answers = await self.gather(subject, payload, headers, timeout, 1, is_repeatable=is_repeatable)
        if answers.received:
            return answers.received[0]
        if answers.is_unheard:
            raise Unavailable(f"nobody listens on {answers.subject}")
        raise DeadlineExceeded(f"no reply on {answers.subject} within {timeout:g} s")

    async def prove(self, timeout: float) -> None:
        """Return once the server has processed everything queued so far. Raises BusUnavailable."""
        try:
            async with asyncio.timeout(timeout):
                while not await self._ping():
                    pass  # the connection was lost in between; ask the new one
        except TimeoutError:
            raise BusUnavailable(f"the server gave no sign within {timeout:g} s") from None

    async def _ping(self, answered: asyncio.Future[bool] | None = None) -> bool:
        proof = answered if answered is not None else asyncio.get_running_loop().create_future()
        self._proofs.add(proof)
        try:
            self.outbound.push_ping(proof)
            return await proof
        finally:
            self._proofs.discard(proof)

    # Receiving

    async def subscribe(self, subject: str, queue: str, handler: Handler, *, timeout: float) -> int:
        """Subscribe; active at the server when this returns. Raises BusError where the role may not."""
        if self.is_closed:
            raise BusUnavailable("the bus is closed")
        sid, command = self.client.register(subject, queue, handler)
        self.outbound.push_command(command)
        try:
            async with asyncio.timeout(timeout):
                is_active = False
                while not is_active:
                    proof: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
                    self._subscribing[subject.lower()] = proof
                    is_active = await self._ping(proof)
        except TimeoutError:
            self.unsubscribe(sid)
            raise BusUnavailable(f"no server confirmed a subscription within {timeout:g} s") from None
        except BaseException:
            self.unsubscribe(sid)
            raise
        finally:
            self._subscribing.pop(subject.lower(), None)
        return sid

    def unsubscribe(self, sid: int) -> None:
        """Stop delivery at once. Idempotent."""
        command = self.client.unregister(sid)
        if not self.is_closed:
            self.outbound.push_command(command)

    def listen(self, handler: Handler) -> tuple[int, bytes]:
        """Open a reply subject with a subscription of its own; return its id and the subject.

        For streams, which deliver under the subject of the stored message: the shared inbox cannot tell them apart.
        """
        subject = self.inbox.unshared()
        sid, command = self.client.register(subject, "", handler)
        self.outbound.push_command(command)
        return sid, subject.encode("ascii")

    async def stop_listening(self, sids: list[int], timeout: float) -> None:
        """End `listen`; handlers still get what the server sent before it knew."""
        for sid in sids:
            self.outbound.push_command(self.client.unsubscribe_command(sid))
        try:
            if self.client.can_write:
                await self.prove(timeout)
        except BusUnavailable:
            pass
        finally:
            for sid in sids:
                self.client.unregister(sid)

    # Events

    def add_listener(self, listener: EventListener) -> None:
        """Call `listener` for every event, in the order of adding."""
        self._listeners.append(listener)

    def remove_listener(self, listener: EventListener) -> None:
        """Undo `add_listener`."""
        self._listeners.remove(listener)

    def _emit(self, event: BusEvent, detail: str) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(event, detail)
            except Exception:  # one listener's bug must not cost the others the event
                log.exception("bus_listener_failed", event_kind=event.value)

    async def _on_error(self, error: Exception) -> None:
        # A refused client is cut off, and sees the cut as often as the reason: the reason is kept.
        if not (_REFUSED in self.last_error.lower() and isinstance(error, OSError)):
            self.last_error = str(error) or type(error).__name__
        denial = find_denial(self.last_error)
        if denial is not None:
            self._on_denied(*denial)
        elif "slow consumer" in self.last_error.lower():
            self._emit(BusEvent.SLOW_CONSUMER, self.last_error)
        elif not self.is_closing:
            log.debug("bus_error_reported", error=self.last_error)

    def _on_denied(self, right: str, subject: str) -> None:
        error = self.denials.denied(right, subject)
        if right == "publish":
            self.inbox.fail(error, lambda answers: answers.subject.lower() == subject)
        else:
            proof = self._subscribing.get(subject)
            if proof is not None and not proof.done():
                proof.set_exception(error)
        self._emit(BusEvent.PERMISSION_DENIED, f"{right} {subject}")

    async def _on_disconnected(self) -> None:
        if not self.is_closing:
            log.warning("bus_disconnected", reason=self.last_error)
            self._emit(BusEvent.DISCONNECTED, self.last_error)

    async def _on_reconnected(self) -> None:
        self.num_reconnects += 1
        self.last_error = ""
        for proof in self._proofs:
            if not proof.done():
                proof.set_result(False)
        self.inbox.interrupt()
        self.outbound.resume()
        url = self.client.connected_url
        # Not `netloc`: it may carry a password.
        server = f"{url.hostname}:{url.port}" if url is not None else ""
        log.info("bus_reconnected", server=server)
        self._emit(BusEvent.RECONNECTED, server)

    async def _on_closed(self) -> None:
        self._lose(self.last_error or str(self.client.last_error or "closed by the client library"))

    def _lose(self, reason: str) -> None:
        """The connection ended for good though nobody asked for it."""
        if self.is_closing or self.is_closed:
            return
        log.error("bus_closed", reason=reason)
        self._end(BusUnavailable(f"the connection to NATS ended: {reason}"))
        self._emit(BusEvent.CLOSED, reason)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            log.error("bus_task_failed", task=task.get_name(), exc_info=task.exception())
            self._lose(f"{task.get_name()} failed: {task.exception()!r}")

    # Reconnecting

    def _next_server(self, servers: list[Server], info: dict[str, object]) -> tuple[Server | None, float]:
        """Choose the server tried least, after a random delay that grows: a hundred clients must not return at once."""
        del info
        fewest = min(server.reconnects for server in servers)
        chosen = random.choice([server for server in servers if server.reconnects == fewest])
        return chosen, random.uniform(0.01, min(_MAX_RECONNECT_DELAY, 0.2 * 2 ** min(fewest, 6)))

    async def _watch(self) -> None:
        """Reconnect where nats-py does not notice: a frozen server, a dead read loop, a dead reconnect task."""
        num_silent = 0
        activity = self.client.socket.activity
        while True:
            # Ticks, not time: a blocked event loop delays them and so is not mistaken for a dead server.
            await asyncio.sleep(self._ping_interval / 2)
            num_silent = num_silent + 1 if self.client.socket.activity == activity else 0
            activity = self.client.socket.activity
            is_deaf = self.client.is_connected and not self.client.is_reading
            if num_silent >= SILENT_TICKS or is_deaf:
                num_silent = 0
                # Whoever noticed first: nats-py waits, perhaps for ever, for a frozen peer to take what is unsent.
                self.client.socket.abort()
                if self.client.is_connected:
                    self.last_error = "the server fell silent"
                    await self.client.force_reconnect()
            if not (self.client.is_connected or self.client.is_closed or self.client.is_reconnect_alive):
                self._lose("nats-py stopped reconnecting")
