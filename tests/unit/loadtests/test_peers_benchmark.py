"""The benchmark's arithmetic: medians, verdicts, foreign work, the parts of a request's way, what a page says."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(__file__).parents[3] / "loadtests" / "peers"


@pytest.fixture(scope="module", autouse=True)
def _scripts():
    """The benchmark's files are scripts that import each other by name."""
    sys.path.insert(0, str(FOLDER))
    importlib.import_module("run")  # all of them, once: the first example of a property must not pay for it
    yield
    sys.path.remove(str(FOLDER))


def make_run(system="sage-core", workload="chat16-c64", **more):
    from measuring import Percentiles, Run, Seen

    def percentiles(value):
        return None if value is None else Percentiles(10, value, value, value, 3 * value, 4 * value)

    rate, tokens = more.pop("requests_per_s", 100.0), more.pop("tokens_per_s", 0.0)
    seen = Seen(
        good=100, all=120, failed=more.pop("failed", 0), wrong=0, requests_per_s=rate, tokens_per_s=tokens,
        all_tokens=0, cpu_s=0.1, error="", latency_us=percentiles(more.pop("latency_us", 500.0)), ttft_us=None,
        added_us=percentiles(more.pop("added_us", None)), to_engine_us=None, from_engine_us=None,
        transit_us=None, gap_us=None,
    )  # fmt: skip
    facts = {
        "cpu_ms_per_request": {"gateway": 0.1}, "cpu_us_per_token": {}, "gateway_share": 0.99, "load_share": 0.5,
        "foreign_share": 0.0, "peak_rss_mib": 50.0,
    }  # fmt: skip
    return Run(system=system, workload=workload, seen=seen, **(facts | more))


@given(rates=st.lists(st.floats(1.0, 1e6), min_size=1, max_size=9))
def test_a_figure_is_the_median_of_its_runs_and_keeps_the_rates(rates):
    from summary import figures

    found = figures([make_run(requests_per_s=rate) for rate in rates])
    assert sum(rate <= found.requests_per_s for rate in rates) * 2 >= len(rates)
    assert sum(rate >= found.requests_per_s for rate in rates) * 2 >= len(rates)
    assert found.rates == rates
    assert found.spread == pytest.approx((max(rates) - min(rates)) / found.requests_per_s)


def test_failures_of_any_run_are_kept_and_the_worst_disturbance():
    from summary import figures

    found = figures([make_run(), make_run(failed=2, foreign_share=0.4), make_run(failed=1)])
    assert found.num_failed == 3
    assert found.max_foreign_share == 0.4


def test_a_rate_is_a_lower_bound_only_where_the_load_side_and_not_the_gateway_was_at_its_limit():
    from summary import figures

    assert figures([make_run(load_share=0.98, gateway_share=0.7)]).is_load_bound
    assert not figures([make_run(load_share=0.98, gateway_share=0.99)]).is_load_bound
    assert not figures([make_run(load_share=0.6, gateway_share=0.7)]).is_load_bound


@given(own=st.floats(1.0, 1e5), other=st.floats(1.0, 1e5))
def test_the_aim_in_requests_is_met_from_one_and_a_half_times_on(own, other):
    from summary import aims, summarise

    found = aims(
        summarise(
            [make_run("sage-core", requests_per_s=own), make_run("sglang-router", requests_per_s=other)]
        )
    )
    assert found[0].is_met == (own / other >= 1.5)


def test_the_aim_in_tokens_is_against_the_best_peer_and_neither_against_no_gateway_nor_against_ourselves():
    from summary import aims, summarise

    rates = {"sage-core": 100.0, "sage": 300.0, "direct": 900.0, "smg": 80.0, "vllm-router": 101.0}
    runs = [make_run(name, "stream-c64", tokens_per_s=rate) for name, rate in rates.items()]
    missed = aims(summarise(runs))[1]
    assert missed.is_met is False
    assert "vllm-router, 101" in missed.found
    assert aims(summarise(runs[:-1]))[1].is_met is True


@pytest.mark.parametrize(("added_us", "met"), [(999.0, [True, True]), (1001.0, [False, False])])
def test_the_aims_in_ttft_are_one_and_three_milliseconds_of_the_whole_system(added_us, met):
    from summary import aims, summarise

    found = aims(summarise([make_run("sage", "paced-c64", added_us=added_us)]))
    assert [aim.is_met for aim in found] == [None, None, *met]


def test_what_was_not_measured_is_neither_met_nor_missed():
    from summary import aims

    assert {aim.is_met for aim in aims({})} == {None}


@given(
    taken=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=2),
    gateway=st.floats(0.0, 10.0),
    behind=st.floats(0.0, 10.0),
    has_gateway=st.booleans(),
)
def test_foreign_work_is_never_negative_and_nothing_where_all_is_our_own(taken, gateway, behind, has_gateway):
    from measuring import foreign_seconds

    assert foreign_seconds(taken, gateway, behind, has_gateway=has_gateway) >= 0.0
    own = [gateway, behind] if len(taken) == 2 else [gateway + behind]
    assert foreign_seconds(own, gateway, behind, has_gateway=has_gateway) == pytest.approx(0.0)


def test_the_core_of_a_gateway_that_there_is_not_does_not_matter():
    from measuring import foreign_seconds

    assert foreign_seconds([3.0, 1.0], 0.0, 1.0, has_gateway=False) == 0.0
    assert foreign_seconds([3.0, 1.0], 1.0, 1.0, has_gateway=True) == 2.0


def test_every_system_gets_the_same_bodies_but_for_the_model():
    from workloads import WORKLOADS, body

    for workload in WORKLOADS.values():
        one, other = json.loads(body(workload, "a")), json.loads(body(workload, "b"))
        assert one.pop("model") == "a"
        assert other.pop("model") == "b"
        assert one == other
        assert one.get("stream", False) == ("--stream" in workload.load_arguments())


def test_each_peer_pins_every_distribution():
    files = sorted((FOLDER / "requirements").glob("*.txt"))
    assert {file.stem for file in files} >= {"sglang-router", "smg", "vllm-router", "litellm", "dynamo"}
    for file in files:
        lines = file.read_text("utf-8").splitlines()
        assert all(line.count("==") == 1 for line in lines), file


@given(data=st.data())
def test_messages_are_found_whatever_the_pieces_they_arrive_in(data):
    from nats_text import NatsText, Published

    client = NatsText.__new__(NatsText)
    client._in = b""
    payloads = data.draw(st.lists(st.binary(max_size=20), max_size=5))
    stream = b"".join(b"MSG a.b 1 %d\r\n%b\r\n" % (len(payload), payload) for payload in payloads)
    found = []
    while stream:
        num = data.draw(st.integers(1, len(stream)))
        found += client.take(stream[:num])
        stream = stream[num:]
    assert found == [Published("a.b", payload) for payload in payloads]


@given(steps=st.lists(st.integers(0, 10**9), min_size=6, max_size=6), num=st.integers(1, 5))
def test_the_parts_of_a_requests_way_add_up_to_the_whole(steps, num):
    from hops import Crossing, hops

    places = ("sent", "submit", "dispatch", "received", "made", "frame", "seen")
    times = {place: sum(steps[:index]) for index, place in enumerate(places)}
    *parts, whole = hops([Crossing(times)] * num)
    assert whole.title == "the whole way"
    assert sum(part.p50_us for part in parts) == pytest.approx(whole.p50_us)


def test_a_page_says_who_was_left_out_which_aim_was_missed_and_which_figures_are_doubtful():
    from report import Report, page
    from summary import aims, summarise

    found = summarise(
        [
            make_run("sage-core", foreign_share=0.3),
            make_run("sglang-router", load_share=0.99, gateway_share=0.5),
        ]
    )
    report = Report(
        command="make bench-peers", date="2026-01-01", machine="2 cores", num_runs=1, minutes=1.0, sample_ratio=0.0,
        max_foreign=0.05, systems={"sage-core": "our own"}, skipped={"smg": "no wheel"}, aims=aims(found),
        figures=found, hops={},
    )  # fmt: skip
    text = page(report)
    assert "smg** was left out: no wheel" in text
    assert "1.00 times | **no** |" in text
    assert "sage-core, chat16-c64: other processes took up to 30% of a core" in text
    assert "≥ 100" in text


def test_an_unknown_name_ends_with_usage_and_names_the_known_ones(capsys):
    from run import parse

    with pytest.raises(SystemExit) as ended:
        parse(["--peers", "sage-core,nginx"])
    assert ended.value.code == 2
    assert "sglang-router" in capsys.readouterr().err
