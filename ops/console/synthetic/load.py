"""Load of experts as traffic changes: Zipf in each layer, over another order of experts for a new topic. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ops.console.synthetic.shape import Shape

FloatArray = NDArray[np.float64]

SEED = 35
CHANGE_AT_S = 95.0  # half of the traffic is of the new topic
CHANGE_WIDTH_S = 11.0
FLATTEST, STEEPEST = 0.35, 0.85  # exponents of Zipf's law over the layers
HEAD = 6.0  # softens the first ranks of Zipf's law: a gate's bias keeps experts from being used for everything
NOISE = 0.04


class DriftingLoad:
    """Pairs per step of each logical expert, and how sure the gates are, at any second."""

    def __init__(self, shape: Shape) -> None:
        self._num_pairs = shape.num_rows * shape.top_k
        rng = np.random.default_rng(SEED)
        exponents = rng.uniform(FLATTEST, STEEPEST, shape.num_layers)
        self._topics = [_shares(rng, exponents, shape.num_logical_experts) for _ in range(2)]
        self._mass = 0.78 - 0.18 * rng.beta(2.0, 3.0, shape.num_layers)
        self._margin = 0.02 + 0.05 * rng.beta(2.0, 3.0, shape.num_layers)

    def pairs(self, second: int) -> FloatArray:
        """[L, E]."""
        share = topic_share(second)
        mixed = (1.0 - share) * self._topics[0] + share * self._topics[1]
        noise = np.random.default_rng((SEED, second)).normal(1.0, NOISE, mixed.shape)
        return self._num_pairs * mixed * noise

    def confidence(self, second: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mass, entropy and margin of each layer. Gates are a little less sure of the new topic."""
        loss = 0.06 * topic_share(second)
        wobble = np.random.default_rng((SEED, second, 1)).normal(0.0, 0.003, self._mass.shape)
        mass = self._mass - loss + wobble
        return mass, 1.18 - 0.9 * mass, np.clip(self._margin - 0.2 * loss + 0.1 * wobble, 0.001, None)


def topic_share(second: float) -> float:
    """Share of the traffic that is of the new topic."""
    return 1.0 / (1.0 + math.exp(-(second - CHANGE_AT_S) / CHANGE_WIDTH_S))


def _shares(rng: np.random.Generator, exponents: FloatArray, num_experts: int) -> FloatArray:
    ranks = np.arange(num_experts) + HEAD
    shares = ranks[None, :] ** -exponents[:, None]
    shuffled = np.stack([layer[rng.permutation(num_experts)] for layer in shares])
    return np.asarray(shuffled / shuffled.sum(axis=1, keepdims=True))
