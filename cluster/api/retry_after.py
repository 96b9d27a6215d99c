"""When a client that was sent away should come back: when those who were sent away before it have had their turn.

They stand in a line that no queue shows. It moves as fast as sequences end: as many as run, over how long one takes.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

LEAST_S, MOST_S = 1, 30
SPREAD = 0.5  # chance adds up to this share, or LEAST_SPREAD_S if that is more
LEAST_SPREAD_S = 2.0
MOST_EXPECTED_S = MOST_S / (1 + SPREAD)
MEMORY = 32  # answers that the average time of a sequence goes back


def expected_wait_s(num_ahead: int, num_running: int, sequence_s: float) -> float:
    """Until the next after `num_ahead` has room, while `num_running` (at least 1) sequences of `sequence_s` run."""
    return (num_ahead + 1) * sequence_s / num_running


def told_s(expected_s: float, draw: float) -> int:
    """What Retry-After says: never less than what is expected, as far as that is between the bounds. draw: from [0, 1),
    so that clients who were sent away together do not come back together."""
    bounded_s = min(max(expected_s, float(LEAST_S)), MOST_EXPECTED_S)
    return min(int(bounded_s + draw * max(SPREAD * bounded_s, LEAST_SPREAD_S)), MOST_S)


class RetryLine:
    """Those who were told when to come back, of one gateway. Bounded: a number for each second that was named."""

    def __init__(
        self,
        unknown_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """unknown_s: what is expected where nothing has been measured, or where waiting for room would not help."""
        self._unknown_s = unknown_s
        self._clock = clock
        self._draw = draw
        self._sequence_s: float | None = None
        self._due = Counter[int]()  # second of the clock -> how many were told to come back then

    def answered(self, seconds: float) -> None:
        """A request was answered; its sequences held their seats for so long."""
        before = self._sequence_s
        self._sequence_s = seconds if before is None else before + (seconds - before) / MEMORY

    def join(self, num_running: int) -> int:
        """Seconds for one more client that finds no room while `num_running` sequences run."""
        now = self._clock()
        self._due = Counter({second: number for second, number in self._due.items() if second > now})
        if self._sequence_s is None or num_running < 1:
            seconds = self.outage_s()
        else:
            seconds = told_s(expected_wait_s(self._due.total(), num_running, self._sequence_s), self._draw())
        self._due[int(now) + seconds] += 1
        return seconds

    def outage_s(self) -> int:
        """Seconds for a client that finds nobody who could answer: how long that lasts is not known."""
        return told_s(self._unknown_s, self._draw())
