"""The NATS client protocol, incoming: bytes to messages and control lines. Pure.

https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sage_core import BusError

__all__ = ["MAX_LINE", "Parser"]

MAX_LINE: Final = 64 * 1024
"""Of a control line; INFO of a large cluster is the longest."""

_HMSG: Final = ord("H")
_MESSAGES: Final = (ord("M"), _HMSG)


class Parser:
    """Cuts what arrives into messages, for `on_message`, and other lines, for `on_line`, in order.

    `on_message` gets subscription id, subject, reply (empty for none), payload and header block (empty for none).
    """

    def __init__(
        self,
        on_message: Callable[[bytes, bytes, bytes, bytes, bytes], None],
        on_line: Callable[[bytes], None],
    ) -> None:
        self._on_message = on_message
        self._on_line = on_line
        self._rest = bytearray()
        self._num_needed = 0

    def feed(self, data: bytes) -> None:
        """Take what arrived. Raises BusError for what is no such protocol; nothing can be read after that."""
        if self._rest:
            self._rest += data
            if len(self._rest) < self._num_needed:
                return
            data, self._rest = bytes(self._rest), bytearray()
        start, size = 0, len(data)
        while start < size:
            end = data.find(b"\r\n", start)
            if end < 0:
                if size - start > MAX_LINE:
                    raise BusError(f"the server sent a line of over {MAX_LINE} bytes")
                self._num_needed = 0
                break
            kind = data[start]
            if kind in _MESSAGES:
                begin = end + 2
                fields = data[start:end].split()
                stop = begin + _number(fields, -1)
                if stop + 2 > size:
                    self._num_needed = stop + 2 - start
                    break
                start = stop + 2
                self._deliver(fields, data, begin, stop, has_headers=kind == _HMSG)
            else:
                line = data[start:end]
                start = end + 2
                self._on_line(line)
        if start < size:
            self._rest += data[start:]

    def _deliver(self, fields: list[bytes], data: bytes, begin: int, stop: int, *, has_headers: bool) -> None:
        # [H]MSG subject sid [reply] [header size] size
        num_fixed = 5 if has_headers else 4
        if not num_fixed <= len(fields) <= num_fixed + 1:
            raise BusError(f"the server sent {b' '.join(fields)!r}")
        reply = fields[3] if len(fields) > num_fixed else b""
        middle = begin + _number(fields, -2) if has_headers else begin
        if middle > stop:
            raise BusError(f"the server sent {b' '.join(fields)!r}")
        self._on_message(fields[2], fields[1], reply, data[middle:stop], data[begin:middle])


def _number(fields: list[bytes], index: int) -> int:
    try:
        return int(fields[index])
    except (ValueError, IndexError):
        raise BusError(f"the server sent {b' '.join(fields)!r}") from None
