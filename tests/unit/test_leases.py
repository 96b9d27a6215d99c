"""LeaseTable: one holder per rank, lowest rank first, the dead make room."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from cluster.leases import LeaseTable


def test_ranks_are_given_lowest_first_and_once_per_member() -> None:
    """Asking again gives the same rank; a full table gives none."""
    table = LeaseTable(2, ttl_s=10)
    assert [table.acquire(name, 0) for name in ("a", "b", "a", "c")] == [0, 1, 0, None]
    assert table.holders() == {0: "a", 1: "b"}


def test_a_released_rank_goes_to_whoever_asks_next() -> None:
    """The replacement of rank 0 becomes rank 0."""
    table = LeaseTable(2, ttl_s=10)
    table.acquire("a", 0)
    table.acquire("b", 0)
    assert table.release("a") == 0
    assert table.acquire("c", 1) == 0
    assert table.release("nobody") is None


def test_silence_longer_than_the_ttl_is_death() -> None:
    """At exactly the time to live a member still lives; after it, it is unknown and its rank is free."""
    table = LeaseTable(1, ttl_s=10)
    table.acquire("a", 0)
    table.renew("a", 5)
    assert table.expire(15) == ()
    assert table.silent(15, 9) == ("a",)
    assert table.expire(15.1) == ("a",)
    assert not table.renew("a", 16)
    assert table.holder(0) is None


@pytest.mark.parametrize(("wanted", "given"), [(1, 1), (0, None), (7, None), (-1, None)])
def test_a_wanted_rank_is_given_or_none_is(wanted: int, given: int | None) -> None:
    """A member that has rank 1's weights is of no use as any other rank."""
    table = LeaseTable(2, ttl_s=10)
    table.acquire("a", 0)
    assert table.acquire("b", 0, wanted=wanted) == given


def test_a_holder_cannot_switch_ranks() -> None:
    """Wanting another rank than the held one gives none and keeps the held one."""
    table = LeaseTable(2, ttl_s=10)
    table.acquire("a", 0)
    assert table.acquire("a", 0, wanted=1) is None
    assert table.rank_of("a") == 0


def test_fuzz_never_two_holders_of_one_rank() -> None:
    """5000 random operations: ranks in range, one holder each, one rank each, only known members hold."""
    rng = random.Random(7)
    table, now = LeaseTable(4, ttl_s=5), 0.0
    names = [f"m{i}" for i in range(8)]
    believed: dict[str, int] = {}
    for _ in range(5000):
        now += rng.random()
        name = rng.choice(names)
        match rng.randrange(4):
            case 0:
                rank = table.acquire(name, now, wanted=rng.choice([None, None, rng.randrange(4)]))
                if rank is not None:
                    assert believed.get(name, rank) == rank, "a live member was moved to another rank"
                    believed[name] = rank
            case 1:
                table.renew(name, now)
            case 2:
                assert table.release(name) == believed.pop(name, None)
            case _:
                for dead in table.expire(now):
                    believed.pop(dead, None)
        assert {rank: name for name, rank in believed.items()} == table.holders()
        assert len(set(believed.values())) == len(believed)
        assert all(table.is_known(holder) for holder in table.holders().values())


def test_hearsay_gives_way_to_a_member_that_speaks() -> None:
    """A later word replaces an earlier one, and the claim of a member itself replaces both; nothing replaces that."""
    table = LeaseTable(1, ttl_s=10)
    table.assume("old", 0, ep_rank=0)
    table.assume("newer", 0, ep_rank=0)
    assert table.holders() == {0: "newer"}
    assert table.members() == ("newer",)
    assert table.acquire("claimant", 0, wanted=0) == 0
    table.assume("newer", 0, ep_rank=0)
    assert table.holders() == {0: "claimant"}
    assert table.acquire("newer", 0, wanted=0) is None


@pytest.mark.parametrize("speak", [LeaseTable.renew, LeaseTable.enroll])
def test_a_member_that_has_spoken_is_no_hearsay(speak: Callable[[LeaseTable, str, float], object]) -> None:
    """It keeps its rank against a claim; without a word it dies of silence like everybody."""
    table = LeaseTable(2, ttl_s=10)
    table.assume("a", 0, ep_rank=0)
    table.assume("b", 0, ep_rank=1)
    speak(table, "a", 9)
    assert table.acquire("c", 9, wanted=0) is None
    assert table.expire(11) == ("b",)


def test_hearsay_takes_nothing_from_the_lowest_free_rank() -> None:
    """A newcomer without a rank of its own gets none that somebody is said to hold."""
    table = LeaseTable(2, ttl_s=10)
    table.assume("a", 0, ep_rank=0)
    assert [table.acquire("c", 0), table.acquire("d", 0)] == [1, None]
