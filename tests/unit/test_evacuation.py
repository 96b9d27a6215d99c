"""Nodes that are about to go, from the Kubernetes API to where experts are: real coordinator, balancer and client.

Members follow as in a cluster: ranks fill slots one at a time, attention actors adopt when they come to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kubernetes.aio import client

from cluster.balancer import Balancer
from cluster.balancing import BalancingConfig
from cluster.config import PodEnvironment
from cluster.coordinator import Coordinator, CoordinatorSettings
from cluster.evacuation import RETRY_S
from cluster.experts_status import Outcome, Phase
from cluster.kube.api import KubeApi
from cluster.kube.queue import NoticeQueue
from cluster.kube.session import KubeSession
from cluster.kube.settings import KubernetesConfig
from cluster.membership import AttentionReport, ExpertReport, Place
from cluster.notices import Notice
from cluster.surroundings import Doom, Surroundings
from cluster.view import ClusterView
from routing.experts import EMPTY_SLOT, ExpertMap, linear_expert_map
from routing.load.sample import LoadSample
from routing.placement.evacuation import uncovered
from routing.placement.holders import held_of
from routing.transport.endpoint import Endpoint
from tests.fakes.clock import ManualClock
from tests.fakes.kubernetes_api import EVERYTHING, FakeKubernetes

LAYERS, EXPERTS, RANKS = 2, 12, 4
LOAD = np.array([1.0, 2.0, 3.0, 9.0, 8.0, 7.0, 1.0, 1.0, 1.0, 4.0, 5.0, 6.0])
CORDONED = {"spec": {"unschedulable": True}}


class World:
    """A coordinator with four expert ranks on nodes n0 to n3 and two attention actors on n0 and n1."""

    def __init__(self, redundant: int = 1, **balancing: Any) -> None:
        self.clock = ManualClock()
        self.start = linear_expert_map(LAYERS, EXPERTS, RANKS, num_redundant_slots=redundant)
        self.held = {f"e{rank}": self.start.local_experts(rank).copy() for rank in range(RANKS)}
        self.places = {f"e{rank}": Place(f"pe{rank}", f"n{rank}") for rank in range(RANKS)}
        self.places |= {f"a{number}": Place(f"pa{number}", f"n{number}") for number in range(2)}
        self.notices: list[Notice] = []
        self.sample: dict[str, Any] | None = None
        self.slow = False  # nobody fills a slot
        self.queue = NoticeQueue()
        config = BalancingConfig(**{"mode": "manual", "min_tokens": 1, **balancing})
        balancer = Balancer(config, self.start, wall_clock=lambda: 1.8e9, tell=self._tell)
        settings = CoordinatorSettings(lease_ttl_s=1e6, silent_after_s=1e6, recovery_grace_s=0.0)
        self.coordinator = Coordinator(self.start, lambda *_: "gloo", settings, balancer=balancer, clock=self.clock)

    def _tell(self, notice: Notice) -> None:
        self.notices.append(notice)
        self.queue.tell(notice)

    async def join(self, member_id: str) -> None:
        endpoint = Endpoint("gloo", member_id, f"host-{member_id}")
        if member_id.startswith("a"):
            await self.coordinator.join_attention(member_id, endpoint.host_id, endpoint)
        else:
            await self.coordinator.lease_rank(member_id, endpoint.host_id)
            await self.coordinator.publish_shard(member_id, endpoint)

    async def fill(self) -> None:
        for member_id in self.places:
            await self.join(member_id)

    @property
    def view(self) -> ClusterView:
        return self.coordinator._view

    @property
    def map(self) -> ExpertMap:
        return self.view.expert_map

    def rank_of(self, member_id: str) -> int:
        return next(rank for rank, shard in self.view.shards.items() if shard.member_id == member_id)

    async def round(self) -> None:
        """Half a second: each rank fills one slot, everybody reports."""
        self.clock.advance(0.5)
        for member_id, place in self.places.items():
            if member_id.startswith("a"):
                report = AttentionReport(self.map.map_epoch, (), self.sample, place)
                await self.coordinator.report(member_id, report)
            else:
                await self.coordinator.report(member_id, ExpertReport(self._served(member_id), place=place))
        self.sample = None

    def _served(self, member_id: str) -> tuple[int, ...]:
        rank, held, view = self.rank_of(member_id), self.held[member_id], self.view
        maps = [*view.served_maps, *([view.next_map] if view.next_map else [])]
        if not self.slow:
            for each in maps:
                local = each.local_experts(rank)
                for layer, slot in np.argwhere((local != EMPTY_SLOT) & (local != held))[:1]:
                    held[layer, slot] = local[layer, slot]
        wanted = [(each.map_epoch, each.local_experts(rank)) for each in maps]
        return tuple(epoch for epoch, local in wanted if np.all((local == EMPTY_SLOT) | (local == held)))

    async def rest(self, rounds: int = 60) -> None:
        for _ in range(rounds):
            await self.round()

    async def doom(self, **dooms: Doom) -> None:
        """Nodes that are about to go; all others stay."""
        nodes = {place.node: () for place in self.places.values()}
        await self.coordinator.note_surroundings(Surroundings({}, dict(dooms), nodes))

    def left(self, *ranks: int) -> list[list[int]]:
        """By layer, the experts that only these ranks have."""
        return [np.flatnonzero(row).tolist() for row in uncovered(held_of(self.map), ranks)]


@pytest.fixture
async def world() -> World:
    made = World()
    await made.fill()
    await made.rest(3)
    return made


def load_sample() -> dict[str, Any]:
    tokens = np.tile(LOAD, (LAYERS, 1)) * 100
    empty = LoadSample.empty(LAYERS, EXPERTS)
    return replace(empty, num_steps=100.0, num_tokens=float(tokens[0].sum()), tokens=tokens, soft=tokens).to_dict()


async def test_a_cordoned_node_and_back(world: World) -> None:
    """Its rank's experts get copies on the other ranks' free slots, though nothing has been measured yet and the
    balancer is told to wait for an operator; when the node stays, everything is where it was."""
    before = held_of(world.map)
    await world.doom(n3=Doom("node n3 is cordoned"))
    assert world.view.doomed == {"e3": "node n3 is cordoned"}
    await world.rest()
    assert world.left(3) == [[], []]
    assert np.array_equal(held_of(world.map)[:, 3], before[:, 3]), "a rank without a deadline serves on"
    await world.doom()
    assert world.view.doomed == {}
    await world.rest()
    assert np.array_equal(held_of(world.map), before)
    records = (await world.coordinator.expert_status()).balancer.history
    assert [(record.trigger, record.outcome) for record in records] == [
        ("doomed", Outcome.DONE),
        ("returned", Outcome.DONE),
    ]
    kinds = [notice.kind for notice in world.notices if notice.kind.startswith("member_")]
    assert kinds[-2:] == ["member_doomed", "member_spared"]


async def test_what_does_not_fit_is_said() -> None:
    """Two of four ranks go: two slots for six experts in each layer. The hottest get them."""
    world = World()
    await world.fill()
    world.sample = load_sample()
    await world.rest(3)
    await world.doom(n1=Doom("cordoned"), n3=Doom("cordoned"))
    await world.rest()
    assert world.left(1, 3) == [[5, 9, 10, 11]] * LAYERS, "3 and 4 are the hottest of 3, 4, 5, 9, 10, 11"
    status = (await world.coordinator.expert_status()).balancer
    assert "8 experts over all layers find no slot elsewhere" in status.last_decision
    assert any("find no slot elsewhere" in notice.text for notice in world.notices)


async def test_a_rank_with_a_deadline_is_emptied(world: World) -> None:
    """In time: a pod that is deleted in 60 s has nothing that others lack, and serves nothing, long before."""
    began = world.clock()
    pods = {"pe2": Doom("pod pe2 is being deleted", 1.8e9 + 60.0)}
    await world.coordinator.note_surroundings(Surroundings(pods, {}, None))
    while world.map.map_epoch == 0 or world.view.next_map or world.view.previous_map or held_of(world.map)[:, 2].any():
        await world.round()
        assert world.clock() - began < 60.0
    assert world.left(2) == [[], []]


async def test_a_replacement_on_another_node_gets_everything_back(world: World) -> None:
    """The doomed member leaves; while nobody serves its rank nothing moves; then experts return."""
    before = held_of(world.map)
    await world.doom(n2=Doom("node n2 is cordoned", 1.8e9 + 60))
    await world.rest()
    await world.coordinator.leave("e2")
    epoch = world.map.map_epoch
    del world.places["e2"]
    await world.rest(5)
    assert world.map.map_epoch == epoch
    world.places["e9"], world.held["e9"] = Place("pe9", "n0"), world.map.local_experts(2).copy()
    await world.join("e9")
    await world.rest()
    assert np.array_equal(held_of(world.map), before)


async def test_attention_actors_are_marked_and_go_on(world: World) -> None:
    """The view names them for whoever chooses an actor; they stay in it, ready or not as they were."""
    await world.coordinator.report_ready("a1", is_ready=True)
    await world.doom(n1=Doom("node n1 is cordoned"))
    assert set(world.view.doomed) == {"a1", "e1"}
    assert world.view.attention["a1"].is_ready
    again = ClusterView.from_dict(world.view.to_dict())
    assert again == world.view
    await world.coordinator.leave("a1")
    await world.round()
    assert set(world.view.doomed) == {"e1"}


@pytest.mark.parametrize("reason", ["off", "paused"])
async def test_orders_hold(reason: str) -> None:
    """Nothing moves while the balancer is off or paused; members are marked all the same. Then it goes on."""
    world = World(**{"mode": "off"} if reason == "off" else {})
    await world.fill()
    await world.rest(3)
    if reason == "paused":
        await world.coordinator.set_paused(is_paused=True)
    await world.doom(n3=Doom("cordoned"))
    await world.rest(10)
    assert (world.map.map_epoch, set(world.view.doomed)) == (0, {"e3"})
    if reason == "paused":
        await world.coordinator.set_paused(is_paused=False)
        await world.rest()
        assert world.left(3) == [[], []]


async def test_pins_hold(world: World) -> None:
    """A pinned expert stays on its rank alone, doomed or not."""
    await world.coordinator.pin(0, 10, None)
    await world.doom(n3=Doom("cordoned"))
    await world.rest()
    assert world.left(3) == [[10], []]


async def test_an_evacuation_that_fails_is_tried_again(world: World) -> None:
    """After a while, not at once."""
    world.slow = True
    await world.doom(n3=Doom("cordoned"))
    await world.round()
    assert world.view.next_map is not None
    for member_id in ("e0", "e1"):
        failed = ExpertReport((0,), failure="the file ends early", place=world.places[member_id])
        await world.coordinator.report(member_id, failed)
    assert world.view.next_map is None
    world.slow = False
    await world.rest(int(RETRY_S / 0.5) - 4)
    assert world.left(3) != [[], []]
    await world.rest()
    assert world.left(3) == [[], []]
    assert any(notice.kind == "rebalance_abandoned" for notice in world.notices)


async def test_the_fate_changes_on_the_way(world: World) -> None:
    """Another rank is doomed, and the first one spared, while slots are being filled: what counts is the last word."""
    await world.doom(n3=Doom("cordoned"))
    await world.round()
    await world.doom(n3=Doom("cordoned"), n0=Doom("cordoned"))
    await world.round()
    await world.doom(n0=Doom("cordoned"))
    await world.rest(120)
    assert world.left(0) == [[], []]
    await world.doom()
    await world.rest(120)
    assert np.array_equal(held_of(world.map), held_of(world.start))


async def test_a_fate_that_comes_back_is_answered_in_full(world: World) -> None:
    """Copies of rank 3's experts make way for those of rank 2's, which takes two stages; another fate ends that after
    the first, and is then revoked."""
    await world.doom(n3=Doom("cordoned"))
    await world.rest()
    await world.doom(n2=Doom("cordoned"))
    await world.round()
    assert (await world.coordinator.expert_status()).balancer.num_stages == 2
    await world.doom(n2=Doom("cordoned"), n0=Doom("cordoned"))
    await world.doom(n2=Doom("cordoned"))
    await world.rest(120)
    assert world.left(2) == [[], []]


async def test_a_rebalance_under_way_makes_room() -> None:
    """It ends with the stage it is in; then experts are brought to safety."""
    world = World(policy="eplb")
    await world.fill()
    world.sample = load_sample()
    await world.rest(3)
    await world.coordinator.rebalance(is_dry_run=False)
    stages = (await world.coordinator.expert_status()).balancer.num_stages
    assert stages > 1
    await world.doom(n3=Doom("cordoned"))
    await world.rest(120)
    assert world.left(3) == [[], []]
    first, *_ = (await world.coordinator.expert_status()).balancer.history
    assert (first.trigger, first.num_stages) == ("manual", 1)


async def test_load_is_balanced_around_a_doomed_rank() -> None:
    """While a node is cordoned the balancer goes on by load, and never takes the cover away."""
    world = World(redundant=2, mode="auto", min_gain=0.0, move_s=0.0, interval_s=1.0, half_life_s=5.0)
    await world.fill()
    await world.doom(n3=Doom("cordoned"))
    await world.rest()
    epoch = world.map.map_epoch
    for _ in range(40):
        world.sample = load_sample()
        await world.round()
        assert world.view.next_map is not None or world.left(3) == [[], []]
    await world.rest()
    assert world.map.map_epoch > epoch
    assert world.left(3) == [[], []]


async def test_nothing_moves_when_nothing_is_known(world: World) -> None:
    """Surroundings without a word of doom: no rebalance, no new view."""
    view_id = world.view.view_id
    await world.doom()
    await world.rest(10)
    assert world.view.view_id == view_id
    assert (await world.coordinator.expert_status()).balancer.phase is Phase.IDLE


@pytest.fixture
def kubernetes() -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as server:
        for number in range(RANKS):
            server.put("nodes", f"n{number}")
            server.put("pods", f"pe{number}", spec={"nodeName": f"n{number}"})
        yield server


@asynccontextmanager
async def watching(world: World, server: FakeKubernetes) -> AsyncIterator[None]:
    settings = KubernetesConfig(first_backoff_s=0.05, events_per_minute=60)
    pod = PodEnvironment("head", "n0", "models", "demo-raycluster", "demo")

    def connect(config: KubernetesConfig) -> KubeApi:
        return KubeApi(client.Configuration(host=server.url), config)

    session = KubeSession(settings, pod, world.queue, world.coordinator.note_surroundings, connect=connect)
    task = asyncio.create_task(session.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def live(world: World, is_met: Callable[[], bool]) -> None:
    """Rounds go by until it is so."""
    async with asyncio.timeout(10.0):
        while not is_met():
            await world.round()
            await asyncio.sleep(0.01)


async def test_from_kubectl_cordon_to_safety(world: World, kubernetes: FakeKubernetes) -> None:
    """A cordon, an eviction and an uncordon, as the API server shows them, with Events about it all."""
    async with watching(world, kubernetes):
        kubernetes.put("nodes", "n3", **CORDONED)
        await live(world, lambda: world.left(3) == [[], []])
        assert world.view.doomed == {"e3": "node n3 is cordoned"}
        kubernetes.put("pods", "pe3", metadata={"deletionTimestamp": "2027-01-15T08:00:00Z"}, spec={"nodeName": "n3"})
        await live(world, lambda: not held_of(world.map)[:, 3].any())
        kubernetes.put("nodes", "n3")
        kubernetes.put("pods", "pe3", spec={"nodeName": "n3"})
        await live(world, lambda: np.array_equal(held_of(world.map), held_of(world.start)))
        await live(world, lambda: any(event["reason"] == "MemberSpared" for event in kubernetes.events.values()))
    notes = {event["reason"]: event["note"] for event in kubernetes.events.values()}
    assert {"MemberDoomed", "Rebalance", "MemberSpared"} <= set(notes)
    assert all(event["regarding"]["uid"] == "uid-demo" for event in kubernetes.events.values())
    asked = {(verb, kind) for verb, kind, _ in kubernetes.requests}
    assert asked | {("patch", "events")} == EVERYTHING, "what the chart grants, and no more"


async def test_events_that_may_not_be_written(world: World, kubernetes: FakeKubernetes) -> None:
    """Experts move all the same."""
    kubernetes.rights -= {("create", "events"), ("patch", "events"), ("get", "rayservices")}
    async with watching(world, kubernetes):
        kubernetes.put("nodes", "n3", **CORDONED)
        await live(world, lambda: world.left(3) == [[], []])
    assert not kubernetes.events
    assert len(kubernetes.asked("create", "events")) <= 1
