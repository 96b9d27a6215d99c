"""What the gateways see of the load, on its way to the autoscaler: gateway -> coordinator -> attention replicas.

A gateway that sheds hides the queue it keeps away from the attention tier. Serve shows a policy only what replicas of
the policy's own deployment publish, so they pass on what the coordinator knows of the gateways: from the metrics that
every process reports to it, whether anything scrapes them or not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.autoscaling import GatewayLoad
from cluster.errors import CoordinatorUnavailable
from cluster.membership import CoordinatorPort, ProcessReport
from ops.telemetry.cells import HistogramValue
from ops.telemetry.metrics import METRICS
from ops.telemetry.plain import PlainMetrics
from ops.telemetry.spec import Owner

SHED, REQUEST_S, ITL = (
    "step35_requests_shed_total",
    "step35_request_latency_seconds",
    "step35_inter_token_latency_seconds",
)
# Of the reasons of step35_requests_shed_total, those that more attention actors would help.
CAPACITY_REASONS = frozenset({"concurrency", "overloaded", "deadline"})

LATELY_S = 60.0  # what latencies cover; a gateway that is silent for so long is forgotten
SPAN_S = 5.0  # between two totals that are kept
CALL_TIMEOUT_S = 3.0  # well below the 10 s that Serve gives a replica for its numbers


@dataclass(frozen=True)
class _Totals:
    """Of a gateway since its birth, as heard at a moment."""

    at: float
    num_shed: float
    requests: HistogramValue
    gaps: HistogramValue


class _Gateway:
    """What was heard of one, lately."""

    def __init__(self, totals: _Totals) -> None:
        self.newest = totals
        self._kept: deque[_Totals] = deque([totals], maxlen=int(LATELY_S / SPAN_S))

    def hear(self, totals: _Totals) -> float:
        """The requests shed since it was last heard."""
        num_shed = max(totals.num_shed - self.newest.num_shed, 0.0)
        self.newest = totals
        if totals.at - self._kept[-1].at >= SPAN_S:
            self._kept.append(totals)
        return num_shed

    @property
    def requests(self) -> HistogramValue:
        return _since(self.newest.requests, self._kept[0].requests)

    @property
    def gaps(self) -> HistogramValue:
        return _since(self.newest.gaps, self._kept[0].gaps)


class GatewayPicture:
    """The coordinator's sum over gateways. Pure: time is an argument."""

    def __init__(self) -> None:
        self._gateways: dict[str, _Gateway] = {}
        self._shed_total = 0.0

    def note(self, report: ProcessReport, now: float) -> None:
        """A report of any process. What a gateway had shed before it was first heard is left out: after a restart of
        ours that was long ago."""
        if report.role != Owner.GATEWAY:
            return
        self._forget_silent(now)
        totals = _totals(report.metrics, now)
        known = self._gateways.get(report.member_id)
        if known is None:
            self._gateways[report.member_id] = _Gateway(totals)
        else:
            self._shed_total += known.hear(totals)

    def load(self, now: float) -> GatewayLoad | None:
        """None if no gateway is heard: what they shed is then not known."""
        self._forget_silent(now)
        if not self._gateways:
            return None
        requests = [gateway.requests for gateway in self._gateways.values()]
        num_requests = sum(sum(value.counts) for value in requests)
        latencies = [quantile(gateway.gaps.counts, METRICS[ITL].buckets, 0.99) for gateway in self._gateways.values()]
        return GatewayLoad(
            at=now,
            shed_total=self._shed_total,
            request_s=sum(value.total for value in requests) / num_requests if num_requests else None,
            itl_p99_s=max((value for value in latencies if value is not None), default=None),
        )

    def _forget_silent(self, now: float) -> None:
        self._gateways = {
            name: gateway for name, gateway in self._gateways.items() if now - gateway.newest.at <= LATELY_S
        }


async def known_gateway_load(coordinator: CoordinatorPort) -> GatewayLoad | None:
    """What the coordinator knows, None while it is away."""
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            return await coordinator.gateway_load()
    except (TimeoutError, CoordinatorUnavailable):
        return None


def quantile(counts: Sequence[int], bounds: Sequence[float], share: float) -> float | None:
    """Of values known by bucket, evenly spread within each; the last bound if it lies above every one. None of none."""
    rank = share * sum(counts)
    if rank == 0:
        return None
    below, low = 0, 0.0
    for count, bound in zip(counts, bounds, strict=False):
        if below + count >= rank:
            return low + (bound - low) * (rank - below) / count
        below, low = below + count, bound
    return low


def _since(new: HistogramValue, old: HistogramValue) -> HistogramValue:
    counts = tuple(after - before for after, before in zip(new.counts, old.counts, strict=True))
    return HistogramValue(counts, new.total - old.total)


def _totals(metrics: PlainMetrics, at: float) -> _Totals:
    num_shed = sum(value for (reason,), value in metrics.get(SHED, []) if reason in CAPACITY_REASONS)
    return _Totals(at, num_shed, _histogram(metrics, REQUEST_S), _histogram(metrics, ITL))


def _histogram(metrics: PlainMetrics, name: str) -> HistogramValue:
    """One without labels; empty before the first value."""
    for _, value in metrics.get(name, []):
        return HistogramValue(tuple(value["counts"]), value["total"])
    return HistogramValue((0,) * (len(METRICS[name].buckets) + 1), 0.0)
