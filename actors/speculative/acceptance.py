"""How often drafts are accepted, by position: of everybody, and of one request. Both forget."""

from __future__ import annotations

import math
from collections.abc import Sequence

GLOBAL_MEMORY = 100.0  # steps after which the weight of an old one has fallen to 1 / e
GLOBAL_MOST = 200.0  # drafts of a position that are remembered: what many sequences did must not outweigh few
REQUEST_MEMORY = 24.0
PRIOR_WEIGHT = 6.0  # a request's own experience counts as much as everybody's after so many drafts
PRIOR_RATE = 0.6  # before anything was seen


class AcceptanceRate:
    """Decayed averages of conditional acceptance: a position counts where the drafts before it were accepted."""

    def __init__(self, num_positions: int, memory: float, most_seen: float = math.inf) -> None:
        """memory: calls of `forget` that leave 1 / e. most_seen: drafts of a position that it leaves at most."""
        self._keep, self._most_seen = 1.0 - 1.0 / memory, most_seen
        self._accepted = [0.0] * num_positions
        self._seen = [0.0] * num_positions

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """`num_drafts` were verified together; the one after the last accepted was rejected, the rest not looked at."""
        for position in range(min(num_drafts, num_accepted + 1)):
            self._accepted[position] += position < num_accepted
            self._seen[position] += 1.0

    def forget(self) -> None:
        """What was seen so far counts a little less. Positions that nobody drafts grow old with the others."""
        for position, seen in enumerate(self._seen):
            keep = min(self._keep, self._most_seen / max(seen, 1.0))
            self._accepted[position] *= keep
            self._seen[position] *= keep

    def rates(self, prior: Sequence[float], prior_weight: float) -> list[float]:
        """The averages, drawn towards `prior` as if that had been seen `prior_weight` times."""
        return [
            (accepted + prior_weight * expected) / (seen + prior_weight)
            for accepted, seen, expected in zip(self._accepted, self._seen, prior, strict=True)
        ]

    def chained_rates(self) -> list[float]:
        """The averages, each drawn towards the one before it: what is known of early drafts speaks for late ones."""
        rates, expected = list[float](), PRIOR_RATE
        for accepted, seen in zip(self._accepted, self._seen, strict=True):
            expected = (accepted + PRIOR_WEIGHT * expected) / (seen + PRIOR_WEIGHT)
            rates.append(expected)
        return rates


def global_acceptance(num_positions: int) -> AcceptanceRate:
    """To `forget` once a step."""
    return AcceptanceRate(num_positions, GLOBAL_MEMORY, GLOBAL_MOST)


def request_acceptance(num_positions: int) -> AcceptanceRate:
    """To `forget` once a verification."""
    return AcceptanceRate(num_positions, REQUEST_MEMORY)
