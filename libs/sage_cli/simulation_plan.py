"""What `sage simulate` was asked to do: its options, read and checked before anything runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from sage_core import ConfigurationError
from sage_core.units import parse_duration
from sage_simulator.fleet import Fleet
from sage_simulator.fleet_file import find_fleet, read_fleet
from sage_simulator.policies import PolicyChoice, policy_choice
from sage_simulator.resampling import Resampling
from sage_simulator.shaping import Moment, as_embeddings, mixed
from sage_simulator.slo_classes import DEFAULT_CLASSES, WorkClass, checked_classes, parse_class, read_classes
from sage_simulator.text_files import Limits
from sage_simulator.traces import EMBED, ServegenOptions, Trace, TraceFormat, TraceOptions, read_trace
from sage_simulator.traces.reading import detect_format, trace_file
from sage_simulator.workload import Workload, WorkloadOptions, build_workload, shaped

__all__ = [
    "Companion",
    "Plan",
    "SimulationRequest",
    "make_plan",
    "parse_companion",
    "parse_moment",
    "parse_rates",
]

_MAX_RATES: Final = 1000
_SPAN: Final = 3600.0
"""Seconds of arrivals that are generated from statistics where no end is given."""


@dataclass(frozen=True, slots=True)
class Companion:
    """A second trace that runs beside the first: `rate` in its own runs per second, None: its own."""

    file: str
    pool: str
    rate: float | None


@dataclass(frozen=True, slots=True)
class SimulationRequest:
    """The options of the command, as they were given."""

    trace: str
    fleet: str
    policies: Sequence[str]
    rate: Sequence[float] = ()
    rates: str | None = None
    num_seeds: int = 1
    first_seed: int = 0
    begin: str | None = None
    end: str | None = None
    slo: Sequence[str] = ()
    classes_file: Path | None = None
    tenants: Sequence[str] = ()
    mix: Sequence[str] = ()
    format: str | None = None
    head: int = 0
    block_tokens: int = 0
    has_rerank: bool = True
    max_clients: int = 0
    max_tokens: int = 4096
    resampling: str = Resampling.AUTO.value
    is_quiet_day: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated. `seeds`: None stands for the trace as it is."""

    trace: Trace
    fleet: Fleet
    policies: tuple[PolicyChoice, ...]
    rates: tuple[float | None, ...]
    seeds: tuple[int, ...]
    is_resampled: bool
    companions: tuple[tuple[Companion, Trace], ...] = ()
    options: WorkloadOptions = field(default_factory=WorkloadOptions)

    @property
    def part(self) -> str:
        """Which part of the trace is used, in words; empty where it is all of it."""
        ends = ((self.options.begin, "from"), (self.options.end, "until"))
        return " ".join(
            f"{word} {f'{moment.value:.0%}' if moment.is_share else f'{moment.value:g} s'}"
            for moment, word in ends
            if moment is not None
        )

    @property
    def classes(self) -> tuple[WorkClass, ...]:
        """The classes that some run of these traces may be of."""
        traces = [self.trace, *(trace for _, trace in self.companions)]
        ends = {trace.stages.pools[number] for trace in traces for number in set(trace.ends_in.tolist())}
        return tuple(found for found in self.options.classes if found.pool in ends or not found.pool)

    def workload(self, rate: float | None, seed: int) -> Workload:
        """Return the work at a rate of the first trace's runs, beside that of the companions."""
        options = replace(self.options, rate=rate, seed=seed if self.is_resampled else None)
        if not self.companions:
            return build_workload(self.trace, self.fleet, options)
        parts = [shaped(self.trace, options)]
        for companion, trace in self.companions:
            own = replace(options, rate=companion.rate, begin=None, end=None, pools={})
            parts.append(shaped(trace, own))
        together = replace(options, rate=None, begin=None, end=None, resampling=Resampling.NONE, tenants={})
        return build_workload(mixed(parts), self.fleet, together)


def make_plan(request: SimulationRequest) -> Plan:
    """Read trace, fleet, classes and policies. Raises ConfigurationError with one line on the first mistake."""
    fleet = read_fleet(find_fleet(request.fleet))
    if request.is_quiet_day:
        fleet = fleet.without_disturbances()
    policies = tuple(policy_choice(name) for name in dict.fromkeys(request.policies))
    classes = _classes(request)
    begin, end = (parse_moment(text) if text else None for text in (request.begin, request.end))
    rates = parse_rates(request.rate, request.rates)
    trace, begin, end = _read(request, begin, end)
    plan = Plan(
        trace=trace,
        fleet=fleet,
        policies=policies,
        rates=rates,
        seeds=tuple(range(request.first_seed, request.first_seed + request.num_seeds)),
        is_resampled=request.num_seeds > 1 or request.first_seed > 0,
        companions=tuple(_companion(words) for words in request.mix),
        options=WorkloadOptions(
            begin=begin,
            end=end,
            classes=classes,
            max_tokens=request.max_tokens,
            tenants=_tenants(request.tenants),
            resampling=_resampling(request.resampling),
        ),
    )
    plan.workload(
        rates[0], plan.seeds[0]
    )  # a fleet without a pool of the trace is refused before anything is shown
    return plan


def parse_rates(single: Sequence[float], span: str | None) -> tuple[float | None, ...]:
    """Return the rates of `--rate` and of `--rates LOW:HIGH:STEP`, ascending; (None,): the trace's own."""
    found = list(single)
    if span is not None:
        parts = span.split(":")
        try:
            low, high, step = (float(part) for part in parts)
        except ValueError:
            raise ConfigurationError(f"--rates is {span!r}; expected LOW:HIGH:STEP such as 4:24:2") from None
        if not (0 < low <= high and step > 0 and math.isfinite(high)):
            raise ConfigurationError(f"--rates is {span!r}; expected 0 < LOW <= HIGH and a STEP above 0")
        count = math.floor((high - low) / step + 1e-9) + 1
        if count > _MAX_RATES:
            raise ConfigurationError(f"--rates is {span!r}: {count} rates; expected at most {_MAX_RATES}")
        found += [round(low + number * step, 9) for number in range(count)]
    for rate in found:
        if not (rate > 0 and math.isfinite(rate)):
            raise ConfigurationError(f"--rate is {rate!r}; expected runs per second above 0")
    return tuple(sorted(set(found))) or (None,)


def parse_moment(text: str) -> Moment:
    """Return a place in a trace: `50%` of its length, or a time from its beginning such as `90`, `10m`, `2h`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", text)
    if match:
        share = float(match[1]) / 100
        if share <= 1:
            return Moment(share, is_share=True)
    else:
        try:
            return Moment(parse_duration(text))
        except ValueError:
            pass
    raise ConfigurationError(
        f"found {text!r}; expected a share of the trace such as 50% or a time such as 10m"
    )


def parse_companion(words: str) -> Companion:
    """Read `FILE,pool=NAME,rate=R`; the pool is `embed` unless it is named."""
    file, *rest = words.split(",")
    values: dict[str, str] = {}
    for pair in rest:
        key, equals, value = pair.partition("=")
        if key.strip() not in ("pool", "rate") or not equals or not value.strip():
            raise ConfigurationError(f"--mix is {words!r}; expected FILE,pool=NAME,rate=R")
        values[key.strip()] = value.strip()
    if "rate" not in values:
        return Companion(file, values.get("pool", EMBED), None)
    return Companion(
        file, values.get("pool", EMBED), parse_rates([_number("--mix", values["rate"])], None)[0]
    )


def _classes(request: SimulationRequest) -> tuple[WorkClass, ...]:
    if request.slo and request.classes_file is not None:
        raise ConfigurationError("--slo and --classes are given; expected one of them")
    if request.classes_file is not None:
        return read_classes(request.classes_file)
    if request.slo:
        return checked_classes([parse_class(words) for words in request.slo], "--slo")
    return DEFAULT_CLASSES


def _read(
    request: SimulationRequest, begin: Moment | None, end: Moment | None
) -> tuple[Trace, Moment | None, Moment | None]:
    """Return the trace and what is still to be cut off it: from statistics only the wanted part is made."""
    limits = Limits(head=request.head)
    kind = _format(request.format)
    file = trace_file(request.trace)
    if kind is None:
        kind = detect_format(file, limits)
    options = TraceOptions(limits=limits, block_tokens=request.block_tokens, rerank=request.has_rerank)
    if kind is TraceFormat.SERVEGEN:
        if (begin and begin.is_share) or (end and end.is_share):
            raise ConfigurationError(
                "--from and --until are shares; expected times such as 10h for statistics"
            )
        first = begin.value if begin else 0.0
        span = end.value - first if end else _SPAN
        if span <= 0:
            raise ConfigurationError("--until is not after --from; expected a later time")
        options = replace(
            options, servegen=ServegenOptions(first, span, request.max_clients, request.first_seed)
        )
        begin = end = None
    return read_trace(file, options, format=kind), begin, end


def _resampling(name: str) -> Resampling:
    try:
        return Resampling(name)
    except ValueError:
        raise ConfigurationError(
            f"--resampling is {name!r}; expected one of {', '.join(Resampling)}"
        ) from None


def _format(name: str | None) -> TraceFormat | None:
    if name is None:
        return None
    try:
        return TraceFormat(name)
    except ValueError:
        raise ConfigurationError(f"--format is {name!r}; expected one of {', '.join(TraceFormat)}") from None


def _companion(words: str) -> tuple[Companion, Trace]:
    companion = parse_companion(words)
    trace = read_trace(companion.file)
    if trace.stages.pools != (companion.pool,):
        trace = as_embeddings(trace, pool=companion.pool)
    if trace.span <= 0 and companion.rate is None:
        raise ConfigurationError(f"--mix {words!r} has no times of its own; expected rate=R")
    return companion, trace


def _tenants(words: Sequence[str]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for pair in words:
        name, equals, weight = pair.partition("=")
        found[name.strip()] = _number("--tenant", weight) if equals else 1.0
    return found


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ConfigurationError(f"{option}: found {text!r}; expected a number above 0")
    return value
