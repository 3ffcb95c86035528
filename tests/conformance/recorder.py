"""A proxy that changes nothing and remembers everything: what clients sent to the gateway and what they got back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import h11

__all__ = ["Exchange", "Recorder", "exchanges"]


@dataclass(frozen=True)
class Exchange:
    """A request and its response, as they went over the wire."""

    method: str
    target: str
    request_body: bytes
    status: int
    headers: dict[str, str]
    body: bytes
    is_complete: bool
    """Whether the response came to its end; a client may have left before."""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass
class _Connection:
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    is_closed: bool = False


class Recorder:
    """Listens on a free port of the loopback address and passes bytes on. Use as a context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._connections: list[_Connection] = []
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._ready = threading.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Recorder:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def take(self) -> list[Exchange]:
        """Return what was exchanged since the last call, on connections that are closed."""
        with self._lock:
            closed = [each for each in self._connections if each.is_closed]
            self._connections = [each for each in self._connections if not each.is_closed]
        return [found for each in closed for found in exchanges(bytes(each.sent), bytes(each.received))]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept = _Connection()
        with self._lock:
            self._connections.append(kept)
        try:
            above, below = await asyncio.open_connection("127.0.0.1", self._target)
            upward = asyncio.ensure_future(_pass(reader, below, kept.sent))
            downward = asyncio.ensure_future(_pass(above, writer, kept.received))
            # Either end may leave; the other is told at once, as it would be without a proxy between them.
            await asyncio.wait({upward, downward}, return_when=asyncio.FIRST_COMPLETED)
            if upward.done() and not downward.done():
                downward.cancel()
            await asyncio.gather(downward, return_exceptions=True)
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)
            below.close()
        except OSError:
            pass
        finally:
            writer.close()
            kept.is_closed = True


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            kept += data
            writer.write(data)
            await writer.drain()


def exchanges(sent: bytes, received: bytes) -> Iterator[Exchange]:
    """Read the requests and responses of one connection, up to the first that is not HTTP/1.1."""
    server, client = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)
    server.receive_data(sent)
    client.receive_data(received)
    client.receive_data(b"")
    with contextlib.suppress(h11.ProtocolError):
        while (found := _exchange(server, client)) is not None:
            yield found
            if not found.is_complete or server.our_state is not h11.DONE or client.our_state is not h11.DONE:
                return
            server.start_next_cycle()
            client.start_next_cycle()


def _exchange(server: h11.Connection, client: h11.Connection) -> Exchange | None:
    request, asked = server.next_event(), b""
    if not isinstance(request, h11.Request):
        return None
    client.send(request)
    while isinstance(event := server.next_event(), h11.Data):
        asked += bytes(event.data)
        client.send(event)
    if isinstance(event, h11.EndOfMessage):
        client.send(event)
    response, body, is_complete = None, b"", False
    try:
        while True:
            event = client.next_event()
            if isinstance(event, h11.Response):
                response = event
                server.send(event)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
                server.send(event)
            elif isinstance(event, h11.EndOfMessage):
                server.send(event)
                is_complete = True
                break
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError:
        is_complete = False
    if response is None:
        return None
    headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
    return Exchange(
        request.method.decode(),
        request.target.decode("latin-1"),
        asked,
        response.status_code,
        headers,
        body,
        is_complete,
    )
