"""What gateways see, on its way to the autoscaler: read from their metrics, added up, passed on or missing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.coordinator import Coordinator, CoordinatorSettings
from cluster.errors import CoordinatorUnavailable
from cluster.gateway_load import (
    LATELY_S,
    GatewayGauge,
    GatewayPicture,
    known_gateway_load,
    quantile,
    tell_gateway_load,
)
from cluster.membership import GatewayReport
from cluster.scaling_watch import ScalingWatch
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner
from routing.experts import linear_expert_map


def gateway_meter() -> RecordingMeter:
    return RecordingMeter(Owner.GATEWAY)


def shed(meter: RecordingMeter, reason: str, number: int) -> None:
    meter.counter("step35_requests_shed_total", reason=reason).add(number)


def test_quantiles_by_hand() -> None:
    """Ten values up to 1 and ten up to 3: the median is 1, the 75th per cent 2; above every bound, the last one."""
    assert quantile((10, 10, 0), (1.0, 3.0), 0.5) == 1.0
    assert quantile((10, 10, 0), (1.0, 3.0), 0.75) == 2.0
    assert quantile((0, 0, 5), (1.0, 3.0), 0.99) == 3.0
    assert quantile((0, 0, 0), (1.0, 3.0), 0.99) is None


def test_a_gauge_reads_the_gateways_metrics() -> None:
    """Shed for want of capacity since birth; latencies of what ended lately. Missing experts are no such want."""
    meter, clock = gateway_meter(), [0.0]
    gauge = GatewayGauge(meter, lambda: clock[0])
    assert gauge.report() == GatewayReport(0, None, None)
    for reason, number in (("concurrency", 3), ("overloaded", 2), ("deadline", 1), ("unavailable", 50)):
        shed(meter, reason, number)
    meter.histogram("step35_request_latency_seconds").record_many([4.0, 8.0])
    meter.histogram("step35_inter_token_latency_seconds").record_many([0.03] * 100)
    clock[0] = 5.0
    report = gauge.report()
    assert (report.num_shed, report.request_s) == (6, 6.0)
    assert report.itl_p99_s == pytest.approx(0.03, rel=0.02)


def test_old_latencies_fade() -> None:
    """After a minute of silence a gateway has nothing to say of latency; what it has shed stays a total."""
    meter, clock = gateway_meter(), [0.0]
    gauge = GatewayGauge(meter, lambda: clock[0])
    shed(meter, "concurrency", 3)
    meter.histogram("step35_request_latency_seconds").record(4.0)
    reports = []
    for clock[0] in range(0, 70, 5):
        reports.append(gauge.report())
    assert reports[-1] == GatewayReport(3, None, None)


def test_a_picture_adds_up_what_was_shed_since_it_began() -> None:
    """Two gateways, one of which had shed before it was first heard, and one that starts anew under another name."""
    picture = GatewayPicture()
    assert picture.load(0.0) is None
    picture.note("a", GatewayReport(100, 10.0, 0.05), 0.0)
    picture.note("b", GatewayReport(0, None, None), 0.0)
    picture.note("a", GatewayReport(104, 20.0, 0.04), 5.0)
    picture.note("b", GatewayReport(1, 10.0, 0.09), 5.0)
    load = picture.load(6.0)
    assert load is not None
    assert (load.shed_total, load.request_s, load.itl_p99_s, load.at) == (5, 15.0, 0.09, 6.0)
    picture.note("c", GatewayReport(2), 7.0)
    picture.note("c", GatewayReport(3), 12.0)
    later = picture.load(5.0 + LATELY_S + 1)
    assert later is not None
    assert (later.shed_total, later.request_s) == (6, None)  # a and b are forgotten, what they shed is not
    assert picture.load(200.0) is None


class Listening(Coordinator):
    """Says when it has heard a gateway."""

    def __init__(self) -> None:
        super().__init__(linear_expert_map(1, 4, 1), lambda _a, _e: "shm", CoordinatorSettings())
        self.heard: asyncio.Queue[GatewayReport] = asyncio.Queue()

    async def report_gateway(self, gateway_id: str, report: GatewayReport) -> None:
        await super().report_gateway(gateway_id, report)
        await self.heard.put(report)


async def test_the_way_through_the_coordinator() -> None:
    """A gateway tells, a replica asks."""
    coordinator, meter = Listening(), gateway_meter()
    assert await known_gateway_load(coordinator) is None
    telling = asyncio.create_task(tell_gateway_load(coordinator, "g0", GatewayGauge(meter), period_s=0.01))
    async with asyncio.timeout(5):
        await coordinator.heard.get()
        shed(meter, "overloaded", 4)
        for _ in range(2):  # one report may have been on its way already
            await coordinator.heard.get()
    telling.cancel()
    load = await known_gateway_load(coordinator)
    assert load is not None
    assert load.shed_total == 4


class Away:
    """A coordinator that cannot be reached, and says when it has been tried four times."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.is_tried = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        async def call(*_args: object) -> None:
            self.num_calls += 1
            if self.num_calls == 4:
                self.is_tried.set()
            raise CoordinatorUnavailable(name)

        return call


async def test_an_absent_coordinator_stops_nobody() -> None:
    """A replica then publishes its own numbers alone; a gateway goes on telling."""
    away: Any = Away()
    assert await known_gateway_load(away) is None
    telling = asyncio.create_task(tell_gateway_load(away, "g0", GatewayGauge(gateway_meter()), period_s=0.01))
    async with asyncio.timeout(5):
        await away.is_tried.wait()
    assert not telling.done()
    telling.cancel()


def test_the_watch_counts_what_serve_did() -> None:
    """The first look knows no change; stopping replicas are no longer wanted."""
    meter = RecordingMeter(Owner.COORDINATOR)
    watch = ScalingWatch(meter)
    for states in ({"RUNNING": 1}, {"RUNNING": 1, "STARTING": 2}, {"RUNNING": 3}, {"RUNNING": 1, "STOPPING": 2}):
        watch.note(states)
    values = {(family.spec.name, *point.labels): point.value for family in meter.families() for point in family.points}
    name = "step35_autoscaler_decisions_total"
    assert {labels[2]: value for labels, value in values.items() if labels[0] == name} == {
        "hold": 2,
        "up": 1,
        "down": 1,
    }
    assert values["step35_autoscaler_desired_replicas", "attention"] == 1
    assert values["step35_autoscaler_replicas", "attention"] == 1
