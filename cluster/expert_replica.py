"""The life of an expert replica: lease a rank, load it, serve it, leave. No Ray.

Everything slow runs on a thread, so that the replica's loop keeps renewing its membership meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from actors.expert.refusal import Refusal
from actors.expert.slot_progress import SlotProgress
from cluster.errors import MembershipLost
from cluster.membership import CoordinatorPort, ExpertReport
from cluster.metrics.expert import ExpertMetrics
from cluster.process_telemetry import ProcessTelemetry
from cluster.replica import (
    Identity,
    ReplicaSettings,
    check_task,
    end_task,
    has_transport,
    leave,
    persist,
    report_forever,
)
from cluster.view import ClusterView
from cluster.watcher import Watcher, WatchSettings
from ops.telemetry import logs
from ops.telemetry.meter import SilentMeter
from ops.telemetry.spec import Owner
from routing.experts import ExpertMap
from routing.load.expert_sample import ExpertSample
from routing.transport.endpoint import Endpoint

logger = logging.getLogger(__name__)


class ExpertRank(Protocol):
    """What a replica needs of `actors.expert.actor.ExpertActor`."""

    def start(self) -> None: ...
    def reconcile(self, attention: Sequence[Endpoint], shards: Mapping[int, Endpoint]) -> None: ...
    def follow_maps(self, maps: Sequence[ExpertMap], next_map: ExpertMap | None) -> None: ...
    def slot_progress(self) -> SlotProgress: ...
    @property
    def layer_ids(self) -> tuple[int, ...]: ...
    def take_sample(self) -> ExpertSample | None: ...
    def refusals(self) -> Mapping[Refusal, int]: ...
    def check_health(self) -> None: ...
    def close(self) -> None: ...


class BuiltExpert(NamedTuple):
    """An expert actor that has loaded its shard, and where its port takes rows."""

    actor: ExpertRank
    endpoint: Endpoint


class ExpertReplica:
    """One EP rank under the coordinator. `open` once, then `check_health` at will, then `close`."""

    def __init__(
        self,
        identity: Identity,
        coordinator: CoordinatorPort,
        build: Callable[[int, ExpertMap, str], BuiltExpert],
        settings: ReplicaSettings,
        watch: WatchSettings,
        telemetry: ProcessTelemetry | None = None,
    ) -> None:
        """build: (ep_rank, expert_map, transport) -> a loaded actor; slow, runs on a thread. telemetry: of this
        process; None records nothing."""
        self._identity = identity
        self._coordinator = coordinator
        self._build = build
        self._settings = settings
        self._watcher = Watcher(
            coordinator, self._follow, member_id=identity.member_id, register=self._register, settings=watch
        )
        self._telemetry = telemetry
        self._metrics: ExpertMetrics | None = None
        self._built: BuiltExpert | None = None
        self._ep_rank = -1
        self._reporting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Lease a rank, load it, serve it. Raises TimeoutError, MembershipLost, or what loading raises."""
        self._ep_rank = await self._lease()
        if self._telemetry is not None:
            self._telemetry.lease(self._ep_rank)
        self._watcher.start()
        view = await self._watcher.wait_for(has_transport, self._settings.join_timeout_s)
        assert view.transport is not None, "wait_for returned a view that does not meet its condition"
        built = await asyncio.to_thread(self._build, self._ep_rank, view.expert_map, view.transport)
        built.actor.start()
        meter = SilentMeter(Owner.EXPERT) if self._telemetry is None else self._telemetry.meter
        self._metrics = ExpertMetrics(meter, built.actor.layer_ids)
        self._built = built
        self._follow(self._watcher.view or view)
        await self._publish(built)
        reports = report_forever(self._coordinator, self._identity.member_id, self._report, self._settings)
        self._reporting = asyncio.create_task(reports, name="report")
        logger.info("member %s serves EP rank %d", self._identity.member_id, self._ep_rank)

    def check_health(self) -> None:
        """Raises if the actor is stuck or dead, or if the process no longer follows the cluster."""
        self._watcher.check()
        check_task(self._reporting, "reports to the coordinator")
        if self._built is not None:
            self._built.actor.check_health()

    async def close(self) -> None:
        """Leave the cluster and free everything. Idempotent."""
        await end_task(self._reporting)
        await self._watcher.close()
        await leave(self._coordinator, self._identity.member_id, self._settings.leave_timeout_s)
        if self._built is not None:
            await asyncio.to_thread(self._built.actor.close)

    async def _lease(self) -> int:
        """All ranks are taken while a dead holder's lease runs; wait for it in slices, each of which renews us."""
        async with asyncio.timeout(self._settings.join_timeout_s):
            while True:
                ep_rank = await persist(self._ask_rank, self._settings.join_timeout_s)
                if ep_rank is not None:
                    return ep_rank

    async def _ask_rank(self) -> int | None:
        identity = self._identity
        return await self._coordinator.lease_rank(
            identity.member_id, identity.host_id, timeout_s=self._settings.rank_wait_s
        )

    async def _register(self) -> None:
        identity = self._identity
        held = await self._coordinator.lease_rank(identity.member_id, identity.host_id, held=self._ep_rank)
        if held is None:
            raise MembershipLost(f"EP rank {self._ep_rank} belongs to another member now")
        if self._built is not None:
            await self._publish(self._built)

    async def _publish(self, built: BuiltExpert) -> None:
        is_published = await persist(
            lambda: self._coordinator.publish_shard(self._identity.member_id, built.endpoint),
            self._settings.join_timeout_s,
        )
        if not is_published:
            raise MembershipLost(f"the lease of EP rank {self._ep_rank} ran out")

    def _follow(self, view: ClusterView) -> None:
        logs.THIS_PROCESS.map_epoch = view.expert_map.map_epoch
        if self._built is not None:
            self._built.actor.follow_maps(view.served_maps, view.next_map)
            self._built.actor.reconcile(view.attention_endpoints(), view.shard_endpoints())

    def _report(self) -> ExpertReport | None:
        if self._built is None or self._metrics is None:
            return None
        actor = self._built.actor
        progress, sample = actor.slot_progress(), actor.take_sample()
        self._metrics.record(sample, actor.refusals())
        return ExpertReport(
            served_epochs=progress.served_epochs,
            checksums=tuple((layer, logical, crc) for (layer, logical), crc in progress.checksums.items()),
            failure=progress.failure,
            num_loaded=progress.num_loaded,
            num_to_load=progress.num_to_load,
            sample=None if sample is None else sample.to_dict(),
            place=self._identity.place,
        )
