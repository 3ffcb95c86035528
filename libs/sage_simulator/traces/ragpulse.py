"""RAGPulse: a week of a RAG service; every request is a run embed → retrieve → rerank → generate.

https://github.com/flashserve/RAGPulse: `0_trace.jsonl` names the pieces of each prompt, the files 1 to 5 beside it give
their lengths. A file of lengths alone is read as well, as an offline job that embeds each piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from sage_simulator.mistakes import FileMistake
from sage_simulator.text_files import Limits
from sage_simulator.traces.assemble import session_numbers, sorted_by_arrival, trace_name
from sage_simulator.traces.jsonl_rows import MAX_ID, id_list, read_rows
from sage_simulator.traces.piece_blocks import Pieces, chained_blocks
from sage_simulator.traces.trace import EMBED, LLM, MAX_TOKENS, RERANK, RETRIEVE, Labels, Stages, Trace
from sage_simulator.values import Rule, number, whole_number

__all__ = ["BLOCK_TOKENS", "LENGTH_FILES", "read_pieces", "read_ragpulse"]

BLOCK_TOKENS: Final = 64
"""Prompts are made of pieces of up to 512 tokens of any length: larger blocks would hide most of what they share."""

LENGTH_FILES: Final = {
    "sys_prompt": ("1_sys_prompt.jsonl", "sys_prompt_id"),
    "history": ("3_history.jsonl", "history_id"),
    "passages_ids": ("2_passages.jsonl", "passage_id"),
    "web_search": ("5_web_search.jsonl", "web_search_id"),
    "user_input": ("4_user_input.jsonl", "user_input_id"),
}
"""Kind of piece → (file of lengths, field of the id), in the order in which the prompt holds them."""

_MAX_SECONDS: Final = 1e11
_Id = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]
_Ids = Annotated[list[_Id], msgspec.Meta(max_length=4096)]
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _Prompt(msgspec.Struct):
    sys_prompt: _Ids = []
    passages_ids: _Ids = []
    history: _Ids = []
    web_search: _Ids = []
    user_input: _Ids = []

    def kinds(self) -> Iterator[tuple[str, list[int]]]:
        """Yield the kinds of pieces in the order of the prompt, with their ids."""
        for kind in LENGTH_FILES:
            yield kind, getattr(self, kind)


class _Row(msgspec.Struct):
    timestamp: float | str
    input_length: _Tokens
    output_length: _Tokens
    hash_ids: _Prompt
    session_id: str = ""


class _Piece(msgspec.Struct):
    token_length: _Tokens
    sys_prompt_id: _Id = -1
    passage_id: _Id = -1
    history_id: _Id = -1
    user_input_id: _Id = -1
    web_search_id: _Id = -1


def _prompt(value: object) -> _Prompt:
    if not isinstance(value, dict):
        raise ValueError(value)
    ids = id_list(4096)
    return _Prompt(**{kind: ids.parse(value.get(kind, [])) for kind in LENGTH_FILES})


def _session(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


_TIMESTAMP: Final = number(0, _MAX_SECONDS)
_LENGTH: Final = whole_number(0, MAX_TOKENS)
_RULES: Final[dict[str, Rule[Any]]] = {
    "timestamp": _TIMESTAMP,
    "input_length": _LENGTH,
    "output_length": _LENGTH,
    "hash_ids": Rule(_prompt, f"an object with lists of ids: {', '.join(LENGTH_FILES)}"),
    "session_id": Rule(_session, "text"),
}


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Tokens of each piece, by kind and id, with the file that says so."""

    files: dict[str, Path]
    tokens: dict[str, dict[int, int]]

    def of(self, trace: Path, line: int, kind: str, piece: int) -> int:
        """Return the tokens of a piece that line `line` of `trace` names. Raises FileMistake for an unknown one."""
        try:
            return self.tokens[kind][piece]
        except KeyError:
            raise FileMistake(
                trace,
                line,
                f"hash_ids.{kind} names {piece}; expected an id of {self.files[kind].name}",
                param=kind,
            ) from None


def read_ragpulse(
    file: Path, limits: Limits, *, block_tokens: int = BLOCK_TOKENS, rerank: bool = True
) -> Trace:
    """Read `0_trace.jsonl` and the lengths beside it. Raises FileMistake.

    Stages: embed(question) → retrieve → rerank(passages with the question) → generate. A run that retrieved nothing has
    no rerank stage. The prompt is taken to hold system prompt, history, passages, web pages, question, in that order.
    """
    lengths = _read_lengths(file, limits)
    rows = list(read_rows(file, _Row, _RULES, limits))
    arrival = np.fromiter((_arrival(file, line, row) for line, row in rows), np.float64, len(rows))
    builder = _StageBuilder(block_tokens)
    for line, row in rows:
        _add_run(builder, file, line, row, lengths, has_rerank=rerank)
    prompt = np.array([row.input_length for _, row in rows], np.int64)
    output = np.array([row.output_length for _, row in rows], np.int64)
    trace = Trace(
        name=file.resolve().parent.name or trace_name(file),
        arrival=arrival,
        span=0.0,
        tenant=Labels.same("default", len(rows)),
        route=Labels.same("rag", len(rows)),
        session=session_numbers([row.session_id for _, row in rows], len(rows)),
        stage_start=np.array(builder.run_start, np.int64),
        stages=builder.stages(),
    )
    return sorted_by_arrival(file, trace, (prompt > 0) & (output > 0))


def read_pieces(file: Path, limits: Limits) -> Trace:
    """Read a file of lengths as an offline job: one embedding request per piece, all at time 0. Raises FileMistake."""
    rows = [row for _, row in read_rows(file, _Piece, {"token_length": _LENGTH}, limits)]
    tokens = np.array([row.token_length for row in rows], np.int64)
    stages = Stages(
        pool=np.zeros(len(rows), np.uint32),
        pools=(EMBED,),
        prompt_tokens=tokens.astype(np.uint32),
        output_tokens=np.zeros(len(rows), np.uint32),
        items=np.ones(len(rows), np.uint32),
        block_start=np.zeros(len(rows) + 1, np.int64),
        blocks=np.empty(0, np.uint64),
    )
    trace = Trace(
        name=trace_name(file),
        arrival=np.zeros(len(rows)),
        span=0.0,
        tenant=Labels.same("default", len(rows)),
        route=Labels.same("offline", len(rows)),
        session=np.arange(len(rows), dtype=np.int64),
        stage_start=np.arange(len(rows) + 1, dtype=np.int64),
        stages=stages,
    )
    return sorted_by_arrival(file, trace, tokens > 0)


class _StageBuilder:
    """Stages in lists while their number is unknown."""

    POOLS: Final = (EMBED, RETRIEVE, RERANK, LLM)

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._rows: list[tuple[int, int, int, int]] = []
        self._blocks: list[int] = []
        self._block_start = [0]
        self.run_start = [0]

    def add(self, pool: str, prompt: int, output: int = 0, items: int = 1, pieces: Pieces = ()) -> None:
        """Append a stage of the run at hand."""
        self._rows.append((self.POOLS.index(pool), prompt, output, items))
        self._blocks += chained_blocks(pieces, self._block_tokens, prompt)
        self._block_start.append(len(self._blocks))

    def end_run(self) -> None:
        """Close the run at hand."""
        self.run_start.append(len(self._rows))

    def stages(self) -> Stages:
        """Return all stages."""
        columns: npt.NDArray[np.uint32] = np.array(self._rows, np.uint32).reshape(-1, 4)
        return Stages(
            pool=columns[:, 0].copy(),
            pools=self.POOLS,
            prompt_tokens=columns[:, 1].copy(),
            output_tokens=columns[:, 2].copy(),
            items=columns[:, 3].copy(),
            block_start=np.array(self._block_start, np.int64),
            blocks=np.array(self._blocks, np.uint64),
            block_tokens=self._block_tokens,
        )


def _add_run(
    builder: _StageBuilder, file: Path, line: int, row: _Row, lengths: _Lengths, *, has_rerank: bool
) -> None:
    pieces: list[tuple[int, int]] = []
    passages: list[int] = []
    question = 0
    for place, (kind, ids) in enumerate(row.hash_ids.kinds()):
        for piece in ids:
            tokens = lengths.of(file, line, kind, piece)
            # Ids are unique within a kind only.
            pieces.append((piece * len(LENGTH_FILES) + place, tokens))
            if kind == "passages_ids":
                passages.append(tokens)
            elif kind == "user_input":
                question += tokens
    question = max(1, question)
    builder.add(EMBED, question)
    builder.add(RETRIEVE, question)
    if passages and has_rerank:
        builder.add(RERANK, sum(passages) + question * len(passages), items=len(passages))
    builder.add(LLM, row.input_length, row.output_length, pieces=pieces)
    builder.end_run()


def _arrival(file: Path, line: int, row: _Row) -> float:
    try:
        return _TIMESTAMP.parse(row.timestamp)
    except ValueError:
        raise FileMistake(
            file, line, f"timestamp is {row.timestamp!r}; expected {_TIMESTAMP.accepted}", param="timestamp"
        ) from None


def _read_lengths(trace: Path, limits: Limits) -> _Lengths:
    whole = Limits(limits.max_bytes, limits.max_rows, limits.max_line_bytes)
    files, tokens = {}, {}
    for kind, (name, field) in LENGTH_FILES.items():
        file = next(
            (path for path in (trace.parent / name, trace.parent / f"{name}.gz") if path.is_file()), None
        )
        if file is None:
            raise FileMistake(
                trace, 0, f"{name} (or {name}.gz) is not beside it; expected the lengths of its {kind}"
            )
        rules = {"token_length": _LENGTH, field: whole_number(0, MAX_ID)}
        found: dict[int, int] = {}
        for line, row in read_rows(file, _Piece, rules, whole):
            piece = getattr(row, field)
            if piece < 0:
                raise FileMistake(
                    file, line, f"{field} is missing; expected {rules[field].accepted}", param=field
                )
            found[piece] = row.token_length
        files[kind], tokens[kind] = file, found
    return _Lengths(files, tokens)
