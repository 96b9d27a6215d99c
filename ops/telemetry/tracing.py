"""Tracing: a process's tracer and what sends its spans to an OTLP collector. Knows no request.

The gateway starts a span and hands its context on as plain strings; an actor sends whole trees of spans afterwards,
when their times are known. Never the global provider: Ray may have set that one.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import BaseModel, ConfigDict, Field

from ops.telemetry.exposition import ProcessLabels
from ops.telemetry.genai import SCHEMA_URL

logger = logging.getLogger(__name__)

SCOPE = "step35"
SERVICE = "step35-cluster"
TRACES_PATH = "/v1/traces"
MAX_HEADER_CHARS = 512  # of a traceparent or a tracestate; longer ones are ignored
MAX_CONTENT_CHARS = 64 * 1024  # of one attribute; the rest is cut off
MAX_BATCH_SPANS = 512
EXPORT_PERIOD_S = 2.0
EXPORT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0

AttributeValue = str | bool | int | float | tuple[str, ...]
Attributes = Mapping[str, AttributeValue]

_PROPAGATOR = TraceContextTextMapPropagator()
# Stricter than the propagator, which logs what it does not understand: clients could fill the log.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?")
_STATE_MEMBER = r"[a-z0-9][a-z0-9_\-*/]{0,240}(@[a-z][a-z0-9_\-*/]{0,13})?=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
_TRACESTATE = re.compile(rf"[ \t]*{_STATE_MEMBER}[ \t]*(,[ \t]*{_STATE_MEMBER}[ \t]*){{0,31}}")
_HEADER_LINE = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e][\x20-\x7e]*)")


class TracingConfig(BaseModel):
    """Where spans go, and which."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s@?#]+$",
        description="base URL of an OTLP/HTTP collector, such as http://collector:4318; None: no spans",
    )
    sample_ratio: float = Field(
        0.1, ge=0, le=1, description="share of requests to trace; a traceparent decides for its own request"
    )
    capture_content: bool = Field(False, description="whether spans carry prompts and answers: they are your users'")
    headers_file: Path | None = Field(None, description="headers for the collector, one `name: value` a line")
    max_queue_spans: int = Field(4096, ge=MAX_BATCH_SPANS, description="spans that wait to be sent; more are dropped")


@dataclass(frozen=True)
class TraceHeaders:
    """W3C Trace Context as it travels. Empty: there is no trace."""

    traceparent: str = ""
    tracestate: str = ""


NO_TRACE = TraceHeaders()


@dataclass(frozen=True)
class SpanEvent:
    """A moment within a span. at_ns: since the epoch."""

    name: str
    at_ns: int
    attributes: Attributes = field(default_factory=dict)


@dataclass(frozen=True)
class TimedSpan:
    """A span that is over, with those below it. start_ns, end_ns: since the epoch. error: a sentence of ours."""

    name: str
    start_ns: int
    end_ns: int
    attributes: Attributes = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    children: tuple[TimedSpan, ...] = ()
    error: str | None = None


class Tracing:
    """All methods may be called from any thread; none waits but `close`. Made by `open_tracing`; NO_TRACING is its
    twin that records nothing."""

    def __init__(
        self,
        provider: TracerProvider | None = None,
        exporter: SpanExporter | None = None,
        *,
        captures_content: bool = False,
    ) -> None:
        self._provider = provider
        self._exporter = exporter
        self._tracer: Tracer | None = None if provider is None else provider.get_tracer(SCOPE, schema_url=SCHEMA_URL)
        self.captures_content = captures_content

    @property
    def is_on(self) -> bool:
        return self._tracer is not None

    def start(self, name: str, parent: TraceHeaders, start_ns: int) -> Span:
        """The span of a request that arrived at `start_ns`. The caller ends it. Sampled or not is decided here."""
        if self._tracer is None:
            return INVALID_SPAN
        return self._tracer.start_span(name, context_of(parent), SpanKind.SERVER, start_time=start_ns)

    def send(self, span: TimedSpan, parent: TraceHeaders) -> None:
        """A tree under a span of another process. Nothing is sent where that one is not sampled, or there is none."""
        if self._tracer is not None and is_sampled(parent):
            _send(self._tracer, span, context_of(parent))

    def close(self) -> None:
        """Send what waits, for about CLOSE_TIMEOUT_S at most. Idempotent."""
        provider, self._provider = self._provider, None
        self._tracer = None
        if provider is None or self._exporter is None:
            return
        giving_up = threading.Timer(CLOSE_TIMEOUT_S, self._exporter.shutdown)
        giving_up.start()
        try:
            provider.shutdown()
        finally:
            giving_up.cancel()


NO_TRACING = Tracing()


def open_tracing(config: TracingConfig, process: ProcessLabels, exporter: SpanExporter | None = None) -> Tracing:
    """Tracing of this process; the caller closes it. exporter: in place of the one for `config.endpoint`.

    A file of headers that cannot be used is logged and nothing is traced: telemetry must not keep a process from
    serving.
    """
    if config.endpoint is None and exporter is None:
        return NO_TRACING
    try:
        exporter = exporter or _otlp_exporter(config)
    except (OSError, ValueError) as error:
        logger.critical("no request is traced: headers_file %s cannot be used (%s)", config.headers_file, error)
        return NO_TRACING
    processor = BatchSpanProcessor(
        exporter,
        max_queue_size=config.max_queue_spans,
        schedule_delay_millis=EXPORT_PERIOD_S * 1000,
        max_export_batch_size=MAX_BATCH_SPANS,
    )
    provider = TracerProvider(
        ParentBased(TraceIdRatioBased(config.sample_ratio)),
        _resource(process),
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_attribute_length=MAX_CONTENT_CHARS),
    )
    provider.add_span_processor(processor)
    return Tracing(provider, exporter, captures_content=config.capture_content)


def trace_headers(headers: Mapping[str, str]) -> TraceHeaders:
    """What a peer sent, NO_TRACE unless it is sound. headers: by lower-case name."""
    traceparent, tracestate = headers.get("traceparent", ""), headers.get("tracestate", "")
    if len(traceparent) > MAX_HEADER_CHARS or not _TRACEPARENT.fullmatch(traceparent):
        return NO_TRACE
    return TraceHeaders(traceparent, tracestate if _is_tracestate(tracestate) else "")


def headers_of(span: Span) -> TraceHeaders:
    """What makes spans elsewhere children of this one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, set_span_in_context(span, Context()))
    return TraceHeaders(carrier.get("traceparent", ""), carrier.get("tracestate", ""))


def context_of(headers: TraceHeaders) -> Context:
    """The parent that the headers name; a root's context for none."""
    carrier = {"traceparent": headers.traceparent, "tracestate": headers.tracestate}
    return _PROPAGATOR.extract({name: value for name, value in carrier.items() if value}, Context())


def is_sampled(headers: TraceHeaders) -> bool:
    """Whether spans below are wanted. Costs next to nothing."""
    return bool(headers.traceparent) and bool(int(headers.traceparent[53:55], 16) & 1)


def read_headers(path: Path) -> dict[str, str]:
    """`name: value` lines; `#` begins a comment line. Raises OSError, or ValueError that names a line, not its text."""
    headers = {}
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        match = _HEADER_LINE.fullmatch(entry)
        if match is None:
            raise ValueError(f"line {number} is not `name: value`")
        headers[match[1].lower()] = match[2]
    return headers


def _is_tracestate(text: str) -> bool:
    if len(text) > MAX_HEADER_CHARS or not _TRACESTATE.fullmatch(text):
        return False
    keys = [member.partition("=")[0].strip() for member in text.split(",")]
    return len(keys) == len(set(keys))


def _send(tracer: Tracer, timed: TimedSpan, context: Context) -> None:
    span = tracer.start_span(timed.name, context, attributes=timed.attributes, start_time=timed.start_ns)
    for event in timed.events:
        span.add_event(event.name, event.attributes, event.at_ns)
    if timed.error is not None:
        span.set_status(StatusCode.ERROR, timed.error)
    inner = set_span_in_context(span, context)
    for child in timed.children:
        _send(tracer, child, inner)
    span.end(timed.end_ns)


def _otlp_exporter(config: TracingConfig) -> OTLPSpanExporter:
    assert config.endpoint is not None, "an exporter needs an endpoint"
    headers = {} if config.headers_file is None else read_headers(config.headers_file)
    return OTLPSpanExporter(config.endpoint.rstrip("/") + TRACES_PATH, headers=headers, timeout=EXPORT_TIMEOUT_S)


def _resource(process: ProcessLabels) -> Resource:
    return Resource.create({SERVICE_NAME: SERVICE, SERVICE_INSTANCE_ID: process.member, **process.own})
