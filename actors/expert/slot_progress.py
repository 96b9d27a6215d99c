"""SlotProgress: how far an expert rank is with the maps that it follows. Plain values, for whoever reports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SlotProgress:
    """How far a rank is with the maps it follows.

    served_epochs: ascending. checksums: CRC-32 of the weights in memory by (moe_layer_idx, logical_id), for experts
    that the next map gives another copy; complete when that map's epoch is served. failure: what keeps the next map
    from being served, None otherwise. num_loaded, num_to_load: slots of the next map.
    """

    served_epochs: tuple[int, ...]
    checksums: Mapping[tuple[int, int], int] = field(default_factory=dict)
    failure: str | None = None
    num_loaded: int = 0
    num_to_load: int = 0
