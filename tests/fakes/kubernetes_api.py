"""A Kubernetes API over real HTTP: nodes and pods with versions, list in pages, watch with bookmarks, Events, RBAC.

Runs on a thread with a server of its own; a test scripts it from outside and reads what was asked of it. It refuses
every request that the given rights do not allow, as RBAC would.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

LISTS = {"/api/v1/nodes": "nodes", "/api/v1/namespaces/models/pods": "pods"}
EVENTS = "/apis/events.k8s.io/v1/namespaces/models/events"
RAY_SERVICE = "/apis/ray.io/v1/namespaces/models/rayservices/demo"
EVERYTHING = frozenset(
    {(verb, kind) for verb in ("list", "watch") for kind in ("nodes", "pods")}
    | {("create", "events"), ("patch", "events"), ("get", "rayservices")}
)
WAIT_S = 5.0


@dataclass(frozen=True)
class Raw:
    """Bytes that go out as they are, and end the watch: in peace, or as if the connection were cut."""

    text: bytes
    is_cut: bool = True


@dataclass
class _Watch:
    """One open watch. lines: what to send; None ends it in peace."""

    kind: str
    query: dict[str, str]
    lines: queue.Queue[dict[str, Any] | Raw | None] = field(default_factory=queue.Queue)


class FakeKubernetes:
    """Start it with `with`. All methods may be called from any thread."""

    def __init__(self, rights: Collection[tuple[str, str]] = EVERYTHING) -> None:
        self.rights = set(rights)
        self.requests: list[tuple[str, str, dict[str, str]]] = []  # verb, kind, query
        self.events: dict[str, dict[str, Any]] = {}
        self.page_size = 1000
        self.delay_s = 0.0  # before each answer
        self.next_statuses: list[int] = []  # of the next requests, instead of answers
        self.is_watch_gone = False  # 410 for every new watch
        self.ends_watches_at_once = False
        self._objects: dict[str, dict[str, dict[str, Any]]] = {"nodes": {}, "pods": {}}
        self._log: list[tuple[int, str, dict[str, Any]]] = []
        self._version = 100
        self._lock = threading.RLock()
        self._watches: list[_Watch] = []
        self._closing = threading.Event()
        handler = type("Handler", (_Handler,), {"world": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FakeKubernetes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.end_watches()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def put(self, kind: str, name: str, **fields: Any) -> None:
        """Create or change an object. fields: spec, status, and parts of metadata."""
        metadata = {"name": name, "uid": f"uid-{name}", **fields.pop("metadata", {})}
        with self._lock:
            action = "MODIFIED" if name in self._objects[kind] else "ADDED"
            self._publish(kind, action, {"metadata": metadata, "spec": {}, "status": {}, **fields})

    def remove(self, kind: str, name: str) -> None:
        with self._lock:
            self._publish(kind, "DELETED", self._objects[kind][name])

    def bookmark(self, kind: str) -> int:
        """Tell watchers how far they are, after changes that did not concern them."""
        with self._lock:
            self._version += 10
            self.send(kind, {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self._version)}}})
            return self._version

    def send(self, kind: str, line: dict[str, Any] | Raw | None) -> None:
        """Something to every open watch of a kind: an event, or what ends it."""
        with self._lock:
            for watch in self._watches:
                if watch.kind == kind:
                    watch.lines.put(line)

    def end_watches(self) -> None:
        for kind in LISTS.values():
            self.send(kind, None)

    def forget(self) -> None:
        """Events before now: watches from older versions get 410."""
        with self._lock:
            self._log.clear()
            self._version += 1

    def asked(self, verb: str, kind: str) -> list[dict[str, str]]:
        """Queries of all requests of a sort."""
        return [query for each, what, query in list(self.requests) if (each, what) == (verb, kind)]

    def num_watches(self, kind: str) -> int:
        with self._lock:
            return sum(watch.kind == kind for watch in self._watches)

    def _publish(self, kind: str, action: str, made: dict[str, Any]) -> None:
        self._version += 1
        made = {**made, "metadata": {**made["metadata"], "resourceVersion": str(self._version)}}
        name = made["metadata"]["name"]
        if action == "DELETED":
            del self._objects[kind][name]
        else:
            self._objects[kind][name] = made
        self._log.append((self._version, kind, {"type": action, "object": made}))
        self.send(kind, {"type": action, "object": made})


class _Handler(BaseHTTPRequestHandler):
    world: FakeKubernetes
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a client that gave up
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        path, query = self._asked()
        if path == RAY_SERVICE:
            if self._may("get", "rayservices", query):
                self._answer(200, {"metadata": {"name": "demo", "uid": "uid-demo"}})
        elif path not in LISTS:
            self._answer(404, {})
        elif "watch" in query:
            if self._may("watch", LISTS[path], query):
                self._watch(LISTS[path], query)
        elif self._may("list", LISTS[path], query):
            self._list(LISTS[path], query)

    def do_POST(self) -> None:
        path, query = self._asked()
        body = self._body()
        if self._may("create", "events", query) and path == EVENTS:
            self.world.events[body["metadata"]["name"]] = body
            self._answer(201, body)

    def do_PATCH(self) -> None:
        path, query = self._asked()
        body = self._body()
        if self._may("patch", "events", query):
            self.world.events[path.rsplit("/", 1)[1]].update(body)
            self._answer(200, {})

    def log_message(self, *_: object) -> None:
        """Nothing: tests read `requests`."""

    def _asked(self) -> tuple[str, dict[str, str]]:
        parts = urlsplit(self.path)
        return parts.path, {key: values[0] for key, values in parse_qs(parts.query).items()}

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _may(self, verb: str, kind: str, query: dict[str, str]) -> bool:
        world = self.world
        world.requests.append((verb, kind, query))
        world._closing.wait(world.delay_s)
        if world.next_statuses:
            self._answer(world.next_statuses.pop(0), {})
            return False
        if (verb, kind) not in world.rights:
            self._answer(403, {"kind": "Status", "code": 403})
            return False
        return True

    def _list(self, kind: str, query: dict[str, str]) -> None:
        world = self.world
        with world._lock:
            objects, version = list(world._objects[kind].values()), world._version
        start, size = int(query.get("continue", 0)), min(int(query["limit"]), world.page_size)
        metadata = {"resourceVersion": str(version)}
        if start + size < len(objects):
            metadata["continue"] = str(start + size)
        self._answer(200, {"metadata": metadata, "items": objects[start : start + size]})

    def _watch(self, kind: str, query: dict[str, str]) -> None:
        world = self.world
        watch, since = _Watch(kind, query), int(query["resourceVersion"])
        with world._lock:
            is_gone = world.is_watch_gone or (not world._log and since < world._version)
            for version, what, event in [] if is_gone else world._log:
                if what == kind and version > since:
                    watch.lines.put(event)
            if is_gone:
                watch.lines.put({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
            if is_gone or world.ends_watches_at_once:
                watch.lines.put(None)
            world._watches.append(watch)
        try:
            self._stream(watch)
        except OSError:
            pass  # the client has hung up
        finally:
            self.close_connection = True
            with world._lock:
                world._watches.remove(watch)

    def _stream(self, watch: _Watch) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while (line := watch.lines.get()) is not None:
            text = line.text if isinstance(line, Raw) else json.dumps(line).encode() + b"\n"
            self.wfile.write(b"%x\r\n%b\r\n" % (len(text), text))
            self.wfile.flush()
            if isinstance(line, Raw) and line.is_cut:
                return  # without the end of the chunked body
            if isinstance(line, Raw):
                break
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
