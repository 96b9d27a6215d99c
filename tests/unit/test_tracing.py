"""Tracing: what reaches a collector, what is sampled, and which headers of strangers are believed."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes

from ops.telemetry import genai
from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.spec import Owner
from ops.telemetry.tracing import (
    NO_TRACE,
    NO_TRACING,
    SpanEvent,
    TimedSpan,
    TraceHeaders,
    Tracing,
    TracingConfig,
    context_of,
    headers_of,
    is_sampled,
    open_tracing,
    read_headers,
    trace_headers,
)
from tests.fakes.collector import Collector, attributes_of, running_collector

PROCESS = ProcessLabels(Owner.ATTENTION, "member-1")
SAMPLED = TraceHeaders(f"00-{'a' * 32}-{'b' * 16}-01", "vendor=1")
UNSAMPLED = TraceHeaders(f"00-{'a' * 32}-{'b' * 16}-00")
TREE = TimedSpan(
    "outer",
    1_000,
    9_000,
    {"number": 3, "words": ("a", "b")},
    events=(SpanEvent("moment", 5_000, {"why": "because"}),),
    children=(TimedSpan("first", 1_000, 4_000), TimedSpan("second", 4_000, 9_000)),
    error="It failed.",
)


def tracing_to(collector: Collector, **fields: Any) -> Tracing:
    return open_tracing(TracingConfig(endpoint=collector.url + "/", **fields), PROCESS)


def test_a_tree_reaches_the_collector() -> None:
    """Names, times, attributes, events and parents as they were given; the root goes on with the trace it was given."""
    with running_collector() as collector:
        tracing = tracing_to(collector)
        tracing.send(TREE, SAMPLED)
        tracing.close()
    outer = collector.one("outer")
    assert (outer.trace_id.hex(), outer.parent_span_id.hex(), outer.trace_state) == ("a" * 32, "b" * 16, "vendor=1")
    assert (outer.start_time_unix_nano, outer.end_time_unix_nano) == (1_000, 9_000)
    assert attributes_of(outer) == {"number": 3, "words": ["a", "b"]}
    assert [(e.name, e.time_unix_nano, attributes_of(e)) for e in outer.events] == [
        ("moment", 5_000, {"why": "because"})
    ]
    assert (outer.status.code, outer.status.message) == (outer.status.STATUS_CODE_ERROR, "It failed.")
    assert [child.name for child in collector.children(outer)] == ["first", "second"]
    assert {child.trace_id for child in collector.children(outer)} == {outer.trace_id}
    assert collector.paths == ["/v1/traces"]
    [resource] = collector.resources
    assert (
        resource.items()
        >= {
            "service.name": "step35-cluster",
            "service.instance.id": "member-1",
            "role": "attention",
        }.items()
    )


@pytest.mark.parametrize("parent", [UNSAMPLED, NO_TRACE])
def test_nothing_is_sent_below_what_is_not_sampled(parent: TraceHeaders) -> None:
    """An actor never begins a trace of its own."""
    with running_collector() as collector:
        tracing = tracing_to(collector, sample_ratio=1.0)
        tracing.send(TREE, parent)
        tracing.close()
    assert collector.spans == []


@pytest.mark.parametrize(
    ("ratio", "parent", "expected"),
    [(1.0, NO_TRACE, 1), (0.0, NO_TRACE, 0), (1.0, UNSAMPLED, 0), (0.0, SAMPLED, 1)],
)
def test_sampling_is_by_parent_then_by_ratio(ratio: float, parent: TraceHeaders, expected: int) -> None:
    """Sampled or not, the request has an id that goes on to the actor and says which it is."""
    with running_collector() as collector:
        tracing = tracing_to(collector, sample_ratio=ratio)
        span = tracing.start("request", parent, time.time_ns())
        headers = headers_of(span)
        span.end()
        tracing.close()
    assert len(collector.spans) == expected
    assert is_sampled(headers) == bool(expected)
    assert trace_headers({"traceparent": headers.traceparent}).traceparent == headers.traceparent
    if parent is not NO_TRACE:
        assert headers.traceparent.split("-")[1] == "a" * 32


def test_headers_file_authenticates(tmp_path: Path) -> None:
    """Its headers come with every request to the collector."""
    (tmp_path / "headers").write_text("# token\n\nAuthorization: Bearer abc def\nx-tenant:7\n")
    with running_collector() as collector:
        tracing = tracing_to(collector, headers_file=tmp_path / "headers")
        tracing.send(TREE, SAMPLED)
        tracing.close()
    assert collector.headers[0]["authorization"] == "Bearer abc def"
    assert collector.headers[0]["x-tenant"] == "7"


@pytest.mark.parametrize("content", [None, "no colon secret\n", "name: \n", "a: b\rc\n", "é: x\n"])
def test_a_headers_file_that_cannot_be_used_turns_tracing_off(
    content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The process serves all the same, and the log says what is wrong without the file's words."""
    if content is not None:
        (tmp_path / "headers").write_text(content)
    config = TracingConfig(endpoint="http://127.0.0.1:9", headers_file=tmp_path / "headers")
    tracing = open_tracing(config, PROCESS)
    assert tracing is NO_TRACING
    assert "headers_file" in caplog.text
    assert "secret" not in caplog.text


def test_read_headers_names_the_line(tmp_path: Path) -> None:
    """And never its text, which may be a token."""
    (tmp_path / "headers").write_text("a: b\nsecret\n")
    with pytest.raises(ValueError, match="line 2") as caught:
        read_headers(tmp_path / "headers")
    assert "secret" not in str(caught.value)


def test_off_is_nothing() -> None:
    """Without an endpoint there are no ids, no threads and no spans."""
    tracing = open_tracing(TracingConfig(), PROCESS)
    assert not tracing.is_on
    span = tracing.start("request", SAMPLED, 0)
    assert not span.is_recording()
    assert headers_of(span) == NO_TRACE
    tracing.send(TREE, SAMPLED)
    tracing.close()


def test_a_collector_that_is_away_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans beyond the queue are dropped, and closing ends within its time."""
    monkeypatch.setattr("ops.telemetry.tracing.CLOSE_TIMEOUT_S", 0.2)
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    tracing = open_tracing(TracingConfig(endpoint="http://127.0.0.1:9", max_queue_spans=512), PROCESS)
    began_at = time.monotonic()
    for _ in range(400):
        tracing.send(TREE, SAMPLED)
    tracing.close()
    tracing.close()
    assert time.monotonic() - began_at < 8
    logging.getLogger("opentelemetry").setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("traceparent", "tracestate", "expected"),
    [
        (SAMPLED.traceparent, "a=1,b@c=x y", "a=1,b@c=x y"),
        (SAMPLED.traceparent, "a=1,a=2", ""),
        (SAMPLED.traceparent, "A=1", ""),
        (SAMPLED.traceparent, "a=1\r\nx: y", ""),
        (SAMPLED.traceparent, "a=" + "x" * 600, ""),
        (SAMPLED.traceparent.upper(), "a=1", None),
        (SAMPLED.traceparent + "\n", "", None),
        ("00-" + "a" * 31 + "-" + "b" * 16 + "-01", "", None),
        ("x" * 100_000, "", None),
    ],
)
def test_headers_of_strangers(
    traceparent: str, tracestate: str, expected: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not sound counts as absent, and nobody can fill the log with it."""
    headers = trace_headers({"traceparent": traceparent, "tracestate": tracestate})
    assert headers == (NO_TRACE if expected is None else TraceHeaders(traceparent, expected))
    context_of(headers)
    assert caplog.text == ""


@pytest.mark.parametrize("text", [f"00-{'0' * 32}-{'b' * 16}-01", f"ff-{'a' * 32}-{'b' * 16}-01"])
def test_ids_that_are_none_begin_a_trace(text: str) -> None:
    """As the W3C recommendation has it."""
    with running_collector() as collector:
        tracing = tracing_to(collector, sample_ratio=1.0)
        tracing.start("request", trace_headers({"traceparent": text}), 1).end(2)
        tracing.close()
    assert collector.one("request").parent_span_id == b""


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://x", "http://user:secret@x", "http://x/?key=secret", ""])
def test_endpoints_that_are_none(endpoint: str) -> None:
    """Secrets belong into headers_file: an endpoint is shown in logs."""
    with pytest.raises(ValueError, match="endpoint"):
        TracingConfig(endpoint=endpoint)


def test_names_are_the_conventions() -> None:
    """Every attribute is spelled as in OpenTelemetry's own package; our version is one that still held them."""
    known = {
        value
        for module in (gen_ai_attributes, error_attributes, http_attributes)
        for value in vars(module).values()
        if isinstance(value, str)
    }
    ours = {name: value for name, value in vars(genai).items() if isinstance(value, str) and name.isupper()}
    spelled = {value for value in ours.values() if re.match(r"(gen_ai|error|http)\.", value)}
    assert spelled <= known
    assert len(spelled) > 15
