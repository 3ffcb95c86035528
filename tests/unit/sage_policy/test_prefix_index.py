"""The prefix index against its twin, and its promises: bounded, chains lose their tails first, slots stay dense."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sage_native._native import PrefixIndex
from unit.sage_policy.twins.prefix_index import PrefixIndexTwin

NO_SLOT = 2**32 - 1
INSTANCES = st.integers(0, 5)
# Chains share leading blocks as prompts do: a path through a small tree, each hash naming the whole path.
CHAINS = st.lists(st.integers(0, 2), max_size=8).map(
    lambda path: [hash(tuple(path[: depth + 1])) % 2**64 for depth in range(len(path))]
)
STEPS = st.one_of(
    st.tuples(st.just("add"), INSTANCES, st.integers(1, 12)),
    st.tuples(st.just("remove"), INSTANCES),
    st.tuples(st.just("insert"), INSTANCES, CHAINS),
    st.tuples(st.just("insert"), INSTANCES, CHAINS),
    st.tuples(st.just("insert"), INSTANCES, st.lists(st.integers(0, 2**64 - 1), max_size=5)),
)


def chain(rng: random.Random, length: int) -> np.ndarray:
    return np.array([rng.getrandbits(64) for _ in range(length)], dtype=np.uint64)


@given(steps=st.lists(STEPS, max_size=60), asked=st.lists(CHAINS, min_size=1, max_size=5))
def test_every_sequence_of_operations_matches_like_the_twin(steps, asked):
    index, twin = PrefixIndex(), PrefixIndexTwin()
    for instance in range(0, 6, 2):
        index.add_instance(instance, 6)
        twin.add_instance(instance, 6)
    for name, *arguments in steps:
        method = name if name == "insert" else f"{name}_instance"
        getattr(index, method)(*arguments)
        getattr(twin, method)(*arguments)
        if name == "insert":
            asked = [*asked[-8:], arguments[1]]
    for blocks in asked:
        matched = index.match_all(blocks)
        for instance in range(6):
            expected = twin.matched(instance, blocks)
            assert index.matched(instance, blocks) == expected
            slot = index.slot(instance)
            assert (slot == NO_SLOT) == (instance not in twin.instances)
            assert slot == NO_SLOT or matched[slot] == expected
        assert sum(matched) == sum(twin.matched(instance, blocks) for instance in range(6))
    assert [index.num_blocks(i) for i in range(6)] == [twin.num_blocks(i) for i in range(6)]
    assert index.num_distinct == twin.num_distinct()


@given(st.data())
def test_two_hundred_instances_match_like_the_twin(data):
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    index, twin = PrefixIndex(), PrefixIndexTwin()
    chains = [[rng.getrandbits(64) for _ in range(20)] for _ in range(4)]
    for instance in range(200):
        index.add_instance(instance, 30)
        twin.add_instance(instance, 30)
        for blocks in rng.sample(chains, 2):
            blocks = blocks[: rng.randint(0, 20)]
            index.insert(instance, blocks)
            twin.insert(instance, blocks)
    for blocks in chains:
        assert index.match_all(blocks) == [twin.matched(instance, blocks) for instance in range(200)]


def test_a_full_cache_loses_the_tail_of_its_least_recently_used_chain():
    index = PrefixIndex()
    index.add_instance(7, 6)
    index.insert(7, [1, 2, 3])
    index.insert(7, [11, 12, 13])
    index.insert(7, [1])  # refreshes the head only
    index.insert(7, [21, 22])
    assert index.matched(7, [1, 2, 3]) == 1
    assert index.matched(7, [11, 12, 13]) == 3
    index.insert(7, [31])
    assert index.matched(7, [11, 12, 13]) == 2


def test_a_chain_longer_than_the_cache_keeps_its_head():
    index = PrefixIndex()
    index.add_instance(0, 4)
    index.insert(0, [99])
    index.insert(0, list(range(10)))
    assert index.matched(0, list(range(10))) == 4
    assert index.num_blocks(0) == 4


def test_memory_stays_bounded_while_new_chains_come_for_ever():
    rng = random.Random(5)
    index = PrefixIndex(500)
    for instance in range(8):
        index.add_instance(instance)
    sizes = []
    for turn in range(3000):
        index.insert(turn % 8, chain(rng, 20))
        sizes.append(index.num_bytes)
    assert all(index.num_blocks(instance) == 500 for instance in range(8))
    assert index.num_distinct == 4000
    assert sizes[-1] == sizes[1500] < 500_000


def test_slots_are_given_again_so_that_they_stay_dense():
    index = PrefixIndex()
    for turn in range(1000):
        index.add_instance(turn, 4)
        index.insert(turn, [1, 2])
        if turn >= 3:
            index.remove_instance(turn - 3)
    assert len(index.match_all([1, 2, 3])) == 4
    assert sorted(index.match_all([1, 2, 3])) == [0, 2, 2, 2]


def test_unknown_instances_and_empty_chains_match_nothing():
    index = PrefixIndex()
    assert index.match_all([1]) == []
    index.insert(3, [1])
    index.remove_instance(3)
    index.add_instance(4, 2)
    index.insert(4, [])
    assert (index.matched(3, [1]), index.matched(4, []), index.match_all([])) == (0, 0, [0])
