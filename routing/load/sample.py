"""LoadSample: what the attention tier counts of its gates: load of each expert, and how sure the gates are. Pure.

Legend: L MoE layers, E logical experts, B buckets of a histogram.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from routing.load.sums import FloatArray, Sums

LoadKind = Literal["tokens", "gate_mass", "soft"]
LOAD_KINDS: tuple[LoadKind, ...] = ("tokens", "gate_mass", "soft")
Measure = Literal["mass", "entropy", "margin"]
MEASURES: tuple[Measure, ...] = ("mass", "entropy", "margin")

NUM_BUCKETS = 32
# Upper bounds of every bucket but the last, [3, B - 1], for each measure. Fine where the values are: a gate without
# preference has mass K / E and entropy 1, and what matters of a margin is its smallness.
BUCKET_EDGES: FloatArray = np.stack(
    (
        np.geomspace(2.0**-7, 1.0, NUM_BUCKETS)[:-1],
        1.0 - np.geomspace(1.0, 2.0**-8, NUM_BUCKETS)[1:],
        np.geomspace(1e-5, 1.0, NUM_BUCKETS - 1),
    )
)


@dataclass(frozen=True, eq=False)
class LoadSample(Sums):
    """Sums over the tokens of some steps, of one attention actor or of several.

    num_steps: steps of each actor added up. num_tokens: of those steps; each passes every MoE layer.
    tokens: [L, E], (token, expert) pairs. gate_mass: [L, E], gate weights, those of one token summing to 1.
    soft: [L, E], pairs, where a contested last choice counts partly for the runner-up.
    distinct: [L], distinct experts that a step touched, added up over steps.
    histograms: [3, L, B], tokens by mass, entropy and margin. measure_sums: [3, L], their values added up.
    """

    COMPACT = frozenset({"tokens", "gate_mass", "soft", "histograms"})

    num_steps: float
    num_tokens: float
    tokens: FloatArray
    gate_mass: FloatArray
    soft: FloatArray
    distinct: FloatArray
    histograms: FloatArray
    measure_sums: FloatArray

    @classmethod
    def empty(cls, num_moe_layers: int, num_logical_experts: int) -> Self:
        """Nothing counted yet."""
        return cls.zeros(_shapes(num_moe_layers, num_logical_experts))

    @classmethod
    def from_dict(cls, given: object, num_moe_layers: int, num_logical_experts: int) -> Self:
        """Inverse of `to_dict`, for a model of this shape. Raises ValueError on anything else."""
        return cls.read(given, _shapes(num_moe_layers, num_logical_experts))

    @property
    def num_moe_layers(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def num_logical_experts(self) -> int:
        return int(self.tokens.shape[1])

    def load(self, kind: LoadKind) -> FloatArray:
        """[L, E], mean over steps; zeros before the first."""
        sums: FloatArray = getattr(self, kind)
        per_step: FloatArray = sums / max(self.num_steps, 1e-9)
        return per_step

    def distinct_per_step(self) -> FloatArray:
        """[L], mean over steps; zeros before the first."""
        return self.distinct / max(self.num_steps, 1e-9)

    def mean(self, measure: Measure) -> FloatArray:
        """[L], mean over tokens; zeros before the first."""
        means: FloatArray = self.measure_sums[MEASURES.index(measure)] / max(self.num_tokens, 1e-9)
        return means

    def histogram(self, measure: Measure) -> FloatArray:
        """[L, B], tokens; the bounds between buckets are `bucket_edges(measure)`."""
        array: FloatArray = self.histograms[MEASURES.index(measure)]
        return array


def bucket_edges(measure: Measure) -> FloatArray:
    """[B - 1]: bucket b holds values from edge b - 1 up to, not including, edge b."""
    edges: FloatArray = BUCKET_EDGES[MEASURES.index(measure)]
    return edges


def _shapes(num_moe_layers: int, num_logical_experts: int) -> dict[str, tuple[int, ...]]:
    per_expert, per_layer = (num_moe_layers, num_logical_experts), (num_moe_layers,)
    return {
        "num_steps": (),
        "num_tokens": (),
        **dict.fromkeys(LOAD_KINDS, per_expert),
        "distinct": per_layer,
        "histograms": (len(MEASURES), num_moe_layers, NUM_BUCKETS),
        "measure_sums": (len(MEASURES), num_moe_layers),
    }
