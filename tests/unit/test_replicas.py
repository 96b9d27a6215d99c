"""Expert and attention replicas against a real coordinator in one loop, with actors that hold no model."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing
from typing import Any

import pytest

from actors.errors import ActorError, EngineOverloaded, ExpertsUnavailable
from actors.messages import ErrorKind, FinishReason, GenerateRequest, SamplingSpec
from cluster.attention_replica import AttentionReplica, BuiltAttention, failed_event
from cluster.coordinator import Coordinator, CoordinatorSettings
from cluster.errors import ClusterError
from cluster.expert_replica import BuiltExpert, ExpertReplica
from cluster.replica import Identity, ReplicaSettings
from cluster.view import ClusterView
from cluster.watcher import WatchSettings
from routing.experts import ExpertMap, linear_expert_map
from tests.fakes.ranks import FakeAttention, FakeExpert, build_attention, build_expert

WATCH = WatchSettings(poll_s=0.05, first_backoff_s=0.001, max_backoff_s=0.01)
SETTINGS = ReplicaSettings(join_timeout_s=5, rank_wait_s=0.05, ready_check_s=0.005)


class Tiers:
    """A coordinator and the replicas and fake actors made so far."""

    def __init__(self, ep_size: int = 2) -> None:
        expert_map = linear_expert_map(1, 4, ep_size)
        self.coordinator = Coordinator(expert_map, lambda *_: "shm", CoordinatorSettings(recovery_grace_s=0))
        self.experts: dict[str, FakeExpert] = {}
        self.attention: FakeAttention | None = None

    def expert(self, name: str) -> ExpertReplica:
        def build(ep_rank: int, expert_map: ExpertMap, transport: str) -> BuiltExpert:
            built = build_expert(ep_rank, expert_map, transport)
            assert isinstance(built.actor, FakeExpert)
            self.experts[name] = built.actor
            return built

        return ExpertReplica(Identity(name, "host"), self.coordinator, build, SETTINGS, WATCH)

    def attention_replica(self) -> AttentionReplica:
        def build(expert_map: ExpertMap, transport: str) -> BuiltAttention:
            built = build_attention(expert_map, transport)
            assert isinstance(built.actor, FakeAttention)
            self.attention = built.actor
            return built

        return AttentionReplica(Identity("a0", "host"), self.coordinator, build, SETTINGS, WATCH)

    async def wait(self, is_met: object, timeout_s: float = 5.0) -> ClusterView:
        """The coordinator's first view for which `is_met` holds."""
        assert callable(is_met)
        async with asyncio.timeout(timeout_s):
            view = ClusterView.from_dict((await self.coordinator.status()).view)
            while not is_met(view):
                reply = await self.coordinator.wait_view(view.view_id, timeout_s)
                assert reply.view is not None
                view = ClusterView.from_dict(reply.view)
            return view


async def open_all(*replicas: ExpertReplica | AttentionReplica) -> None:
    """Together, as Serve does: the transport is chosen only when all have come."""
    await asyncio.gather(*(replica.open() for replica in replicas))


async def close_all(*replicas: ExpertReplica | AttentionReplica) -> None:
    await asyncio.gather(*(replica.close() for replica in replicas))


def request(max_tokens: int = 3) -> GenerateRequest:
    return GenerateRequest("r1", (1, 2), SamplingSpec(max_tokens=max_tokens))


async def test_the_cluster_becomes_ready_and_says_so() -> None:
    """Every rank is held once, every port knows its peers, and readiness follows by itself."""
    tiers = Tiers()
    replicas = [tiers.expert("e0"), tiers.expert("e1"), tiers.attention_replica()]
    await open_all(*replicas)
    view = await tiers.wait(lambda view: view.is_serving)
    assert sorted(expert.ep_rank for expert in tiers.experts.values()) == [0, 1]
    assert all(expert.is_started for expert in tiers.experts.values())
    assert tiers.attention is not None
    assert tiers.attention.shards == view.shard_endpoints()
    await close_all(*replicas)


async def test_a_lost_expert_takes_readiness_away_and_its_replacement_brings_it_back() -> None:
    """The replacement gets the same rank, and the attention actor hears of both changes."""
    tiers = Tiers()
    lost, *others = [tiers.expert("e0"), tiers.expert("e1"), tiers.attention_replica()]
    await open_all(lost, *others)
    await tiers.wait(lambda view: view.is_serving)
    lost_rank = tiers.experts["e0"].ep_rank
    await lost.close()
    await tiers.wait(lambda view: not any(member.is_ready for member in view.attention.values()))
    replacement = tiers.expert("e2")
    await replacement.open()
    await tiers.wait(lambda view: view.is_serving)
    assert tiers.experts["e2"].ep_rank == lost_rank
    await close_all(replacement, *others)


async def test_requests_stream_and_closing_aborts() -> None:
    """All events with a reason at the end; a reader that leaves aborts the sequence in the actor."""
    tiers = Tiers(ep_size=1)
    replicas = [tiers.expert("e0"), attention := tiers.attention_replica()]
    await open_all(*replicas)
    events = [event async for event in attention.generate(request(3))]
    assert [event.token_ids for event in events] == [(0,), (1,), (2,)]
    assert events[-1].finish_reason is FinishReason.LENGTH
    async with aclosing(attention.generate(request(100))) as stream:
        await anext(stream)
    assert tiers.attention is not None
    assert tiers.attention.aborted == ["r1"]
    await close_all(*replicas)


async def test_a_named_failure_is_the_last_event() -> None:
    """Exceptions do not cross Serve: the client's blame arrives as an event with the field's name."""
    tiers = Tiers(ep_size=1)
    replicas = [tiers.expert("e0"), attention := tiers.attention_replica()]
    await open_all(*replicas)
    (event,) = [event async for event in attention.generate(request(13))]
    assert event.error is not None
    assert (event.error.kind, event.error.param) == (ErrorKind.REJECTED, "max_tokens")
    await close_all(*replicas)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EngineOverloaded(), ErrorKind.OVERLOADED),
        (ExpertsUnavailable(), ErrorKind.UNAVAILABLE),
        (ActorError("secret detail"), ErrorKind.INTERNAL),
    ],
)
def test_failures_map_to_kinds_without_leaking_their_text(error: ActorError, kind: ErrorKind) -> None:
    """What the gateway gets is enough to choose a status, and is a sentence of ours."""
    event = failed_event("r1", error)
    assert event.finish_reason is FinishReason.ERROR
    assert event.error is not None
    assert event.error.kind is kind
    assert "secret" not in event.error.message


async def test_closing_attention_drains_then_leaves() -> None:
    """Drained, out of the view, closed; a second close does no harm."""
    tiers = Tiers(ep_size=1)
    replicas = [expert := tiers.expert("e0"), attention := tiers.attention_replica()]
    await open_all(*replicas)
    await attention.close()
    assert tiers.attention is not None
    assert tiers.attention.drained.is_set()
    assert tiers.attention.is_closed
    await tiers.wait(lambda view: not view.attention)
    await attention.close()
    await expert.close()
    assert tiers.experts["e0"].is_closed


async def test_health_is_the_actors_and_the_watchs() -> None:
    """A broken actor fails its replica's health; so does a rank that went to somebody else."""
    tiers = Tiers(ep_size=1)
    replicas = [expert := tiers.expert("e0"), attention := tiers.attention_replica()]
    await open_all(*replicas)
    expert.check_health()
    tiers.experts["e0"].failure = ActorError("stuck")
    with pytest.raises(ActorError, match="stuck"):
        expert.check_health()
    tiers.experts["e0"].failure = None
    await tiers.coordinator.leave("e0")
    assert await tiers.coordinator.lease_rank("thief", "host") == 0
    await tiers.coordinator.publish_shard("thief", tiers.attention.shards[0] if tiers.attention else None)  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        while True:
            try:
                expert.check_health()
            except ClusterError:
                break
            await tiers.coordinator.wait_view(10**6, 0.0)
            await asyncio.sleep(0)
    attention.check_health()
    await close_all(*replicas)


async def test_a_failed_load_is_raised_to_serve() -> None:
    """What loading raises reaches the constructor; closing afterwards frees the rank at once."""
    tiers = Tiers(ep_size=1)
    attention = tiers.attention_replica()
    opening = asyncio.create_task(attention.open())

    def build(*_: object) -> BuiltExpert:
        raise ActorError("broken checkpoint")

    broken = ExpertReplica(Identity("e0", "host"), tiers.coordinator, build, SETTINGS, WATCH)
    with pytest.raises(ActorError, match="broken checkpoint"):
        await broken.open()
    await broken.close()
    assert (await tiers.coordinator.status()).leased == {}
    await opening
    await attention.close()


class Switchboard:
    """Lets a test put another coordinator behind the same address."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.now = coordinator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now, name)


async def test_no_port_loses_a_peer_over_a_restarted_coordinator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all ranks are there, neither tier is ever told of fewer, and the new coordinator ends up complete."""
    tiers = Tiers()
    address = Switchboard(tiers.coordinator)
    tiers.coordinator = address  # type: ignore[assignment]
    replicas = [tiers.expert("e0"), tiers.expert("e1"), tiers.attention_replica()]
    await open_all(*replicas)
    before = await tiers.wait(lambda view: view.is_serving)
    told: asyncio.Queue[int] = asyncio.Queue()
    monkeypatch.setattr(FakeAttention, "reconcile", lambda _self, shards, *_: told.put_nowait(len(shards)))
    monkeypatch.setattr(FakeExpert, "reconcile", lambda _self, attention, _shards: told.put_nowait(len(attention) + 1))
    address.now = Tiers().coordinator
    after = await tiers.wait(lambda view: view.is_newer_than(before) and view.is_serving)
    async with asyncio.timeout(5):
        assert {await told.get() for _ in replicas} == {2}
    assert after.shards == before.shards
    await close_all(*replicas)


async def test_a_wrong_readiness_in_the_view_is_put_right() -> None:
    """Whoever reported it: as long as the view says otherwise the replica repeats what is true."""
    tiers = Tiers(ep_size=1)
    replicas = [tiers.expert("e0"), tiers.attention_replica()]
    await open_all(*replicas)
    view = await tiers.wait(lambda view: view.is_serving)
    await tiers.coordinator.report_ready("a0", is_ready=False)
    await tiers.wait(lambda now: now.is_serving and now.view_id >= view.view_id + 2)
    await close_all(*replicas)


async def test_a_replica_that_cannot_announce_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor that cannot say whether it is ready ends the announcements, and health tells."""
    tiers = Tiers(ep_size=1)
    replicas = [tiers.expert("e0"), attention := tiers.attention_replica()]
    await open_all(*replicas)
    attention.check_health()

    def is_ready(_actor: FakeAttention) -> bool:
        raise ActorError("no idea")

    monkeypatch.setattr(FakeAttention, "is_ready", is_ready)
    (announcing,) = (task for task in asyncio.all_tasks() if task.get_name() == "announce-readiness")
    await asyncio.wait([announcing], timeout=5)
    with pytest.raises(ClusterError, match="no longer announces"):
        attention.check_health()
    await close_all(*replicas)


async def test_a_draining_replica_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster knows before the drain begins, and registering again in the middle of it does not change that."""
    tiers = Tiers(ep_size=1)
    replicas = [expert := tiers.expert("e0"), attention := tiers.attention_replica()]
    await open_all(*replicas)
    await tiers.wait(lambda view: view.is_serving)
    may_end, shown = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def drain(_actor: FakeAttention, _timeout_s: float) -> None:
        loop.call_soon_threadsafe(shown.set)
        assert may_end.wait(5)

    monkeypatch.setattr(FakeAttention, "drain", drain)
    closing = asyncio.create_task(attention.close())
    await asyncio.wait_for(shown.wait(), 5)
    view = ClusterView.from_dict((await tiers.coordinator.status()).view)
    assert not view.attention["a0"].is_ready
    await tiers.coordinator.leave("a0")
    view = await tiers.wait(lambda view: "a0" in view.attention)
    assert not view.attention["a0"].is_ready
    may_end.set()
    await closing
    await expert.close()
