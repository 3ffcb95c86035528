"""The queue's order against its twin, and what the order promises to tenants and tiers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sage_native._native import FairQueue
from sage_policy.tier_queue import TierQueue
from unit.sage_policy.twins.fair_queue import FairQueueTwin

SERVICES = st.sampled_from([0.1, 0.25, 0.5, 1.0, 3.0])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("push"),
            st.integers(0, 5),
            st.integers(0, 2),
            st.integers(-1, 1),
            st.sampled_from([0.0, 1.0, 2.5]),
            SERVICES,
        ),
        st.tuples(st.just("serve"), st.integers(0, 9)),
        st.tuples(st.just("serve"), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 40)),
        st.tuples(
            st.just("charge"), st.integers(0, 5), st.integers(0, 2), st.sampled_from([-0.5, -0.1, 0.7])
        ),
    ),
    max_size=80,
)


@settings(max_examples=400, deadline=None)
@given(OPERATIONS, st.booleans(), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 0.05, 0.3]))
def test_the_order_is_that_of_the_twin(
    operations: list[tuple], fair: bool, quantum: float, lower_tier_share: float
) -> None:
    queue = FairQueue(fair=fair, quantum=quantum, lower_tier_share=lower_tier_share)
    twin = FairQueueTwin(fair=fair, quantum=quantum, lower_tier_share=lower_tier_share)
    for number, (operation, *arguments) in enumerate(operations):
        if operation == "push":
            arguments = [number, *arguments]
        elif operation == "serve":
            order = twin.first(10)
            arguments = [order[arguments[0] % len(order)] if order else 999]
        expected = getattr(twin, operation)(*arguments)
        assert getattr(queue, operation)(*arguments) == expected
        assert queue.first(25) == twin.first(25)
        assert queue.first(1) == twin.first(1)
        assert len(queue) == len(twin.entries)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS)
def test_the_queue_of_python_policies_has_the_order_of_one_tenant_and_equal_services(
    operations: list[tuple],
) -> None:
    queue = TierQueue()
    twin = FairQueueTwin(fair=False, quantum=0.0, lower_tier_share=0.05)
    for number, (operation, *arguments) in enumerate(operations):
        if operation == "push":
            _, tier, priority, key, _ = arguments
            queue.push(str(number), tier, priority, key)
            twin.push(number, 0, tier, priority, key, 1.0)
        elif operation == "serve" and twin.entries:
            request = twin.first(10)[arguments[0] % len(twin.first(10))]
            queue.serve(str(request))
            twin.serve(request)
        elif operation == "remove" and arguments[0] in twin.entries:
            queue.remove(str(arguments[0]))
            twin.remove(arguments[0])
        assert [int(request) for request in queue.first(25)] == twin.first(25)
        assert len(queue) == len(twin.entries)


def test_thousands_of_tenants_are_all_served_in_turn() -> None:
    queue = FairQueue(fair=True, quantum=1.0, lower_tier_share=0.05)
    chance = random.Random(3)
    received = dict.fromkeys(range(1000), 0.0)
    request = 0
    owner: dict[int, tuple[int, float]] = {}

    def push(tenant: int) -> None:
        nonlocal request
        request += 1
        service = chance.choice((0.1, 0.3, 0.5))
        owner[request] = (tenant, service)
        queue.push(request, tenant, 0, 0, chance.random(), service)

    for tenant in received:
        for _ in range(3):
            push(tenant)
    for _ in range(20_000):
        (head,) = queue.first(1)
        tenant, service = owner.pop(head)
        queue.serve(head)
        received[tenant] += service
        push(tenant)
    assert max(received.values()) - min(received.values()) <= 2.0, "one quantum and one request apart"


def test_a_tenant_that_comes_back_has_no_claim_on_the_time_it_was_away() -> None:
    queue = FairQueue(fair=True, quantum=0.0, lower_tier_share=0.05)
    for request in range(100):
        queue.push(request, 1, 0, 0, 0.0, 1.0)
    for request in range(50):
        queue.serve(request)
    for request in range(100, 120):
        queue.push(request, 2, 0, 0, 0.0, 1.0)
    served = []
    for _ in range(20):
        (head,) = queue.first(1)
        served.append(head)
        queue.serve(head)
    assert sum(request >= 100 for request in served) in (10, 11)


@pytest.mark.parametrize("tier", [1, 2])
def test_a_lower_tier_that_waits_gets_its_share_and_no_more(tier: int) -> None:
    queue = FairQueue(fair=True, quantum=2.0, lower_tier_share=0.05)
    for request in range(4000):
        queue.push(request, request % 7, 0 if request < 3000 else tier, 0, 0.0, 1.0)
    served = []
    for _ in range(1000):
        (head,) = queue.first(1)
        served.append(head)
        queue.serve(head)
    assert 40 <= sum(request >= 3000 for request in served) <= 55


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_lower_tier_that_could_not_run_for_long_does_not_shut_the_others_out_later(kind: str) -> None:
    native, plain = FairQueue(fair=True, quantum=2.0, lower_tier_share=0.05), TierQueue()
    for request in range(3200):
        tier = 0 if request < 3000 else 2
        native.push(request, 1, tier, 0, 0.0, 1.0)
        plain.push(str(request), tier, 0, 0.0)
    for request in range(2000):  # batch work fits nowhere meanwhile
        native.serve(request)
        plain.serve(str(request))
    served = []
    for _ in range(100):
        head = native.first(1)[0] if kind == "native" else int(plain.first(1)[0])
        served.append(head)
        native.serve(head)
        plain.serve(str(head))
    assert sum(request >= 3000 for request in served) <= 6
