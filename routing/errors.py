"""Named failures of the routing package.

RoutingError
├── FrameError            a frame that is not ours, of another version, or inconsistent with its own header
├── ExpertRefused         an expert rank answered, and its answer is "no": wrong epoch, failed kernel, bad slot
└── TransportError        the link between an attention actor and its expert ranks failed
    ├── BundleIncomplete  not every rank of the bundle is connected (yet, or any more)
    ├── RankLost          a connected rank went away while rows were in flight
    └── ExchangeTimeout   a rank did not answer before the deadline
"""

from __future__ import annotations

from collections.abc import Iterable


class RoutingError(Exception):
    """Base of every failure that the routing package reports."""


class FrameError(RoutingError):
    """A frame that cannot be trusted; no number of it was used."""


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
