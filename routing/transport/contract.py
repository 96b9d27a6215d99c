"""What a transport promises. One contract suite runs on every implementation.

A *bundle* is one attention actor and its EP ranks. The attention side owns an `AttentionPort`, an expert rank one
`ExpertPort` that serves every bundle it is part of. Membership changes by `reconcile`, never by command.

Promises of every implementation:
- A frame arrives whole and unchanged, or an exception says so; frames of one bundle and rank stay in order.
- Nothing blocks past its deadline, and nothing spins.
- `max_in_flight` exchanges may be open per bundle; one more is a bug (AssertionError), never a wait. An exchange that
  was dropped unanswered is open no more; room for late answers is bounded too, and `send` says so instead of waiting.
- `close` is idempotent, wakes whoever waits, and leaves nothing behind in the operating system.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from routing.plan import DispatchPlan
from routing.transport.endpoint import Endpoint as Endpoint
from routing.wire import Header, max_frame_bytes


@dataclass(frozen=True)
class FrameLimits:
    """Sizes both ends agree on; they bound every buffer.

    max_rows: tokens of one dispatch (one micro-batch). max_in_flight: exchanges open per bundle.
    """

    hidden_size: int
    top_k: int
    dtype: torch.dtype
    max_rows: int
    max_in_flight: int = 2

    @property
    def max_frame_bytes(self) -> int:
        return max_frame_bytes(self.max_rows, self.top_k, self.hidden_size, self.dtype)


@dataclass(frozen=True)
class Exchange:
    """One dispatch on the attention side: what `send` carries and `receive` waits for.

    hidden: [T, H]; rows are picked from it by `plan.row_token`. sequence: grows by one per exchange of a bundle.
    """

    sequence: int
    map_epoch: int
    moe_layer_idx: int
    microbatch_idx: int
    per_expert: bool
    hidden: Tensor
    plan: DispatchPlan


class AttentionPort(Protocol):
    """The attention end of a bundle. `send`, `receive` and `drop` are called by one thread; the rest by any."""

    @property
    def endpoint(self) -> Endpoint: ...

    def reconcile(self, shards: Mapping[int, Endpoint]) -> None:
        """Connect to these ranks, drop the others. Returns at once; see `wait_connected`."""
        ...

    def connected(self) -> frozenset[int]:
        """EP ranks that can take rows now."""
        ...

    def wait_connected(self, ep_ranks: Sequence[int], timeout_s: float) -> None:
        """Raises BundleIncomplete with the missing ranks when the time is over."""
        ...

    def send(self, exchange: Exchange) -> None:
        """Send each rank of `exchange.plan.ranks` its rows and pairs. Raises TransportError before anything is sent:
        BundleIncomplete without these ranks, RankLost when too many exchanges were dropped before they were answered,
        which costs the bundle. After either, and after a time-out, a bundle may have to form again, so
        `wait_connected` comes first."""
        ...

    def receive(self, exchange: Exchange, timeout_s: float) -> list[Tensor]:
        """Outputs of each rank of `exchange.plan.ranks`: [rows, H], or [pairs, H] if per_expert.

        The tensors are valid until `drop(exchange)`. Raises RankLost, ExchangeTimeout, FrameError, and what
        `errors.refusal` makes of a rank's refusal: ExpertRefused or MapNotServed.
        """
        ...

    def drop(self, exchange: Exchange) -> None:
        """The exchange is over, read or not; late answers are discarded. Must follow every `send`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Work:
    """One dispatch frame as an expert rank sees it. Tensors are valid until `reply` or `refuse`.

    bundle: opaque; names the sender within this port. hidden: [R, H]. pair_row, pair_slot: int32 [P].
    pair_weight: float32 [P].
    """

    bundle: int
    header: Header
    hidden: Tensor
    pair_row: Tensor
    pair_slot: Tensor
    pair_weight: Tensor


class ExpertPort(Protocol):
    """The expert end of every bundle this rank serves. `receive`, `reply`, `refuse` are called by one thread."""

    @property
    def endpoint(self) -> Endpoint: ...

    def reconcile(self, attention: Sequence[Endpoint], shards: Mapping[int, Endpoint]) -> None:
        """Serve the bundles of these attention actors; drop the others. Returns at once."""
        ...

    def receive(self, timeout_s: float) -> list[Work]:
        """All frames that are ready, waiting for the first at most `timeout_s`; may be empty. A lost bundle is dropped
        silently here: it is the attention side that retries. Frames that contradict the limits are refused and not
        returned; one whose header is not readable at all costs its link."""
        ...

    def reply(self, work: Work, outputs: Tensor) -> None:
        """Send the outputs of one Work ([R, H], or [P, H] if per_expert). A bundle that is gone is ignored."""
        ...

    def refuse(self, work: Work, reason: str) -> None:
        """Answer with an error; the attention side raises what `errors.refusal` makes of the reason."""
        ...

    def close(self) -> None: ...
