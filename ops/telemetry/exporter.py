"""Exporter: answers Prometheus on a port of this process's own. Knows HTTP as far as a scrape needs it.

One thread with one event loop. At most `max_connections` at a time, each for `deadline_s` at most, whatever its peer
does; `close` ends them all and frees the port.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

from pydantic import BaseModel, ConfigDict, Field

from ops.telemetry.errors import NoFreePort
from ops.telemetry.exposition import CONTENT_TYPE, ProcessLabels, prometheus_text
from ops.telemetry.matrix import ExpertMatrix
from ops.telemetry.recording import RecordingMeter

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8192
_CLOSE_TIMEOUT_S = 5.0
_TURNS_TO_CONNECT = 3  # of the loop, from an accepted connection to `_connect`
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed"}


class ExporterConfig(BaseModel):
    """Where a process can be scraped. Several processes of a host share a range of ports: each takes the first free."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on; whoever reaches it reads every metric")
    port: int = Field(9464, ge=0, le=65535, description="first port to try; 0 lets the system choose one")
    num_ports: int = Field(64, ge=1, le=1024, description="ports to try from the first on")
    deadline_s: float = Field(5.0, gt=0, le=60, description="longest time for one scrape, slow peers included")
    max_connections: int = Field(8, ge=1, le=256, description="scrapes at a time; more are cut off")


class Exporter:
    """`start` once, `close` any number of times; both from one thread."""

    def __init__(
        self,
        meter: RecordingMeter,
        process: ProcessLabels,
        config: ExporterConfig | None = None,
        *,
        matrix: ExpertMatrix | None = None,
    ) -> None:
        """matrix: served under /metrics/experts, to be scraped less often than /metrics."""
        self._meter = meter
        self._matrix = matrix
        self._config = config or ExporterConfig()
        self._served = meter.counter("step35_telemetry_scrapes_total")
        self._failed = meter.counter("step35_telemetry_scrapes_failed_total")
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._running: tuple[threading.Thread, asyncio.AbstractEventLoop] | None = None
        self._stop = asyncio.Event()
        self.process = process  # may be replaced at any time: a new lease is another EP rank

    def start(self) -> int:
        """Returns the port. Raises NoFreePort."""
        assert self._running is None, "an exporter starts once"
        listener = _listen(self._config)
        port: int = listener.getsockname()[1]
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._run, args=(listener, loop), name="exporter", daemon=True)
        self._running = thread, loop
        thread.start()
        logger.info("metrics at http://%s:%d/metrics", self._config.host, port)
        return port

    def close(self) -> None:
        """Free the port. Scrapes under way are cut off."""
        running, self._running = self._running, None
        if running is not None:
            thread, loop = running
            loop.call_soon_threadsafe(self._stop.set)
            thread.join(_CLOSE_TIMEOUT_S)

    def _run(self, listener: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        with listener, asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._connect, sock=listener, limit=MAX_HEAD_BYTES)
        await self._stop.wait()
        # Python 3.11 never closes a connection whose server is closed between accepting it and `_connect`.
        asyncio.get_running_loop().remove_reader(listener)
        for _ in range(_TURNS_TO_CONNECT):
            await asyncio.sleep(0)
        server.close()
        for writer in self._open.values():
            writer.transport.abort()
        if self._open:
            await asyncio.wait(self._open)

    def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= self._config.max_connections:
            self._failed.add()
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._talk(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_answered = False
        try:
            async with asyncio.timeout(self._config.deadline_s):
                is_answered = await self._exchange(reader, writer)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            logger.debug("a scrape was cut off: %r", error)
        finally:
            (self._served if is_answered else self._failed).add()
            writer.transport.abort()  # what was answered is flushed; what was not never will be

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """True if the peer got metrics."""
        head = await reader.readuntil(b"\r\n\r\n")
        status, body = self._answer(head)
        lines = (
            f"HTTP/1.1 {status} {_REASONS[status]}",
            f"Content-Type: {CONTENT_TYPE}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        writer.transport.set_write_buffer_limits(high=0)  # drain waits for the last byte
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()
        return status == 200

    def _answer(self, head: bytes) -> tuple[int, bytes]:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET":
            return 405, b"GET only\n"
        if path == b"/metrics":
            return 200, prometheus_text(self._meter.families(), self.process)
        if path == b"/metrics/experts" and self._matrix is not None:
            return 200, self._matrix.text(self.process.own)
        return 404, b"/metrics\n"


def _listen(config: ExporterConfig) -> socket.socket:
    ports = range(config.port, min(config.port + config.num_ports, 65536)) if config.port else (0,)
    for port in ports:
        try:
            return socket.create_server((config.host, port), backlog=config.max_connections)
        except OSError as error:
            failure = error
    raise NoFreePort(f"no free port for metrics on {config.host} in {list(ports)[0]} to {list(ports)[-1]}: {failure}")
