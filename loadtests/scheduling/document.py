"""`scheduling.md`: every table, with its formulas, from the measurements handed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from cells import Overload
from claims import Claim, capacity_of
from compare import Comparison
from embedding import BATCHERS
from plan import HYBRID
from scenarios import SCENARIOS, fleet_of
from tables import ablation_table, aims_table, capacity_table, overload_table, table, tenant_table

__all__ = ["Measured", "written"]


@dataclass(frozen=True, slots=True)
class Measured:
    """All that the document is made of. `rest`: embedding, fairness and speed, where they were measured."""

    comparison: Comparison
    claims: list[Claim]
    rest: dict[str, Any] | None
    version: str
    half: str
    machine: str
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        comparison = self.comparison
        return {
            "command": "make bench-scheduling",
            "machine": self.machine,
            "half": self.half,
            "seeds": comparison.seeds,
            "claims": msgspec.to_builtins(self.claims),
            "capacity": {
                scenario: {
                    policy: [round(rate, 4) for rate in capacity_of(comparison, scenario, policy)]
                    for policy in policies
                }
                for scenario, policies in comparison.steps.items()
            },
            "overload_rate": comparison.overload_rate,
            "overload": {
                scenario: {policy: _columns(found) for policy, found in policies.items()}
                for scenario, policies in comparison.overloads.items()
            },
            **(msgspec.to_builtins(self.rest) if self.rest else {}),
        }


def _columns(rows: list[Overload]) -> dict[str, list[float | None]]:
    """Return one list per field, with a value per seed."""
    return {field: [getattr(row, field) for row in rows] for field in Overload.__struct_fields__}


_HEAD: Final = """# Scheduling: capacity, overload, embedding and fairness

`make bench-scheduling` (`python loadtests/scheduling/bench.py`) measures everything here in the simulator, whose
engine model is checked against measured vLLM runs in [validation](simulator_validation.md), and writes this file,
`scheduling.json` and the figures. {machine}. {seeds} seeds, {half} half of every trace; weights were tuned on the
other half (`python loadtests/scheduling/tune.py`).
"""

_AIMS: Final = """Ratios are of means over seeds. No goodput can exceed what was offered: "of" is the ratio
if every run were good.
"""

_METHOD: Final = """
- **Good**: finished with TTFT and TPOT within the targets. TTFT = first token - scheduled arrival of the run (of
  the pipeline's HTTP request for rag); TPOT = (E2E - TTFT) / (output tokens - 1).
- **Attainment** = good / submitted: what was refused is bad. **Goodput** = good runs per second of arrivals.
- **Capacity** = highest rate, on a grid of 2 % steps, with attainment >= 99 %; found by bisection, mean over seeds
  (min-max). Time is compressed or stretched to reach a rate, so bursts keep their shape. `<`: below the lowest rate
  that was tried on every seed.
- **Targets**: TTFT <= 1 s + prompt tokens / 4000 per second and TPOT <= 50 ms; rag: TTFT <= 1.5 s + prompt tokens /
  4000 per second for the whole pipeline embed → retrieve → rerank → generate.
- **Overload** = on each seed twice the best capacity for this mix of classes: 30 % of the runs with the targets above
  (tight), 70 % with 5 times the TTFT and twice the TPOT (relaxed); the best of the four policies with the highest
  capacity, of hybrid, `edf+shed` and `sjf+shed`.
- **Seeds**: a seed is a resampling of the half (circular block bootstrap, or kept sessions where prefixes repeat;
  another part of the generated day for servegen), the engines' noise (5 % log-normal on every step) and the
  policy's own chance. All policies see the same seeds. Intervals are Student's t on the logarithm of the paired
  ratios.
- **Slices**: {slices}. Left out because no engine of the fleet holds them: {left_out}. Mooncake's timestamps,
  published in steps of 3 s, are spread over these steps again.
- **Policies**: every baseline plain (dispatched on arrival, engines queue), `+hold` (kept above the engines until
  they have room), `+shed` (refused once late); fcfs, edf, sjf and vtc hold by nature. `hybrid-LAYER` is ours
  without that layer. No policy knows the length of an answer: all requests claim 32,768 tokens.
"""

_TENANTS: Final = """## Tenants of servegen in overload: Jain's index of their attainments

Up to 18 clients of one production pool, of whom one may send half of the requests, at twice the capacity.

"""


_WHY: Final = """## Where an aim is missed, and why

- **Twice the goodput of every baseline without shedding.** `sjf` keeps work above the engines and serves the shortest
  first, so what is long or late waits until its caller has gone: shedding in all but name. In most scenarios so much
  of the load is served by it that twice as much was never offered; the column gives the bound ("of"). Under
  servegen's overload hybrid is not above it: keeping engines quick for the tenants that stay within their share
  costs goodput where one tenant offers about half of the load.
- **1.15 times LMetric and Dynamo-cost on rag-same.** Four engines with 41,408 tokens of KV cache hold some 13 prompts
  of 3,100 tokens each. Memory is what binds there, and every policy that does not overfill it comes to the same
  capacity within a few per cent (`round-robin+hold+shed` is 2 % above hybrid). Where engines differ, or have room
  (rag-mixed, mooncake), the aim is met.
- **Others' TTFT beside a tenant that grows tenfold, at 60 % load.** The growth brings the pool just above what it can
  serve. Shares are enforced once an overload has lasted some ten seconds; until then, and while the load stays just
  at the limit, engines are as full as they can be. The others' attainment stays above 99.9 %.
- **Two unlike tenants** (conversation and code) get equal seconds of service, and so unequal tokens; the aim is stated
  for tenants of one kind.
"""


def written(measured: Measured, *, aims_only: bool = False) -> str:
    """Return the document as Markdown."""
    comparison = measured.comparison
    aims = f"## Aims\n\n{_AIMS}\n{aims_table(comparison)}\n{_rest_aims(measured)}"
    if aims_only:
        return aims
    parts = [
        _HEAD.format(machine=measured.machine, seeds=comparison.seeds, half=_half_words(measured.half)),
        aims,
        _WHY,
        "## How it was measured" + _METHOD.format(slices=_slices(comparison), left_out=_left_out(comparison)),
        f"| scenario | fleet |\n|---|---|\n{_fleets(comparison)}",
        "![Capacity of the best baselines as shares of ours](scheduling_capacity.png)",
        f"## Capacity, runs/s at >= 99 % attainment\n\n{capacity_table(comparison)}",
        "![Attainment over rate](scheduling_attainment.png)",
        f"## Overload: goodput, runs/s (attainment)\n\n{overload_table(comparison)}",
        "## Ablation: capacity / overload goodput without a layer, as shares of ours\n\n"
        + ablation_table(comparison),
    ]
    if measured.rest:
        parts += _rest(measured.rest)
    if tenants := tenant_table(comparison):
        parts.append(_TENANTS + tenants)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _half_words(half: str) -> str:
    return "second (test)" if half == "test" else "FIRST (TRAINING)"


def _slices(comparison: Comparison) -> str:
    return ", ".join(f"{name} {SCENARIOS[name].num_runs:,}" for name in comparison.steps) + " runs at most"


def _left_out(comparison: Comparison) -> str:
    shares = {name: found for name, found in comparison.left_out.items() if found > 0}
    return ", ".join(f"{share:.1%} of {name}".replace("%", " %") for name, share in shares.items()) or "none"


def _fleets(comparison: Comparison) -> str:
    return "\n".join(
        f"| {name} | {fleet_of(SCENARIOS[name].fleet).description} (`{SCENARIOS[name].fleet}.toml`) |"
        for name in comparison.steps
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _rest(rest: dict[str, Any]) -> list[str]:
    return [_batching(rest), _mix(rest), _fairness(rest), _speed(rest)]


def _batching(rest: dict[str, Any]) -> str:
    points = rest["batching"]
    rates = sorted({point.rate for point in points})
    rows = []
    for policy, words in BATCHERS.items():
        by_rate = {point.rate: point for point in points if point.policy == policy}
        cells = [_milliseconds(by_rate[rate].p99) for rate in rates]
        rows.append([f"{words} (`{policy}`)", *cells, f"{rest['batching_rates'][policy]:.0f}/s"])
    header = ["batches", *(f"p99 at {rate:.0f}/s" for rate in rates), "rate at p99 <= 100 ms"]
    return (
        "## Embedding: how batches are formed\n\n"
        "Questions (80 %, median 6 tokens) and passages (20 %, median 255) of RAGPulse in random order, Poisson\n"
        "arrivals, two CPU cores with the measured MiniLM profile. Latency from arrival to vector, all requests\n"
        "pooled, nothing refused. A batch costs as many tokens as its longest input times its inputs: mixing lengths\n"
        "is what makes windows and eager batches slow.\n\n" + table(header, rows)
    )


def _mix(rest: dict[str, Any]) -> str:
    rows = [
        [
            point.policy,
            f"{point.llm_rate:g}",
            f"{point.embedding_rate:g}",
            _change(point.llm_alone, point.llm_mixed),
            _change(point.embedding_alone, point.embedding_mixed),
        ]
        for point in rest["mix"]
    ]
    return (
        "## LLM and embeddings on the same GPUs\n\n"
        "Azure conversation on the mixed fleet, beside it an encoder of 335 M parameters on every GPU; a step or\n"
        "batch that begins while the other computes takes 1.5 times as long (an assumption, not measured). Attainment\n"
        "alone → together; embeddings within 250 ms.\n\n"
        + table(["policy", "chat/s", "embeddings/s", "chat", "embeddings"], rows)
    )


def _change(alone: float, together: float) -> str:
    return f"{alone:.2%} → {together:.2%}".replace("%", " %")


def _fairness(rest: dict[str, Any]) -> str:
    first = table(
        ["policy", "tenants", "Jain's index of served cost", "largest gap, tokens"],
        [[one.policy, one.mix, f"{one.jain:.4f}", f"{one.gap:,.0f}"] for one in rest["backlogs"]],
        num_words=2,
    )
    second = table(
        ["policy", "load before", "others' p99 TTFT", "ratio", "others' attainment", "the aggressor's"],
        [
            [
                one.policy,
                f"{one.load:.0%}".replace("%", " %"),
                f"{_milliseconds(one.p99_before)} → {_milliseconds(one.p99_after)}",
                f"{one.p99_after / one.p99_before:.2f}",
                _change(one.attainment_before, one.attainment_after),
                f"{one.aggressor:.0%}".replace("%", " %"),
            ]
            for one in rest["aggression"]
        ],
    )
    return (
        "## Fairness\n\n"
        "**Two backlogged tenants** of equal weight ask for 3 and 1.5 times the fleet's capacity, without targets.\n"
        "Cost: 1 a computed prompt token, 2 an output token (VTC's weights), while both wait. Tenants are charged\n"
        "seconds of service, so that unlike requests do not get equal tokens.\n\n"
        f"{first}\n\n"
        "**One aggressive tenant** sends ten times its share, three others theirs. Load before: all four at their\n"
        "share, as a part of our capacity. The aim is a ratio of at most 1.10.\n\n"
        f"{second}"
    )


def _speed(rest: dict[str, Any]) -> str:
    rows = [
        [one.policy, f"{one.requests:,}", f"{one.requests_per_minute:,.0f}", f"{one.events_per_second:,.0f}"]
        for one in rest["speed"]
    ]
    return (
        "## Speed of the simulator\n\n"
        "`python loadtests/scheduling/simulator_speed.py`: 100 engines, Azure conversation at 350 requests/s, one\n"
        "core, from the trace in memory to the report. Aim: 1,000,000 requests a minute.\n\n"
        + table(["policy", "requests", "requests a minute", "events/s"], rows)
    )


def _rest_aims(measured: Measured) -> str:
    rest = measured.rest
    if not rest:
        return ""
    rows = []

    def add(words: str, wanted: str, found: str, is_met: bool) -> None:
        rows.append([words, wanted, found, "met" if is_met else "**missed**"])

    points = rest["batching"]
    ours = {point.rate: point.p99 for point in points if point.policy == HYBRID}
    wins = [ours[point.rate] / point.p99 for point in points if point.policy != HYBRID]
    add("embedding: our p99 / others', same rate, worst case", "< 1", f"{max(wins):.2f}", max(wins) < 1)
    rates = rest["batching_rates"]
    least = min(rates[HYBRID] / rate for name, rate in rates.items() if name != HYBRID)
    add("embedding: our rate / others' at p99 <= 100 ms, worst case", "> 1", f"{least:.2f}", least > 1)
    mixes = [point for point in rest["mix"] if point.policy == HYBRID]
    lost = max(point.llm_alone - point.llm_mixed for point in mixes) * 100
    add("points of attainment that embeddings cost the LLM", "<= 1", f"{lost:.2f}", lost <= 1)
    lost = max(point.embedding_alone - point.embedding_mixed for point in mixes) * 100
    add("points of attainment that the LLM costs embeddings", "<= 1", f"{lost:.2f}", lost <= 1)
    like = next(one for one in rest["backlogs"] if one.policy == HYBRID)
    add("Jain's index of two backlogged tenants", ">= 0.98", f"{like.jain:.4f}", like.jain >= 0.98)
    for one in (one for one in rest["aggression"] if one.policy == HYBRID):
        ratio = one.p99_after / one.p99_before
        words = f"others' p99 TTFT beside an aggressive tenant, after / before, load before {one.load:.0%}"
        add(words.replace("%", " %"), "<= 1.10", f"{ratio:.2f}", ratio <= 1.1)
    speed = next(one for one in rest["speed"] if one.policy == HYBRID).requests_per_minute
    add("simulated requests a minute, 100 engines, hybrid", ">= 1,000,000", f"{speed:,.0f}", speed >= 1e6)
    return "\n" + table(["", "aim", "found", ""], rows) + "\n"
