"""AdminServer: the operator's application on a port of its own, as a task of the process that has the answers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from cluster.errors import ClusterError, PortUnavailable

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 15
BACKLOG = 64


class _Server(uvicorn.Server):
    """Leaves the process's signals alone: they are its owner's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AdminServer:
    """`start` once, then `check` at will, then `close`. All on one event loop."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._host, self._port = host, port
        settings = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(CLOSE_TIMEOUT_S),
            server_header=False,
        )
        self._server = _Server(settings)
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen. Raises PortUnavailable."""
        self._socket = _listening(self._host, self._port)
        self._task = asyncio.get_running_loop().create_task(
            self._server.serve(sockets=[self._socket]), name="admin-server"
        )

    def check(self) -> None:
        """Raises ClusterError when it has ended by itself."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            raise ClusterError("the admin server has ended") from self._task.exception()

    async def close(self) -> None:
        """Let running requests end, for a few seconds. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            self._server.should_exit = True
            _, pending = await asyncio.wait([task], timeout=CLOSE_TIMEOUT_S + 1)
            for late in pending:
                late.cancel()
        if self._socket is not None:
            self._socket.close()


def _listening(host: str, port: int) -> socket.socket:
    """A socket that a restarted process gets at once. Raises PortUnavailable."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror or error}"
        raise PortUnavailable(f"port {port} of {host} {reason}; set admin.port to another one") from error
    return made
