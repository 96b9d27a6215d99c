"""ExpertSample: what one expert rank counted between two reports. Pure, and without tensors.

Legend: L MoE layers, S slots of this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from routing.load.cost_fit import NO_MOMENTS
from routing.load.sums import FloatArray, Sums


@dataclass(frozen=True, eq=False)
class ExpertSample(Sums):
    """Sums over some calls of one rank.

    num_calls, rows, distinct: [L], calls, their rows, and the distinct slots of each call added up.
    pairs: [L, S]. seconds: [L, S], the time of each call's products apportioned by pairs.
    norm_sums, norm_counts: [L, S], root mean squares of output vectors added up, and how many were looked at.
    cost: [4, 4], `cost_moments` of the calls.
    """

    COMPACT = frozenset({"pairs", "seconds", "norm_sums", "norm_counts"})

    num_calls: FloatArray
    rows: FloatArray
    distinct: FloatArray
    pairs: FloatArray
    seconds: FloatArray
    norm_sums: FloatArray
    norm_counts: FloatArray
    cost: FloatArray

    @classmethod
    def empty(cls, num_moe_layers: int, slots_per_rank: int) -> Self:
        """Nothing counted yet."""
        return cls.zeros(_shapes(num_moe_layers, slots_per_rank))

    @classmethod
    def from_dict(cls, given: object, num_moe_layers: int, slots_per_rank: int) -> Self:
        """Inverse of `to_dict`, for a rank of this shape. Raises ValueError on anything else."""
        return cls.read(given, _shapes(num_moe_layers, slots_per_rank))

    def mean_norms(self) -> FloatArray:
        """[L, S], mean root mean square of a slot's outputs; NaN for one that was not looked at."""
        norms: FloatArray = np.where(
            self.norm_counts > 0.0, self.norm_sums / np.maximum(self.norm_counts, 1e-9), np.nan
        )
        return norms

    def norm_ratios(self) -> tuple[FloatArray, FloatArray]:
        """Smallest and largest of the slots' mean norms over their median, [L] each; NaN for a layer without any. The
        first falls when experts collapse, the second rises when one blows up."""
        ratios = np.full((2, len(self.pairs)), np.nan)
        for layer, norms in enumerate(self.mean_norms()):
            known = norms[~np.isnan(norms)]
            if known.size and np.median(known) > 0.0:
                ratios[:, layer] = np.array([known.min(), known.max()]) / np.median(known)
        return ratios[0], ratios[1]


def _shapes(num_moe_layers: int, slots_per_rank: int) -> dict[str, tuple[int, ...]]:
    per_slot, per_layer = (num_moe_layers, slots_per_rank), (num_moe_layers,)
    return {
        "num_calls": per_layer,
        "rows": per_layer,
        "distinct": per_layer,
        "pairs": per_slot,
        "seconds": per_slot,
        "norm_sums": per_slot,
        "norm_counts": per_slot,
        "cost": NO_MOMENTS.shape,
    }
