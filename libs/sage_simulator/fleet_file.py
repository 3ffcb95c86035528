"""Fleets as TOML files: strict, every mistake one line with the file's line and what is accepted."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Final

from sage_core import ConfigurationError
from sage_core.config_files import config_folders
from sage_policy import EngineProfile
from sage_simulator.fleet import Disturbance, DisturbanceKind, Fleet, FleetInstance, Network
from sage_simulator.mistakes import FileMistake, missing, wrong_value
from sage_simulator.profiles import KnownProfile, engine_files, profile_of, read_profiles
from sage_simulator.toml_file import Key, Table, load_toml
from sage_simulator.values import Rule, choice, duration, number, text, whole_number

__all__ = ["FLEET_KEYS", "find_fleet", "read_fleet"]

_MAX_INSTANCES: Final = 10_000
_KINDS: Final = {"generate": False, "batch": True}
_HARDWARE: Final = {"gpu": True, "cpu": False}
_LATENCY: Final = duration(0.0, 60.0)


def _interval() -> Rule[float]:
    """Accept 0 (never), or what does not drown a simulation in reports."""
    some, never = duration(0.001, 60.0), duration(0.0, 0.0)

    def parse(value: object) -> float:
        try:
            return never.parse(value)
        except ValueError:
            return some.parse(value)

    return Rule(parse, f"{some.accepted}, or 0 for never")


def _file_names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(value)
    return tuple(value)


def _numbers(value: object) -> tuple[int, ...]:
    rule = whole_number(0, _MAX_INSTANCES)
    if isinstance(value, list) and value:
        return tuple(rule.parse(item) for item in value)
    return (rule.parse(value),)


FLEET_KEYS: Final[dict[str, dict[str, Key]]] = {
    "": {
        "description": Key(Rule(str, "text"), ""),
        "profiles_files": Key(Rule(_file_names, "a list of file names"), ()),
        "max_attempts": Key(whole_number(1, 100), 3),
        "noise_sigma": Key(number(0.0, 1.0), 0.0),
    },
    "network": {
        "dispatch_latency": Key(_LATENCY, 0.0005),
        "report_latency": Key(_LATENCY, 0.0005),
        "hop_latency": Key(_LATENCY, 0.001),
        "detection_latency": Key(_LATENCY, 3.0),
    },
    "telemetry": {
        "interval": Key(_interval(), 1.0),
        "latency": Key(_LATENCY, 0.0005),
    },
    "group": {
        "name": Key(text(64)),
        "pool": Key(text(64)),
        "profile": Key(text(64)),
        "count": Key(whole_number(1, _MAX_INSTANCES), 1),
        "kind": Key(choice(_KINDS), False),
        "hardware": Key(choice(_HARDWARE), True),
        "device": Key(text(64), ""),
        "interference": Key(number(1.0, 100.0), 1.0),
        "max_in_flight": Key(whole_number(1, 1_000_000), 100_000),  # engines queue what does not fit
        "usd_per_hour": Key(number(0.0, 1e6), 0.0),
        "noise_sigma": Key(number(0.0, 1.0), None),
        "kv_tokens": Key(whole_number(1, 10_000_000_000), None),
        "max_sequences": Key(whole_number(1, 1_000_000), None),
        "max_step_tokens": Key(whole_number(1, 100_000_000), None),
        "max_context": Key(whole_number(1, 100_000_000), None),
    },
    "disturbance": {
        "at": Key(duration()),
        "group": Key(text(64)),
        "instance": Key(Rule(_numbers, "a number of an instance in its group, or a list of them"), None),
        "kind": Key(choice({kind.value: kind for kind in DisturbanceKind})),
        "factor": Key(number(1.0, 1000.0), None),
        "for": Key(duration(), inf),
    },
}
"""The keys of each table; the tables [[group]] and [[disturbance]] may be repeated, [profiles.NAME] holds profiles."""

_ENDS: Final = {
    DisturbanceKind.DOWN: DisturbanceKind.UP,
    DisturbanceKind.DRAIN: DisturbanceKind.UP,
    DisturbanceKind.SLOW: DisturbanceKind.NORMAL,
}
_OVERRIDES: Final = ("kv_tokens", "max_sequences", "max_step_tokens", "max_context")


def find_fleet(name: str) -> Path:
    """Return the fleet file `name`: a path, or the name of a shipped one (`mixed` is fleets/mixed.toml).

    Raises ConfigurationError naming the shipped ones.
    """
    path = Path(name)
    if path.is_file() or path.suffix == ".toml":
        return path
    known: dict[str, Path] = {}
    for folder in config_folders():
        for file in sorted((folder / "fleets").glob("*.toml")):
            known.setdefault(file.stem, file)
    if name not in known:
        raise ConfigurationError(
            f"fleet {name!r} is unknown; expected a TOML file or one of {', '.join(known)}"
        )
    return known[name]


def read_fleet(file: Path) -> Fleet:
    """Read a fleet. Raises FileMistake with one line that names file, line, field and what is accepted."""
    top = load_toml(file)
    tables = {"network": "", "telemetry": "", "profiles": "", "group": "", "disturbance": ""}
    values = top.read(FLEET_KEYS[""], tables)
    network = top.table("network").read(FLEET_KEYS["network"])
    telemetry = top.table("telemetry").read(FLEET_KEYS["telemetry"])
    profiles = _Profiles(top, values["profiles_files"])
    groups = top.tables("group")
    if not groups:
        raise missing(file, 0, "the file", "[[group]]", "one or more groups of instances")
    instances: list[FleetInstance] = []
    for table in groups:
        instances += _instances(table, profiles, values["noise_sigma"], {found.group for found in instances})
        if len(instances) > _MAX_INSTANCES:
            raise FileMistake(file, table.line("count"), f"more than {_MAX_INSTANCES} instances in all")
    _check_pools(top, groups, instances)
    disturbances = [item for table in top.tables("disturbance") for item in _disturbances(table, instances)]
    return Fleet(
        name=file.stem,
        description=values["description"],
        instances=tuple(instances),
        network=Network(
            **network, telemetry_interval=telemetry["interval"], telemetry_latency=telemetry["latency"]
        ),
        disturbances=tuple(sorted(disturbances, key=lambda item: item.at)),
        max_attempts=values["max_attempts"],
    )


class _Profiles:
    """Profiles by name: the fleet's own first, then those of files, which are read when they are needed."""

    def __init__(self, top: Table, files: tuple[str, ...]) -> None:
        self._own = {name: profile_of(table) for name, table in top.named_tables("profiles").items()}
        self._names = files
        self._folder = top.file.parent
        self._known: dict[str, list[KnownProfile]] | None = None

    def of(self, table: Table, name: str) -> EngineProfile:
        """Return a group's profile. Raises FileMistake where it is unknown, or differs between files."""
        if name in self._own:
            return self._own[name]
        if self._known is None:
            self._known = {}
            for file in engine_files(self._names, self._folder):
                for known, profile in read_profiles(file).items():
                    self._known.setdefault(known, []).append(profile)
        found = self._known.get(name)
        if found is None:
            names = sorted({*self._own, *self._known})
            raise wrong_value(
                table.file, table.line("profile"), "profile", name, f"one of {', '.join(names)}"
            )
        if any(other.profile != found[0].profile for other in found):
            files = " and ".join(f"{other.file}, line {other.line}" for other in found)
            raise FileMistake(
                table.file,
                table.line("profile"),
                f"profile {name!r} is in {files}; name one in profiles_files",
            )
        return found[0].profile


def _instances(table: Table, profiles: _Profiles, noise: float, taken: set[str]) -> list[FleetInstance]:
    values = table.read(FLEET_KEYS["group"])
    name, is_batched = values["name"], values["kind"]
    if name in taken:
        raise wrong_value(table.file, table.line("name"), "name", name, "a name that no other group has")
    profile = profiles.of(table, values["profile"])
    changes = {key: values[key] for key in _OVERRIDES if values[key] is not None}
    if changes:
        profile = EngineProfile(
            **{**{key: getattr(profile, key) for key in profile.__struct_fields__}, **changes}
        )
    if profile.is_instant and not is_batched:
        raise FileMistake(
            table.file,
            table.line("profile"),
            f"profile {values['profile']!r} takes no time; expected step times above 0",
        )
    _check_limits(table, values["profile"], profile, is_batched=is_batched)
    return [
        FleetInstance(
            name=f"{name}/{number}",
            group=name,
            pool=values["pool"],
            device=f"{values['device'] or name}/{number}",
            is_batched=is_batched,
            is_gpu=values["hardware"],
            max_in_flight=values["max_in_flight"],
            usd_per_hour=values["usd_per_hour"],
            profile=profile,
            noise_sigma=noise if values["noise_sigma"] is None else values["noise_sigma"],
            interference=values["interference"],
        )
        for number in range(values["count"])
    ]


def _check_limits(table: Table, name: str, profile: EngineProfile, *, is_batched: bool) -> None:
    """Refuse limits that contradict each other: no engine starts with them."""
    if is_batched:
        return

    def refuse(field: str, partner: str, accepted: str) -> FileMistake:
        # The group's own value is the one to change; without any the profile is.
        key = next((found for found in (field, partner) if found in table.values), "profile")
        whose = "" if key != "profile" else f"profile {name!r}: "
        text = f"{whose}{field} is {getattr(profile, field)}; expected at least {accepted}"
        return FileMistake(table.file, table.line(key), text, param=field)

    if profile.max_step_tokens < profile.max_sequences:
        raise refuse("max_step_tokens", "max_sequences", f"max_sequences, {profile.max_sequences}")
    if profile.kv_tokens < 2 * profile.block_tokens:
        raise refuse("kv_tokens", "block_tokens", f"two blocks of {profile.block_tokens} tokens")


def _check_pools(top: Table, groups: list[Table], instances: list[FleetInstance]) -> None:
    kinds: dict[str, bool] = {}
    for table in groups:
        found = next(item for item in instances if item.group == table.values["name"])
        if kinds.setdefault(found.pool, found.is_batched) != found.is_batched:
            raise FileMistake(
                top.file,
                table.line("kind"),
                f"pool {found.pool!r} has groups of both kinds; expected generate or batch",
            )


def _disturbances(table: Table, instances: list[FleetInstance]) -> list[Disturbance]:
    values = table.read(FLEET_KEYS["disturbance"])
    kind: DisturbanceKind = values["kind"]
    of_group = [index for index, found in enumerate(instances) if found.group == values["group"]]
    if not of_group:
        names = ", ".join(dict.fromkeys(found.group for found in instances))
        raise wrong_value(table.file, table.line("group"), "group", values["group"], f"one of {names}")
    numbers = range(len(of_group)) if values["instance"] is None else values["instance"]
    if any(place >= len(of_group) for place in numbers):
        accepted = f"numbers from 0 to {len(of_group) - 1}"
        raise wrong_value(table.file, table.line("instance"), "instance", table.values["instance"], accepted)
    if (kind is DisturbanceKind.SLOW) != (values["factor"] is not None):
        accepted = "a number above 1 with kind slow, and none with other kinds"
        raise wrong_value(table.file, table.line("factor"), "factor", values["factor"], accepted)
    if values["for"] != inf and kind not in _ENDS:
        raise wrong_value(
            table.file, table.line("for"), "for", table.values["for"], "it with kind down, drain or slow only"
        )
    found = []
    for index in (of_group[place] for place in numbers):
        found.append(Disturbance(values["at"], index, kind, values["factor"] or 1.0))
        if values["for"] != inf:
            found.append(Disturbance(values["at"] + values["for"], index, _ENDS[kind]))
    return found
