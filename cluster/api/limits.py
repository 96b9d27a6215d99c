"""Raw ASGI middlewares that bound what a request can bring: its id, its body, its company."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.api.admission import Admission
from cluster.api.errors import error_response
from cluster.api.observation import observation_of
from cluster.api.paths import PUBLIC_PATHS
from cluster.errors import BodyTooLarge, TooManyRequests

CLIENT_ID = b"x-client-request-id"

_ECHOED_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestIdMiddleware:
    """Gives every request an id of our own, whatever `x-request-id` it brings: that may be the client's or a proxy's.

    The answer carries our id as `x-request-id`, and the client's `x-client-request-id` again if it is harmless.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client_id = dict(scope["headers"]).get(CLIENT_ID, b"")
        request_id = uuid.uuid4().hex
        state = {**scope.get("state", {}), "request_id": request_id}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered["x-request-id"] = request_id
                if _ECHOED_ID.fullmatch(client_id):
                    answered["x-client-request-id"] = client_id.decode("ascii")
            await send(message)

        await self._app({**scope, "state": state}, receive, send_with_id)


class BodyLimitMiddleware:
    """Answers 413 for a body that says it is too long, and makes reading one that turns out too long fail."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        too_large = BodyTooLarge(f"The body is longer than {self._max_body_bytes} bytes.")
        declared = dict(scope.get("headers", ())).get(b"content-length", b"0")
        # More digits than any real length: not worth parsing, and int() of very many digits is slow.
        if len(declared) > 18 or (declared.isdigit() and int(declared) > self._max_body_bytes):
            observation_of(scope).failed(too_large)
            await error_response(too_large)(scope, receive, send)
            return
        num_received = 0

        async def receive_bounded() -> Message:
            nonlocal num_received
            message = await receive()
            if message["type"] == "http.request":
                num_received += len(message.get("body", b""))
                if num_received > self._max_body_bytes:
                    raise too_large
            return message

        await self._app(scope, receive_bounded, send)


class ConcurrencyMiddleware:
    """Gives each request a seat, or answers 429 when none is free. Public paths always get through.

    Whoever learns how many sequences the request asks for takes more, see `Seats.grow`.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            seats = self._admission.enter()
        except TooManyRequests as refusal:
            observation_of(scope).failed(refusal)
            await error_response(refusal, self._admission.retry_after_s)(scope, receive, send)
            return
        is_answered = False

        async def send_noting_status(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = message["status"] < 400
            await send(message)

        state = {**scope.get("state", {}), "seats": seats}
        try:
            await self._app({**scope, "state": state}, receive, send_noting_status)
        finally:
            seats.leave(is_answered=is_answered)
