"""The weights of one rank, as tensors in the shapes that the kernels read. Knows nothing of files."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from actors.kernels.contract import AttentionWeights, DraftInputWeights, GateWeights, HeadWeights, MlpWeights


@dataclass(frozen=True)
class DenseWeights:
    """norm: [H], the layer's post_attention_layernorm. mlp: I = intermediate_size."""

    norm: Tensor
    mlp: MlpWeights


@dataclass(frozen=True)
class MoeWeights:
    """What the attention tier holds of a MoE layer: the gate and the shared expert (I = share_expert_dim)."""

    gate: GateWeights
    shared: MlpWeights


@dataclass(frozen=True)
class LayerWeights:
    """One decoder layer: its attention half and its second half."""

    attention: AttentionWeights
    ffn: DenseWeights | MoeWeights


@dataclass(frozen=True)
class MtpWeights:
    """One draft module, with a head of its own."""

    input: DraftInputWeights
    layer: LayerWeights
    head: HeadWeights


@dataclass(frozen=True)
class AttentionTierWeights:
    """Everything one attention rank holds. embed: [V, H]. mtp: the draft modules that were asked for."""

    embed: Tensor
    layers: tuple[LayerWeights, ...]
    head: HeadWeights
    mtp: tuple[MtpWeights, ...]
