"""Watcher: follows the view from inside one process and keeps its membership alive.

Long-polls the coordinator with a deadline, hands every newer view to `on_view`, and registers again when the
coordinator has restarted. While the coordinator is away the last view stays good. Knows nothing of what a view is for.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cluster.errors import ClusterError, CoordinatorUnavailable, MembershipLost
from cluster.membership import CoordinatorPort
from cluster.view import ClusterView

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchSettings:
    """Seconds. poll_s: length of one long poll, and so the period of renewal; well below the lease's time to live.

    first_backoff_s doubles up to max_backoff_s while the coordinator cannot be reached; each wait is drawn between
    half and all of it, so that many processes do not return at once.
    """

    poll_s: float = 2.0
    first_backoff_s: float = 0.1
    max_backoff_s: float = 2.0

    @property
    def longest_silence_s(self) -> float:
        """A living member is heard at least this often while the coordinator answers."""
        return self.poll_s + self.max_backoff_s


class Watcher:
    """One asyncio task, owned and closed by whoever made it. All methods belong to that event loop."""

    def __init__(
        self,
        coordinator: CoordinatorPort,
        on_view: Callable[[ClusterView], None] | None = None,
        *,
        member_id: str | None = None,
        register: Callable[[], Awaitable[None]] | None = None,
        settings: WatchSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """register: makes the coordinator know this member again; raises MembershipLost if it no longer can.

        Without a member_id the process only observes.
        """
        self._coordinator = coordinator
        self._on_view = on_view
        self._member_id = member_id
        self._register = register
        self._settings = settings or WatchSettings()
        self._clock = clock
        self._answered_at = clock()
        self._view: ClusterView | None = None
        self._is_registered = True
        self._news = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    @property
    def view(self) -> ClusterView | None:
        """The newest view seen, None before the first."""
        return self._view

    @property
    def silence_s(self) -> float:
        """Seconds since the coordinator answered last, or since this watcher was made."""
        return self._clock() - self._answered_at

    def start(self) -> None:
        """Begin to watch. Call once."""
        self._task = asyncio.create_task(self._run(), name="watch-view")

    def check(self) -> None:
        """Raises ClusterError if watching has ended by itself: the process no longer follows the cluster."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            raise ClusterError("this process no longer follows the cluster's view") from self._task.exception()

    async def wait_for(self, is_met: Callable[[ClusterView], bool], timeout_s: float) -> ClusterView:
        """The first view that meets a condition. Raises TimeoutError, or ClusterError if watching has ended."""
        async with asyncio.timeout(timeout_s), self._news:
            while self._view is None or not is_met(self._view):
                self.check()
                await self._news.wait()
            return self._view

    async def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._follow()
        except Exception:
            logger.exception("watching the view has ended")
            raise
        finally:
            async with self._news:
                self._news.notify_all()

    async def _follow(self) -> None:
        backoff_s = self._settings.first_backoff_s
        while True:
            try:
                await self._poll()
                backoff_s = self._settings.first_backoff_s
            except CoordinatorUnavailable as error:
                logger.info("the coordinator cannot be reached: %s", error)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(2 * backoff_s, self._settings.max_backoff_s)

    async def _poll(self) -> None:
        if not self._is_registered:
            await self._return_to_cluster()
            self._is_registered = True
        seen = self._view.view_id if self._view is not None else -1
        reply = await self._coordinator.wait_view(seen, self._settings.poll_s, self._member_id)
        self._answered_at = self._clock()
        # Half a registration must be repeated, so the flag outlives a coordinator that goes away in between.
        self._is_registered = reply.is_known
        if reply.view is not None:
            await self._adopt(ClusterView.from_dict(reply.view))

    async def _return_to_cluster(self) -> None:
        if self._view is not None:
            await self._coordinator.recover(self._view.to_dict())
        if self._register is not None:
            await self._register()
        elif self._member_id is not None:
            raise MembershipLost(f"the coordinator gave up member {self._member_id}")

    async def _adopt(self, view: ClusterView) -> None:
        if not view.is_newer_than(self._view):
            return
        self._view = view
        if self._on_view is not None:
            self._on_view(view)
        async with self._news:
            self._news.notify_all()
