"""ReferenceKernels: the plain torch operations under the contract's names."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.kernels.contract import (
    AttentionInputs,
    AttentionWeights,
    DraftInputWeights,
    ExpertWeights,
    GateOutput,
    GateWeights,
    HeadWeights,
    LayerKV,
    MlpWeights,
)
from actors.kernels.reference import attention, gate, mlp
from actors.kernels.reference.linear import linear
from actors.kernels.reference.norm import rms_norm
from actors.model.config import LayerSpec
from routing.load.tally import LayerTally

# Eight rows: small enough that one decoding user pays little for the padding, large enough for a blocked product.
ROW_INDEPENDENT_TILE = 8


@dataclass(frozen=True)
class ReferenceKernels:
    """Plain torch on any device. `row_independent` trades speed for bits that depend on the row alone."""

    rms_norm_eps: float
    row_independent: bool = False

    @property
    def _tile_rows(self) -> int:
        return ROW_INDEPENDENT_TILE if self.row_independent else 0

    def attention_half(
        self, hidden: Tensor, weights: AttentionWeights, spec: LayerSpec, inputs: AttentionInputs, cache: LayerKV
    ) -> Tensor:
        return attention.attention_half(hidden, weights, spec, inputs, cache, tile_rows=self._tile_rows)

    def dense_half(self, hidden: Tensor, norm: Tensor, weights: MlpWeights, spec: LayerSpec) -> Tensor:
        return mlp.dense_half(hidden, norm, weights, spec, tile_rows=self._tile_rows)

    def gate(self, hidden: Tensor, weights: GateWeights, spec: LayerSpec) -> GateOutput:
        return gate.gate(hidden, weights, spec, tile_rows=self._tile_rows)

    def shared_expert(self, normed: Tensor, weights: MlpWeights, spec: LayerSpec) -> Tensor:
        return mlp.gated_mlp(normed, weights, spec.shared_limit, tile_rows=self._tile_rows)

    def expert_mlp(
        self,
        hidden: Tensor,
        pair_row: Tensor,
        pair_slot: Tensor,
        weights: ExpertWeights,
        limit: float,
        tally: LayerTally | None = None,
    ) -> Tensor:
        began_at = time.perf_counter()
        out = mlp.expert_mlp(hidden, pair_row, pair_slot, weights, limit, tile_rows=self._tile_rows)
        if tally is not None:
            tally.add(pair_slot, hidden.shape[0], time.perf_counter() - began_at, out)
        return out

    def draft_input(self, embedded: Tensor, hidden: Tensor, weights: DraftInputWeights) -> Tensor:
        eps = self.rms_norm_eps
        parts = (rms_norm(embedded, weights.embed_norm, eps), rms_norm(hidden, weights.hidden_norm, eps))
        return linear(torch.cat(parts, dim=-1), weights.projection, self._tile_rows)

    def head(self, hidden: Tensor, weights: HeadWeights) -> Tensor:
        normed = rms_norm(hidden, weights.norm, self.rms_norm_eps)
        return linear(normed, weights.output, self._tile_rows).to(torch.float32)
