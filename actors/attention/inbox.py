"""Inbox: what other threads ask of the engine thread, taken between two steps. The only way in."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from actors.errors import EngineOverloaded
from actors.messages import GenerateRequest


@dataclass(frozen=True)
class Taken:
    """Everything that had arrived. An aborted request may be among the new ones: add first, then abort."""

    requests: tuple[GenerateRequest, ...]
    aborted_ids: tuple[str, ...]


class Inbox:
    """Bounded in requests; aborts are bounded by the requests they end."""

    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._requests: deque[GenerateRequest] = deque()
        self._aborted_ids: deque[str] = deque()
        self._changed = threading.Condition()
        self._is_rung = False

    def put(self, request: GenerateRequest) -> None:
        """Raises EngineOverloaded when as many requests already wait to be looked at."""
        with self._changed:
            if len(self._requests) >= self._max_requests:
                raise EngineOverloaded(f"{self._max_requests} requests wait for the engine")
            self._requests.append(request)
            self._changed.notify()

    def abort(self, request_id: str) -> None:
        """The client left."""
        with self._changed:
            self._aborted_ids.append(request_id)
            self._changed.notify()

    def ring(self) -> None:
        """Wake the engine thread: something outside the inbox has changed."""
        with self._changed:
            self._is_rung = True
            self._changed.notify()

    def take(self, timeout_s: float) -> Taken:
        """All that has arrived, waiting at most `timeout_s` for the first; 0 does not wait."""
        with self._changed:
            self._changed.wait_for(self._has_news, timeout_s)
            taken = Taken(tuple(self._requests), tuple(self._aborted_ids))
            self._requests.clear()
            self._aborted_ids.clear()
            self._is_rung = False
            return taken

    def _has_news(self) -> bool:
        return bool(self._requests or self._aborted_ids or self._is_rung)
