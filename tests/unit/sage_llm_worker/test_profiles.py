"""Step-time profiles of the emulated engine, by name."""

import pytest

from sage_core import ConfigurationError
from sage_llm_worker.profiles import ZERO_PROFILE, load_profile
from sage_native import EngineModel
from sage_simulator.profiles import engine_files, read_profiles


def test_every_shipped_profile_makes_an_engine_that_takes_its_longest_sequence():
    names = {name for file in engine_files() for name in read_profiles(file)}
    assert {"zero", "paced", "rtx4090", "rtxpro6000"} <= names
    for name in names:
        profile = load_profile(name)
        assert profile.is_instant == (name == "zero")
        options = {key: getattr(profile, key) for key in profile.__struct_fields__ if key != "description"}
        engine = EngineModel(**options)
        engine.submit(1, engine.max_sequence_tokens - 1)
        assert engine.step()[1] in ([], [1])


def test_the_zero_profile_needs_no_file():
    assert load_profile("zero") is ZERO_PROFILE


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(
        ConfigurationError, match=r"'rtx9999'; expected one of .*rtx4090, .*rtxpro6000, .*zero"
    ):
        load_profile("rtx9999")


def test_a_profile_of_a_file_of_its_own(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("[profiles.slow]\na0 = 0.5\nm0 = 0.5\n")
    assert load_profile("slow", file).a0 == 0.5
    assert load_profile("zero", file).is_instant
    with pytest.raises(
        ConfigurationError, match=r"mine\.toml has no profile 'rtx4090'; expected one of slow, zero"
    ):
        load_profile("rtx4090", file)


def test_an_unknown_coefficient_is_refused_with_its_file_and_line(tmp_path):
    file = tmp_path / "profiles.toml"
    file.write_text("[profiles.x]\na0 = 0.1\na9 = 1.0\n")
    with pytest.raises(ConfigurationError, match=r"profiles\.toml, line 3: unknown key 'a9'.*a0, a1"):
        load_profile("x", file)
