"""Says in the log how far loading is: a shard of many gigabytes must not be minutes of silence. Knows no tensors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from actors.weights.source import ProgressSource, WeightSource

logger = logging.getLogger(__name__)

PERIOD_S = 5.0
GIB = 2**30


class ProgressLog:
    """A line at most every PERIOD_S, and one at the end. One call at a time."""

    def __init__(self, what: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """what: who loads, as the line names it. clock: seconds."""
        self._what = what
        self._clock = clock
        self._next_at = clock() + PERIOD_S

    def __call__(self, bytes_done: int, bytes_total: int) -> None:
        """Note that `bytes_done` of `bytes_total` (above 0) have been read."""
        now = self._clock()
        if now < self._next_at and bytes_done < bytes_total:
            return
        self._next_at = now + PERIOD_S
        share = 100 * bytes_done // bytes_total
        logger.info("%s: %d %% loaded, %.2f of %.2f GiB", self._what, share, bytes_done / GIB, bytes_total / GIB)


def logged(source: WeightSource, bytes_total: int, what: str) -> ProgressSource:
    """`source`, whose reads up to `bytes_total` show in the log."""
    return ProgressSource(source, bytes_total, ProgressLog(what))
