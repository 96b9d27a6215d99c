"""The contract between the two tiers, readable alone.

Attention side: `dispatch` sends one MoE layer's rows on their way, `combine` spends the handle and returns the routed
sum. Expert side (`ExpertCompute`): a stateless function of rows and pairs. `local.py` gives the meaning, `remote.py`
the same over a transport.

Legend: T tokens, K experts per token, H hidden size, R rows, P pairs (see plan.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from routing.plan import DispatchPlan


@dataclass(frozen=True)
class ExpertRequest:
    """What the attention half hands over for one MoE layer of one micro-batch.

    hidden: [T, H] normed input of the experts. topk_ids: int64 [T, K] logical. topk_weights: float32 [T, K].
    """

    moe_layer_idx: int
    microbatch_idx: int
    hidden: Tensor
    topk_ids: Tensor
    topk_weights: Tensor


@dataclass(frozen=True)
class DispatchHandle:
    """Opaque proof of one dispatch. Spent by exactly one `combine`."""

    request: ExpertRequest
    plan: DispatchPlan
    exchange: object


class Dispatcher(Protocol):
    """Attention side. At most one dispatch per micro-batch is in flight."""

    def dispatch(self, request: ExpertRequest) -> DispatchHandle:
        """Send the rows; return at once. Raises TransportError if a rank that is needed cannot take them."""
        ...

    def combine(self, handle: DispatchHandle) -> Tensor:
        """Wait for every rank and return the routed sum, [T, H] in the dtype of the request.

        The sum is made in fp32 and rounded once. Deterministic mode sums per-expert vectors in logical-expert order,
        so that the result does not depend on placement; otherwise the ranks' partial sums are added in rank order.
        Raises RankLost, ExchangeTimeout, MapNotServed, ExpertRefused, FrameError; the handle is spent in every case.
        """
        ...

    def abandon(self, handle: DispatchHandle) -> None:
        """Spend a handle without waiting, because its step failed elsewhere. Late answers are dropped."""
        ...


class TimedDispatcher(Dispatcher, Protocol):
    """One that tells how long the expert tier was waited for: what drafts are priced by."""

    @property
    def waited_s(self) -> float:
        """Seconds that `combine` took since birth, where it returned."""
        ...


class ExpertCompute(Protocol):
    """Expert side: what one EP rank computes. Holds weights, never request state."""

    def compute(
        self,
        *,
        map_epoch: int,
        moe_layer_idx: int,
        hidden: Tensor,
        pair_row: Tensor,
        pair_slot: Tensor,
        pair_weight: Tensor,
        per_expert: bool,
    ) -> Tensor:
        """Outputs for rows [R, H] and pairs [P].

        per_expert False: [R, H], weighted partial sums per row. per_expert True: [P, H], one unweighted vector per
        pair, computed so that a pair's bits do not depend on the other rows.
        Epoch, layer, rows and slots are ones this rank serves; whoever takes them from a wire checks that first.
        """
        ...
