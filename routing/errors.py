"""Named failures of the routing package.

RoutingError
├── FrameError            a frame that is not ours, of another version, or inconsistent with its own header
├── ExpertRefused         an expert rank answered, and its answer is "no": failed kernel, bad slot
└── TransportError        rows did not reach their experts: the same step may be sent again
    ├── BundleIncomplete  not every rank of the bundle is connected (yet, or any more)
    ├── RankLost          a connected rank went away while rows were in flight
    ├── ExchangeTimeout   a rank did not answer before the deadline
    └── MapNotServed      a rank does not serve the map epoch that rows were planned with (yet, or any more)
"""

from __future__ import annotations

from collections.abc import Iterable


class RoutingError(Exception):
    """Base of every failure that the routing package reports."""


class FrameError(RoutingError):
    """A frame that cannot be trusted; no number of it was used."""


# How a rank's refusal begins when another map epoch would have been served; everything else is final.
STALE_MAP = "map not served: "


class ExpertRefused(RoutingError):
    """An expert rank answered with an error instead of outputs.

    Attributes: `ep_rank` (which rank refused), `reason` (its sentence).
    """

    def __init__(self, ep_rank: int, reason: str) -> None:
        super().__init__(f"expert rank {ep_rank} refused: {reason}")
        self.ep_rank = ep_rank
        self.reason = reason


class TransportError(RoutingError):
    """The link to one or more expert ranks failed. Experts are stateless: sending again is exact.

    Attributes: `ep_ranks` (the ranks concerned, ascending).
    """

    def __init__(self, message: str, ep_ranks: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.ep_ranks = tuple(sorted(ep_ranks))


class BundleIncomplete(TransportError):
    """Rows are addressed to ranks that are not connected."""


class RankLost(TransportError):
    """A rank died or closed its link while it owed an answer."""


class ExchangeTimeout(TransportError):
    """A rank owed an answer when the deadline passed."""


class MapNotServed(TransportError):
    """A rank refused rows of a map epoch that it does not serve; with the newest map it will take them.

    Attributes: `reason` (its sentence).
    """

    def __init__(self, ep_rank: int, reason: str) -> None:
        super().__init__(f"expert rank {ep_rank}: {reason}", [ep_rank])
        self.reason = reason


def refusal(ep_rank: int, reason: str) -> RoutingError:
    """What a rank's refusal means to the attention side. reason: the sentence that the rank sent."""
    return MapNotServed(ep_rank, reason) if reason.startswith(STALE_MAP) else ExpertRefused(ep_rank, reason)
