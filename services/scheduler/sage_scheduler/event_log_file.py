"""Writes the event log of one life of a scheduler: buffered, bounded, the one before it kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from sage_policy import Command, Event
from sage_policy.event_log import LogHeader, encode_header, encode_record
from sage_telemetry import get_logger

__all__ = ["EventLogFile"]

BUFFER_BYTES: Final = 64 * 1024
FLUSH_SECONDS: Final = 1.0
"""How much of the end a killed scheduler may take with it."""

log = get_logger()


class EventLogFile:
    """Opened in the event loop. A log that began in the middle could not be replayed, so a full one just ends.

    What the disk refuses is logged once, and ends the log: scheduling goes on.
    """

    def __init__(self, path: Path, header: LogHeader, *, max_bytes: int) -> None:
        self.path = path
        self._left = max_bytes
        self._buffer: list[bytes] = []
        self._num_buffered = 0
        self._timer: asyncio.TimerHandle | None = None
        self._file: BinaryIO | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists():
                path.replace(path.with_name(f"{path.name}.1"))
            self._file = path.open("wb")
        except OSError as error:
            self._end("event_log_not_opened", error)
        self._append(encode_header(header))
        self._flush()

    def record(self, event: Event, now: float, commands: Sequence[Command]) -> None:
        """Add one event and its commands."""
        if self._file is None:
            return
        record = encode_record(event, now, commands)
        if len(record) > self._left:
            self._flush()
            self._end("event_log_full", None)
            return
        self._append(record)

    def close(self) -> None:
        """Write what is buffered. Idempotent."""
        self._flush()
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _append(self, data: bytes) -> None:
        self._left -= len(data)
        self._buffer.append(data)
        self._num_buffered += len(data)
        if self._num_buffered >= BUFFER_BYTES:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data, self._buffer, self._num_buffered = b"".join(self._buffer), [], 0
        if self._file is None or not data:
            return
        try:
            # Into the page cache; some ten microseconds.
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            self._end("event_log_not_written", error)

    def _end(self, what: str, error: OSError | None) -> None:
        log.warning(what, path=str(self.path), reason="" if error is None else str(error))
        file, self._file = self._file, None
        if file is not None:
            file.close()
