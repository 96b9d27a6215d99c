"""AdminServer: the operator's application on a port of its own, as a task of the process that has the answers.

Knows nothing of what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.errors import ClusterError, PortUnavailable

CLOSE_TIMEOUT_S = 5.0
CANCEL_TIMEOUT_S = 1.0
IDLE_S = 15  # for a request to arrive, and between two requests
MAX_CONNECTIONS = 32
BACKLOG = 32


class AdminServer:
    """`start` once, then `check` at will, then `close`. All on one event loop."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._server = _Server(_settings(app))
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen; connections are taken from here on. Raises PortUnavailable."""
        assert self._task is None, "an admin server starts once"
        listener = listen(self._host, self._port)
        self._port = listener.getsockname()[1]
        serving = self._server.serve(sockets=[listener])
        self._task = asyncio.get_running_loop().create_task(serving, name="admin-server")

    @property
    def port(self) -> int:
        """Where it listens; of port 0, the free one that was found."""
        return self._port

    def check(self) -> None:
        """Raises ClusterError when it has ended by itself."""
        if self._task is not None and self._task.done():
            cause = None if self._task.cancelled() else self._task.exception()
            raise ClusterError("the admin server has ended") from cause

    async def close(self) -> None:
        """Listen no more, let running requests end for a few seconds, then cancel them. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        self._server.stop.set()
        await asyncio.wait([task], timeout=CLOSE_TIMEOUT_S + CANCEL_TIMEOUT_S)
        task.cancel()
        state = self._server.server_state
        await asyncio.gather(task, *state.tasks, return_exceptions=True)
        self._server.drop_all()
        await asyncio.sleep(0)  # in which the loop closes them


def listen(host: str, port: int) -> socket.socket:
    """A listener that a restarted process gets at once. Raises PortUnavailable."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # Connections that the process before has closed are no obstacle; a listener is.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise PortUnavailable(_why_unavailable(host, port, error)) from error
    return made


def _why_unavailable(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: set admin.port to a free one"
    reason = error.strerror or str(error)
    return f"port {port} of {host} cannot be listened on ({reason}): change admin.host or admin.port"


def _settings(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        interface="asgi3",
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # they are the client's to choose
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=int(CLOSE_TIMEOUT_S),
    )


class _Server(uvicorn.Server):
    """Ends when `stop` is set, at whatever moment, and leaves the process's signals to their owner."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()
        self.servers = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        # Instead of waking ten times a second. `should_exit`, set too early, would leave the listener open.
        await self.stop.wait()

    def drop_all(self) -> None:
        """Close what an end in order would have closed."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class _Connection(H11Protocol):
    """One of at most MAX_CONNECTIONS. A request's head must arrive within IDLE_S, however slowly it trickles."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the parent's
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self.timeout_keep_alive_task = self.loop.call_later(IDLE_S, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        # The parent would stop the clock here, at the first byte; `handle_events` stops it when the head is complete.
        self.conn.receive_data(data)
        self.handle_events()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
