"""Reading what people give us: gzip or plain, UTF-8 with or without BOM, any line ends, under limits of size."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast

from sage_simulator.mistakes import FileMistake

__all__ = ["Limits", "first_line", "read_bytes_lines", "read_text_lines"]

_GZIP_MAGIC: Final = b"\x1f\x8b"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a file is read before it is refused; bytes are counted after decompression.

    `head` stops after that many rows instead of refusing the rest; 0: never.
    """

    max_bytes: int = 4 * 2**30
    max_rows: int = 20_000_000
    max_line_bytes: int = 2**20
    head: int = 0

    def check_rows(self, file: Path, line: int, num_rows: int) -> None:
        """Raise FileMistake where `num_rows` are more than may be read."""
        if num_rows > self.max_rows:
            problem = f"more than {self.max_rows} rows; read a part of it (--head), or split the file"
            raise FileMistake(file, line, problem)


def read_bytes_lines(file: Path, limits: Limits) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) of every line that is not blank, without a BOM. Raises FileMistake."""
    number = num_bytes = 0
    with _opened(file) as stream:
        while True:
            number += 1
            try:
                line = stream.readline(limits.max_line_bytes + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise FileMistake(file, number, f"cannot be read: {error}") from None
            if not line:
                return
            num_bytes += len(line)
            _check_size(file, number, len(line), num_bytes, limits)
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.isspace() and line:
                yield number, line


def read_text_lines(file: Path, limits: Limits) -> Iterator[str]:
    """Yield every line as text with its end, blank ones too, as `csv.reader` wants them. Raises FileMistake.

    Bytes that are no UTF-8 become lone surrogates: they matter only where a value is made of them.
    """
    num_bytes = number = 0
    with _opened(file) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        while True:
            number += 1
            try:
                line = stream.readline(limits.max_line_bytes + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise FileMistake(file, number, f"cannot be read: {error}") from None
            if not line:
                return
            num_bytes += len(line)
            _check_size(file, number, len(line), num_bytes, limits)
            yield line


def first_line(file: Path, limits: Limits) -> tuple[int, str]:
    """Return the first line that is not blank, and its number. Raises FileMistake for an empty file."""
    for number, line in enumerate(read_text_lines(file, limits), start=1):
        if line.strip():
            return number, line
    raise FileMistake(file, 0, "the file is empty; expected a trace")


def _opened(file: Path) -> BinaryIO:
    """Open `file`, decompressing gzip whatever its name is."""
    try:
        stream = file.open("rb")
    except OSError as error:
        raise FileMistake(file, 0, f"cannot be read: {error.strerror or error}") from None
    try:
        magic = stream.read(3)
        stream.seek(0)
    except OSError as error:
        stream.close()
        raise FileMistake(file, 0, f"cannot be read: {error.strerror or error}") from None
    if magic[:2] in _UTF16_MARKS:
        stream.close()
        raise FileMistake(file, 1, "the file is UTF-16; expected UTF-8")
    if magic[:2] == _GZIP_MAGIC:
        return cast(BinaryIO, io.BufferedReader(_Unzipped(stream), 2**16))
    return stream


class _Unzipped(gzip.GzipFile):
    """A gzip stream that closes the file below it."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._below = stream

    def close(self) -> None:
        """Close both."""
        try:
            super().close()
        finally:
            self._below.close()


def _check_size(file: Path, number: int, line_bytes: int, num_bytes: int, limits: Limits) -> None:
    if line_bytes > limits.max_line_bytes:
        raise FileMistake(file, number, f"the line is longer than {limits.max_line_bytes} bytes")
    if num_bytes > limits.max_bytes:
        raise FileMistake(file, number, f"the file holds more than {limits.max_bytes} bytes")
