"""Promises of the claims: every served pool gets one leader, tied pools the same one, and a standby takes over."""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from sage_scheduler.claims import RETRY, STAND_BACK, Claims
from sage_wire.subjects import pool_lease

NONE: frozenset[str] = frozenset()


def tied(*pools: str, by: str = "worker w") -> dict[str, frozenset[str]]:
    return {pool: frozenset({by}) for pool in pools}


class Site:
    """Schedulers around one table of leases; whoever asks first gets it, all hear of it a moment later."""

    def __init__(self, *names: str, ties: dict[str, frozenset[str]] | None = None) -> None:
        self.now = 0.0
        self.leases: dict[str, str] = {}
        self.ties = dict(ties or {})
        self.schedulers = {name: Claims(name) for name in names}
        for claims in self.schedulers.values():
            claims.served(self.ties, self.now)

    def serve(self, ties: dict[str, frozenset[str]]) -> None:
        self.ties |= ties
        for claims in self.schedulers.values():
            claims.served(self.ties, self.now)

    def kill(self, name: str) -> None:
        """Its leases end at the server."""
        del self.schedulers[name]
        for lease in [lease for lease, owner in self.leases.items() if owner == name]:
            del self.leases[lease]
            for claims in self.schedulers.values():
                claims.freed(lease, self.now)

    def turn(self) -> bool:
        """Let every scheduler claim what is due, one claim of each in turn; False where nobody had any."""
        claimed = {name: claims.due(self.now) for name, claims in self.schedulers.items()}
        pending = [
            (name, pool)
            for number in range(max(map(len, claimed.values()), default=0))
            for name, pools in claimed.items()
            for pool in pools[number : number + 1]
        ]
        for name, pool in pending:
            lease = pool_lease(pool)
            if lease in self.leases:
                self.schedulers[name].refused(pool, self.now)
            else:
                self.leases[lease] = name
                self.schedulers[name].gained(pool)
        for lease, owner in self.leases.items():
            for claims in self.schedulers.values():
                claims.held(lease, owner)
        return bool(pending)

    def settle(self, seconds: float = 5.0) -> None:
        """Let time pass, from one due moment to the next."""
        end = self.now + seconds
        while True:
            if self.turn():
                continue
            self.now = min((claims.next_at for claims in self.schedulers.values()), default=inf)
            if self.now > end:
                self.now = end
                return

    def leaders(self) -> dict[str, str]:
        return {pool: self.leases[pool_lease(pool)] for pool in self.ties if pool_lease(pool) in self.leases}


def test_two_that_start_together_do_not_split_the_pools_of_one_worker() -> None:
    site = Site("s1", "s2", ties=tied("a", "b", "c", "d"))
    site.settle()
    assert len(set(site.leaders().values())) == 1
    assert site.leaders().keys() == {"a", "b", "c", "d"}


def test_a_new_pool_goes_to_whoever_leads_its_neighbours_though_another_is_idle() -> None:
    site = Site("s1", ties=tied("b"))
    site.settle()
    site.schedulers["s2"] = Claims("s2")
    site.serve(tied("a", "b", by="device h/cuda:0"))
    site.turn()
    site.settle(STAND_BACK / 2)
    assert site.leaders() == {"a": "s1", "b": "s1"}


def test_a_standby_takes_a_neighbour_that_its_leader_does_not_want() -> None:
    site = Site("s2", ties=tied("a", "b"))
    site.leases[pool_lease("a")] = "s1"
    site.schedulers["s2"].held(pool_lease("a"), "s1")
    site.settle(STAND_BACK / 2)
    assert "b" not in site.leaders()
    site.settle(STAND_BACK)
    assert site.leaders()["b"] == "s2"


def test_what_a_killed_leader_held_is_claimed_as_soon_as_its_lease_ends() -> None:
    site = Site("s1", "s2", ties=tied("a", "b"))
    site.settle()
    (leader,) = set(site.leaders().values())
    site.kill(leader)
    site.settle(0.0)
    assert set(site.leaders().values()) == {"s1", "s2"} - {leader}


def test_a_lease_that_is_lost_is_not_claimed_again_in_the_same_breath() -> None:
    claims = Claims("s1")
    claims.served({"a": NONE}, 0.0)
    assert claims.due(0.0) == ["a"]
    claims.gained("a")
    claims.lost("a", 1.0)
    assert claims.due(1.0) == []
    assert claims.next_at == 1.0 + RETRY
    claims.freed(pool_lease("a"), 1.2)
    assert claims.due(1.2) == ["a"]


def test_a_claim_that_nobody_answered_is_made_again() -> None:
    claims = Claims("s1")
    claims.served({"a": NONE}, 0.0)
    claims.due(0.0)
    claims.refused("a", 0.5)
    assert claims.due(0.5 + RETRY) == ["a"]


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
TIES = st.dictionaries(
    NAMES, st.frozensets(st.sampled_from(["worker 1", "worker 2", "device x"]), max_size=2), min_size=1
)


@given(TIES, st.lists(st.sampled_from(["s1", "s2", "s3"]), max_size=2, unique=True), TIES)
def test_every_pool_ends_with_one_living_leader(
    ties: dict[str, frozenset[str]], killed: list[str], later: dict[str, frozenset[str]]
) -> None:
    site = Site("s1", "s2", "s3", ties=ties)
    site.settle()
    for name in killed:
        site.kill(name)
    site.serve(later)
    site.settle()
    assert site.leaders().keys() == site.ties.keys()
    for pool, owner in site.leaders().items():
        assert owner in site.schedulers
        mine = [name for name, claims in site.schedulers.items() if pool in claims.mine]
        assert mine == [owner]


@given(TIES)
def test_pools_that_share_anything_end_at_one_leader(ties: dict[str, frozenset[str]]) -> None:
    site = Site("s1", "s2", ties=ties)
    site.settle()
    for pool, shared in ties.items():
        for other, theirs in ties.items():
            if shared & theirs:
                assert site.leaders()[pool] == site.leaders()[other]
