"""TokenStreams: events from the engine thread to the asyncio task that waits for them.

A stream holds at most one event: what its reader has not fetched yet is merged, so a slow reader costs no memory
beyond its own tokens and many streams cost one wake-up of the loop per step.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable

from actors.errors import ActorError
from actors.messages import TokenEvent


class TokenStream:
    """One request's events, for one reader. Everything but the construction happens on its loop."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self._pending: TokenEvent | None = None
        self._arrived = asyncio.Event()

    async def next(self) -> TokenEvent:
        """All news since the last call; waits for some.

        The engine ends every stream at its request's deadline; if the engine hangs, the gateway closes it.
        """
        await self._arrived.wait()
        self._arrived.clear()
        event, self._pending = self._pending, None
        assert event is not None, "a stream wakes its reader only with news"
        return event

    def push(self, event: TokenEvent) -> None:
        """Add news. Nothing follows the event with a finish reason: what the engine says at its end comes too late."""
        if self._pending is None:
            self._pending = event
        elif self._pending.finish_reason is None:
            self._pending = merge(self._pending, event)
        self._arrived.set()


class TokenStreams:
    """Every open stream of one actor.

    The id of an aborted stream stays reserved until the engine has forgotten the sequence (`release`): otherwise a new
    stream under the same id would get the old one's tokens, or its abort.
    """

    def __init__(self) -> None:
        self._streams: dict[str, TokenStream] = {}
        self._aborting: set[str] = set()
        self._lock = threading.Lock()
        self._is_empty = threading.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, request_id: str) -> TokenStream:
        """Call on the reader's loop. Raises ActorError if the id is in use."""
        stream = TokenStream(request_id)
        with self._lock:
            if request_id in self._streams or request_id in self._aborting:
                raise ActorError(f"request {request_id} is already being served")
            self._streams[request_id] = stream
            self._is_empty.clear()
        return stream

    def close(self, stream: TokenStream, *, is_aborted: bool) -> None:
        """Forget a stream; later events for it are dropped. is_aborted: the engine has yet to hear of it."""
        with self._lock:
            self._streams.pop(stream.request_id, None)
            if is_aborted:
                self._aborting.add(stream.request_id)
            if not self._streams:
                self._is_empty.set()

    def release(self, request_id: str) -> None:
        """The engine has forgotten an aborted sequence: its id may be used again."""
        with self._lock:
            self._aborting.discard(request_id)

    def publish(self, events: Iterable[TokenEvent]) -> None:
        """From the engine thread: hand events to their readers, one call into each loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[TokenStream, TokenEvent]]] = {}
        with self._lock:
            for event in events:
                stream = self._streams.get(event.request_id)
                if stream is not None:
                    by_loop.setdefault(stream.loop, []).append((stream, event))
        for loop, deliveries in by_loop.items():
            _call_on(loop, deliveries)

    def request_ids(self) -> list[str]:
        with self._lock:
            return list(self._streams)

    def wait_empty(self, timeout_s: float) -> bool:
        """True once no stream is open."""
        return self._is_empty.wait(timeout_s)


def merge(first: TokenEvent, second: TokenEvent) -> TokenEvent:
    """Two consecutive events of a request as one."""
    return TokenEvent(
        request_id=first.request_id,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        finish_reason=second.finish_reason,
        num_cached_tokens=first.num_cached_tokens + second.num_cached_tokens,
        draft_counts=first.draft_counts + second.draft_counts,
        error=second.error,
    )


def _call_on(loop: asyncio.AbstractEventLoop, deliveries: list[tuple[TokenStream, TokenEvent]]) -> None:
    def deliver() -> None:
        for stream, event in deliveries:
            stream.push(event)

    with contextlib.suppress(RuntimeError):  # the loop has closed, and its readers with it
        loop.call_soon_threadsafe(deliver)
