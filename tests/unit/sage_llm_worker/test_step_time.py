"""Profiles of the emulated engine and the batch they drive."""

import pytest

from sage_core import ConfigurationError
from sage_llm_worker.config_files import find_config
from sage_llm_worker.engines.emulated_batch import EmulatedBatch, EmulatedSequence
from sage_llm_worker.step_time import ZERO_PROFILE, StepProfile, load_profile

PROFILE = StepProfile(
    a0=0.01, a1=1e-4, a2=1e-6, m0=0.02, m1=1e-5, m2=1e-6, m3=1e-8, m4=1e-5, max_step_tokens=100, max_sequences=4,
    kv_tokens=1000, max_context=500,
)  # fmt: skip


def advance(batch):
    step = batch.step()
    for sequence in step.emitting:
        sequence.num_generated += 1
    return step


def test_a_decode_step_costs_base_sequences_and_cache():
    assert PROFILE.step_seconds([], 3, 500) == pytest.approx(0.01 + 3e-4 + 5e-4)


def test_a_mixed_step_pays_for_prefill_and_its_attention():
    expected = 0.02 + 1e-5 * (50 + 3) + 1e-6 * 500 + 1e-8 * 50 * (100 + 25) + 1e-5 * 3
    assert PROFILE.step_seconds([(50, 100)], 3, 500) == pytest.approx(expected)


def test_shipped_profiles_load_and_fit_their_own_limits():
    file = find_config("engines/emulated.toml")
    for name in ("zero", "rtx4090", "rtxpro6000"):
        profile = load_profile(name, file)
        assert profile.max_context <= profile.kv_tokens
        assert profile.is_instant == (name == "zero")


def test_the_zero_profile_needs_no_file():
    assert load_profile("zero", None) is ZERO_PROFILE


def test_an_unknown_profile_is_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="rtx4090, rtxpro6000, zero"):
        load_profile("rtx9999", find_config("engines/emulated.toml"))


def test_an_unknown_coefficient_is_refused_with_its_file(tmp_path):
    file = tmp_path / "profiles.toml"
    file.write_text("[profiles.x]\na9 = 1.0\n")
    with pytest.raises(ConfigurationError, match=r"profiles\.toml.*a9"):
        load_profile("x", file)


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode():
    batch = EmulatedBatch(PROFILE)
    batch.submit(EmulatedSequence("short", 10, 0))
    assert [sequence.request_id for sequence in advance(batch).emitting] == ["short"]
    batch.submit(EmulatedSequence("long", 250, 0))
    emitted = [[sequence.request_id for sequence in advance(batch).emitting] for _ in range(3)]
    assert emitted == [["short"], ["short"], ["short", "long"]]


def test_no_more_sequences_than_the_profile_allows():
    batch = EmulatedBatch(PROFILE)
    for number in range(6):
        batch.submit(EmulatedSequence(str(number), 5, 0))
    advance(batch)
    assert (batch.num_running, batch.num_waiting) == (4, 2)


def test_a_prompt_waits_until_it_fits_the_cache_as_a_whole():
    batch = EmulatedBatch(PROFILE)
    for name in ("a", "b", "c"):
        batch.submit(EmulatedSequence(name, 400, 0))
    for _ in range(12):
        advance(batch)
    assert (batch.num_running, batch.num_waiting) == (2, 1)
    batch.remove("a")
    advance(batch)
    assert (batch.num_running, batch.num_waiting) == (2, 0)


def test_the_newest_sequence_is_preempted_and_recomputed_when_the_cache_is_full():
    batch = EmulatedBatch(PROFILE)
    sequences = [EmulatedSequence(name, 480, 0) for name in ("old", "new")]
    for sequence in sequences:
        batch.submit(sequence)
    while batch.num_waiting == 0 or sequences[0].num_generated == 0:
        advance(batch)
    assert sequences[1].num_resident == 0
    assert batch.num_resident <= PROFILE.kv_tokens
    generated = sequences[1].num_generated
    batch.remove("old")
    while sequences[1].num_generated == generated:
        advance(batch)
    assert sequences[1].num_needed == 480 + generated


def test_higher_priority_is_admitted_first():
    batch = EmulatedBatch(PROFILE)
    for number in range(4):
        batch.submit(EmulatedSequence(f"low{number}", 5, 0))
    batch.submit(EmulatedSequence("high", 5, 0, priority=1))
    assert advance(batch).emitting[0].request_id == "high"


def test_removed_sequences_leave_nothing_behind():
    batch = EmulatedBatch(PROFILE)
    for number in range(6):
        batch.submit(EmulatedSequence(str(number), 60, 0))
    advance(batch)
    for number in range(6):
        batch.remove(str(number))
    assert batch.is_idle
    assert batch.num_resident == 0
    assert batch.num_running == 0
