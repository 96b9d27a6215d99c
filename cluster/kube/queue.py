"""NoticeQueue: notices between whoever tells them and the task that writes them somewhere. Bounded.

Equal ones wait as one, with a count. Whoever tells never waits and never fails, whether or not anybody takes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from cluster.notices import Notice

MAX_WAITING = 64


class NoticeQueue:
    """Belongs to one event loop. news: set while something may wait."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[Notice, int] = OrderedDict()
        self._num_dropped = 0
        self._is_closed = False
        self.news = asyncio.Event()

    def tell(self, notice: Notice) -> None:
        """Never blocks, never raises."""
        if self._is_closed:
            return
        if notice in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting[notice] = self._waiting.get(notice, 0) + 1
        else:
            self._num_dropped += 1
        self.news.set()

    def take(self) -> tuple[Notice, int, int] | None:
        """The oldest notice, how often it was told, and how many found no room since the last."""
        if not self._waiting:
            self.news.clear()
            return None
        notice, count = self._waiting.popitem(last=False)
        num_dropped, self._num_dropped = self._num_dropped, 0
        return notice, count, num_dropped

    def close(self) -> None:
        """Nobody will take anything any more."""
        self._is_closed = True
        self._waiting.clear()
