"""Serves the page with a made-up cluster behind it, on this machine alone, for people who work on the page.

    python -m ops.console.demo [full|nano] [first second]

Nothing it shows was measured. Answers as the admin port does: same paths, same token rule, same security policy.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ops.console.synthetic.cluster import InvalidOrder, SyntheticCluster
from ops.console.synthetic.shape import SHAPES, Shape
from ops.telemetry.metrics import METRICS

TOKEN = "demonstration"
STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MAX_BODY_BYTES = 64 * 1024
_PIN = re.compile(r"/admin/experts/(\d+)/(\d+)/pin")


@dataclass
class SetClock:
    """Seconds that pass only when somebody says so."""

    second: int = 0

    def __call__(self) -> int:
        return self.second


class _Server(ThreadingHTTPServer):
    """Ends with all its connections: a browser keeps its own open for minutes."""

    daemon_threads = False  # so that `server_close` waits for them

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
            super().close_request(request)

    def server_close(self) -> None:
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the browser was quicker
                    connection.shutdown(socket.SHUT_RDWR)
        super().server_close()


class Demo:
    """The server and its cluster, which is as many seconds old as `seconds` says. Used as a context manager."""

    def __init__(self, shape: Shape, seconds: Callable[[], int], port: int = 0) -> None:
        self._cluster = SyntheticCluster(shape)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._server = _Server(port, _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, name="demo", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering and close every connection. A second time does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a route behind the token."""
        with self._lock:
            while self._cluster.second < self._seconds():
                self._cluster.tick()
            try:
                answer = self._route(method, path, body)
            except InvalidOrder as problem:
                return 409, _error(str(problem), "invalid_order")
        return (404, _error("There is nothing at this address.", "unknown_url")) if answer is None else (200, answer)

    def _route(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        cluster = self._cluster
        routes: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
            ("GET", "/admin/state"): cluster.state,
            ("GET", "/admin/map"): cluster.map,
            ("GET", "/admin/registry"): registry,
            ("POST", "/admin/experts/rebalance"): lambda: cluster.rebalance(is_dry_run=bool(body.get("dry_run"))),
            ("PUT", "/admin/balancer"): lambda: cluster.set_paused(is_paused=bool(body["paused"])),
        }
        if (method, path) in routes:
            return routes[method, path]()
        pin = _PIN.fullmatch(path)
        if pin is None or method not in ("PUT", "DELETE"):
            return None
        place = int(pin[1]), int(pin[2])
        return cluster.pin(*place, body.get("ep_ranks")) if method == "PUT" else cluster.unpin(*place)


def registry() -> dict[str, Any]:
    """What `GET /admin/registry` answers."""
    return {
        spec.name: {
            "kind": spec.kind.value,
            "unit": spec.unit,
            "help": spec.help,
            "owner": spec.owner.value,
            "labels": list(spec.label_names),
            "buckets": list(spec.buckets),
        }
        for spec in METRICS.values()
    }


def static_file(path: str) -> Path | None:
    """The file of the page at this path, if there is one."""
    name = "index.html" if path == "/" else path.removeprefix("/console/")
    file = STATIC / name
    return file if "/" not in name and file.suffix in TYPES and file.is_file() else None


def main(arguments: list[str]) -> int:
    """Serve until interrupted."""
    shape = SHAPES[arguments[0] if arguments else "full"]
    first = int(arguments[1]) if len(arguments) > 1 else 0
    began = time.monotonic()
    with Demo(shape, lambda: first + int(time.monotonic() - began), port=8002) as demo:
        print(f"{demo.url} shows made-up data; the token is {TOKEN}")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


def _error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def _handler(demo: Demo) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            file = static_file(self.path)
            if file is None:
                self._answer()
            else:
                self._send(200, TYPES[file.suffix], file.read_bytes())

        def do_POST(self) -> None:
            self._answer()

        do_PUT = do_DELETE = do_POST

        def _answer(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            given = self.rfile.read(min(size, MAX_BODY_BYTES))
            if hmac.compare_digest(self.headers.get("authorization") or "", f"Bearer {TOKEN}"):
                status, answer = demo.answer(self.command, self.path, json.loads(given or b"{}"))
            else:
                status, answer = 401, _error("The API key is missing or not known.", "invalid_api_key")
            self._send(status, "application/json", json.dumps(answer).encode())

        def _send(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            for name, value in (
                ("content-type", kind),
                ("content-length", str(len(content))),
                ("content-security-policy", POLICY),
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """One line per poll would tell nobody anything."""

    return Handler


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
