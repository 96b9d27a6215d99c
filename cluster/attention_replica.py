"""The life of an attention replica: join, load, warm up, serve requests, drain, leave. No Ray.

Everything slow runs on a thread, so that the replica's loop keeps renewing its membership meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import NamedTuple, Protocol

from actors.attention.counts import AttentionCounts, StepRecord
from actors.errors import ActorError, EngineOverloaded, ExpertsUnavailable, RequestRejected
from actors.messages import ErrorKind, FinishReason, GenerateRequest, LoadReport, RequestError, TokenEvent
from cluster.errors import CoordinatorUnavailable
from cluster.membership import AttentionReport, CoordinatorPort
from cluster.metrics.attention import AttentionMetrics
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
from ops.telemetry.meter import Meter, SilentMeter
from ops.telemetry.spec import Owner
from routing.experts import ExpertMap
from routing.load.sample import LoadSample
from routing.transport.endpoint import Endpoint

logger = logging.getLogger(__name__)


class AttentionRank(Protocol):
    """What a replica needs of `actors.attention.actor.AttentionActor`."""

    def start(self) -> None: ...
    def reconcile(self, shards: Mapping[int, Endpoint], expert_map: ExpertMap, pairs_per_touch: int) -> None: ...
    @property
    def adopted_epoch(self) -> int: ...
    def take_steps(self) -> tuple[StepRecord, ...]: ...
    def take_recoveries(self) -> tuple[float, ...]: ...
    def take_queue_seconds(self) -> tuple[float, ...]: ...
    def counts(self) -> AttentionCounts: ...
    def take_sample(self) -> LoadSample | None: ...
    def is_ready(self) -> bool: ...
    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]: ...
    def load_report(self) -> LoadReport: ...
    def check_health(self) -> None: ...
    def drain(self, timeout_s: float) -> None: ...
    def close(self) -> None: ...


class BuiltAttention(NamedTuple):
    """An attention actor that has loaded its weights, and the endpoint of its port."""

    actor: AttentionRank
    endpoint: Endpoint


class AttentionReplica:
    """One attention actor under the coordinator. `open` once, then requests, then `close`."""

    def __init__(
        self,
        identity: Identity,
        coordinator: CoordinatorPort,
        build: Callable[[ExpertMap, str], BuiltAttention],
        settings: ReplicaSettings,
        watch: WatchSettings,
        meter: Meter | None = None,
    ) -> None:
        """build: (expert_map, transport) -> a loaded actor; slow, runs on a thread. meter: None records nothing."""
        self._identity = identity
        self._coordinator = coordinator
        self._build = build
        self._settings = settings
        self._watcher = Watcher(
            coordinator, self._follow, member_id=identity.member_id, register=self._register, settings=watch
        )
        self._meter = meter or SilentMeter(Owner.ATTENTION)
        self._metrics: AttentionMetrics | None = None
        self._built: BuiltAttention | None = None
        self._is_draining = False
        self._announcing: asyncio.Task[None] | None = None
        self._reporting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Join, load, start the engine. Readiness is announced later, when a token has been produced."""
        await persist(self._register, self._settings.join_timeout_s)
        self._watcher.start()
        view = await self._watcher.wait_for(has_transport, self._settings.join_timeout_s)
        assert view.transport is not None, "wait_for returned a view that does not meet its condition"
        built = await asyncio.to_thread(self._build, view.expert_map, view.transport)
        built.actor.start()
        self._metrics = AttentionMetrics(self._meter, view.transport)
        self._built = built
        self._follow(self._watcher.view or view)
        await persist(self._register, self._settings.join_timeout_s)
        self._announcing = asyncio.create_task(self._announce_readiness(built.actor), name="announce-readiness")
        reports = report_forever(self._coordinator, self._identity.member_id, self._member_report, self._settings)
        self._reporting = asyncio.create_task(reports, name="report")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """The request's events. Closing the iterator aborts the sequence; a failure is the last event, never raised."""
        assert self._built is not None, "generate before open"
        try:
            async with aclosing(self._built.actor.generate(request)) as events:
                async for event in events:
                    yield event
        except ActorError as error:
            yield failed_event(request.request_id, error)

    def load_report(self) -> LoadReport:
        assert self._built is not None, "load_report before open"
        return self._built.actor.load_report()

    @property
    def is_draining(self) -> bool:
        """Whether new requests should go to another actor: this one closes, or the view says that it is about to go."""
        view = self._watcher.view
        return self._is_draining or (view is not None and self._identity.member_id in view.doomed)

    def check_health(self) -> None:
        """Raises if the engine is stuck or dead, or if the process no longer follows the cluster or reports to it."""
        self._watcher.check()
        check_task(self._announcing, "announces its readiness")
        check_task(self._reporting, "reports to the coordinator")
        if self._built is not None:
            self._built.actor.check_health()

    async def close(self) -> None:
        """Say that nothing new should come, finish what runs, leave the cluster, free everything. Idempotent."""
        self._is_draining = True
        await end_task(self._announcing)
        if self._built is not None:
            await self._report(False)
            await asyncio.to_thread(self._built.actor.drain, self._settings.drain_timeout_s)
        await end_task(self._reporting)
        await self._watcher.close()
        await leave(self._coordinator, self._identity.member_id, self._settings.leave_timeout_s)
        if self._built is not None:
            await asyncio.to_thread(self._built.actor.close)

    async def _register(self) -> None:
        identity, built = self._identity, self._built
        endpoint = built.endpoint if built is not None else None
        await self._coordinator.join_attention(identity.member_id, identity.host_id, endpoint)
        if built is not None:
            await self._coordinator.report_ready(identity.member_id, self._is_ready(built.actor))

    async def _announce_readiness(self, actor: AttentionRank) -> None:
        """Tell the cluster as long as the view says otherwise; a lost expert rank shows within one period."""
        while True:
            await asyncio.sleep(self._settings.ready_check_s)
            is_ready, view = self._is_ready(actor), self._watcher.view
            shown = view.attention.get(self._identity.member_id) if view is not None else None
            # A member that is not in the view is about to register, and says it then.
            if shown is not None and shown.is_ready != is_ready:
                await self._report(is_ready)

    async def _report(self, is_ready: bool) -> None:
        """Unheard if the coordinator is away, or the watcher is about to register again."""
        try:
            async with asyncio.timeout(self._settings.leave_timeout_s):
                await self._coordinator.report_ready(self._identity.member_id, is_ready)
        except (TimeoutError, CoordinatorUnavailable):
            logger.info("the coordinator did not hear that ready is %s", is_ready)

    def _member_report(self) -> AttentionReport | None:
        if self._built is None or self._metrics is None:
            return None
        actor = self._built.actor
        sample, steps = actor.take_sample(), actor.take_steps()
        self._metrics.record(actor.counts(), steps, actor.take_recoveries(), actor.take_queue_seconds())
        return AttentionReport(
            actor.adopted_epoch,
            tuple(step.seconds for step in steps),
            None if sample is None else sample.to_dict(),
            place=self._identity.place,
        )

    def _is_ready(self, actor: AttentionRank) -> bool:
        return not self._is_draining and actor.is_ready()

    def _follow(self, view: ClusterView) -> None:
        logs.THIS_PROCESS.map_epoch = view.expert_map.map_epoch
        if self._built is not None:
            self._built.actor.reconcile(view.shard_endpoints(), view.expert_map, view.pairs_per_touch)


def failed_event(request_id: str, error: ActorError) -> TokenEvent:
    """The last event of a request that failed for a named reason."""
    param = None
    match error:
        case RequestRejected():
            kind, message, param = ErrorKind.REJECTED, str(error), error.param
        case EngineOverloaded():
            kind, message = ErrorKind.OVERLOADED, "Too many requests are waiting; send the request again later."
        case ExpertsUnavailable():
            kind, message = ErrorKind.UNAVAILABLE, "The cluster cannot serve now; send the request again later."
        case _:
            logger.error("a request failed", exc_info=error)
            kind, message = ErrorKind.INTERNAL, "The request failed inside the server."
    return TokenEvent(request_id, finish_reason=FinishReason.ERROR, error=RequestError(kind, message, param))
