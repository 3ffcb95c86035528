"""`read_trace`: one door for all formats; the format is found in the content, whatever the file is called."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from sage_simulator.mistakes import FileMistake
from sage_simulator.text_files import Limits, first_line
from sage_simulator.traces import azure, burstgpt, mooncake, ragpulse, servegen
from sage_simulator.traces.csv_table import header_names
from sage_simulator.traces.trace import Trace

__all__ = ["TraceFormat", "TraceOptions", "detect_format", "read_trace", "trace_file"]


class TraceFormat(enum.StrEnum):
    """The formats that are read."""

    AZURE = "azure"
    BURSTGPT = "burstgpt"
    MOONCAKE = "mooncake"
    RAGPULSE = "ragpulse"
    PIECES = "ragpulse-pieces"
    SERVEGEN = "servegen"


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """How a trace is read. `block_tokens` 0: the format's own; `rerank` and `servegen` concern these formats alone."""

    limits: Limits = field(default_factory=Limits)
    block_tokens: int = 0
    rerank: bool = True
    servegen: servegen.ServegenOptions = field(default_factory=servegen.ServegenOptions)


_ACCEPTED: Final = (
    "CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens (azure), Timestamp, Request tokens, "
    "Response tokens (burstgpt) or client_id, window_start_s, rate_rps, pattern, param1, param2 (servegen), or JSON "
    "lines with timestamp, input_length, output_length (mooncake; ragpulse where hash_ids is an object)"
)
_CSV: Final = {
    TraceFormat.AZURE: azure.COLUMNS,
    TraceFormat.BURSTGPT: burstgpt.COLUMNS,
    TraceFormat.SERVEGEN: servegen.COLUMNS,
}


def read_trace(
    path: Path | str, options: TraceOptions | None = None, *, format: TraceFormat | str | None = None
) -> Trace:
    """Read a trace file, plain or gzipped, or the folder that holds one. `format` None: found in the content.

    Raises FileMistake (exit status 2): one line that names file, line, field, what was found and what is accepted.
    """
    options = options or TraceOptions()
    file = trace_file(path)
    kind = TraceFormat(format) if format is not None else detect_format(file, options.limits)
    match kind:
        case TraceFormat.AZURE:
            return azure.read_azure(file, options.limits)
        case TraceFormat.BURSTGPT:
            return burstgpt.read_burstgpt(file, options.limits)
        case TraceFormat.MOONCAKE:
            tokens = options.block_tokens or mooncake.BLOCK_TOKENS
            return mooncake.read_mooncake(file, options.limits, block_tokens=tokens)
        case TraceFormat.RAGPULSE:
            tokens = options.block_tokens or ragpulse.BLOCK_TOKENS
            return ragpulse.read_ragpulse(file, options.limits, block_tokens=tokens, rerank=options.rerank)
        case TraceFormat.PIECES:
            return ragpulse.read_pieces(file, options.limits)
        case TraceFormat.SERVEGEN:
            return servegen.read_servegen(file, options.limits, options.servegen)


def detect_format(file: Path, limits: Limits) -> TraceFormat:
    """Return the format of a file by its first line. Raises FileMistake naming what is accepted."""
    number, line = first_line(file, limits)
    if line.lstrip().startswith(("{", "[")):
        return _json_format(file, number, line)
    names = header_names(line)
    for kind, columns in _CSV.items():
        if header_names(",".join(columns)) <= names:
            return kind
    raise FileMistake(file, number, f"the header is {line.strip()[:80]!r}; expected {_ACCEPTED}")


def _json_format(file: Path, number: int, line: str) -> TraceFormat:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise FileMistake(file, number, f"the line is not JSON: {error}; expected {_ACCEPTED}") from None
    if isinstance(row, dict):
        if "token_length" in row:
            return TraceFormat.PIECES
        if row.keys() & {"input_length", "output_length", "hash_ids"}:
            return TraceFormat.RAGPULSE if isinstance(row.get("hash_ids"), dict) else TraceFormat.MOONCAKE
    raise FileMistake(file, number, f"the line is {line.strip()[:80]!r}; expected {_ACCEPTED}")


def trace_file(path: Path | str) -> Path:
    """Return the trace file at `path`, which may be a folder that holds one. Raises FileMistake."""
    path = Path(path)
    if path.is_file():
        name = path.name.removesuffix(".gz")
        if name.endswith(servegen.LENGTHS):
            return _beside(path, name.removesuffix(servegen.LENGTHS) + servegen.ARRIVALS)
        return path
    if not path.is_dir():
        raise FileMistake(path, 0, "does not exist; expected a trace file or a folder with one")
    pieces = {name for name, _ in ragpulse.LENGTH_FILES.values()}
    found = sorted(
        file
        for file in path.iterdir()
        if file.name.removesuffix(".gz").endswith((".csv", ".jsonl"))
        and not file.name.removesuffix(".gz").endswith(servegen.LENGTHS)
        and file.name.removesuffix(".gz") not in pieces
    )
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise FileMistake(
            path, 0, f"the folder has {len(found)} traces ({names}); expected one, or a file's name"
        )
    return found[0]


def _beside(path: Path, name: str) -> Path:
    for file in (path.parent / name, path.parent / f"{name}.gz"):
        if file.is_file():
            return file
    raise FileMistake(path, 0, f"{name} (or {name}.gz) is not beside it; expected the clients' arrivals")
