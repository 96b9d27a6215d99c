"""Which attention actors a gateway may send a request to. Serve's own classes around replicas that are made up."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.attention_router import IS_DRAINING, AttentionRouter, willing

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@dataclass(frozen=True)
class Replica:
    replica_id: str
    routing_stats: dict[str, Any] = field(default_factory=dict, hash=False)


def replicas(*draining: bool) -> list[Replica]:
    return [Replica(f"r{number}", {IS_DRAINING: each}) for number, each in enumerate(draining)]


def router(near: set[str]) -> AttentionRouter:
    """Without Serve around it. near: ids of those that Serve prefers for where they are."""
    made = AttentionRouter.__new__(AttentionRouter)
    made.apply_locality_routing = lambda _request=None: near  # type: ignore[method-assign]
    return made


def test_who_drains_gets_nothing() -> None:
    """Unless all drain; whoever has not said anything yet may get something."""
    one, two = replicas(True, False)
    unknown = Replica("new")
    assert willing([one, two, unknown]) == [two, unknown]
    assert willing([one]) == [one]
    assert willing([]) == []


@pytest.mark.parametrize(
    ("draining", "near", "allowed"),
    [
        ((False, False, False), {"r0", "r1", "r2"}, {"r0", "r1", "r2"}),
        ((True, False, False), {"r0", "r1", "r2"}, {"r1", "r2"}),
        ((False, False, True), {"r0"}, {"r0"}),
        ((True, False, False), {"r0"}, {"r1", "r2"}),  # the near one drains: rather a far one
        ((True, True, True), {"r0", "r1", "r2"}, {"r0", "r1", "r2"}),
    ],
)
async def test_two_of_those_that_are_left(draining: tuple[bool, ...], near: set[str], allowed: set[str]) -> None:
    """One round names at most two, different ones, and over many rounds every one that may be."""
    seen: set[str] = set()
    for _ in range(60):
        (group,) = await router(near).choose_replicas(replicas(*draining))  # type: ignore[arg-type]
        names = [replica.replica_id for replica in group]
        assert len(names) == len(set(names)) == min(2, len(allowed))
        seen |= set(map(str, names))
    assert seen == allowed


async def test_nobody_is_there() -> None:
    """Serve waits and asks again."""
    assert await router(set()).choose_replicas([]) == []
