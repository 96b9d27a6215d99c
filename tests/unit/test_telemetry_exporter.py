"""The exporter: a real scrape reads what was recorded, a bad peer costs a bounded time, and closing frees the port."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from ops.telemetry.errors import NoFreePort
from ops.telemetry.exporter import MAX_HEAD_BYTES, Exporter, ExporterConfig
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.matrix import ExpertMatrix
from ops.telemetry.meter import Counter, LabelValue
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner

ACCEPTED = "step35_accepted_tokens_total"
PROCESS = ProcessLabels(Owner.ATTENTION, "member-1", model_name="step-nano")
OWN = {"role": "attention", "member": "member-1"}
OF_ALIASES = {"model_name": "step-nano", "engine": "member-1"}
TIMEOUT_S = 10


class Telling(RecordingMeter):
    """Says when a scrape has failed."""

    def __init__(self, *owners: Owner) -> None:
        self.has_failed = threading.Event()
        super().__init__(*owners)

    def counter(self, name: str, /, **labels: LabelValue) -> Counter:
        return self if name == "step35_telemetry_scrapes_failed_total" else super().counter(name, **labels)

    def add(self, amount: float = 1.0, /) -> None:
        self.has_failed.set()

    def raise_to(self, total: float, /) -> None:
        raise NotImplementedError


@pytest.fixture
def meter() -> RecordingMeter:
    return RecordingMeter(Owner.ATTENTION, Owner.GATEWAY)


def test_scrape_reads_what_was_recorded(meter: RecordingMeter) -> None:
    """Counter, gauge and histogram, parsed by the client library, with the labels of the process and of the metric."""
    meter.counter(ACCEPTED, position=0).add(5)
    meter.counter(ACCEPTED, position=2).add(2)
    meter.gauge("step35_kv_cache_usage_ratio").set(0.25)
    meter.histogram("step35_queue_time_seconds").record_many([0.001, 0.02, 500.0])
    with _exporter(meter) as (_, port):
        samples = _samples(_get(port))
    assert samples[ACCEPTED] == {_key({**OWN, "position": "0"}): 5, _key({**OWN, "position": "2"}): 2}
    assert samples["step35_kv_cache_usage_ratio"] == {_key(OWN): 0.25}
    assert samples["step35_queue_time_seconds_count"] == {_key(OWN): 3}
    assert samples["step35_queue_time_seconds_sum"] == {_key(OWN): pytest.approx(500.021)}
    buckets = {dict(key)["le"]: count for key, count in samples["step35_queue_time_seconds_bucket"].items()}
    assert (buckets["0.001"], buckets["0.01"], buckets["0.025"], buckets["120.0"], buckets["+Inf"]) == (1, 1, 2, 2, 3)


def test_public_dashboards_find_their_names(meter: RecordingMeter) -> None:
    """Aliases carry their own process labels, rename labels, filter by them and sum over them."""
    for position, (drafted, accepted) in enumerate([(10, 8), (6, 3), (4, 1)]):
        meter.counter("step35_draft_tokens_total", position=position).add(drafted)
        meter.counter(ACCEPTED, position=position).add(accepted)
    meter.counter("step35_requests_finished_total", reason="length").add(7)
    meter.histogram("step35_time_to_first_token_seconds").record(0.3)
    with _exporter(meter) as (_, port):
        samples = _samples(_get(port))
    assert samples["vllm:spec_decode_num_draft_tokens_total"] == {_key(OF_ALIASES): 20}
    assert samples["vllm:spec_decode_num_drafts_total"] == {_key(OF_ALIASES): 10}
    assert samples["vllm:spec_decode_num_accepted_tokens_total"] == {_key(OF_ALIASES): 12}
    assert samples["vllm:spec_decode_num_accepted_tokens_per_pos_total"] == {
        _key({**OF_ALIASES, "position": str(position)}): count for position, count in enumerate([8, 3, 1])
    }
    assert samples["vllm:request_success_total"] == {_key({**OF_ALIASES, "finished_reason": "length"}): 7}
    assert samples["vllm:time_to_first_token_seconds_count"] == {_key(OF_ALIASES): 1}


def test_types_and_help_reach_the_scraper(meter: RecordingMeter) -> None:
    """A dashboard shows both; a counter that says it is a gauge would be drawn wrongly."""
    meter.counter(ACCEPTED, position=0).add()
    meter.gauge("step35_requests_waiting").set(1)
    meter.histogram("step35_step_seconds").record(0.1)
    with _exporter(meter) as (_, port):
        families = {family.name: family for family in _families(_get(port))}
    types = {name: families[name].type for name in ("step35_requests_waiting", "step35_step_seconds")}
    assert types == {"step35_requests_waiting": "gauge", "step35_step_seconds": "histogram"}
    assert families[ACCEPTED.removesuffix("_total")].type == "counter"
    assert families["step35_step_seconds"].documentation == "Duration of an engine step."


def test_a_new_lease_changes_the_labels(meter: RecordingMeter) -> None:
    """An expert actor that took over another EP rank is scraped as that rank from then on."""
    with _exporter(meter) as (exporter, port):
        exporter.process = ProcessLabels(Owner.EXPERT, "member-1", ep_rank=5)
        labels = {key for found in _samples(_get(port)).values() for key in found}
    assert labels == {_key({"role": "expert", "member": "member-1", "ep_rank": "5"})}


def test_matrix_is_served_apart(meter: RecordingMeter) -> None:
    """Under its own path, so that it can be scraped less often; without one the path is not found."""
    matrix = ExpertMatrix((3, 4), 2)
    matrix.set({"step35_expert_load_tokens": np.array([[1.0, 2.0], [3.0, 4.0]])})
    with _exporter(meter, matrix=matrix) as (_, port):
        samples = _samples(_get(port, "/metrics/experts"))
        assert "step35_expert_load_tokens" not in _samples(_get(port))
    assert samples["step35_expert_load_tokens"][_key({**OWN, "layer": "4", "expert": "1"})] == 4.0
    with _exporter(meter) as (_, port):
        assert _status(port, "GET", "/metrics/experts") == 404


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("POST", "/metrics", 405)])
def test_anything_else_is_refused(meter: RecordingMeter, method: str, path: str, status: int) -> None:
    """One path, one method; both refusals count as failed scrapes."""
    with _exporter(meter) as (_, port):
        assert _status(port, method, path) == status
        assert _samples(_get(port))["step35_telemetry_scrapes_failed_total"] == {_key(OWN): 1}


def test_a_peer_that_says_nothing_is_cut_off(meter: RecordingMeter) -> None:
    """At the deadline, however little it has sent."""
    with _exporter(meter, deadline_s=0.2) as (_, port):
        with closing(_connect(port)) as silent:
            silent.sendall(b"GET /metr")
            assert _is_cut_off(silent)
        assert _samples(_get(port))["step35_telemetry_scrapes_failed_total"] == {_key(OWN): 1}


def test_a_peer_that_reads_nothing_is_cut_off() -> None:
    """At the deadline, and what the system's buffers did not take never arrives."""
    meter, matrix = Telling(Owner.ATTENTION), ExpertMatrix(tuple(range(64)), 512)
    matrix.set({"step35_expert_load_tokens": np.random.default_rng(1).random((64, 512))})
    with _exporter(meter, matrix=matrix, deadline_s=0.3) as (_, port), closing(socket.socket()) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(TIMEOUT_S)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(b"GET /metrics/experts HTTP/1.1\r\n\r\n")
        assert meter.has_failed.wait(TIMEOUT_S)
        _, _, body = b"".join(iter(lambda: deaf.recv(2**16), b"")).partition(b"\r\n\r\n")
    assert body
    assert matrix.text(PROCESS.own).startswith(body)
    assert len(body) < len(matrix.text(PROCESS.own))


def test_a_head_without_end_is_cut_off(meter: RecordingMeter) -> None:
    """Once it is longer than any scraper's, long before the deadline."""
    with _exporter(meter, deadline_s=60) as (_, port), closing(_connect(port)) as endless:
        endless.sendall(b"x" * (2 * MAX_HEAD_BYTES + 1))
        assert _is_cut_off(endless)


def test_more_peers_than_allowed_are_cut_off(meter: RecordingMeter) -> None:
    """Those that were there first keep their turn."""
    with _exporter(meter, max_connections=1) as (_, port), closing(_connect(port)) as first:
        first.sendall(b"GET ")
        with closing(_connect(port)) as second:
            assert _is_cut_off(second)
        first.sendall(b"/metrics HTTP/1.1\r\n\r\n")
        assert first.recv(15) == b"HTTP/1.1 200 OK"


def test_scrapes_and_records_at_the_same_time(meter: RecordingMeter) -> None:
    """Each scrape is whole: a histogram's count is its last bucket, and counters never fall from one to the next."""
    done = threading.Event()

    def record() -> None:
        counter, histogram = meter.counter(ACCEPTED, position=0), meter.histogram("step35_step_seconds")
        while not done.is_set():
            counter.add()
            histogram.record_many([0.01, 0.02])

    thread = threading.Thread(target=record)
    thread.start()
    try:
        with _exporter(meter) as (_, port):
            scrapes = [_samples(_get(port)) for _ in range(15)]
    finally:
        done.set()
        thread.join()
    counts = [next(iter(samples.get(ACCEPTED, {None: 0.0}).values())) for samples in scrapes]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    for samples in scrapes[1:]:
        last = max(samples["step35_step_seconds_bucket"].values())
        assert list(samples["step35_step_seconds_count"].values()) == [last]


def test_close_frees_the_port_and_may_be_repeated(meter: RecordingMeter) -> None:
    """Also with a peer in the middle of its request; the next process can have the port at once."""
    exporter = Exporter(meter, PROCESS, ExporterConfig(port=0))
    port = exporter.start()
    with closing(_connect(port)) as peer:
        peer.sendall(b"GET ")
        exporter.close()
        exporter.close()
    with pytest.raises(ConnectionRefusedError):
        _connect(port)
    again = Exporter(meter, PROCESS, ExporterConfig(port=port, num_ports=1))
    assert again.start() == port
    again.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "exporter"]


def test_processes_of_a_host_share_a_range_of_ports(meter: RecordingMeter) -> None:
    """The first free one is taken; when there is none, the error says where it was looked for."""
    with _exporter(meter) as (_, port):
        with pytest.raises(NoFreePort, match=rf"127\.0\.0\.1 in {port} to {port}"):
            Exporter(meter, PROCESS, ExporterConfig(port=port, num_ports=1)).start()
        neighbour = Exporter(meter, PROCESS, ExporterConfig(port=port, num_ports=50))
        assert port < neighbour.start() < port + 50
        neighbour.close()


@contextmanager
def _exporter(
    meter: RecordingMeter, matrix: ExpertMatrix | None = None, **config: float
) -> Iterator[tuple[Exporter, int]]:
    settings = ExporterConfig.model_validate({"port": 0, **config})
    with closing(Exporter(meter, PROCESS, settings, matrix=matrix)) as exporter:
        yield exporter, exporter.start()


def _get(port: int, path: str = "/metrics") -> str:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        assert response.getheader("Content-Type") == "text/plain; version=0.0.4; charset=utf-8"
        return response.read().decode()


def _status(port: int, method: str, path: str) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) as connection:
        connection.request(method, path)
        return connection.getresponse().status


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def _is_cut_off(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:
        return True


def _families(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


def _samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in _families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[_key(sample.labels)] = sample.value
    return found


def _key(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
