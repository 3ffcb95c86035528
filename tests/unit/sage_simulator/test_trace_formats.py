"""What the adapters read, and what users' own copies of the same formats may look like."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_simulator import Limits, ServegenOptions, TraceFormat, TraceOptions, read_trace
from sage_simulator.traces.piece_blocks import chained_blocks
from simulator_files import AZURE, BURST, MOONCAKE, rag_folder, servegen_folder, write


def test_azure_times_are_seconds_since_the_first_request(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "a.csv", AZURE))
    assert trace.arrival == pytest.approx([0, 0.052, 1.02004])
    assert trace.stages.prompt_tokens.tolist() == [4808, 3180, 110]
    assert trace.stages.output_tokens.tolist() == [10, 8, 27]
    assert trace.name == "a"
    assert not trace.has_prefixes


@pytest.mark.parametrize(
    "times",
    [
        ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:01.009930+00:00"),
        ("2024-05-10 00:00:00+00:00", "2024-05-10 00:00:01+00:00"),
        ("2024-05-10T02:00:00.5+02:00", "2024-05-10T00:00:01.5Z"),
        ("2024-05-10 00:00:00", "2024-05-10 00:00:01"),
    ],
)
def test_azure_times_of_later_releases_are_read(times: tuple[str, str], tmp_path: Path) -> None:
    rows = "".join(f"{time},10,20\n" for time in times)
    trace = read_trace(write(tmp_path / "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows))
    assert trace.arrival == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.csv", AZURE), ("m.jsonl", MOONCAKE), ("b.csv", BURST)],
    ids=["azure", "mooncake", "burst"],
)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\n\n") + "\n\n",
        lambda text: text.rstrip("\n"),
        lambda text: gzip.compress(text.encode()),
        lambda text: gzip.compress(("\ufeff" + text.replace("\n", "\r\n")).encode()),
    ],
    ids=["windows", "bom", "blank lines", "no last end", "gzip", "gzip windows bom"],
)
def test_other_line_ends_and_packing_change_nothing(name: str, text: str, change, tmp_path: Path) -> None:
    plain = read_trace(write(tmp_path / name, text))
    other = read_trace(write(tmp_path / "other", change(text)))
    assert other.arrival.tolist() == plain.arrival.tolist()
    assert other.stages.prompt_tokens.tolist() == plain.stages.prompt_tokens.tolist()
    assert other.stages.blocks.tolist() == plain.stages.blocks.tolist()


def test_rows_out_of_order_are_sorted_and_ties_keep_their_order(tmp_path: Path) -> None:
    rows = [(9, 1), (3, 2), (9, 3), (3, 4)]
    text = "Timestamp,Request tokens,Response tokens\n" + "".join(f"{time},{n},1\n" for time, n in rows)
    trace = read_trace(write(tmp_path / "b.csv", text))
    assert trace.arrival.tolist() == [0, 0, 6, 6]
    assert trace.stages.prompt_tokens.tolist() == [2, 4, 1, 3]


def test_burstgpt_is_read_by_column_name_with_its_sessions(tmp_path: Path) -> None:
    text = (
        "Session ID;Response tokens;Timestamp;Elapsed time;Request tokens;Log Type\n"
        "s1;5;2.5;;10;Conversation log\n;0;1;;10;API log\ns1;6;4;;20.0;Conversation log\n;7;5;;30;API log\n"
    )
    trace = read_trace(write(tmp_path / "b.csv", text))
    assert trace.num_left_out == 1  # a failed request
    assert trace.arrival.tolist() == [0, 1.5, 2.5]
    assert trace.stages.prompt_tokens.tolist() == [10, 20, 30]
    assert trace.session[0] == trace.session[1] != trace.session[2]
    assert [trace.route.names[code] for code in trace.route.code] == [
        "/Conversation log", "/Conversation log", "/API log",
    ]  # fmt: skip


def test_mooncake_blocks_are_those_of_the_prompt(tmp_path: Path) -> None:
    trace = read_trace(write(tmp_path / "m.jsonl", MOONCAKE))
    assert trace.arrival.tolist() == [0, 3]
    assert trace.stages.block_tokens == 512
    assert trace.stages.block_start.tolist() == [0, 3, 5]
    assert trace.stages.blocks.tolist() == [0, 1, 2, 0, 9]
    coarse = read_trace(tmp_path / "m.jsonl", TraceOptions(block_tokens=600))
    assert coarse.stages.blocks.tolist() == [0, 1, 0]


def test_mooncake_without_hash_ids_has_no_prefixes(tmp_path: Path) -> None:
    rows = '{"timestamp": "1.5", "input_length": 3, "output_length": 4, "more": {}}\n' * 2
    trace = read_trace(write(tmp_path / "m.jsonl", rows))
    assert len(trace) == 2
    assert not trace.has_prefixes


def test_a_rag_request_is_a_run_of_embed_retrieve_rerank_and_generate(tmp_path: Path) -> None:
    trace = read_trace(rag_folder(tmp_path / "rag"))
    stages = trace.stages
    assert trace.name == "rag"
    assert trace.arrival.tolist() == [0, 15]
    assert trace.stage_start.tolist() == [0, 3, 7]
    assert [stages.pools[pool] for pool in stages.pool] == [
        "embed", "retrieve", "llm", "embed", "retrieve", "rerank", "llm",
    ]  # fmt: skip
    assert stages.prompt_tokens.tolist() == [6, 6, 140, 6, 6, 100 + 50 + 2 * 6, 310]
    assert stages.items.tolist() == [1, 1, 1, 1, 1, 2, 1]
    assert stages.output_tokens.tolist() == [0, 0, 9, 0, 0, 0, 9]
    first, second = (
        stages.blocks[stages.block_start[i] : stages.block_start[i + 1]].tolist() for i in (2, 6)
    )
    assert len(first) == 140 // 64
    assert len(second) == 310 // 64
    assert first[:2] == second[:2]  # system prompt and history

    without = read_trace(tmp_path / "rag" / "0_trace.jsonl", TraceOptions(rerank=False))
    assert without.stage_start.tolist() == [0, 3, 6]


def test_a_file_of_lengths_is_an_offline_embedding_job(tmp_path: Path) -> None:
    trace = read_trace(rag_folder(tmp_path / "rag") / "2_passages.jsonl")
    assert trace.stages.pools == ("embed",)
    assert trace.stages.prompt_tokens.tolist() == [100, 50]
    assert trace.span == 0


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=6),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=6),
    st.integers(1, 7),
)
def test_block_ids_are_equal_exactly_where_all_tokens_before_are(
    first: list[tuple[int, int]], second: list[tuple[int, int]], block: int
) -> None:
    def tokens(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(piece, place) for piece, length in pieces for place in range(length)]

    ids = [chained_blocks(pieces, block, len(tokens(pieces))) for pieces in (first, second)]
    words = [tokens(first), tokens(second)]
    assert [len(found) for found in ids] == [len(found) // block for found in words]
    for number, (left, right) in enumerate(zip(*ids, strict=False)):
        same = words[0][: (number + 1) * block] == words[1][: (number + 1) * block]
        assert (left == right) == same


@pytest.mark.parametrize("pattern", ["Gamma", "Weibull"])
def test_servegen_arrivals_have_the_stated_rate_and_one_tenant_per_client(
    pattern: str, tmp_path: Path
) -> None:
    folder = servegen_folder(tmp_path / "s", pattern=pattern)
    trace = read_trace(folder, TraceOptions(servegen=ServegenOptions(600, 2400, seed=5)))
    assert trace.name == "pool"
    assert trace.tenant.names == ("client-3", "client-8")
    assert trace.rate == pytest.approx(4.0, rel=0.05)
    assert np.bincount(trace.tenant.code) / len(trace) == pytest.approx([0.5, 0.5], abs=0.05)
    assert set(trace.stages.output_tokens.tolist()) == {5}
    assert np.median(trace.stages.prompt_tokens) == pytest.approx(110, abs=8)
    assert trace.arrival[-1] <= 2400


def test_servegen_is_the_same_for_one_seed_and_another_for_another(tmp_path: Path) -> None:
    folder = servegen_folder(tmp_path / "s")
    traces = [
        read_trace(folder / name, TraceOptions(servegen=ServegenOptions(seed=seed)))
        for name, seed in (("pool.arrivals.csv", 1), ("pool.lengths.jsonl", 1), ("pool.arrivals.csv", 2))
    ]
    assert traces[0].arrival.tolist() == traces[1].arrival.tolist()
    assert traces[0].arrival.tolist() != traces[2].arrival.tolist()


def test_a_format_can_be_forced_and_rows_be_limited(tmp_path: Path) -> None:
    file = write(tmp_path / "b.csv", BURST)
    assert len(read_trace(file, format="burstgpt")) == 3
    assert len(read_trace(file, TraceOptions(limits=Limits(head=2)), format=TraceFormat.BURSTGPT)) == 2
    assert len(read_trace(write(tmp_path / "m", MOONCAKE), TraceOptions(limits=Limits(head=1)))) == 1


def test_a_hundred_thousand_rows_are_read_in_chunks(tmp_path: Path) -> None:
    rows = "".join(f"{number},1,2\n" for number in range(100_000))
    trace = read_trace(write(tmp_path / "b.csv", "Timestamp,Request tokens,Response tokens\n" + rows))
    assert len(trace) == 100_000
    assert trace.rate == pytest.approx(1.0)
