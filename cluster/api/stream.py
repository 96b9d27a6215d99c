"""Answers to generation requests: server-sent events, or one JSON body. Both end at once when the client leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cluster.api.bodies import Bodies
from cluster.api.choice import Delta, join_deltas
from cluster.api.errors import error_body, log_failure, request_id_of
from cluster.api.generation import Generation
from cluster.api.observation import observation_of
from cluster.errors import ClientGone

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
# A client that takes nothing for so long counts as gone. Acts only under a server whose `send` waits for the client;
# Ray Serve's queues without waiting, so that there the end of the connection or of the request's time must tell.
WRITE_TIMEOUT_S = 60.0
KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


class WholeAnswer(Response):
    """Collects a generation and answers with one JSON body."""

    def __init__(self, generation: Generation, bodies: Bodies) -> None:
        super().__init__()
        self._generation = generation
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what failed: nothing has been sent then."""
        body = await until_disconnect(receive, self._collect())
        await JSONResponse(body)(scope, receive, send)

    async def _collect(self) -> dict[str, Any]:
        async with self._generation as generation:
            parts: list[list[Delta]] = [[] for _ in range(generation.num_choices)]
            async for delta in generation.deltas():
                parts[delta.index].append(delta)
            choices = [join_deltas(index, deltas) for index, deltas in enumerate(parts)]
            return self._bodies.whole(choices, generation.usage)


class EventStream(Response):
    """Sends a generation as server-sent events.

    Nothing is sent before the first news or `keep_alive_s` of silence, so that an early failure still gets its HTTP
    status. Later failures are sent as an event, which ends the stream.
    """

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, bodies: Bodies, *, keep_alive_s: float, has_usage_chunk: bool) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._generation = generation
        self._bodies = bodies
        self._keep_alive_s = keep_alive_s
        self._has_usage_chunk = has_usage_chunk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what failed before the first byte."""
        try:
            await until_disconnect(receive, self._run(scope, send))
        except ClientGone:
            observation_of(scope).left()
            logger.info("request %s: the client left", request_id_of(scope))

    async def _run(self, scope: Scope, send: Send) -> None:
        wire = _Wire(send, self._keep_alive_s)
        async with self._generation as generation:
            first = await generation.next(wire.patience_s)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await self._send_events(generation, first, wire)
            except ClientGone:
                raise
            except Exception as error:  # noqa: BLE001  the status is sent; the stream is the only place left
                observation_of(scope).failed(error)
                log_failure(request_id_of(scope), error)
                await wire.write(event(error_body(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, generation: Generation, first: Delta | None, wire: _Wire) -> None:
        await wire.write(b"".join(event(chunk) for chunk in self._bodies.opening(generation.num_choices)))
        await self._send_delta(first, wire)
        while generation.is_running:
            await self._send_delta(await generation.next(wire.patience_s), wire)
        if self._has_usage_chunk:
            await wire.write(event(self._bodies.usage_chunk(generation.usage)))
        await wire.write(DONE)

    async def _send_delta(self, delta: Delta | None, wire: _Wire) -> None:
        """One write per delta that shows something; hidden reasoning shows nothing, and is silence to the client."""
        chunks = [] if delta is None else self._bodies.chunks(delta)
        if chunks:
            await wire.write(b"".join(map(event, chunks)))
        elif wire.patience_s <= 0:
            await wire.write(KEEP_ALIVE)


class _Wire:
    """What the client receives of one stream, and how long it has received nothing."""

    def __init__(self, send: Send, keep_alive_s: float) -> None:
        self._send = send
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        self._last_write = self._loop.time()

    @property
    def patience_s(self) -> float:
        """Seconds until the silence has lasted too long; 0 when it has."""
        return max(0.0, self._last_write + self._keep_alive_s - self._loop.time())

    async def write(self, data: bytes) -> None:
        """Raises ClientGone when the client takes no data any more. Nothing to write is no write."""
        if not data:
            return
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except (OSError, TimeoutError) as error:
            raise ClientGone("The client takes no data any more.") from error
        self._last_write = self._loop.time()


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled and awaited when the client leaves first. Raises ClientGone then.

    The request's body must have been read: from then on `receive` has only the disconnect to tell.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("The client closed the connection.")
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
