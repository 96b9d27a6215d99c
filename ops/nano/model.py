"""The parameters of the nano model by the names of the checkpoint, and how they begin."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from actors.kernels.contract import (
    AttentionWeights,
    DraftInputWeights,
    ExpertWeights,
    GateWeights,
    HeadWeights,
    MlpWeights,
)
from actors.model.config import LayerSpec, ModelConfig
from actors.weights.plan import expected_tensors
from actors.weights.shard import AttentionTierWeights, DenseWeights, LayerWeights, MoeWeights, MtpWeights
from actors.weights.tensors import (
    PROJECTIONS,
    ExpertLayout,
    Group,
    TensorKind,
    attention_group,
    dense_mlp_group,
    embedding,
    expert_tensors,
    ffn_norm,
    gate_group,
    head_group,
    mtp_group,
    mtp_head_group,
    shared_expert_group,
)

Tensors = Mapping[str, Tensor]


def initial_tensors(config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Every tensor of the checkpoint in float32, ready to be trained.

    Matrices are normal with the spread 1 / sqrt(in), those that write to the residual stream divided by
    sqrt(2 * layers); norms (stored as gamma - 1) and router biases are zero.
    """
    residual_scale = 1.0 / math.sqrt(2.0 * len(config.layers))
    tensors = {}
    for spec in expected_tensors(config):
        if len(spec.shape) == 1:
            tensors[spec.name] = torch.zeros(spec.shape)
            continue
        std = 1.0 / math.sqrt(spec.shape[-1])
        if spec.name.endswith(("o_proj.weight", "down_proj.weight")):
            std *= residual_scale
        if spec.name == embedding(config).name:
            std = 1.0
        tensors[spec.name] = torch.randn(spec.shape, generator=generator) * std
    return tensors


def router_biases(config: ModelConfig) -> list[str]:
    """Names of the biases that balance the experts; they are set by counting, not by gradients."""
    return [spec.name for spec in expected_tensors(config) if spec.kind is TensorKind.ROUTER_BIAS]


def draft_tensors(config: ModelConfig) -> frozenset[str]:
    """Names of the tensors of the draft modules."""
    prefixes = tuple(f"model.layers.{spec.layer_id}." for spec in config.mtp_layers)
    return frozenset(spec.name for spec in expected_tensors(config) if spec.name.startswith(prefixes))


def start_drafts(config: ModelConfig, tensors: Tensors) -> dict[str, Tensor]:
    """All tensors, with draft modules made from the trunk: its last sliding layer's attention, its last dense layer's
    MLP, its head, and a projection that lets the hidden state through. The rest stays as it is."""
    attention = max(spec.layer_id for spec in config.layers if spec.is_sliding)
    dense = max(spec.layer_id for spec in config.layers if not spec.is_moe)
    result = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for module in config.mtp_layers:
        own = f"model.layers.{module.layer_id}."
        for name in draft_tensors(config):
            part = name.removeprefix(own)
            if part.startswith(("self_attn.", "input_layernorm.")):
                result[name] = result[f"model.layers.{attention}.{part}"].clone()
            elif part.startswith(("mlp.", "post_attention_layernorm.")):
                result[name] = result[f"model.layers.{dense}.{part}"].clone()
        for field, spec in mtp_head_group(config, module).items():
            result[spec.name] = result[head_group(config)[field].name].clone()
        projection = result[mtp_group(config, module)["projection"].name]
        hidden = config.hidden_size
        projection[:, :hidden] *= 0.5
        projection[:, hidden:] = torch.eye(hidden, device=projection.device)
    return result


def attention_tier(config: ModelConfig, tensors: Tensors) -> AttentionTierWeights:
    """The same tensors as the decoder reads them; nothing is copied, so gradients reach them."""
    return AttentionTierWeights(
        embed=tensors[embedding(config).name],
        layers=tuple(_layer(config, spec, tensors) for spec in config.layers),
        head=HeadWeights(**_group(head_group(config), tensors)),
        mtp=tuple(_mtp(config, spec, tensors) for spec in config.mtp_layers),
    )


def expert_tier(config: ModelConfig, tensors: Tensors) -> list[ExpertWeights]:
    """The routed experts of every MoE layer, all of them in one rank."""
    specs = list(expert_tensors(config, ExpertLayout.PACKED))
    projections = len(PROJECTIONS)
    return [
        ExpertWeights(*(tensors[spec.name] for spec in specs[first : first + projections]))
        for first in range(0, len(specs), projections)
    ]


def _layer(config: ModelConfig, spec: LayerSpec, tensors: Tensors) -> LayerWeights:
    attention = AttentionWeights(**_group(attention_group(config, spec), tensors))
    if not spec.is_moe:
        mlp = MlpWeights(**_group(dense_mlp_group(config, spec), tensors))
        return LayerWeights(attention, DenseWeights(tensors[ffn_norm(config, spec).name], mlp))
    gate = GateWeights(**_group(gate_group(config, spec), tensors))
    return LayerWeights(attention, MoeWeights(gate, MlpWeights(**_group(shared_expert_group(config, spec), tensors))))


def _mtp(config: ModelConfig, spec: LayerSpec, tensors: Tensors) -> MtpWeights:
    return MtpWeights(
        input=DraftInputWeights(**_group(mtp_group(config, spec), tensors)),
        layer=_layer(config, spec, tensors),
        head=HeadWeights(**_group(mtp_head_group(config, spec), tensors)),
    )


def _group(group: Group, tensors: Tensors) -> dict[str, Tensor]:
    return {field: tensors[spec.name] for field, spec in group.items()}
