"""Gated MLPs: dense layers, the shared expert, and the routed experts of one rank (specification 2.6, 2.7).

Legend: T tokens, H hidden, I intermediate, R rows, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from actors.kernels.contract import ExpertWeights, MlpWeights
from actors.kernels.reference.elementwise import elementwise
from actors.kernels.reference.linear import linear
from actors.kernels.reference.norm import rms_norm
from actors.model.config import LayerSpec


def activation(gate: Tensor, up: Tensor, limit: float, *, tile_rows: int = 0) -> Tensor:
    """silu(gate) * up; with a limit L > 0, min(silu(gate), L) * clamp(up, -L, L): the clamp comes *after* silu."""
    activated = elementwise(functional.silu, gate, is_padded=tile_rows > 0)
    if limit > 0.0:
        activated, up = activated.clamp(max=limit), up.clamp(-limit, limit)
    return activated * up


def gated_mlp(x: Tensor, weights: MlpWeights, limit: float, *, tile_rows: int) -> Tensor:
    """down(act(gate(x), up(x))). [T, H] -> [T, H]."""
    gate = linear(x, weights.gate, tile_rows)
    up = linear(x, weights.up, tile_rows)
    return linear(activation(gate, up, limit, tile_rows=tile_rows), weights.down, tile_rows)


def dense_half(hidden: Tensor, norm: Tensor, weights: MlpWeights, spec: LayerSpec, *, tile_rows: int) -> Tensor:
    """norm, gated MLP, residual of a dense layer. A dense layer is clamped by the shared limit of its index."""
    normed = rms_norm(hidden, norm, spec.rms_norm_eps)
    return hidden + gated_mlp(normed, weights, spec.shared_limit, tile_rows=tile_rows)


def expert_mlp(
    hidden: Tensor, pair_row: Tensor, pair_slot: Tensor, weights: ExpertWeights, limit: float, *, tile_rows: int
) -> Tensor:
    """Unweighted output of every pair, [P, H], one expert after the other."""
    outputs = hidden.new_empty((pair_row.shape[0], hidden.shape[1]))
    order = torch.argsort(pair_slot, stable=True)
    slots, counts = torch.unique_consecutive(pair_slot[order], return_counts=True)
    for slot, pairs in zip(slots.tolist(), order.split(counts.tolist()), strict=True):
        expert = MlpWeights(weights.gate[slot], weights.up[slot], weights.down[slot])
        outputs[pairs] = gated_mlp(hidden[pair_row[pairs]], expert, limit, tile_rows=tile_rows)
    return outputs
