"""The gateway's metrics: which instrument each thing that happens to a request is counted with. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from actors.errors import EngineOverloaded, ExpertsUnavailable, RequestRejected
from actors.messages import ErrorKind, FinishReason
from cluster.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ContextLengthExceeded,
    GenerationFailed,
    InvalidRequest,
    NotReady,
    TooManyRequests,
    UnknownModel,
)
from ops.telemetry.meter import Counter, Meter

REJECTED, SHED, BODIES = "step35_requests_rejected_total", "step35_requests_shed_total", "step35_bodies_refused_total"

# How a request ends that gets no token. Failures without a line end their sequences with `error`.
ENDINGS: Mapping[type[Exception] | ErrorKind, tuple[str, str]] = {
    ContextLengthExceeded: (REJECTED, "too_long"),
    InvalidRequest: (REJECTED, "invalid"),
    RequestRejected: (REJECTED, "invalid"),
    ErrorKind.REJECTED: (REJECTED, "invalid"),
    UnknownModel: (REJECTED, "unknown_model"),
    TooManyRequests: (SHED, "concurrency"),
    EngineOverloaded: (SHED, "overloaded"),
    ErrorKind.OVERLOADED: (SHED, "overloaded"),
    NotReady: (SHED, "not_ready"),
    ExpertsUnavailable: (SHED, "unavailable"),
    ErrorKind.UNAVAILABLE: (SHED, "unavailable"),
    ErrorKind.DEADLINE: (SHED, "deadline"),
    TimeoutError: (SHED, "deadline"),
    BodyTooLarge: (BODIES, "too_large"),
    BodyTooSlow: (BODIES, "too_slow"),
}


class ApiMetrics:
    """Instruments of one gateway, made once. One event loop uses it."""

    def __init__(self, meter: Meter) -> None:
        self._open = meter.gauge("step35_requests_open")
        self._num_open = 0
        self._endings = {place: meter.counter(place[0], reason=place[1]) for place in set(ENDINGS.values())}
        self._finished = {
            reason: meter.counter("step35_requests_finished_total", reason=reason) for reason in FinishReason
        }
        self._auth_failures = {
            reason: meter.counter("step35_auth_failures_total", reason=reason) for reason in ("missing", "unknown")
        }
        self._responses: dict[int, Counter] = {
            first: meter.counter("step35_http_responses_total", status=f"{first}xx") for first in range(2, 6)
        }
        self.disconnects = meter.counter("step35_client_disconnects_total")
        self.prompt_tokens = meter.counter("step35_prompt_tokens_total")
        self.completion_tokens = meter.counter("step35_completion_tokens_total")
        self.first_token_s = meter.histogram("step35_time_to_first_token_seconds")
        self.between_events_s = meter.histogram("step35_inter_token_latency_seconds")
        self.per_token_s = meter.histogram("step35_time_per_output_token_seconds")
        self.latency_s = meter.histogram("step35_request_latency_seconds")
        self.prompt_sizes = meter.histogram("step35_request_prompt_tokens")
        self.completion_sizes = meter.histogram("step35_request_completion_tokens")
        self._open.set(0)

    def opened(self) -> None:
        """A request begins to be answered. `closed` must follow."""
        self._num_open += 1
        self._open.set(self._num_open)

    def closed(self) -> None:
        self._num_open -= 1
        self._open.set(self._num_open)

    def ended(self, error: Exception) -> bool:
        """A request failed before its first token. False if that is neither its own fault nor a lack of room."""
        place = ending_of(error)
        if place is not None:
            self._endings[place].add()
        return place is not None

    def finished(self, reason: FinishReason) -> None:
        """A sequence ended."""
        self._finished[reason].add()

    def unauthorized(self, reason: str) -> None:
        """reason: missing or unknown."""
        self._auth_failures[reason].add()

    def answered(self, status: int) -> None:
        counter = self._responses.get(status // 100)
        if counter is not None:
            counter.add()


def ending_of(error: Exception) -> tuple[str, str] | None:
    """The table's line: metric and reason."""
    if isinstance(error, GenerationFailed):
        return ENDINGS.get(error.kind)
    return next((ENDINGS[kind] for kind in type(error).__mro__ if kind in ENDINGS), None)
