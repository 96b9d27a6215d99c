"""What the load of the next window is expected to be, and how wrong such an expectation was. Pure."""

from __future__ import annotations

import numpy as np

from routing.experts import ExpertMap
from routing.load.sample import LoadKind, LoadSample
from routing.load.sums import FloatArray
from routing.placement.score import rank_pairs

# Measured by ops/bench/forecast.py: soft load forecasts better by less than 0.1 of 4 to 43 percentage points, which no
# map planned from it shows; gate mass is worse by 1.4 to 3.2.
FORECAST_KIND: LoadKind = "tokens"


def forecast(window: LoadSample, kind: LoadKind = FORECAST_KIND) -> FloatArray:
    """[L, E], pairs per step: what the window held, by the kind that forecasts best."""
    return window.load(kind)


def shares(load: FloatArray) -> FloatArray:
    """[..., E] as parts of its sum; an even distribution for a load of nothing."""
    total = load.sum(axis=-1, keepdims=True)
    even = np.full_like(load, 1.0 / load.shape[-1], dtype=np.float64)
    parts: FloatArray = np.divide(load, total, out=even, where=total > 0.0)
    return parts


def total_variation(one: FloatArray, other: FloatArray) -> FloatArray:
    """Half the sum of differences between two loads as shares, 0 to 1. [..., E] -> [...]."""
    distance: FloatArray = np.abs(shares(one) - shares(other)).sum(axis=-1) / 2.0
    return distance


def rank_load_error(expected: FloatArray, actual: FloatArray, expert_map: ExpertMap) -> FloatArray:
    """[L]: the share of the load that is expected on another rank than it comes to, 0 to 1."""
    return total_variation(rank_pairs(expert_map, expected), rank_pairs(expert_map, actual))
