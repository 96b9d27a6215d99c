"""What stands before Ray Serve's HTTP proxy: headers by which a client could steer it are taken away.

A proxy calls `proxy_middlewares` when it starts, as RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH says, and puts the result
around everything of its own. A cluster that is joined, not started, needs that variable where its nodes are started.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]

# By these a client could change the proxy's time-out, switch off its cancellation, or choose the replica.
STEERING_HEADERS = frozenset({"x_request_timeout_seconds", "x_request_disconnect_disabled", "x_session_id"})
STEERING_PREFIXES = ("x_serve_", "serve_")
REQUEST_ID, CLIENT_ID = b"x-request-id", b"x-client-request-id"


def proxy_middlewares() -> list[Middleware]:
    """Called by Serve in every proxy, without arguments."""
    return [Middleware(ProxyHeaders)]


class ProxyHeaders:
    """Cleans the headers of requests, and leaves one `x-request-id` in each answer.

    Serve would use a client's `x-request-id` as its own; it travels on as `x-client-request-id`, which the API answers.
    The gateway's id is the one that its log and the answer's body know; the proxy adds its own after it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_with_one_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": with_one_id(message.get("headers", ()))}
            await send(message)

        await self._app({**scope, "headers": without_steering(scope["headers"])}, receive, send_with_one_id)


def without_steering(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A request's headers as the proxy may see them."""
    kept = [(name, value) for name, value in headers if not _is_steering(name)]
    has_client_id = any(name.lower() == CLIENT_ID for name, _ in kept)
    renamed = [(CLIENT_ID if name.lower() == REQUEST_ID else name, value) for name, value in kept]
    return [header for header in kept if header[0].lower() != REQUEST_ID] if has_client_id else renamed


def with_one_id(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """An answer's headers with the first `x-request-id` alone."""
    kept = list(headers)
    ids = [header for header in kept if header[0].lower() == REQUEST_ID]
    return [header for header in kept if header[0].lower() != REQUEST_ID] + ids[:1]


def _is_steering(name: bytes) -> bool:
    """Serve takes hyphens and underscores for the same in some names; here they are the same in all."""
    plain = name.decode("latin-1").lower().replace("-", "_")
    return plain in STEERING_HEADERS or plain.startswith(STEERING_PREFIXES)
