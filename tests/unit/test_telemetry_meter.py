"""The meter: instruments come from the registry alone, lose nothing between threads, and add up as they should."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as ClientHistogram

from ops.telemetry.cells import HistogramValue
from ops.telemetry.meter import Meter, SilentMeter
from ops.telemetry.metrics import METRICS
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner

FINISHED = "step35_requests_finished_total"
LATENCY = "step35_inter_token_latency_seconds"
PAIRS = "step35_expert_pairs_total"


@pytest.fixture(params=[RecordingMeter, SilentMeter])
def meter(request: pytest.FixtureRequest) -> Meter:
    """Of a gateway, recording or not."""
    made: Meter = request.param(Owner.GATEWAY)
    return made


def test_unknown_names_kinds_and_owners_are_refused(meter: Meter) -> None:
    """What a typo would lose is an error where the instrument is made, with telemetry on and off."""
    with pytest.raises(ValueError, match="is not declared"):
        meter.counter("step35_requests_finnished_total")
    with pytest.raises(ValueError, match="is a counter, not a gauge"):
        meter.gauge(FINISHED, reason="stop")
    with pytest.raises(ValueError, match="belongs to attention"):
        meter.gauge("step35_requests_waiting")
    with pytest.raises(ValueError, match="is a matrix"):
        meter.gauge("step35_expert_load_tokens", layer=3, expert=0)


@pytest.mark.parametrize("labels", [{}, {"reason": "stop", "layer": 1}, {"cause": "stop"}, {"reason": "boredom"}])
def test_unknown_labels_are_refused(meter: Meter, labels: dict[str, str | int]) -> None:
    """Missing, more, other, or outside the declared values."""
    with pytest.raises(ValueError, match=FINISHED):
        meter.counter(FINISHED, **labels)


def test_silent_meter_takes_everything(meter: Meter) -> None:
    """Both implementations have the same surface."""
    counter = meter.counter(FINISHED, reason="stop")
    counter.add()
    counter.raise_to(7)
    meter.gauge("step35_requests_open").set(None)
    histogram = meter.histogram(LATENCY)
    histogram.record(0.1)
    histogram.record_many([0.1, 0.2])


def test_counters_add_and_never_fall() -> None:
    """`add` adds, `raise_to` follows a total that another has counted, and a smaller total changes nothing."""
    meter = RecordingMeter(Owner.GATEWAY)
    counter = meter.counter(FINISHED, reason="stop")
    counter.add()
    counter.add(2.5)
    assert meter.counter(FINISHED, reason="stop") is counter
    assert _values(meter, FINISHED) == {("stop",): 3.5}
    counter.raise_to(10)
    counter.raise_to(4)
    assert _values(meter, FINISHED) == {("stop",): 10}
    with pytest.raises(AssertionError, match="never falls"):
        counter.add(-1)


def test_gauge_shows_what_was_set_last() -> None:
    """Nothing before the first value, and nothing once there is none."""
    meter = RecordingMeter(Owner.GATEWAY)
    gauge = meter.gauge("step35_requests_open")
    assert _values(meter, "step35_requests_open") == {}
    gauge.set(3)
    assert _values(meter, "step35_requests_open") == {(): 3.0}
    gauge.set(None)
    assert _values(meter, "step35_requests_open") == {}


@pytest.mark.parametrize("size", [1, 7, 500])
def test_histogram_counts_as_the_client_library_does(size: int) -> None:
    """One by one, as a list and as an array: the same buckets, also for values on a bound and above all bounds."""
    bounds = METRICS[LATENCY].buckets
    values = np.concatenate([np.random.default_rng(size).exponential(0.05, size), bounds, [0.0, 1e9]])
    theirs = ClientHistogram("theirs", "Oracle.", buckets=bounds, registry=CollectorRegistry())
    meters = [RecordingMeter(Owner.GATEWAY) for _ in range(3)]
    for value in values:
        theirs.observe(value)
        meters[0].histogram(LATENCY).record(value)
    meters[1].histogram(LATENCY).record_many(values.tolist())
    meters[2].histogram(LATENCY).record_many(values)
    cumulative = [s.value for s in next(iter(theirs.collect())).samples if s.name == "theirs_bucket"]
    for meter in meters:
        value = _values(meter, LATENCY)[()]
        assert isinstance(value, HistogramValue)
        assert list(np.cumsum(value.counts)) == cumulative
        assert value.total == pytest.approx(values.sum())


def test_values_that_are_not_finite_spoil_nothing() -> None:
    """Neither in `record` nor in `record_many`, short or long."""
    meter = RecordingMeter(Owner.GATEWAY)
    histogram = meter.histogram(LATENCY)
    histogram.record(float("nan"))
    histogram.record_many([float("inf"), 0.5])
    histogram.record_many([float("nan"), 0.5] * 40)
    value = _values(meter, LATENCY)[()]
    assert isinstance(value, HistogramValue)
    assert (sum(value.counts), value.total) == (41, pytest.approx(20.5))


def test_past_the_bound_nothing_is_kept_and_that_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Serving goes on; the operator sees how many label sets are missing, and one line says of which metric."""
    meter = RecordingMeter(Owner.EXPERT)
    bound = METRICS[PAIRS].max_label_sets
    for layer in range(bound + 3):
        meter.counter(PAIRS, layer=layer).add()
    assert len(_values(meter, PAIRS)) == bound
    assert _values(meter, "step35_telemetry_dropped_total") == {(): 3.0}
    assert [record.getMessage() for record in caplog.records] == [
        f"metric {PAIRS} has {bound} label sets; no more are kept"
    ]


def test_threads_lose_nothing() -> None:
    """Four threads record the same instruments while a fifth reads; the totals are exact."""
    meter = RecordingMeter(Owner.GATEWAY)
    done = threading.Event()

    def record() -> None:
        counter, histogram = meter.counter(FINISHED, reason="stop"), meter.histogram(LATENCY)
        for _ in range(3000):
            counter.add()
            histogram.record(0.25)

    def read() -> None:
        last = 0.0
        while not done.is_set():
            now = _values(meter, FINISHED).get(("stop",), 0.0)
            assert isinstance(now, float)
            assert now >= last
            last = now

    reader, recorders = threading.Thread(target=read), [threading.Thread(target=record) for _ in range(4)]
    for thread in (reader, *recorders):
        thread.start()
    for thread in recorders:
        thread.join()
    done.set()
    reader.join()
    value = _values(meter, LATENCY)[()]
    assert isinstance(value, HistogramValue)
    assert _values(meter, FINISHED) == {("stop",): 12000.0}
    assert (sum(value.counts), value.total) == (12000, 3000.0)


def _values(meter: RecordingMeter, name: str) -> dict[tuple[str, ...], float | HistogramValue]:
    found = [family for family in meter.families() if family.spec.name == name]
    return {point.labels: point.value for family in found for point in family.points}
