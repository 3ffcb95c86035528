"""Fleet files: what they mean, and that every mistake is one line with its place and what is accepted."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_core import ConfigurationError
from sage_policy import EngineProfile
from sage_simulator import DisturbanceKind, FileMistake, Fleet, find_fleet, read_fleet
from sage_simulator.profiles import PROFILE_KEYS

SHIPPED = Path(__file__).parents[3] / "configs" / "fleets"

FLEET = """\
description = "one GPU with two engines, and a CPU"
noise_sigma = 0.1
max_attempts = 2

[network]
dispatch_latency = "2ms"
report_latency = 0.003
hop_latency = "1ms"
detection_latency = "5s"

[telemetry]
interval = "500ms"
latency = "1s"

[profiles.chat]
a0 = 0.01
m0 = 0.01
m1 = 1e-4
kv_tokens = 5000
max_context = 4000

[profiles.vectors]
m0 = 0.002
m1 = 1e-6
m4 = 1e-5
max_sequences = 64
max_step_tokens = 8192

[[group]]
name = "big"
pool = "llm"
profile = "chat"
count = 2
device = "gpu"
interference = 1.5
usd_per_hour = 2.0
kv_tokens = 6000

[[group]]
name = "small"
pool = "embed"
profile = "vectors"
kind = "batch"
device = "gpu"
usd_per_hour = 2.0
noise_sigma = 0.0

[[group]]
name = "host"
pool = "embed"
profile = "vectors"
kind = "batch"
hardware = "cpu"
max_in_flight = 7

[[disturbance]]
at = "10s"
group = "big"
instance = 1
kind = "down"
for = "5s"

[[disturbance]]
at = 3
group = "big"
kind = "slow"
factor = 2.0
"""


def read(text: str | bytes, folder: Path) -> Fleet:
    file = folder / "fleet.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_fleet(file)


def test_a_fleet_says_pools_instances_devices_and_disturbances(tmp_path: Path) -> None:
    fleet = read(FLEET, tmp_path)
    assert fleet.name == "fleet"
    assert fleet.pools == ("llm", "embed")
    assert [found.name for found in fleet.instances] == ["big/0", "big/1", "small/0", "host/0"]
    assert [found.device for found in fleet.instances] == ["gpu/0", "gpu/1", "gpu/0", "host/0"]
    big, _, small, host = fleet.instances
    assert (big.is_batched, big.is_gpu, big.interference, big.noise_sigma) == (False, True, 1.5, 0.1)
    assert (small.is_batched, small.noise_sigma, host.is_gpu, host.max_in_flight) == (True, 0.0, False, 7)
    assert (big.profile.kv_tokens, big.profile.m1, big.longest_run) == (6000, 1e-4, 4000)
    network = fleet.network
    assert (network.dispatch_latency, network.report_latency, network.telemetry_latency) == (
        0.002,
        0.003,
        1.0,
    )
    assert (network.hop_latency, network.detection_latency, network.telemetry_interval) == (0.001, 5.0, 0.5)
    assert fleet.max_attempts == 2
    assert fleet.usd_per_hour == 4.0  # a shared GPU is paid once
    assert [(item.at, item.instance, item.kind) for item in fleet.disturbances] == [
        (3.0, 0, DisturbanceKind.SLOW),
        (3.0, 1, DisturbanceKind.SLOW),
        (10.0, 1, DisturbanceKind.DOWN),
        (15.0, 1, DisturbanceKind.UP),
    ]
    assert fleet.without_disturbances().disturbances == ()


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("count = 2", "cuont = 2", "cuont", ["unknown key 'cuont' in [[group]]", "count"]),
        ("count = 2", "count = 0", "count", ["count is 0", "whole number from 1 to"]),
        ("count = 2", 'count = "two"', "count", ["count is 'two'", "whole number"]),
        (
            "count = 2",
            "count = 2\n[grup]",
            "[grup]",
            ["unknown key 'grup' in the file", "group", "disturbance"],
        ),
        (
            'kind = "batch"\ndevice',
            'kind = "batched"\ndevice',
            "kind",
            ["kind is 'batched'", "one of generate, batch"],
        ),
        (
            'profile = "chat"',
            'profile = "chatt"',
            "profile =",
            ["profile is 'chatt'", "chat", "vectors", "rtx4090"],
        ),
        ('name = "host"', 'name = "big" ', 'name = "big" ', ["name is 'big'", "no other group"]),
        ('name = "big"\n', "", "[[group]]", ["name is missing in [[group]]"]),
        ("m4 = 1e-5", "m4 = -1", "m4", ["m4 is -1", "number from 0"]),
        ("m4 = 1e-5", "m5 = 1", "m5", ["unknown key 'm5' in [profiles.vectors]", "m4"]),
        ('interval = "500ms"', 'interval = "5 apples"', "interval", ["interval is '5 apples'", "250ms"]),
        (
            'dispatch_latency = "2ms"',
            "dispatch_latency = true",
            "dispatch",
            ["dispatch_latency is True", "duration"],
        ),
        ("instance = 1", "instance = 2", "instance =", ["instance is 2", "numbers from 0 to 1"]),
        (
            'group = "big"\ninstance',
            'group = "huge"\ninstance',
            "group =",
            ["group is 'huge'", "big, small, host"],
        ),
        (
            'kind = "down"',
            'kind = "asleep"',
            'kind = "asleep"',
            ["kind is 'asleep'", "down, drain, up, slow, normal"],
        ),
        ("at = 3\n", "at = 3 \n", "[[disturbance]]\nat = 3", ["factor is None", "kind slow"]),
        ('kind = "slow"', 'kind = "normal"', "factor", ["factor is 2.0", "kind slow"]),
        ('kind = "down"\n', 'kind = "up"\n', "for", ["for is '5s'", "down, drain or slow"]),
        ('hardware = "cpu"', 'hardware = "cpu"\npool = "x"', 'pool = "x"', ["not TOML"]),
        ("[network]", "[network", "[network", ["not TOML"]),
        ("[network]", "[[network]]", "[[network]]", ["network", "a table [network]"]),
        ("[[group]]", "[group]", '[group]\nname = "small"', ["not TOML"]),
        (
            'kind = "batch"\nhardware',
            "hardware",
            '[[group]]\nname = "host"',
            ["pool 'embed' has groups of both kinds"],
        ),
        ("a0 = 0.01\nm0 = 0.01\nm1 = 1e-4\n", "", "profile =", ["'chat' takes no time"]),
    ],
)
def test_a_mistake_is_one_line_with_its_place(
    old: str, new: str, place: str, words: list[str], tmp_path: Path
) -> None:
    text = FLEET.replace(old, new).replace(
        "factor = 2.0\n", "" if "factor is None" in words else "factor = 2.0\n"
    )
    line = text[: text.index(place)].count("\n") + 1
    with pytest.raises(FileMistake) as caught:
        read(text, tmp_path)
    message = caught.value.message
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    assert message.startswith(f"{tmp_path / 'fleet.toml'}, line {line}: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "[[group]] is missing"),
        (b"\xff\xfe", "not UTF-8"),
        ("x = " + "[" * 5000, "not TOML"),
        (
            'profiles_files = ["no.toml"]\n[[group]]\nname="a"\npool="p"\nprofile="x"\n',
            "no.toml: does not exist",
        ),
    ],
)
def test_files_without_a_fleet_are_refused(text: str | bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(FileMistake) as caught:
        read(text, tmp_path)
    assert words in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_profiles_come_from_the_files_that_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[profiles.rtx4090]\na0 = 1.0\n")
    text = 'profiles_files = ["mine.toml"]\n[[group]]\nname="a"\npool="p"\nprofile="rtx4090"\n'
    assert read(text, tmp_path).instances[0].profile == EngineProfile(a0=1.0)
    (tmp_path / "other.toml").write_text("\n[profiles.rtx4090]\na0 = 2.0\n")
    with pytest.raises(FileMistake, match=r"mine\.toml, line 1 and .*other\.toml, line 2; name one"):
        read(text.replace('"mine.toml"', '"mine.toml", "other.toml"'), tmp_path)


def test_a_profile_may_say_whatever_an_engine_profile_has() -> None:
    assert set(PROFILE_KEYS) == {field.name for field in msgspec.structs.fields(EngineProfile)}


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda file: file.stem)
def test_every_shipped_fleet_is_read_by_its_name(file: Path) -> None:
    fleet = read_fleet(find_fleet(file.stem))
    assert fleet.description
    assert len(fleet.instances) >= 2


def test_an_unknown_fleet_is_refused_with_the_shipped_ones() -> None:
    with pytest.raises(
        ConfigurationError, match=r"fleet 'nope' is unknown; expected a TOML file or one of .*mixed"
    ):
        find_fleet("nope")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(FLEET)), cut=st.integers(0, 20), inserted=st.text(max_size=6))
def test_a_damaged_fleet_is_read_or_refused_in_one_line(
    place: int, cut: int, inserted: str, tmp_path: Path
) -> None:
    damaged = FLEET[:place] + inserted + FLEET[place + cut :]
    try:
        read(damaged.encode("utf-8", "surrogatepass"), tmp_path)
    except FileMistake as error:
        message = error.message
    else:
        message = "read"
    assert message.isprintable()
