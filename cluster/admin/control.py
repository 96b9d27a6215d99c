"""What the operator's application needs of the coordinator. The seam between HTTP and the control plane."""

from __future__ import annotations

from typing import Any, Protocol

from cluster.experts_status import BalancerStatus, ExpertStatus, ExpertTierStatus, Proposal


class ExpertControl(Protocol):
    """Implemented by the coordinator. Orders raise InvalidOrder with a sentence that says what to do."""

    async def expert_status(self) -> ExpertTierStatus: ...

    async def operator_state(self) -> dict[str, Any]:
        """Everything the console shows, as plain values."""
        ...

    async def map_document(self) -> dict[str, Any]:
        """Which expert is in which slot, as plain values."""
        ...

    async def rebalance(self, *, is_dry_run: bool) -> Proposal:
        """Begin a rebalance now, or only say what it would do."""
        ...

    async def pin(self, layer_id: int, logical_id: int, ep_ranks: tuple[int, ...] | None) -> ExpertStatus:
        """Keep an expert's copies on these ranks, by default where they are; the next rebalance makes it so."""
        ...

    async def unpin(self, layer_id: int, logical_id: int) -> ExpertStatus:
        """Leave the expert to the balancer again."""
        ...

    async def set_paused(self, *, is_paused: bool) -> BalancerStatus:
        """Whether rebalances may begin by themselves."""
        ...
