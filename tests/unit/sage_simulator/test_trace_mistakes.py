"""Whatever a file holds, it is read or refused with one line that names file, line, field and what is accepted."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_core import ConfigurationError
from sage_simulator import FileMistake, Limits, Trace, TraceOptions, read_trace
from simulator_files import AZURE, BURST, MOONCAKE, rag_folder, servegen_folder, write


def refused(path: Path, options: TraceOptions | None = None) -> FileMistake:
    with pytest.raises(FileMistake) as caught:
        read_trace(path, options)
    assert len(caught.value.message.splitlines()) == 1
    assert caught.value.message.isprintable()
    assert isinstance(caught.value, ConfigurationError)
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (AZURE.replace("3180", "many"), 3, ["ContextTokens", "'many'", "whole number from 0 to"]),
        (AZURE.replace("3180", "-1"), 3, ["ContextTokens", "'-1'"]),
        (AZURE.replace("3180", "1.5"), 3, ["ContextTokens", "'1.5'"]),
        (AZURE.replace("3180", ""), 3, ["ContextTokens", "''"]),
        (AZURE.replace(",8\n", "\n"), 3, ["GeneratedTokens", "missing"]),
        (
            AZURE.replace("\n2023-11-16 18:17:04.0319600", "\n\n16.11.2023"),
            4,
            ["TIMESTAMP", "'16.11.2023'", "2023-"],
        ),
        (AZURE.replace("18:17:05.0000000", "18:77:05"), 4, ["TIMESTAMP", "18:77:05"]),
        (AZURE.replace("ContextTokens", "Context"), 1, ["header", "ContextTokens", "burstgpt", "mooncake"]),
        ("", 0, ["empty"]),
        ("\n \n", 0, ["empty"]),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", 1, ["no row"]),
        (BURST.replace("1087", "nan"), 3, ["Request tokens", "'nan'"]),
        (BURST.replace("45,", "inf,"), 3, ["Timestamp", "'inf'", "number from 0"]),
        (BURST.replace("18,490", "99999999999999999999,490"), 2, ["Response tokens"]),
        (MOONCAKE.replace("600", '"x"'), 2, ["input_length", "'x'", "whole number"]),
        (MOONCAKE.replace('"output_length": 7, ', ""), 2, ["output_length", "missing"]),
        (MOONCAKE.replace("[0, 9]", "[0, -9]"), 2, ["hash_ids", "list"]),
        (MOONCAKE.replace("[0, 9]", '"09"'), 2, ["hash_ids", "list"]),
        (MOONCAKE + "[1]\n", 3, ["the line", "object"]),
        (MOONCAKE + "{not json\n", 3, ["not JSON"]),
        ('{"a": 1}\n', 1, ["mooncake", "ragpulse"]),
        ("\x00\x01\x02", 1, ["header"]),
        ("TIMESTAMP".encode("utf-16"), 1, ["UTF-16", "UTF-8"]),
        ('{"timestamp": 1, "input_length": 0, "output_length": 3}\n', 0, ["at least one request"]),
    ],
)
def test_a_mistake_is_named_with_its_line(
    text: str | bytes, line: int, words: list[str], tmp_path: Path
) -> None:
    error = refused(write(tmp_path / "file", text))
    assert error.line == line, error.message
    assert error.message.startswith(f"{tmp_path / 'file'}{f', line {line}' if line else ''}: ")
    for word in words:
        assert word in error.message


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing").message
    assert "0 traces (none)" in refused(tmp_path).message
    (tmp_path / "a.csv").write_text(AZURE)
    (tmp_path / "b.csv").write_text(AZURE)
    assert "2 traces (a.csv, b.csv)" in refused(tmp_path).message
    cut = gzip.compress(MOONCAKE.encode() * 100)[:60]
    assert "cannot be read" in refused(write(tmp_path / "cut.gz", cut)).message


def test_limits_of_size_hold_also_inside_gzip(tmp_path: Path) -> None:
    bomb = write(tmp_path / "bomb.gz", gzip.compress(MOONCAKE.encode() * 1000))
    assert "more than 10000 bytes" in refused(bomb, TraceOptions(limits=Limits(max_bytes=10_000))).message
    assert "more than 5 rows" in refused(bomb, TraceOptions(limits=Limits(max_rows=5))).message
    assert "longer than 20 bytes" in refused(bomb, TraceOptions(limits=Limits(max_line_bytes=20))).message
    csv = write(tmp_path / "a.csv", AZURE)
    assert "more than 2 rows" in refused(csv, TraceOptions(limits=Limits(max_rows=2))).message


def test_rag_files_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    folder = rag_folder(tmp_path / "rag")
    trace = (folder / "0_trace.jsonl").read_text()
    write(folder / "0_trace.jsonl", trace.replace('"history": [7]', '"history": [8]', 1))
    error = refused(folder)
    assert error.line == 1
    assert "hash_ids.history names 8; expected an id of 3_history.jsonl" in error.message
    write(folder / "0_trace.jsonl", trace.replace('"20"', '"twenty"'))
    assert "timestamp is 'twenty'; expected a number" in refused(folder).message
    write(folder / "0_trace.jsonl", trace)
    (folder / "3_history.jsonl").write_text('{"history_id": 7}\n')
    assert "3_history.jsonl, line 1: token_length is missing" in refused(folder).message
    (folder / "3_history.jsonl").unlink()
    assert "3_history.jsonl (or 3_history.jsonl.gz) is not beside it" in refused(folder).message


def test_servegen_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = servegen_folder(tmp_path / "s")
    arrivals = (folder / "pool.arrivals.csv").read_text()
    write(folder / "pool.arrivals.csv", arrivals.replace("Gamma", "Pareto"))
    error = refused(folder)
    assert error.line == 2
    assert "pattern is 'Pareto'; expected one of Gamma, Weibull" in error.message
    write(folder / "pool.arrivals.csv", arrivals)
    lengths = (folder / "pool.lengths.jsonl").read_text()
    write(folder / "pool.lengths.jsonl", lengths.replace("[0.0, ", "[", 1))
    assert "input_tokens.q is 22 numbers; expected" in refused(folder).message
    (folder / "pool.lengths.jsonl").unlink()
    assert "pool.lengths.jsonl (or pool.lengths.jsonl.gz) is not beside it" in refused(folder).message


KEPT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refused(path: Path) -> Trace | None:
    """Return the trace; None where it was refused in one printable line. Anything else that is raised passes."""
    try:
        return read_trace(path)
    except FileMistake as error:
        if len(error.message.splitlines()) != 1 or not error.message.isprintable():
            raise AssertionError(repr(error.message)) from error
        return None


@KEPT
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_in_one_line(data: bytes, tmp_path: Path) -> None:
    read_or_refused(write(tmp_path / "any", data))


@KEPT
@given(
    text=st.sampled_from([AZURE, MOONCAKE, BURST]),
    place=st.integers(0, 400),
    cut=st.integers(0, 30),
    inserted=st.one_of(
        st.text(max_size=8), st.sampled_from(['"', "\r", "1e999", "[" * 2000, "\x00", "9" * 5000])
    ),
    is_packed=st.booleans(),
)
def test_a_damaged_trace_is_read_or_refused_in_one_line(
    text: str, place: int, cut: int, inserted: str, is_packed: bool, tmp_path: Path
) -> None:
    damaged = (text[:place] + inserted + text[place + cut :]).encode("utf-8", "surrogatepass")
    trace = read_or_refused(write(tmp_path / "damaged", gzip.compress(damaged) if is_packed else damaged))
    if trace is not None:
        assert len(trace) > 0
        assert (trace.arrival[1:] >= trace.arrival[:-1]).all()


@KEPT
@given(
    place=st.integers(0, 300), cut=st.integers(0, 30), inserted=st.text(max_size=8), which=st.integers(0, 3)
)
def test_damaged_rag_and_servegen_files_are_read_or_refused_in_one_line(
    place: int, cut: int, inserted: str, which: int, tmp_path: Path
) -> None:
    folder = rag_folder(tmp_path / "rag") if which < 2 else servegen_folder(tmp_path / "s")
    name = ("0_trace.jsonl", "2_passages.jsonl", "pool.arrivals.csv", "pool.lengths.jsonl")[which]
    text = (folder / name).read_text()
    (folder / name).write_bytes(
        (text[:place] + inserted + text[place + cut :]).encode("utf-8", "surrogatepass")
    )
    read_or_refused(folder)
