"""From weights and a uniform number to a token."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(weights: Tensor, u: float) -> int:
    """The token where the cumulative sum of `weights` [V] passes u of its total, u in [0, 1); never one of weight 0."""
    cumulative = torch.cumsum(weights, dim=-1)
    idx = int(torch.searchsorted(cumulative, cumulative[-1:] * u, right=True))
    # Rounding may lift the target to the total: the last token that can occur is meant.
    return idx if idx < len(weights) else int(weights.nonzero()[-1])
