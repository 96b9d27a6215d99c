"""What gateways see, on its way to the autoscaler: read from their metrics, added up, passed on or missing."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.autoscaling import GatewayLoad
from cluster.coordinator import Coordinator, CoordinatorSettings
from cluster.errors import CoordinatorUnavailable
from cluster.gateway_load import LATELY_S, GatewayPicture, known_gateway_load, quantile
from cluster.membership import ProcessReport
from ops.telemetry.plain import plain_metrics
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner
from routing.experts import linear_expert_map

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Gateway:
    """Records as a gateway does, and reports as a process does."""

    def __init__(self, member_id: str) -> None:
        self.member_id = member_id
        self.meter = RecordingMeter(Owner.GATEWAY)

    def shed(self, number: int, reason: str = "overloaded") -> None:
        self.meter.counter("step35_requests_shed_total", reason=reason).add(number)

    def answered(self, *seconds: float) -> None:
        self.meter.histogram("step35_request_latency_seconds").record_many(seconds)

    def sent(self, gap_s: float) -> None:
        self.meter.histogram("step35_inter_token_latency_seconds").record_many([gap_s] * 100)

    def report(self) -> ProcessReport:
        return ProcessReport(self.member_id, "gateway", "host", None, plain_metrics(self.meter.families()))


def known(picture: GatewayPicture, now: float) -> GatewayLoad:
    load = picture.load(now)
    assert load is not None
    return load


def test_quantiles_by_hand() -> None:
    """Ten values up to 1 and ten up to 3: the median is 1, the 75th per cent 2; above every bound, the last one."""
    assert quantile((10, 10, 0), (1.0, 3.0), 0.5) == 1.0
    assert quantile((10, 10, 0), (1.0, 3.0), 0.75) == 2.0
    assert quantile((0, 0, 5), (1.0, 3.0), 0.99) == 3.0
    assert quantile((0, 0, 0), (1.0, 3.0), 0.99) is None


def test_only_want_of_capacity_is_demand() -> None:
    """Not missing experts, nor a cluster that is starting: more attention actors would not help."""
    picture, gateway = GatewayPicture(), Gateway("a")
    picture.note(gateway.report(), 0.0)
    for reason, number in (
        ("concurrency", 3),
        ("overloaded", 2),
        ("deadline", 1),
        ("unavailable", 50),
        ("not_ready", 9),
    ):
        gateway.shed(number, reason)
    picture.note(gateway.report(), 1.0)
    assert known(picture, 1.0).shed_total == 6


def test_latencies_are_those_of_the_last_minute() -> None:
    """Of all gateways together, and of the slowest; after a quiet minute there are none."""
    picture, fast, slow = GatewayPicture(), Gateway("a"), Gateway("b")
    for now in range(100):
        picture.note(fast.report(), now)
        picture.note(slow.report(), now)
        if now == 5:
            fast.answered(4.0, 8.0)
            slow.answered(12.0)
            fast.sent(0.03)
            slow.sent(0.09)
        load = known(picture, now)
        if 6 <= now < 60:
            assert load.request_s == 8.0
            assert load.itl_p99_s == pytest.approx(0.1, rel=0.02)
    assert (load.request_s, load.itl_p99_s, load.at) == (None, None, 99)


def test_what_was_shed_is_added_up_over_gateways() -> None:
    """One had shed before it was first heard; one starts anew under another name; those that are gone are forgotten,
    what they shed is not."""
    picture, first, second = GatewayPicture(), Gateway("a"), Gateway("b")
    assert picture.load(0.0) is None
    first.shed(100)
    for now, (of_first, of_second) in enumerate(((0, 0), (4, 1), (0, 0))):
        first.shed(of_first)
        second.shed(of_second)
        picture.note(first.report(), now)
        picture.note(second.report(), now)
    assert known(picture, 3.0).shed_total == 5
    third = Gateway("c")
    for now in (50.0, 55.0):
        third.shed(1)
        picture.note(third.report(), now)
    assert known(picture, 2.0 + LATELY_S + 1).shed_total == 6
    assert picture.load(200.0) is None


def test_other_processes_say_nothing_of_it() -> None:
    """Their reports come the same way."""
    picture = GatewayPicture()
    picture.note(ProcessReport("e", "expert", "host", 0, {}), 0.0)
    assert picture.load(0.0) is None


async def test_the_way_through_the_coordinator() -> None:
    """A gateway reports as every process does, a replica asks."""
    coordinator = Coordinator(linear_expert_map(1, 4, 1), lambda _a, _e: "shm", CoordinatorSettings())
    assert await known_gateway_load(coordinator) is None
    gateway = Gateway("a")
    await coordinator.report_process(gateway.report())
    gateway.shed(4)
    await coordinator.report_process(gateway.report())
    load = await known_gateway_load(coordinator)
    assert load is not None
    assert load.shed_total == 4


class Away:
    """A coordinator that cannot be reached."""

    async def gateway_load(self) -> None:
        raise CoordinatorUnavailable("gateway_load")


async def test_an_absent_coordinator_stops_nobody() -> None:
    """A replica then publishes its own numbers alone."""
    away: Any = Away()
    assert await known_gateway_load(away) is None


def test_the_watch_counts_what_serve_did() -> None:
    """The first look knows no change; stopping replicas are no longer wanted."""
    from cluster.scaling_watch import ScalingWatch

    meter = RecordingMeter(Owner.COORDINATOR)
    watch = ScalingWatch(meter)
    for states in ({"RUNNING": 1}, {"RUNNING": 1, "STARTING": 2}, {"RUNNING": 3}, {"RUNNING": 1, "STOPPING": 2}):
        watch.note(states)
    metrics = plain_metrics(meter.families())
    decisions = {tuple(labels): number for labels, number in metrics["step35_autoscaler_decisions_total"]}
    assert decisions == {("attention", "hold"): 2, ("attention", "up"): 1, ("attention", "down"): 1}
    assert metrics["step35_autoscaler_desired_replicas"] == [[["attention"], 1]]
    assert metrics["step35_autoscaler_replicas"] == [[["attention"], 1]]
