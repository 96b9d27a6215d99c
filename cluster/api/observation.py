"""Observation: one HTTP request as operators see it, in metrics and in a span. Each request says each thing once.

Everything that handles a request finds its observation in the scope. Knows no tokens; `generation_record` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.trace import INVALID_SPAN, Span, StatusCode, format_span_id, format_trace_id
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.api.metrics import ApiMetrics
from cluster.api.paths import PUBLIC_PATHS
from cluster.errors import ClientGone, GenerationFailed
from ops.telemetry.genai import ERROR_TYPE, HTTP_RESPONSE_STATUS_CODE
from ops.telemetry.logs import logged_for, name_trace
from ops.telemetry.meter import SilentMeter
from ops.telemetry.spec import Owner
from ops.telemetry.tracing import NO_TRACE, NO_TRACING, Attributes, TraceHeaders, Tracing, headers_of, trace_headers

Clock = Callable[[], float]


class Observation:
    """One event loop uses it. Until `begin_span` there is no span; without tracing there never is one."""

    def __init__(
        self, metrics: ApiMetrics, tracing: Tracing, parent: TraceHeaders = NO_TRACE, clock: Clock = time.monotonic
    ) -> None:
        self.metrics = metrics
        self.clock = clock
        self.arrived_at = clock()
        self.span: Span = INVALID_SPAN
        self.trace = NO_TRACE  # what makes spans elsewhere children of ours
        self._arrived_ns = time.time_ns() if tracing.is_on else 0
        self._tracing = tracing
        self._parent = parent
        self._has_failed = False
        self._has_left = False

    @property
    def captures_content(self) -> bool:
        """Whether prompt and answer belong into the span."""
        return self._tracing.captures_content and self.span.is_recording()

    def begin_span(self, name: str) -> None:
        """A request that may be answered: nobody without a key makes spans. It counts from the request's arrival."""
        if self._tracing.is_on:
            self.span = self._tracing.start(name, self._parent, self._arrived_ns)
            self.trace = headers_of(self.span)
            context = self.span.get_span_context()
            name_trace(format_trace_id(context.trace_id), format_span_id(context.span_id))

    def describe(self, make: Callable[[], Attributes]) -> None:
        """Attributes of the span, made only if it is recorded."""
        if self.span.is_recording():
            self.span.set_attributes(make())

    def failed(self, error: Exception, *, has_tokens: bool = False) -> bool:
        """Of several failures the first counts. has_tokens: some had come before it.

        True if the request was sent away, for its own fault or for lack of room: then no sequence of it has ended.
        """
        if isinstance(error, ClientGone | ClientDisconnect):
            self.left()
            return False
        if self._has_failed:
            return False
        self._has_failed = True
        if self.span.is_recording():
            self.span.set_attribute(ERROR_TYPE, _error_type(error))
            self.span.set_status(StatusCode.ERROR)
        return not has_tokens and self.metrics.ended(error)

    def left(self) -> None:
        """The client is gone, and its answer was not complete."""
        if not self._has_left:
            self._has_left = True
            self.metrics.disconnects.add()
            self.span.set_attribute(ERROR_TYPE, "client_gone")

    def unauthorized(self, reason: str) -> None:
        """reason: missing or unknown."""
        self._has_failed = True
        self.metrics.unauthorized(reason)

    def answered(self, status: int) -> None:
        self.metrics.answered(status)
        self.span.set_attribute(HTTP_RESPONSE_STATUS_CODE, status)


UNOBSERVED = Observation(ApiMetrics(SilentMeter(Owner.GATEWAY)), NO_TRACING)


def observation_of(scope: Mapping[str, Any]) -> Observation:
    """The request's own; a silent one where no `ObservationMiddleware` is."""
    found = scope.get("state", {}).get("observation", UNOBSERVED)
    assert isinstance(found, Observation), "something else calls itself observation"
    return found


class ObservationMiddleware:
    """Gives every request its observation, the answer its traceparent and the log its request. Public paths are asked
    all the time by machines: they count as nothing."""

    def __init__(self, app: ASGIApp, metrics: ApiMetrics, tracing: Tracing, clock: Clock = time.monotonic) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        parent = trace_headers(_trace_fields(scope)) if self._tracing.is_on else NO_TRACE
        observation = Observation(self._metrics, self._tracing, parent, self._clock)
        state = {**scope.get("state", {}), "observation": observation}

        async def send_observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                observation.answered(message["status"])
                if observation.trace.traceparent:
                    MutableHeaders(scope=message)["traceparent"] = observation.trace.traceparent
            await send(message)

        with logged_for(str(state.get("request_id", ""))):
            try:
                await self._app({**scope, "state": state}, receive, send_observed)
            except asyncio.CancelledError:
                observation.left()  # the server ends a request whose client is gone or whose time is over
                raise
            except Exception as error:
                observation.failed(error)
                raise
            finally:
                observation.span.end()


def _trace_fields(scope: Scope) -> dict[str, str]:
    """Of several traceparents none counts; several tracestates are one list."""
    found: dict[str, list[str]] = {"traceparent": [], "tracestate": []}
    for name, value in scope["headers"]:
        if name in (b"traceparent", b"tracestate"):
            found[name.decode("ascii")].append(value.decode("latin-1"))
    if len(found["traceparent"]) != 1:
        return {}
    return {"traceparent": found["traceparent"][0], "tracestate": ",".join(found["tracestate"])}


def _error_type(error: Exception) -> str:
    return str(error.kind) if isinstance(error, GenerationFailed) else type(error).__name__
