"""The operations a device must offer, at the grain of a fused half-layer, and the data they read.

Every implementation (reference, native, triton) has these signatures; `registry.py` picks one per operation and
device. Functions are stateless; the KV cache is the only thing they write, and only in `attention_half`.

Legend: T tokens of the step, H hidden size, N query heads, G key/value heads, D head size, I intermediate size,
E logical experts, K experts per token, S expert slots of a rank, R rows, P pairs, V vocabulary.
Weights are [out, in]: y = x @ W^T. Norm weights are stored as (gamma - 1): y = x_normed * (1 + w).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from actors.model.config import LayerSpec
from routing.load.tally import LayerTally


@dataclass(frozen=True)
class MlpWeights:
    """gate, up: [I, H]. down: [H, I]."""

    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class AttentionWeights:
    """q: [N*D, H]. k, v: [G*D, H]. o: [H, N*D]. head_gate: [N, H]. q_norm, k_norm: [D]. norm: [H]."""

    norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    head_gate: Tensor
    q_norm: Tensor
    k_norm: Tensor


@dataclass(frozen=True)
class GateWeights:
    """norm: [H], the layer's post_attention_layernorm. router: [E, H] float32. bias: float32 [E], selection only."""

    norm: Tensor
    router: Tensor
    bias: Tensor


@dataclass(frozen=True)
class ExpertWeights:
    """One MoE layer of one rank's slots. gate, up: [S, I, H]. down: [S, H, I]."""

    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class HeadWeights:
    """norm: [H], the final norm. output: [V, H]."""

    norm: Tensor
    output: Tensor


@dataclass(frozen=True)
class DraftInputWeights:
    """embed_norm, hidden_norm: [H]. projection: [H, 2H], embedding first."""

    embed_norm: Tensor
    hidden_norm: Tensor
    projection: Tensor


@dataclass(frozen=True)
class LayerKV:
    """One layer's paged cache. keys, values: [num_blocks, block_size, G, D]; keys are normed and rotated."""

    keys: Tensor
    values: Tensor

    @property
    def block_size(self) -> int:
        return int(self.keys.shape[1])


@dataclass(frozen=True)
class SequenceRows:
    """The rows of one sequence in a step, for one KV pool.

    first_row: index of its first row in the batch. num_rows: its rows, at consecutive positions.
    first_position: position of the first row, which equals the tokens already in the cache.
    block_ids: int64 [num_blocks], block of each logical block from position 0; entries whose positions have left the
    window may be arbitrary and must not be read.
    """

    first_row: int
    num_rows: int
    first_position: int
    block_ids: Tensor


@dataclass(frozen=True)
class AttentionInputs:
    """What attention needs to know of a batch, for the KV pool of one layer kind.

    positions: int64 [T]. slot_mapping: int64 [T], block_id * block_size + offset where each row's key is written.
    """

    positions: Tensor
    slot_mapping: Tensor
    sequences: Sequence[SequenceRows]


NO_RUNNER_UP = -1
UNCONTESTED_MARGIN = 1.0  # where every expert is chosen; the widest gap that scores without a bias can have


@dataclass(frozen=True)
class GateConfidence:
    """How sure a gate is of each token's experts. table: float32 [4, T], the four rows below, in one piece because they
    are made and counted together.

    Where E = K there is no runner-up: it is NO_RUNNER_UP and the margin UNCONTESTED_MARGIN. Of a token whose scores are
    not finite, mass and entropy are NaN and the others anything.
    """

    table: Tensor

    @property
    def mass(self) -> Tensor:
        """[T]: chosen over all scores, unbiased, before renormalisation; K / E for a gate without preference."""
        return self.table[0]

    @property
    def entropy(self) -> Tensor:
        """[T]: of scores / sum(scores), over log E: 1 for a gate without preference."""
        return self.table[1]

    @property
    def margin(self) -> Tensor:
        """[T]: by how much the last chosen expert leads the runner-up in what decides, the biased scores."""
        return self.table[2]

    @property
    def runner_up(self) -> Tensor:
        """int64 [T]: the best expert that was not chosen. A float32 holds ids up to 2^24."""
        return self.table[3].to(torch.int64)


@dataclass(frozen=True)
class GateOutput:
    """normed: [T, H], input of routed and shared experts. topk_ids: int64 [T, K]. topk_weights: float32 [T, K].

    A token's experts come in descending order of biased score: the last column is the contested one.
    """

    normed: Tensor
    topk_ids: Tensor
    topk_weights: Tensor
    confidence: GateConfidence


class Kernels(Protocol):
    """One device's operations. Row-independent ones give a row the same bits whatever else is in the batch."""

    def attention_half(
        self, hidden: Tensor, weights: AttentionWeights, spec: LayerSpec, inputs: AttentionInputs, cache: LayerKV
    ) -> Tensor:
        """norm, q/k/v, QK norm, RoPE, cache write, attention, head gate, output, residual. [T, H] -> [T, H]."""
        ...

    def dense_half(self, hidden: Tensor, norm: Tensor, weights: MlpWeights, spec: LayerSpec) -> Tensor:
        """norm, gated MLP, residual of a dense layer. [T, H] -> [T, H]."""
        ...

    def gate(self, hidden: Tensor, weights: GateWeights, spec: LayerSpec) -> GateOutput:
        """norm and router of a MoE layer, and how sure it is; the router runs in fp32."""
        ...

    def shared_expert(self, normed: Tensor, weights: MlpWeights, spec: LayerSpec) -> Tensor:
        """The always-on expert, unscaled. [T, H] -> [T, H]."""
        ...

    def expert_mlp(
        self,
        hidden: Tensor,
        pair_row: Tensor,
        pair_slot: Tensor,
        weights: ExpertWeights,
        limit: float,
        tally: LayerTally | None = None,
    ) -> Tensor:
        """Grouped expert MLP. hidden: [R, H]. pair_row, pair_slot: int32 [P]. limit: clamp after silu, 0 means none.
        tally: adds up this call and the seconds it took.

        Returns the unweighted output of every pair, [P, H], in the order given.
        """
        ...

    def draft_input(self, embedded: Tensor, hidden: Tensor, weights: DraftInputWeights) -> Tensor:
        """What enters a draft module's layer: both norms, concatenated, projected. [T, H], [T, H] -> [T, H]."""
        ...

    def head(self, hidden: Tensor, weights: HeadWeights) -> Tensor:
        """Final norm and LM head. [T, H] -> float32 [T, V]."""
        ...
