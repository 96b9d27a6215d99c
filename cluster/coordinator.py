"""Coordinator: owns EP-rank leases and the current view; its balancer says which map is next. Never on the token path.

One event loop, no Ray. Its state is rebuilt from its members: after a restart the first of them to show the view it has
seen restores everyone in it; each of the others goes on, or registers again with the rank it holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.autoscaling import GatewayLoad
from cluster.balancer import Balancer
from cluster.balancing import BalancingConfig
from cluster.experts_status import BalancerStatus, ExpertStatus, ExpertTierStatus, Proposal
from cluster.gateway_load import GatewayPicture
from cluster.leases import LeaseTable
from cluster.membership import (
    AttentionReport,
    ClusterStatus,
    MemberReport,
    ProcessReport,
    ViewReply,
)
from cluster.metrics.coordinator import CoordinatorCounts
from cluster.notices import Notice, changes
from cluster.operator_picture import OperatorPicture, TierNow, map_document
from cluster.surroundings import Surroundings
from cluster.view import (
    AttentionMember,
    ClusterView,
    Shard,
    raised_above,
    with_attention,
    with_orders,
    with_shard,
    with_transport,
    without_member,
)
from cluster.watcher import WatchSettings
from ops.telemetry.meter import SilentMeter
from ops.telemetry.spec import Owner
from routing.experts import ExpertMap
from routing.transport.endpoint import Endpoint

logger = logging.getLogger(__name__)

# (attention host ids, expert host ids) -> kind of transport
TransportChoice = Callable[[Sequence[str], Sequence[str]], str]


@dataclass(frozen=True)
class CoordinatorSettings:
    """Times in seconds.

    lease_ttl_s: silence after which a member is dead. silent_after_s: silence after which its process is looked for,
    so that a death is noticed long before the time to live has passed. recovery_grace_s: time after a (re)start in
    which ranks go only to members that already hold them; long enough for every living member to be heard.
    """

    lease_ttl_s: float = 20.0
    silent_after_s: float = 4.0
    check_period_s: float = 1.0
    recovery_grace_s: float = WatchSettings().longest_silence_s


async def never_gone(_member_id: str) -> bool:
    """For clusters in one process, whose members leave by themselves."""
    return False


class Coordinator:
    """Implements `CoordinatorPort`.

    is_gone: True only if the member's process is known to be dead. choose_transport: called once, when all EP ranks and
    an attention actor are known.
    """

    def __init__(
        self,
        expert_map: ExpertMap,
        choose_transport: TransportChoice,
        settings: CoordinatorSettings,
        *,
        balancer: Balancer | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_gone: Callable[[str], Awaitable[bool]] = never_gone,
    ) -> None:
        """balancer: None never begins a rebalance, but takes one to its end that a view shows."""
        self._settings = settings
        self._balancer = balancer or Balancer(BalancingConfig(mode="off"), expert_map)
        # Its owner may set another, whose metrics are recorded somewhere.
        self.picture = OperatorPicture("", SilentMeter(Owner.COORDINATOR))
        self._counts = CoordinatorCounts()
        self._tell_others, self._balancer.tell = self._balancer.tell, self._tell
        self._reports: dict[str, MemberReport] = {}
        self._gateways = GatewayPicture()
        self._choose_transport = choose_transport
        self._clock = clock
        self._is_gone = is_gone
        self._view = ClusterView(0, expert_map)
        self._leases = LeaseTable(expert_map.ep_size, settings.lease_ttl_s)
        self._attention_hosts: dict[str, str] = {}
        self._expert_hosts: dict[str, str] = {}
        self._changed = asyncio.Condition()
        self._grants_from = clock() + settings.recovery_grace_s

    async def lease_rank(
        self, member_id: str, host_id: str, *, held: int | None = None, timeout_s: float = 0.0
    ) -> int | None:
        deadline = self._clock() + timeout_s
        ep_rank = await self._try_lease(member_id, host_id, held)
        while ep_rank is None and held is None and self._clock() < deadline:
            await self._drop_gone(tuple(self._leases.holders().values()))
            await self._wait_change(min(deadline - self._clock(), self._settings.check_period_s))
            ep_rank = await self._try_lease(member_id, host_id, held)
        return ep_rank

    async def publish_shard(self, member_id: str, endpoint: Endpoint) -> bool:
        ep_rank = self._leases.rank_of(member_id)
        if ep_rank is None:
            return False
        await self._adopt(with_shard(self._view, ep_rank, Shard(member_id, endpoint)))
        return True

    async def join_attention(self, member_id: str, host_id: str, endpoint: Endpoint | None = None) -> None:
        self._leases.enroll(member_id, self._clock())
        self._attention_hosts[member_id] = host_id
        await self._settle_transport()
        if endpoint is not None:
            await self._adopt(with_attention(self._view, member_id, AttentionMember(endpoint)))

    async def report_ready(self, member_id: str, is_ready: bool) -> bool:
        member = self._view.attention.get(member_id)
        if member is None:
            return False
        await self._adopt(with_attention(self._view, member_id, AttentionMember(member.endpoint, is_ready)))
        return True

    async def report(self, member_id: str, report: MemberReport) -> bool:
        if not self._leases.is_known(member_id):
            return False
        self._reports[member_id] = report
        self._counts.reports["attention" if isinstance(report, AttentionReport) else "expert"] += 1
        self._balancer.note(report, self._leases.rank_of(member_id), self._clock())
        await self._advance()
        return True

    async def note_surroundings(self, surroundings: Surroundings) -> None:
        """What is known now of the places where members run."""
        self._balancer.note_surroundings(surroundings)
        await self._advance()

    async def leave(self, member_id: str) -> None:
        self._leases.release(member_id)
        await self._forget([member_id])

    async def recover(self, view: Mapping[str, Any]) -> None:
        seen = ClusterView.from_dict(view)
        # An older view than ours names members that may have left since; its map may be newer all the same.
        if seen.view_id >= self._view.view_id:
            if not self._counts.takeovers:
                self._counts.takeovers = 1
                self._tell(Notice("coordinator", f"the coordinator goes on from view {seen.view_id} of an earlier one"))
            self._restore_members(seen)
        await self._adopt(raised_above(self._view, seen, self._leases.holders()))

    async def wait_view(self, after_view_id: int, timeout_s: float, member_id: str | None = None) -> ViewReply:
        is_member_lost = member_id is not None and not self._leases.renew(member_id, self._clock())
        # A number we never gave: it comes from before our restart.
        if is_member_lost or after_view_id > self._view.view_id:
            return ViewReply(is_known=False)
        deadline = self._clock() + timeout_s
        while self._view.view_id <= after_view_id and self._clock() < deadline:
            await self._wait_change(deadline - self._clock())
        is_news = self._view.view_id > after_view_id
        return ViewReply(is_known=True, view=self._view.to_dict() if is_news else None)

    async def gateway_load(self) -> GatewayLoad | None:
        return self._gateways.load(self._clock())

    async def report_process(self, report: ProcessReport) -> None:
        self.picture.note_process(report, self._clock())
        self._gateways.note(report, self._clock())

    async def operator_state(self) -> dict[str, Any]:
        """Everything the console shows, as plain values."""
        return self.picture.state(self._tier_now(), self._clock())

    async def map_document(self) -> dict[str, Any]:
        """Which expert is in which slot, as plain values."""
        return map_document(self._view)

    async def status(self) -> ClusterStatus:
        return ClusterStatus(self._view.to_dict(), self._leases.holders(), len(self._leases.members()))

    async def expert_status(self) -> ExpertTierStatus:
        """What an operator is shown of the expert tier."""
        return self._balancer.status(self._view, self._reports, self._clock())

    async def rebalance(self, *, is_dry_run: bool) -> Proposal:
        """By the operator's hand. Raises InvalidOrder."""
        proposal = self._balancer.propose(self._view, self._clock(), is_dry_run=is_dry_run)
        await self._advance()
        return proposal

    async def pin(self, layer_id: int, logical_id: int, ep_ranks: tuple[int, ...] | None) -> ExpertStatus:
        """Keep an expert's copies on these ranks, by default where they are. The next rebalance makes it so. Raises
        InvalidOrder."""
        await self._adopt(self._balancer.with_pin(self._view, layer_id, logical_id, ep_ranks))
        return self._balancer.expert(self._view, layer_id, logical_id, self._clock())

    async def unpin(self, layer_id: int, logical_id: int) -> ExpertStatus:
        """Leave the expert to the balancer again. Raises InvalidOrder."""
        await self._adopt(self._balancer.without_pin(self._view, layer_id, logical_id))
        return self._balancer.expert(self._view, layer_id, logical_id, self._clock())

    async def set_paused(self, *, is_paused: bool) -> BalancerStatus:
        """Whether rebalances may begin by themselves."""
        if is_paused != self._view.orders.is_paused:
            self._tell(Notice("balancer", "an operator paused it" if is_paused else "an operator let it go on"))
        await self._adopt(with_orders(self._view, replace(self._view.orders, is_paused=is_paused)))
        return self._balancer.balancer_status(self._view, self._reports, self._clock())

    async def run(self) -> None:
        """Drop dead members for ever; its owner cancels it."""
        while True:
            await asyncio.sleep(self._settings.check_period_s)
            await self.drop_dead_members()
            await self._advance()
            self.picture.record(self._tier_now(), self._counts)

    async def drop_dead_members(self) -> None:
        """Drop those whose time to live is over, and silent ones whose process is gone."""
        expired = self._leases.expire(self._clock())
        self._counts.leases_expired += len(expired)
        await self._forget(expired)
        await self._drop_gone(self._leases.silent(self._clock(), self._settings.silent_after_s))

    async def _try_lease(self, member_id: str, host_id: str, held: int | None) -> int | None:
        self._leases.enroll(member_id, self._clock())
        if held is None and self._clock() < self._grants_from and self._leases.rank_of(member_id) is None:
            return None
        ep_rank = self._leases.acquire(member_id, self._clock(), wanted=held)
        if ep_rank is not None:
            self._expert_hosts[member_id] = host_id
            await self._settle_transport()
        return ep_rank

    def _restore_members(self, seen: ClusterView) -> None:
        now = self._clock()
        for ep_rank, shard in seen.shards.items():
            self._leases.assume(shard.member_id, now, ep_rank)
            self._expert_hosts[shard.member_id] = shard.endpoint.host_id
        for member_id, member in seen.attention.items():
            self._leases.assume(member_id, now)
            self._attention_hosts[member_id] = member.endpoint.host_id

    async def _settle_transport(self) -> None:
        """Choose once for the cluster's life: every port speaks one kind, so a later member must fit in."""
        is_complete = self._attention_hosts and len(self._expert_hosts) == self._view.expert_map.ep_size
        if self._view.transport is None and is_complete:
            kind = self._choose_transport(list(self._attention_hosts.values()), list(self._expert_hosts.values()))
            await self._adopt(with_transport(self._view, kind))

    async def _drop_gone(self, suspects: Sequence[str]) -> None:
        gone = [member_id for member_id in suspects if await self._is_gone(member_id)]
        for member_id in gone:
            self._leases.release(member_id)
        await self._forget(gone)

    async def _forget(self, member_ids: Sequence[str]) -> None:
        if not member_ids:
            return
        view = self._view
        for member_id in member_ids:
            logger.info("member %s is out of the cluster", member_id)
            self._reports.pop(member_id, None)
            self._attention_hosts.pop(member_id, None)
            self._expert_hosts.pop(member_id, None)
            view = without_member(view, member_id)
        await self._adopt(view)

    async def _advance(self) -> None:
        """Let the balancer do what can be done now. While recovering, the newest view may not be known yet."""
        now = self._clock()
        if now >= self._grants_from:
            view = self._balancer.advance(self._view, self._reports, now)
            if view is not self._view:
                await self._adopt(view)

    async def _adopt(self, view: ClusterView) -> None:
        """Publish a view. Waiters wake even if it is the same one, because a lease may have become free."""
        before, self._view = self._view, view
        for notice in changes(before, view):
            self._tell(notice)
        async with self._changed:
            self._changed.notify_all()

    def _tell(self, notice: Notice) -> None:
        self.picture.note(notice)
        self._tell_others(notice)

    def _tier_now(self) -> TierNow:
        now, balancer = self._clock(), self._balancer
        status = balancer.status(self._view, self._reports, now)
        return TierNow(self._view, status, balancer.load(now), balancer.load_sample(now), balancer.decisions)

    async def _wait_change(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(max(timeout_s, 0.0)), self._changed:
                await self._changed.wait()
        except TimeoutError:
            return
