"""Watcher: follows views in order, survives the coordinator, registers again, says when it cannot go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from cluster.coordinator import Coordinator, CoordinatorSettings
from cluster.errors import ClusterError, CoordinatorUnavailable, MembershipLost
from cluster.membership import ViewReply
from cluster.view import ClusterView
from cluster.watcher import Watcher, WatchSettings
from routing.experts import linear_expert_map
from routing.transport.endpoint import Endpoint
from tests.fakes.clock import ManualClock

QUICK = WatchSettings(poll_s=0.05, first_backoff_s=0.001, max_backoff_s=0.01)


def new_coordinator() -> Coordinator:
    return Coordinator(linear_expert_map(1, 4, 1), lambda *_: "shm", CoordinatorSettings(recovery_grace_s=0))


class Flaky(Coordinator):
    """A coordinator that can be away, and can be told to answer with an old view."""

    is_away = False
    stale: ClusterView | None = None

    async def wait_view(self, after_view_id: int, timeout_s: float, member_id: str | None = None) -> ViewReply:
        if self.is_away:
            raise CoordinatorUnavailable("away")
        if self.stale is not None:
            stale, self.stale = self.stale, None
            return ViewReply(is_known=True, view=stale.to_dict())
        return await super().wait_view(after_view_id, timeout_s, member_id)


def flaky_coordinator() -> Flaky:
    return Flaky(linear_expert_map(1, 4, 1), lambda *_: "shm", CoordinatorSettings(recovery_grace_s=0))


@asynccontextmanager
async def watching(watcher: Watcher) -> AsyncIterator[Watcher]:
    watcher.start()
    try:
        yield watcher
    finally:
        await watcher.close()


def has_shards(view: ClusterView) -> bool:
    return not view.missing_ranks


async def serve_rank(coordinator: Coordinator, member_id: str) -> None:
    assert await coordinator.lease_rank(member_id, "host") == 0
    await coordinator.publish_shard(member_id, Endpoint("shm", member_id, "host"))


async def test_every_newer_view_is_handed_on_in_order() -> None:
    """Numbers only grow, and an old view that turns up late is not adopted."""
    coordinator, seen = flaky_coordinator(), list[int]()
    async with watching(Watcher(coordinator, lambda view: seen.append(view.view_id), settings=QUICK)) as watcher:
        first = await watcher.wait_for(lambda _: True, 5)
        await serve_rank(coordinator, "e0")
        await watcher.wait_for(has_shards, 5)
        coordinator.stale = first
        await coordinator.leave("e0")
        view = await watcher.wait_for(lambda view: not has_shards(view), 5)
    assert view.view_id == 2
    assert seen == sorted(set(seen))


async def test_the_last_view_stays_good_while_the_coordinator_is_away() -> None:
    """It keeps trying, keeps its view, and goes on when the coordinator is back."""
    coordinator = flaky_coordinator()
    async with watching(Watcher(coordinator, settings=QUICK)) as watcher:
        await watcher.wait_for(lambda _: True, 5)
        coordinator.is_away = True
        await serve_rank(coordinator, "e0")
        watcher.check()
        assert watcher.view is not None
        coordinator.is_away = False
        await watcher.wait_for(has_shards, 5)


async def test_silence_is_counted_from_the_last_answer() -> None:
    """An answer without news is an answer; while the coordinator is away the count grows."""
    coordinator, clock = flaky_coordinator(), ManualClock()
    async with watching(Watcher(coordinator, settings=QUICK, clock=clock)) as watcher:
        clock.advance(30)
        await watcher.wait_for(lambda _: True, 5)
        assert watcher.silence_s == 0
        coordinator.is_away = True
        clock.advance(7)
        assert watcher.silence_s == 7


class Switchboard:
    """Lets a test put another coordinator behind the same address."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.now = coordinator

    def __getattr__(self, name: str) -> Callable[..., object]:
        method: Callable[..., object] = getattr(self.now, name)
        return method


async def test_a_restarted_coordinator_is_told_the_view_and_joined_again() -> None:
    """The new one starts at 0 and ends above the highest number that was seen."""
    old = new_coordinator()
    address = Switchboard(old)

    async def register() -> None:
        assert await address.now.lease_rank("e0", "host", held=0) == 0
        await address.now.publish_shard("e0", Endpoint("shm", "e0", "host"))

    await serve_rank(old, "e0")
    watcher = Watcher(address, member_id="e0", register=register, settings=QUICK)  # type: ignore[arg-type]
    async with watching(watcher):
        before = await watcher.wait_for(has_shards, 5)
        address.now = new_coordinator()
        after = await watcher.wait_for(lambda view: view.is_newer_than(before) and has_shards(view), 5)
    assert after.view_id > before.view_id


async def test_half_a_registration_is_repeated() -> None:
    """The coordinator goes away in the middle of registering: it is done again, though the member is known by then."""
    coordinator, attempts = new_coordinator(), 0

    async def register() -> None:
        nonlocal attempts
        attempts += 1
        await coordinator.join_attention("a0", "host")
        if attempts == 1:
            raise CoordinatorUnavailable("in the middle")
        await coordinator.join_attention("a0", "host", Endpoint("shm", "a0", "host"))

    async with watching(Watcher(coordinator, member_id="a0", register=register, settings=QUICK)) as watcher:
        await watcher.wait_for(lambda view: "a0" in view.attention, 5)
    assert attempts == 2


async def test_a_lost_membership_ends_the_watch_and_fails_health() -> None:
    """Whoever waits is told, and so is the health check; the process will be replaced."""

    async def register() -> None:
        raise MembershipLost("another member has the rank")

    watcher = Watcher(new_coordinator(), member_id="e0", register=register, settings=QUICK)
    async with watching(watcher):
        with pytest.raises(ClusterError, match="no longer follows"):
            await watcher.wait_for(has_shards, 5)
        with pytest.raises(ClusterError, match="no longer follows"):
            watcher.check()


async def test_waiting_has_a_deadline_and_closing_is_idempotent() -> None:
    """A condition that never holds times out; close twice is fine, and is not a failure."""
    watcher = Watcher(new_coordinator(), settings=QUICK)
    async with watching(watcher):
        with pytest.raises(TimeoutError):
            await watcher.wait_for(has_shards, 0.01)
    await watcher.close()
    watcher.check()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "watch-view"]
