"""Coordinator: leases, views, the choice of a transport, death and recovery. One loop, a manual clock, no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cluster.coordinator import Coordinator, CoordinatorSettings
from cluster.view import ClusterView
from cluster.watcher import WatchSettings
from routing.experts import linear_expert_map
from routing.transport.endpoint import Endpoint
from tests.fakes.clock import ManualClock

SETTINGS = CoordinatorSettings(lease_ttl_s=20, silent_after_s=4, recovery_grace_s=0)


def endpoint(name: str) -> Endpoint:
    return Endpoint("shm", name, "host")


def pick(attention: Sequence[str], experts: Sequence[str]) -> str:
    """A choice that shows what it was given."""
    return "shm" if len({*attention, *experts}) == 1 else "gloo"


class Cluster:
    """A coordinator with its clock and the set of processes that are known to be dead."""

    def __init__(self, settings: CoordinatorSettings = SETTINGS, ep_size: int = 2) -> None:
        self.clock, self.gone = ManualClock(), set[str]()
        expert_map = linear_expert_map(2, 8, ep_size)
        self.coordinator = Coordinator(expert_map, pick, settings, clock=self.clock, is_gone=self._is_gone)

    async def _is_gone(self, member_id: str) -> bool:
        return member_id in self.gone

    async def view(self) -> ClusterView:
        return ClusterView.from_dict((await self.coordinator.status()).view)

    async def fill(self) -> None:
        for member_id in ("e0", "e1"):
            await self.coordinator.lease_rank(member_id, "host")
            await self.coordinator.publish_shard(member_id, endpoint(member_id))
        await self.coordinator.join_attention("a0", "host", endpoint("a0"))
        await self.coordinator.report_ready("a0", is_ready=True)


async def test_a_cluster_comes_up() -> None:
    """Ranks in order of asking, and a view that serves once all have published and one is warm."""
    cluster = Cluster()
    await cluster.fill()
    view = await cluster.view()
    assert {rank: shard.member_id for rank, shard in view.shards.items()} == {0: "e0", 1: "e1"}
    assert view.is_serving
    await cluster.coordinator.report_ready("a0", is_ready=False)
    assert not (await cluster.view()).is_serving


@pytest.mark.parametrize(("host", "kind"), [("host", "shm"), ("other", "gloo")])
async def test_the_transport_is_chosen_when_everyone_is_known(host: str, kind: str) -> None:
    """Not before the last rank and the first attention actor; from the hosts of all; once."""
    cluster = Cluster()
    await cluster.coordinator.join_attention("a0", "host")
    await cluster.coordinator.lease_rank("e0", "host")
    assert (await cluster.view()).transport is None
    await cluster.coordinator.lease_rank("e1", host)
    assert (await cluster.view()).transport == kind
    await cluster.coordinator.join_attention("a1", "elsewhere")
    assert (await cluster.view()).transport == kind


async def test_a_long_poll_wakes_on_news() -> None:
    """The waiting call returns the very next view, without a time-out."""
    cluster = Cluster()
    await cluster.coordinator.lease_rank("e0", "host")
    waiting = asyncio.create_task(cluster.coordinator.wait_view(0, 60.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    await cluster.coordinator.publish_shard("e0", endpoint("e0"))
    reply = await asyncio.wait_for(waiting, 5)
    assert reply.view is not None
    assert ClusterView.from_dict(reply.view).view_id == 1


async def test_a_long_poll_without_news_ends() -> None:
    """No view, but the caller is known."""
    reply = await Cluster().coordinator.wait_view(0, 0.0)
    assert (reply.is_known, reply.view) == (True, None)


async def test_silence_is_death_and_polling_is_life() -> None:
    """After the time to live only the member that polled is left."""
    cluster = Cluster()
    await cluster.fill()
    for _ in range(3):
        cluster.clock.advance(8)
        await cluster.coordinator.wait_view(0, 0.0, "e1")
        await cluster.coordinator.drop_dead_members()
    view = await cluster.view()
    assert {shard.member_id for shard in view.shards.values()} == {"e1"}
    assert not view.attention
    assert not (await cluster.coordinator.wait_view(view.view_id, 0.0, "e0")).is_known


async def test_a_dead_process_is_noticed_before_its_lease_ends() -> None:
    """Silent for longer than silent_after_s, and its process is gone: out at once. A silent living one stays."""
    cluster = Cluster()
    await cluster.fill()
    cluster.gone.add("e0")
    cluster.clock.advance(3.9)
    await cluster.coordinator.drop_dead_members()
    assert not (await cluster.view()).missing_ranks
    cluster.clock.advance(0.2)
    await cluster.coordinator.drop_dead_members()
    assert (await cluster.view()).missing_ranks == (0,)


async def test_a_replacement_takes_the_rank_of_a_dead_holder_at_once() -> None:
    """Asking for a rank makes the coordinator look for the holders; it does not wait for the lease."""
    cluster = Cluster()
    await cluster.fill()
    cluster.gone.add("e1")
    rank = await asyncio.wait_for(cluster.coordinator.lease_rank("e2", "host", timeout_s=1000), 5)
    assert rank == 1
    assert (await cluster.view()).missing_ranks == (1,)


async def test_a_spare_waits_until_a_rank_is_free() -> None:
    """A member leaves, the waiting one gets its rank."""
    cluster = Cluster()
    await cluster.fill()
    spare = asyncio.create_task(cluster.coordinator.lease_rank("e2", "host", timeout_s=1000))
    await asyncio.sleep(0)
    await cluster.coordinator.leave("e0")
    assert await asyncio.wait_for(spare, 5) == 0


async def test_a_restarted_coordinator_is_rebuilt_by_its_members() -> None:
    """They are told they are unknown, show their view, and keep their ranks; the number goes on."""
    before = Cluster()
    await before.fill()
    seen = await before.view()
    after = Cluster(CoordinatorSettings(recovery_grace_s=5))
    assert not (await after.coordinator.wait_view(seen.view_id, 0.0, "e1")).is_known
    assert not (await after.coordinator.wait_view(seen.view_id, 0.0)).is_known
    await after.coordinator.recover(seen.to_dict())
    # A newcomer in the grace time must not be given a rank that its holder has not claimed yet.
    assert await after.coordinator.lease_rank("e9", "host") is None
    assert await after.coordinator.lease_rank("e1", "host", held=1) == 1
    assert await after.coordinator.lease_rank("e0", "host", held=0) == 0
    assert (await after.view()).view_id > seen.view_id
    assert (await after.view()).transport == "shm"


async def test_a_rank_that_went_to_another_is_not_given_back() -> None:
    """A member that was given up comes back too late: it is refused, and may not publish."""
    cluster = Cluster()
    await cluster.fill()
    cluster.gone.add("e0")
    await cluster.coordinator.lease_rank("e2", "host", timeout_s=1000)
    assert await cluster.coordinator.lease_rank("e0", "host", held=0) is None
    assert not await cluster.coordinator.publish_shard("e0", endpoint("e0"))
    assert not await cluster.coordinator.report_ready("nobody", is_ready=True)


async def restarted(before: Cluster) -> tuple[Cluster, ClusterView]:
    """A new coordinator with default times, and what the members of the old one have seen."""
    return Cluster(CoordinatorSettings()), await before.view()


async def test_a_newcomer_gets_the_dead_rank_and_no_living_one() -> None:
    """Coordinator and expert 1 die together. However late within its backoff expert 0 is heard, it keeps rank 0."""
    before = Cluster()
    await before.fill()
    after, seen = await restarted(before)
    after.gone.add("e1")
    after.clock.advance(WatchSettings().longest_silence_s - 0.1)
    assert await after.coordinator.lease_rank("e2", "host") is None
    await after.coordinator.recover(seen.to_dict())
    after.clock.advance(0.2)
    assert await asyncio.wait_for(after.coordinator.lease_rank("e2", "host", timeout_s=1000), 5) == 1
    assert await after.coordinator.lease_rank("e0", "host", held=0) == 0


async def test_the_first_report_restores_everyone() -> None:
    """Members in it are known without a word of their own, as complete and as ready as they were."""
    before = Cluster()
    await before.fill()
    after, seen = await restarted(before)
    await after.coordinator.recover(seen.to_dict())
    view = await after.view()
    assert (view.shards, view.attention, view.view_id) == (seen.shards, seen.attention, seen.view_id + 1)
    assert (await after.coordinator.status()).leased == {0: "e0", 1: "e1"}
    for member_id in ("e0", "e1", "a0"):
        assert (await after.coordinator.wait_view(seen.view_id, 0.0, member_id)).is_known


async def test_the_restored_dead_are_dropped_for_their_silence() -> None:
    """Being named in a view is no life: the one that stays silent and is gone leaves the view."""
    before = Cluster()
    await before.fill()
    after, seen = await restarted(before)
    await after.coordinator.recover(seen.to_dict())
    after.gone.add("e1")
    after.clock.advance(4.1)
    await after.coordinator.wait_view(0, 0.0, "e0")
    await after.coordinator.drop_dead_members()
    assert (await after.view()).missing_ranks == (1,)


async def test_a_late_report_names_the_living_holder() -> None:
    """The first to report had missed a replacement; the one who saw it corrects the view, and nobody loses a rank."""
    before = Cluster()
    await before.fill()
    missed = await before.view()
    before.gone.add("e1")
    assert await before.coordinator.lease_rank("e2", "host", timeout_s=1000) == 1
    await before.coordinator.publish_shard("e2", endpoint("e2"))
    after, seen = await restarted(before)
    await after.coordinator.recover(missed.to_dict())
    await after.coordinator.recover(seen.to_dict())
    assert {rank: shard.member_id for rank, shard in (await after.view()).shards.items()} == {0: "e0", 1: "e2"}
    assert await after.coordinator.lease_rank("e2", "host", held=1) == 1
