"""One bounded log file per actor: `<actor>.log` and, once that is full, one older `<actor>.log.1`."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

__all__ = ["LogFile", "follow_logs", "last_lines", "log_file", "log_names"]

MAX_BYTES = 8 * 2**20
_MAX_LINE = 16 * 1024
_FOLLOW_INTERVAL = 0.2


def log_file(folder: Path, name: str) -> Path:
    """Return where the log of the actor `name` is."""
    return folder / f"{name}.log"


def log_names(folder: Path) -> list[str]:
    """Return the actors that have a log file, sorted."""
    return sorted(file.name.removesuffix(".log") for file in folder.glob("*.log"))


class LogFile:
    """Appends lines; never grows over twice `max_bytes` on disk. A full disk loses lines, never the writer."""

    def __init__(self, folder: Path, name: str, max_bytes: int = MAX_BYTES) -> None:
        self._path = log_file(folder, name)
        self._max_bytes = max_bytes
        self._handle = self._open()
        self._size = self._path.stat().st_size

    def write(self, line: bytes) -> None:
        """Append one line; a line feed is added where it is missing, an endless line is cut."""
        line = line[:_MAX_LINE].rstrip(b"\r\n") + b"\n"
        try:
            if self._size + len(line) > self._max_bytes:
                self._rotate()
            self._size += os.write(self._handle, line)
        except OSError:
            # Logs are worth less than the actor that would block on them.
            return

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _rotate(self) -> None:
        self._path.replace(self._path.with_suffix(".log.1"))
        os.close(self._handle)
        self._handle = self._open()
        self._size = 0


def last_lines(folder: Path, name: str, num_lines: int) -> list[str]:
    """Return the last lines of an actor's log, the older file included."""
    lines: collections.deque[str] = collections.deque(maxlen=num_lines)
    current = log_file(folder, name)
    for file in (current.with_suffix(".log.1"), current):
        if file.exists():
            with file.open(encoding="utf-8", errors="replace") as stream:
                lines.extend(line.rstrip("\n") for line in stream)
    return list(lines)


def follow_logs(folder: Path, names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (actor, line) as lines are written from now on, for ever; follows a file that is rotated."""
    streams = {name: _open_at_end(log_file(folder, name)) for name in names}
    while True:
        is_idle = True
        for name, stream in streams.items():
            if stream is None:
                streams[name] = _open_at_end(log_file(folder, name))
                continue
            while line := stream.readline():
                is_idle = False
                yield name, line.rstrip("\n")
            if _was_rotated(stream, log_file(folder, name)):
                stream.close()
                streams[name] = log_file(folder, name).open(encoding="utf-8", errors="replace")
        if is_idle:
            time.sleep(_FOLLOW_INTERVAL)


def _open_at_end(file: Path) -> TextIO | None:
    if not file.exists():
        return None
    stream = file.open(encoding="utf-8", errors="replace")
    stream.seek(0, os.SEEK_END)
    return stream


def _was_rotated(stream: TextIO, file: Path) -> bool:
    try:
        return os.fstat(stream.fileno()).st_ino != file.stat().st_ino
    except FileNotFoundError:
        return False
