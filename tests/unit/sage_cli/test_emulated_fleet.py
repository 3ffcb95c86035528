"""`sage up --fleet`: a simulator's fleet as llm-workers with emulated engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from sage_cli.emulated_fleet import emulated_workers, find_emulated_fleet, profiles_toml
from sage_cli.exits import CommandFailed
from sage_cli.members import BUS, KINDS, Choices, members
from sage_cli.settings_check import load_all
from sage_cli.status import Observed
from sage_cli.up import run_instance
from sage_core import ConfigurationError
from sage_llm_worker.profiles import load_profile
from sage_llm_worker.settings import LlmWorkerSettings
from sage_wire.messages import Announcement

MIXED = """
noise_sigma = 0.05
[profiles.quick]
a0 = 0.01
m0 = 0.02
host = 1e-5
async_scheduling = false
[profiles.slow]
a0 = 0.03
m0 = 0.05
[[group]]
name = "quick one"
pool = "chat/model"
profile = "quick"
count = 2
kv_tokens = 9000
max_in_flight = 7
[[group]]
name = "embed"
pool = "embed"
profile = "slow"
kind = "batch"
[[group]]
name = "slow"
pool = "chat/model"
profile = "slow"
noise_sigma = 0.0
"""


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    file = tmp_path / "mixed.toml"
    file.write_text(MIXED)
    return file


def test_every_generating_instance_becomes_a_worker_with_its_profile_and_limits(fleet_file, tmp_path):
    fleet = find_emulated_fleet(str(fleet_file))
    profiles = tmp_path / "profiles.toml"
    workers = emulated_workers(fleet, profiles)
    profiles.write_text(profiles_toml(workers))
    assert [worker.name for worker in workers] == [
        "llm-worker-quick-one-0",
        "llm-worker-quick-one-1",
        "llm-worker-slow-3",
    ]
    for worker, instance in zip(workers, (fleet.instances[0], *fleet.instances[1::2]), strict=True):
        settings = load_all(worker.environment, ("llm-worker",))["llm-worker"]
        assert isinstance(settings, LlmWorkerSettings)
        section = settings.llm_worker
        assert (section.engine, section.served_name) == ("emulated", "chat/model")
        assert section.max_in_flight == instance.max_in_flight
        assert section.emulated.noise_sigma == instance.noise_sigma
        assert load_profile(section.emulated.profile, section.emulated.profiles_file) == instance.profile
    assert fleet.instances[0].profile.kv_tokens == 9000


def test_a_fleet_that_generates_nothing_is_refused(tmp_path):
    file = tmp_path / "embedders.toml"
    file.write_text(
        '[profiles.p]\nm0 = 0.1\n[[group]]\nname = "e"\npool = "e"\nprofile = "p"\nkind = "batch"\n'
    )
    with pytest.raises(
        ConfigurationError, match="embedders has 0 instances of kind generate; expected 1 to 64"
    ):
        find_emulated_fleet(str(file))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"engine": "vllm"}, "leave out --model and --engine"),
        ({"model": "m"}, "leave out --model and --engine"),
        ({"without": ("llm-worker",)}, "leave out --without llm-worker"),
    ],
)
def test_options_that_contradict_a_fleet_are_refused(fleet_file, choices, message):
    def no_screen():
        raise AssertionError("nothing was started")

    with pytest.raises(CommandFailed, match=message):
        run_instance("x", Choices(fleet=str(fleet_file), **choices), no_screen)


def test_the_workers_of_a_fleet_stand_in_for_the_one_llm_worker(fleet_file):
    workers = emulated_workers(find_emulated_fleet(str(fleet_file)), Path("p.toml"))
    alone, found = members(KINDS), members(KINDS, workers)
    names = [member.name for member in found]
    assert names[0] == BUS
    assert "llm-worker" not in names
    assert [name for name in names if name.startswith("llm-worker")] == [worker.name for worker in workers]
    stop_stage = next(member.stop_stage for member in alone if member.name == "llm-worker")
    assert {member.stop_stage for member in found if member.name.startswith("llm-worker")} == {stop_stage}


def announced(actor_id: str, kind: str, state: str = "ready") -> Announcement:
    return Announcement(
        actor_id=actor_id, kind=kind, epoch="e", sequence=0, state=state, version="1", host="h", pid=1
    )


def test_an_instance_is_ready_when_as_many_of_each_kind_are_as_it_has():
    kinds = ["gateway", "llm-worker", "llm-worker"]
    actors = [
        announced("gateway", "gateway"),
        announced("a", "llm-worker"),
        announced("b", "llm-worker", "starting"),
    ]
    found = Observed({actor.actor_id: actor for actor in actors})
    assert found.missing(kinds) == ["llm-worker"]
    assert Observed({**found.actors, "b": announced("b", "llm-worker")}).missing(kinds) == []
    assert Observed({"a": announced("a", "llm-worker")}).missing(kinds) == ["gateway", "llm-worker"]
