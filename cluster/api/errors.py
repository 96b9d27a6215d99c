"""The one table from failures to HTTP answers, in OpenAI's error format. Routes never catch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.errors import ActorError, EngineOverloaded, ExpertsUnavailable, RequestRejected
from actors.messages import ErrorKind
from cluster.api.observation import observation_of
from cluster.errors import (
    ApiError,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    ContextLengthExceeded,
    ForeignRequest,
    GenerationFailed,
    InvalidOrder,
    InvalidRequest,
    NotReady,
    TooManyRequests,
    Unauthorized,
    UnknownModel,
)

logger = logging.getLogger(__name__)

# status -> seconds, see `Admission.retry_after_s`
RetryAfter = Callable[[int], int]


@dataclass(frozen=True)
class Answer:
    """How one kind of failure looks. `sentence` is shown where the failure has no sentence of its own for clients."""

    status: int
    type: str
    code: str
    sentence: str
    can_retry: bool = False


_INVALID = Answer(400, "invalid_request_error", "invalid_request", "The request is not valid.")
_BUSY = Answer(429, "rate_limit_error", "overloaded", "Too many requests are waiting; try again soon.", True)
_UNAVAILABLE = Answer(503, "server_error", "unavailable", "The model is not available now; try again soon.", True)
# Clients try it again by themselves; if it waited for room, at once would be too soon.
_LATE = Answer(504, "server_error", "deadline_exceeded", "The request did not finish before its deadline.", True)
_GONE = Answer(499, "invalid_request_error", "client_gone", "The client closed the connection.")
_BUG = Answer(500, "server_error", "internal_error", "The server failed while answering this request.")

ANSWERS: Mapping[type[Exception] | ErrorKind, Answer] = {
    ContextLengthExceeded: Answer(400, "invalid_request_error", "context_length_exceeded", _INVALID.sentence),
    InvalidRequest: _INVALID,
    InvalidOrder: Answer(409, "invalid_request_error", "invalid_order", "The order cannot be followed now."),
    Unauthorized: Answer(401, "invalid_request_error", "invalid_api_key", "The API key is missing or not known."),
    ForeignRequest: Answer(403, "invalid_request_error", "foreign_request", "The request comes from another site."),
    UnknownModel: Answer(404, "invalid_request_error", "model_not_found", "The model is not served here."),
    BodyTooSlow: Answer(408, "invalid_request_error", "request_timeout", "The body did not arrive in time."),
    BodyTooLarge: Answer(413, "invalid_request_error", "body_too_large", "The body is too large."),
    TooManyRequests: _BUSY,
    ClientGone: _GONE,
    ClientDisconnect: _GONE,
    NotReady: Answer(503, "server_error", "not_ready", _UNAVAILABLE.sentence, True),
    RequestRejected: _INVALID,
    EngineOverloaded: _BUSY,
    ExpertsUnavailable: _UNAVAILABLE,
    TimeoutError: _LATE,
    ErrorKind.REJECTED: _INVALID,
    ErrorKind.OVERLOADED: _BUSY,
    ErrorKind.UNAVAILABLE: _UNAVAILABLE,
    ErrorKind.DEADLINE: _LATE,
    ErrorKind.INTERNAL: _BUG,
    Exception: _BUG,
}

_ROUTE_ERRORS: Mapping[int, Answer] = {
    404: Answer(404, "invalid_request_error", "unknown_url", "There is nothing at this address."),
    405: Answer(405, "invalid_request_error", "method_not_allowed", "This address does not take this method."),
}


def answer_for(error: Exception) -> Answer:
    """The table's line for an exception: its own class's, or the nearest parent's."""
    if isinstance(error, GenerationFailed):
        return ANSWERS[error.kind]
    if isinstance(error, HTTPException):
        return _ROUTE_ERRORS.get(error.status_code, _INVALID if error.status_code < 500 else _BUG)
    return next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)


def error_body(error: Exception) -> dict[str, Any]:
    """OpenAI's error object. The message is a sentence of ours; no other exception's text is ever shown."""
    answer = answer_for(error)
    message = error.message if isinstance(error, ApiError) else answer.sentence
    param = error.param if isinstance(error, ApiError | RequestRejected) else None
    return {"error": {"message": message, "type": answer.type, "param": param, "code": answer.code}}


def error_response(error: Exception, retry_after: RetryAfter | None = None) -> JSONResponse:
    """The whole HTTP answer for a failure before the first byte. retry_after: None where no failure can be retried."""
    answer = answer_for(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if answer.can_retry and retry_after is not None:
        headers["retry-after"] = str(retry_after(answer.status))
    if answer.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_code=answer.status, headers=headers)


def log_failure(request_id: str, error: Exception) -> None:
    """One line per failure that is ours; with a trace only where it is a bug. What a client got wrong is not logged."""
    status = answer_for(error).status
    if status == 500:
        logger.error("request %s failed", request_id, exc_info=error)
    elif status > 500:
        logger.warning("request %s failed: %s", request_id, error)


def install_error_handlers(app: FastAPI, retry_after: RetryAfter) -> None:
    """Routes every failure that has a line in the table through it; the rest is for `LastResortMiddleware`."""

    async def respond(request: Request, error: Exception) -> JSONResponse:
        observation_of(request.scope).failed(error)
        log_failure(request_id_of(request.scope), error)
        return error_response(error, retry_after)

    for kind in (ApiError, ActorError, TimeoutError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, respond)


class LastResortMiddleware:
    """Answers 500 for what nothing else handles: a bug. Logs it once, with the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except Exception as error:
            if has_started or scope["type"] != "http":
                raise  # the server closes the connection, which is all that is left to say
            observation_of(scope).failed(error)
            log_failure(request_id_of(scope), error)
            await error_response(error)(scope, receive, send)


def request_id_of(scope: Mapping[str, Any]) -> str:
    """The id that the outermost middleware gave this request."""
    return str(scope.get("state", {}).get("request_id", "unknown"))
