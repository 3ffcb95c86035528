"""Each role may do exactly what the channels and stores say of it, and whatever is written nowhere is denied."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage_llm_worker.settings import LlmWorkerSection
from sage_wire import subjects
from sage_wire.channels import CHANNELS, RECEIVER_PARAMETER, SENDER_PARAMETER, Channel
from sage_wire.rights import READER_POOL, Rights, covers, rights
from sage_wire.roles import ACTOR_ROLES, SCHEDULER, WORKER, Role
from sage_wire.stores import BUCKETS, QUEUES

ROLES = pytest.mark.parametrize("role", list(Role))
CHANNEL = pytest.mark.parametrize("channel", CHANNELS, ids=[channel.name for channel in CHANNELS])
TOKENS = st.sampled_from(["a", "b", "*", ">"])
PARTS = st.sampled_from(["a", "b", "c"])


def example(channel: Channel, sender: Role | None = None, receiver: Role | None = None) -> str:
    """Return one subject of the channel, as it is between these roles."""
    address = channel.address
    if sender is not None:
        address = address.replace(SENDER_PARAMETER, sender)
    if receiver is not None:
        address = address.replace(RECEIVER_PARAMETER, receiver)
    return re.sub(r"\{(\w+)\}", r"some-\1", address)


@CHANNEL
def test_every_sender_may_publish_and_nobody_else(channel: Channel) -> None:
    for role in Role:
        # The stores say who writes what lies in a stream or bucket; the channel, who sends it.
        subject = example(channel, sender=role, receiver=Role.GATEWAY)
        assert rights(role).may_publish(subject) == (role in channel.sender.roles), role


@CHANNEL
def test_every_receiver_may_subscribe_and_nobody_else(channel: Channel) -> None:
    for role in Role:
        is_heard = channel.stream is None and role in channel.receiver.roles
        subject = example(channel, sender=Role.LLM_WORKER, receiver=role)
        assert rights(role).may_subscribe(subject) == is_heard, role


@CHANNEL
def test_who_may_be_asked_may_answer_and_who_may_not_cannot(channel: Channel) -> None:
    if channel.reply is None:
        return
    for role, asker in itertools.product(channel.receiver.roles, channel.sender.roles):
        may = rights(role)
        assert may.max_responses == 1 or may.may_publish(f"{subjects.inbox(asker)}.process.1")


@pytest.mark.parametrize("role", [role for role in Role if role not in ACTOR_ROLES])
def test_who_is_never_asked_answers_nobody(role: Role) -> None:
    may = rights(role)
    assert may.max_responses == 0
    assert not any(
        may.may_publish(f"{subjects.inbox(other)}.process.1") for other in Role if other is not role
    )


def test_who_gets_thousands_of_reply_subjects_is_allowed_no_dynamic_answers() -> None:
    flooded = {role for channel in CHANNELS if channel.has_reply_subject for role in channel.receiver.roles}
    assert flooded == SCHEDULER.roles
    assert all(rights(role).max_responses == 0 for role in flooded)


@ROLES
def test_nobody_is_heard_or_read_in_anothers_name(role: Role) -> None:
    may = rights(role)
    for other in Role:
        if other is role:
            continue
        assert not may.may_publish(subjects.announce(other, "some-actor"))
        assert not may.may_subscribe(subjects.frames("some-consumer", other))
        assert not may.may_subscribe(f"{subjects.inbox(other)}.process.1")


@ROLES
@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "*",
        "sage.>",
        "sage.v1.>",
        "sage.v1.frames.>",
        "sage.v1.*.*.*",
        "_INBOX.>",
        "$JS.>",
        "$SYS.>",
        "$KV.>",
    ],
)
def test_no_pattern_gives_more_than_its_parts(role: Role, subject: str) -> None:
    assert not rights(role).may_publish(subject)
    assert not rights(role).may_subscribe(subject)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.PROVISIONER])
def test_no_actor_may_create_change_or_delete_what_the_server_keeps(role: Role) -> None:
    may = rights(role)
    streams = [subjects.bucket_stream(bucket.name) for bucket in BUCKETS] + [queue.stream for queue in QUEUES]
    for stream in streams:
        for call in ("CREATE", "UPDATE", "DELETE", "PURGE", "MSG.DELETE", "SNAPSHOT", "RESTORE"):
            assert not may.may_publish(f"$JS.API.STREAM.{call}.{stream}")
        for call in ("CREATE", "DURABLE.CREATE", "DELETE", "PAUSE", "RESET", "UNPIN"):
            assert not may.may_publish(f"$JS.API.CONSUMER.{call}.{stream}")
            assert not may.may_publish(f"$JS.API.CONSUMER.{call}.{stream}.workers")


def test_the_provisioner_can_make_what_is_needed_and_neither_read_nor_delete_it() -> None:
    may = rights(Role.PROVISIONER)
    for bucket in BUCKETS:
        stream = subjects.bucket_stream(bucket.name)
        assert may.may_publish(f"$JS.API.STREAM.CREATE.{stream}")
        assert not may.may_publish(f"$JS.API.STREAM.DELETE.{stream}")
        assert not may.may_publish(f"$JS.API.DIRECT.GET.{stream}")
        assert not may.may_publish(f"$KV.{bucket.name}.key")
        assert not may.may_subscribe(f"{subjects.bucket_changes(bucket.name)}.key")
    assert may.may_publish("$JS.API.CONSUMER.CREATE.SAGE_JOBS.workers")
    assert not may.may_publish("$JS.API.CONSUMER.CREATE.SAGE_JOBS.another")


@ROLES
def test_a_bucket_is_read_followed_and_written_by_its_own_roles_alone(role: Role) -> None:
    may = rights(role)
    for bucket in BUCKETS:
        stream = subjects.bucket_stream(bucket.name)
        is_reader = role in bucket.readers | bucket.followers
        assert may.may_publish(f"$JS.API.DIRECT.GET.{stream}") == is_reader
        assert may.may_publish(f"$JS.API.DIRECT.GET.{stream}.$KV.{bucket.name}.key") == is_reader
        assert may.may_publish(f"$JS.API.STREAM.MSG.GET.{stream}") == is_reader
        assert may.may_subscribe(f"{subjects.bucket_changes(bucket.name)}.>") == (role in bucket.followers)
        assert may.may_publish(f"$KV.{bucket.name}.some.key") == (role in bucket.writers)


def test_jobs_are_submitted_pulled_and_buried_by_different_roles() -> None:
    pull, ack = "$JS.API.CONSUMER.MSG.NEXT.SAGE_JOBS.workers", "$JS.ACK.SAGE_JOBS.workers.1.1.1.1.0"
    assert {role for role in Role if rights(role).may_publish(pull)} == {Role.PLANNER}
    assert {role for role in Role if rights(role).may_publish(ack)} == {Role.PLANNER}
    assert {role for role in Role if rights(role).may_publish("sagedead.v1.SAGE_JOBS")} == {Role.PLANNER}
    assert {role for role in Role if rights(role).may_publish(subjects.JOBS_SUBMIT)} == {
        Role.PUBLISHER,
        Role.OPERATOR,
    }


def test_an_llm_worker_submits_to_the_pool_of_its_reader_alone() -> None:
    may = rights(Role.LLM_WORKER)
    assert may.may_publish(subjects.pool_submit(READER_POOL))
    assert not may.may_publish(subjects.pool_submit("another-model"))
    assert LlmWorkerSection().extractive.embedding_model == READER_POOL


def test_workers_do_not_submit_and_do_not_dispatch() -> None:
    for role in WORKER.roles - {Role.PLANNER}:
        assert not rights(role).may_publish(subjects.pool_submit("some-model"))
        assert not rights(role).may_publish(subjects.worker_dispatch("some-worker"))
        assert not any(pattern.startswith("$JS") for pattern in rights(role).publish)


@ROLES
def test_no_entry_hopes_for_a_wildcard_within_a_token(role: Role) -> None:
    for pattern in (*rights(role).publish, *rights(role).subscribe):
        assert all(part in ("*", ">") or not set(part) & set("*>{} ") for part in pattern.split(".")), pattern
        assert ">" not in pattern.split(".")[:-1]


@ROLES
def test_no_entry_is_implied_by_another(role: Role) -> None:
    may = rights(role)
    for patterns in (may.publish, may.subscribe):
        assert len(set(patterns)) == len(patterns)
        assert not any(covers(wide, narrow) for wide, narrow in itertools.permutations(patterns, 2))


@given(st.lists(TOKENS, min_size=1, max_size=4), st.lists(TOKENS, min_size=1, max_size=4))
def test_a_pattern_covers_another_where_it_matches_all_that_the_other_does(
    wide: list[str], narrow: list[str]
) -> None:
    wide, narrow = _well_formed(wide), _well_formed(narrow)
    # `>` may stand for any number of tokens: those that either pattern can tell apart are enough.
    longest = max(len(wide), len(narrow)) + 2
    spoken = [
        subject
        for length in range(1, longest)
        for subject in itertools.product("abx", repeat=length)
        if _matches(narrow, subject)
    ]
    assert covers(".".join(wide), ".".join(narrow)) == all(_matches(wide, subject) for subject in spoken)


@given(st.lists(PARTS, min_size=1, max_size=4))
def test_a_subject_is_allowed_by_the_lists_alone(subject: list[str]) -> None:
    text = ".".join(subject)
    assert not Rights((), ()).may_publish(text)
    assert not Rights((), ()).may_subscribe(text)
    assert Rights((text,), ()).may_publish(text)
    assert Rights((), (text,)).may_subscribe(text)


def _well_formed(tokens: list[str]) -> list[str]:
    """Return the tokens up to the first `>`, which can only be the last."""
    return tokens[: tokens.index(">") + 1] if ">" in tokens else tokens


def _matches(pattern: list[str], subject: tuple[str, ...]) -> bool:
    """Tell whether a pattern matches a subject, token by token: the definition."""
    if not pattern:
        return not subject
    if pattern[0] == ">":
        return bool(subject)
    return bool(subject) and pattern[0] in ("*", subject[0]) and _matches(pattern[1:], subject[1:])
