"""Rebalances through a real coordinator while members lag and the coordinator is killed at random points.

Ranks fill slots one at a time, attention actors adopt when they come to it, views reach everybody late. What must hold
at every moment: whatever epoch an attention actor plans with, a rank either refuses it or holds exactly the experts
that the planned slots name; and in the end everything comes to rest with every expert served.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest

from cluster.balancer import Balancer
from cluster.balancing import BalancingConfig
from cluster.coordinator import Coordinator, CoordinatorSettings
from cluster.membership import AttentionReport, ExpertReport
from cluster.rebalancer import Rebalance
from cluster.view import ClusterView
from routing.experts import EMPTY_SLOT, ExpertMap, linear_expert_map
from routing.placement.contract import PlacementProblem, TierCost, placement_policy
from routing.placement.diff import migration
from routing.transport.endpoint import Endpoint
from tests.fakes.clock import ManualClock

LAYERS, EXPERTS, RANKS = 2, 8, 4
START = linear_expert_map(LAYERS, EXPERTS, RANKS, num_redundant_slots=1)
GRACE_S = 5.0


@dataclass
class Rank:
    """An expert rank that knows a view and fills one slot at a time, as `SlotLoader` does."""

    ep_rank: int
    held: np.ndarray = field(init=False)
    view: ClusterView | None = None

    def __post_init__(self) -> None:
        self.held = START.local_experts(self.ep_rank).copy()

    @property
    def maps(self) -> list[ExpertMap]:
        if self.view is None:
            return [START]
        return [*self.view.served_maps, *([self.view.next_map] if self.view.next_map else [])]

    def served(self) -> dict[int, ExpertMap]:
        locals_ = {each.map_epoch: (each, each.local_experts(self.ep_rank)) for each in self.maps}
        return {
            epoch: each
            for epoch, (each, local) in locals_.items()
            if np.all((local == EMPTY_SLOT) | (local == self.held))
        }

    def _holds(self, local: np.ndarray) -> bool:
        return bool(np.all((local == EMPTY_SLOT) | (local == self.held)))

    def fill_one(self) -> None:
        for each in self.maps:
            local = each.local_experts(self.ep_rank)
            for layer, slot in np.argwhere((local != EMPTY_SLOT) & (local != self.held)):
                self.held[layer, slot] = local[layer, slot]
                return

    def report(self) -> ExpertReport:
        return ExpertReport(tuple(sorted(self.served())))


class World:
    """Members, and one coordinator after another."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.load_rng = np.random.default_rng(seed)
        self.clock = ManualClock()
        self.ranks = [Rank(ep_rank) for ep_rank in range(RANKS)]
        self.views: dict[str, ClusterView] = {}
        self.maps = dict.fromkeys(("a0", "a1"), START)
        self.num_restarts = 0
        self.start_coordinator(grace_s=0.0)

    def start_coordinator(self, grace_s: float) -> None:
        """A new one, which knows nothing."""
        balancer = Balancer(BalancingConfig(mode="manual", stage_timeout_s=500), START, wall_clock=lambda: 1e9)
        settings = CoordinatorSettings(lease_ttl_s=1e6, silent_after_s=1e6, recovery_grace_s=grace_s)
        self.coordinator = Coordinator(START, lambda *_: "shm", settings, balancer=balancer, clock=self.clock)
        self.is_known: set[str] = set()

    async def register(self, name: str) -> None:
        """As a watcher does after a restart: the newest view it has seen, then itself."""
        if name in self.views:
            await self.coordinator.recover(self.views[name].to_dict())
        if name.startswith("a"):
            await self.coordinator.join_attention(name, "host", Endpoint("shm", name, "host"))
        else:
            held = int(name[1:]) if name in self.views else None
            assert await self.coordinator.lease_rank(name, "host", held=held) == int(name[1:])
            await self.coordinator.publish_shard(name, Endpoint("shm", name, "host"))
        self.is_known.add(name)

    async def look(self, name: str) -> None:
        """A member polls once and follows what it is shown."""
        if name not in self.is_known:
            await self.register(name)
        view = ClusterView.from_dict((await self.coordinator.status()).view)
        if name not in self.views or view.is_newer_than(self.views[name]):
            self.views[name] = view
            if name.startswith("e"):
                self.ranks[int(name[1:])].view = view

    async def report(self, name: str) -> None:
        if name not in self.is_known:
            return
        if name.startswith("e"):
            await self.coordinator.report(name, self.ranks[int(name[1:])].report())
        else:
            await self.coordinator.report(name, AttentionReport(self.maps[name].map_epoch))

    def step(self, name: str) -> None:
        """An attention actor adopts a newer map between two steps, then plans one with what it has."""
        view = self.views.get(name)
        if view is not None and view.expert_map.map_epoch > self.maps[name].map_epoch:
            self.maps[name] = view.expert_map
        planned = self.maps[name]
        for rank in self.ranks:
            served = rank.served().get(planned.map_epoch)
            if served is not None:
                local = planned.local_experts(rank.ep_rank)
                assert np.all((local == EMPTY_SLOT) | (local == rank.held)), "rows would meet another expert's weights"

    def is_served(self, name: str) -> bool:
        return all(self.maps[name].map_epoch in rank.served() for rank in self.ranks)

    async def begin(self) -> None:
        """A rebalance to a map for some other load, unless one is under way."""
        view = ClusterView.from_dict((await self.coordinator.status()).view)
        rebalancer = self.coordinator._balancer._rebalancer
        is_whole = not view.missing_ranks and len(self.is_known) == len(self.members)
        if rebalancer.is_busy or view.next_map or view.previous_map or not is_whole:
            return
        load = self.load_rng.random((LAYERS, EXPERTS)) ** 4 * 20
        target = placement_policy("eplb").plan(PlacementProblem(view.expert_map, load, TierCost(1.0, 1.0)))
        stages = tuple(stage.expert_map for stage in migration(view.expert_map, target).stages)
        if stages:
            rebalancer.begin(Rebalance(stages, "manual", 1), self.clock())
            await self.coordinator._advance()

    @property
    def members(self) -> list[str]:
        return [*(f"e{rank}" for rank in range(RANKS)), "a0", "a1"]

    async def act(self) -> None:
        """One thing happens."""
        name = self.rng.choice(self.members)
        action = self.rng.choices(("look", "report", "fill", "step", "begin", "kill"), (6, 6, 4, 6, 1, 0.25))[0]
        self.clock.advance(0.1)
        if action == "look":
            await self.look(name)
        elif action == "report":
            await self.report(name)
        elif action == "fill":
            self.rng.choice(self.ranks).fill_one()
        elif action == "step":
            self.step(self.rng.choice(("a0", "a1")))
        elif action == "begin":
            await self.begin()
        else:
            self.num_restarts += 1
            self.start_coordinator(GRACE_S)

    async def come_to_rest(self) -> ClusterView:
        """Everybody does his part, in turn, until nothing changes any more."""
        for _ in range(200):
            self.clock.advance(1.0)
            for name in self.members:
                await self.look(name)
                for rank in self.ranks:
                    rank.fill_one()
                await self.report(name)
            for name in ("a0", "a1"):
                self.step(name)
            await self.coordinator._advance()
        return ClusterView.from_dict((await self.coordinator.status()).view)


@pytest.mark.parametrize("seed", range(25))
async def test_nothing_is_ever_computed_with_the_wrong_expert_and_all_ends_well(seed: int) -> None:
    """Random schedules with several restarts of the coordinator; afterwards one map, adopted and served by all."""
    world = World(seed)
    for name in world.members:
        await world.look(name)
    for _ in range(400):
        await world.act()
    view = await world.come_to_rest()
    assert (view.next_map, view.previous_map) == (None, None)
    assert all(expert_map.map_epoch == view.expert_map.map_epoch for expert_map in world.maps.values())
    assert world.is_served("a0")
    assert world.is_served("a1")


async def test_the_schedules_do_what_they_are_for() -> None:
    """Over all seeds there were many rebalances and many restarts, some of them in the middle of one."""
    epochs, restarts = [], []
    for seed in range(8):
        world = World(seed)
        for name in world.members:
            await world.look(name)
        for _ in range(400):
            await world.act()
        epochs.append((await world.come_to_rest()).expert_map.map_epoch)
        restarts.append(world.num_restarts)
    assert sum(epochs) >= 8
    assert sum(restarts) >= 8
