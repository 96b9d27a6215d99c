"""What the gateways see of the load, on its way to the autoscaler: gateway -> coordinator -> attention replicas.

A gateway that sheds hides the queue it keeps away from the attention tier. Serve shows a policy only what replicas of
the policy's own deployment publish, so they pass on what the coordinator knows of the gateways.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.autoscaling import GatewayLoad
from cluster.errors import CoordinatorUnavailable
from cluster.membership import CoordinatorPort, GatewayReport
from ops.telemetry.cells import HistogramValue
from ops.telemetry.metrics import METRICS
from ops.telemetry.recording import Family, RecordingMeter

logger = logging.getLogger(__name__)

SHED, REQUEST_S, ITL = (
    "step35_requests_shed_total",
    "step35_request_latency_seconds",
    "step35_inter_token_latency_seconds",
)
# Of the reasons of step35_requests_shed_total, those that more attention actors would help.
CAPACITY_REASONS = frozenset({"concurrency", "overloaded", "deadline"})

REPORT_S = 5.0
LATELY_S = 60.0  # what a gateway measures covers about so much; one that is silent for so long is forgotten
CALL_TIMEOUT_S = 3.0  # well below the 10 s that Serve gives a replica for its numbers


@dataclass(frozen=True)
class _Totals:
    """Of a gateway since its birth, at one moment."""

    at: float
    requests: HistogramValue
    gaps: HistogramValue


class GatewayGauge:
    """Reads a gateway's own metrics. Call `report` period by period."""

    def __init__(self, meter: RecordingMeter, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter = meter
        self._clock = clock
        self._seen: deque[_Totals] = deque(maxlen=int(LATELY_S / REPORT_S) + 1)

    def report(self) -> GatewayReport:
        families = {family.spec.name: family for family in self._meter.families()}
        totals = _Totals(self._clock(), _histogram(families, REQUEST_S), _histogram(families, ITL))
        self._seen.append(totals)
        requests, gaps = (_since(new, old) for new, old in zip(_pair(totals), _pair(self._seen[0]), strict=True))
        return GatewayReport(
            num_shed=_num_shed(families.get(SHED)),
            request_s=requests.total / sum(requests.counts) if sum(requests.counts) else None,
            itl_p99_s=quantile(gaps.counts, METRICS[ITL].buckets, 0.99),
        )


class GatewayPicture:
    """The coordinator's sum over gateways. Pure: time is an argument."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, GatewayReport]] = {}
        self._shed_total = 0

    def note(self, gateway_id: str, report: GatewayReport, now: float) -> None:
        """What a gateway had shed before it was first heard is left out: after a restart of ours that was long ago."""
        self._forget_silent(now)
        _, before = self._reports.get(gateway_id, (now, report))
        self._shed_total += max(report.num_shed - before.num_shed, 0)
        self._reports[gateway_id] = (now, report)

    def load(self, now: float) -> GatewayLoad | None:
        """None if no gateway is heard: what they shed is then not known."""
        self._forget_silent(now)
        if not self._reports:
            return None
        reports = [report for _, report in self._reports.values()]
        request_s = [report.request_s for report in reports if report.request_s is not None]
        gaps = [report.itl_p99_s for report in reports if report.itl_p99_s is not None]
        return GatewayLoad(
            at=now,
            shed_total=self._shed_total,
            request_s=sum(request_s) / len(request_s) if request_s else None,
            itl_p99_s=max(gaps, default=None),
        )

    def _forget_silent(self, now: float) -> None:
        self._reports = {name: entry for name, entry in self._reports.items() if now - entry[0] <= LATELY_S}


async def tell_gateway_load(
    coordinator: CoordinatorPort, gateway_id: str, gauge: GatewayGauge, period_s: float = REPORT_S
) -> None:
    """Tell the coordinator for ever; its owner cancels it. Totals make up for what was not heard."""
    while True:
        await asyncio.sleep(period_s)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await coordinator.report_gateway(gateway_id, gauge.report())
        except (TimeoutError, CoordinatorUnavailable) as error:
            logger.debug("the load of this gateway was not heard: %s", error)


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


def _pair(totals: _Totals) -> tuple[HistogramValue, HistogramValue]:
    return totals.requests, totals.gaps


def _since(new: HistogramValue, old: HistogramValue) -> HistogramValue:
    counts = tuple(after - before for after, before in zip(new.counts, old.counts, strict=True))
    return HistogramValue(counts, new.total - old.total)


def _histogram(families: dict[str, Family], name: str) -> HistogramValue:
    """One without labels; empty before the first value."""
    family = families.get(name)
    value = family.points[0].value if family is not None else None
    if isinstance(value, HistogramValue):
        return value
    return HistogramValue((0,) * (len(METRICS[name].buckets) + 1), 0.0)


def _num_shed(family: Family | None) -> int:
    if family is None:
        return 0
    values = (point.value for point in family.points if point.labels[0] in CAPACITY_REASONS)
    return int(sum(value for value in values if not isinstance(value, HistogramValue)))
