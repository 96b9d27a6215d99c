"""Who gets in: a bound on the sequences that one gateway has open, and when whoever does not get in should come back.

The bound counts what the engine's bounds count: a request with `n` of 8 is eight of its sequences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.api.retry_after import RetryLine
from cluster.errors import TooManyRequests

OUTAGE = 503


class Admission:
    """The seats of one gateway, one for each sequence. One event loop uses it."""

    def __init__(self, max_sequences: int, line: RetryLine, clock: Callable[[], float] = time.monotonic) -> None:
        """line: of those who do not get in."""
        self.max_sequences = max_sequences
        self.line = line
        self.clock = clock
        self.num_taken = 0

    def enter(self) -> Seats:
        """A request comes in, with one sequence as far as is known yet. Whoever gets a seat leaves it. Raises
        TooManyRequests."""
        seats = Seats(self)
        seats.take(1)
        return seats

    def retry_after_s(self, status: int) -> int:
        """What Retry-After says with this status; who is told counts as one of those who will come back."""
        return self.line.outage_s() if status == OUTAGE else self.line.join(self.num_taken)


class Seats:
    """What one request holds of an Admission."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._entered_at = admission.clock()
        self._num_held = 0
        self._is_generation = False

    def grow(self, num_sequences: int) -> None:
        """It is known now that the request asks for so many sequences. Raises TooManyRequests, and holds then what it
        held."""
        # One that asks for more than there is could never come in: it comes in when it is alone.
        self.take(min(num_sequences, self._admission.max_sequences) - self._num_held)
        self._is_generation = True

    def take(self, num_seats: int) -> None:
        """So many more. Raises TooManyRequests."""
        if self._admission.num_taken + num_seats > self._admission.max_sequences:
            raise TooManyRequests("This gateway answers as many requests as it can; try again soon.")
        self._admission.num_taken += num_seats
        self._num_held += num_seats

    def leave(self, *, is_answered: bool) -> None:
        """The request is over. is_answered: it was not sent away."""
        self._admission.num_taken -= self._num_held
        self._num_held = 0
        if is_answered and self._is_generation:
            self._admission.line.answered(self._admission.clock() - self._entered_at)


def seats_of(scope: Mapping[str, Any]) -> Seats:
    """What `ConcurrencyMiddleware` gave a request."""
    seats = scope["state"]["seats"]
    assert isinstance(seats, Seats), "something else calls itself seats"
    return seats
