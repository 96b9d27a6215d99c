"""What the attention side's exchanges with the expert ranks added up to since birth. Plain numbers; knows no metric."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from routing.errors import (
    BundleIncomplete,
    ExchangeTimeout,
    ExpertRefused,
    FrameError,
    MapNotServed,
    RankLost,
    RoutingError,
)

Cause = Literal["incomplete", "rank_lost", "timeout", "map_not_served", "refused", "bad_frame"]
_CAUSES: tuple[tuple[type[RoutingError], Cause], ...] = (
    (BundleIncomplete, "incomplete"),
    (RankLost, "rank_lost"),
    (ExchangeTimeout, "timeout"),
    (MapNotServed, "map_not_served"),
    (ExpertRefused, "refused"),
    (FrameError, "bad_frame"),
)


@dataclass
class ExchangeCounts:
    """One thread counts; others may read a number that is a step old.

    num_exchanges: dispatches that were answered. bytes_sent, bytes_received: of rows, pairs and outputs, headers left
    out. dispatch_s: planning and sending. combine_s: waiting for the ranks and summing. failures: by cause.
    """

    num_exchanges: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    dispatch_s: float = 0.0
    combine_s: float = 0.0
    failures: Counter[Cause] = field(default_factory=Counter)

    def failed(self, error: RoutingError) -> None:
        """An exchange failed."""
        cause = next((cause for kind, cause in _CAUSES if isinstance(error, kind)), None)
        if cause is not None:
            self.failures[cause] += 1
