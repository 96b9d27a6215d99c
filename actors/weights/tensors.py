"""Every tensor that a checkpoint of a given config holds: name, shape and kind. Pure.

Tensors are grouped by the fields of the dataclasses they become (`actors.kernels.contract`, `actors.weights.shard`).
Names and shapes: specification 4.1; the FP8 layout: 4.2. Routed experts are stored packed by layer, or one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from actors.model.config import LayerSpec, ModelConfig

PROJECTIONS = ("gate", "up", "down")


class TensorKind(Enum):
    """What a tensor is, which decides the number formats it may be stored in."""

    MODEL = "model"  # the checkpoint's own format, the same for all of them
    ROUTER_BIAS = "router bias"
    FP8 = "fp8 weight"
    SCALE = "fp8 scale"


class ExpertLayout(Enum):
    """How the routed experts of a layer are named: one [E, out, in] tensor per projection, or one tensor per expert."""

    PACKED = "packed"
    PER_EXPERT = "per_expert"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor that a checkpoint must hold."""

    name: str
    shape: tuple[int, ...]
    kind: TensorKind = TensorKind.MODEL

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


Group = Mapping[str, TensorSpec]  # field of a weights dataclass -> its tensor


def attention_group(config: ModelConfig, layer: LayerSpec) -> Group:
    """The tensors of `AttentionWeights`."""
    prefix, hidden, head_dim = _prefix(layer), config.hidden_size, layer.head_dim
    query_rows, kv_rows = layer.num_heads * head_dim, layer.num_kv_heads * head_dim
    attention = f"{prefix}self_attn."
    return {
        "norm": TensorSpec(f"{prefix}input_layernorm.weight", (hidden,)),
        "q": TensorSpec(f"{attention}q_proj.weight", (query_rows, hidden)),
        "k": TensorSpec(f"{attention}k_proj.weight", (kv_rows, hidden)),
        "v": TensorSpec(f"{attention}v_proj.weight", (kv_rows, hidden)),
        "o": TensorSpec(f"{attention}o_proj.weight", (hidden, query_rows)),
        "head_gate": TensorSpec(f"{attention}g_proj.weight", (layer.num_heads, hidden)),
        "q_norm": TensorSpec(f"{attention}q_norm.weight", (head_dim,)),
        "k_norm": TensorSpec(f"{attention}k_norm.weight", (head_dim,)),
    }


def ffn_norm(config: ModelConfig, layer: LayerSpec) -> TensorSpec:
    """The norm before a layer's second half, dense or MoE."""
    return TensorSpec(f"{_prefix(layer)}post_attention_layernorm.weight", (config.hidden_size,))


def dense_mlp_group(config: ModelConfig, layer: LayerSpec) -> Group:
    """The tensors of a dense layer's `MlpWeights`."""
    return _mlp_group(f"{_prefix(layer)}mlp.", config.hidden_size, config.intermediate_size)


def shared_expert_group(config: ModelConfig, layer: LayerSpec) -> Group:
    """The tensors of the shared expert's `MlpWeights`."""
    return _mlp_group(f"{_prefix(layer)}share_expert.", config.hidden_size, config.shared_intermediate_size)


def gate_group(config: ModelConfig, layer: LayerSpec) -> Group:
    """The tensors of `GateWeights`."""
    prefix, num_experts = f"{_prefix(layer)}moe.", config.num_experts
    return {
        "norm": ffn_norm(config, layer),
        "router": TensorSpec(f"{prefix}gate.weight", (num_experts, config.hidden_size)),
        "bias": TensorSpec(f"{prefix}router_bias", (num_experts,), TensorKind.ROUTER_BIAS),
    }


def head_group(config: ModelConfig) -> Group:
    """The tensors of the trunk's `HeadWeights`."""
    return {
        "norm": TensorSpec("model.norm.weight", (config.hidden_size,)),
        "output": TensorSpec("lm_head.weight", (config.vocab_size, config.hidden_size)),
    }


def embedding(config: ModelConfig) -> TensorSpec:
    """The token embedding, shared by trunk and draft modules."""
    return TensorSpec("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))


def mtp_group(config: ModelConfig, layer: LayerSpec) -> Group:
    """The tensors of a draft module's `DraftInputWeights`."""
    prefix, hidden = _prefix(layer), config.hidden_size
    return {
        "embed_norm": TensorSpec(f"{prefix}enorm.weight", (hidden,)),
        "hidden_norm": TensorSpec(f"{prefix}hnorm.weight", (hidden,)),
        "projection": TensorSpec(f"{prefix}eh_proj.weight", (hidden, 2 * hidden)),
    }


def mtp_head_group(config: ModelConfig, layer: LayerSpec) -> Group:
    """The tensors of a draft module's own `HeadWeights`. Only these names carry the infix `transformer`."""
    prefix = f"{_prefix(layer)}transformer.shared_head."
    return {
        "norm": TensorSpec(f"{prefix}norm.weight", (config.hidden_size,)),
        "output": TensorSpec(f"{prefix}output.weight", (config.vocab_size, config.hidden_size)),
    }


def expert_tensors(config: ModelConfig, layout: ExpertLayout) -> Iterator[TensorSpec]:
    """Every tensor of the routed experts as the checkpoint stores it, scales included."""
    return (
        spec
        for layer in config.moe_layers
        for expert_id in _stored_experts(config, layout)
        for projection in PROJECTIONS
        for spec in projection_specs(config, layer, projection, expert_id)
    )


def projection_shape(config: ModelConfig, projection: str) -> tuple[int, int]:
    """[out, in] of a routed expert's gate, up or down."""
    inner, hidden = config.moe_intermediate_size, config.hidden_size
    return (hidden, inner) if projection == "down" else (inner, hidden)


def scale_shape(shape: tuple[int, int], block_size: tuple[int, int]) -> tuple[int, int]:
    """Blocks of an [out, in] weight; those at the edges may be smaller than `block_size`."""
    return (-(-shape[0] // block_size[0]), -(-shape[1] // block_size[1]))


def _prefix(layer: LayerSpec) -> str:
    return f"model.layers.{layer.layer_id}."


def _mlp_group(prefix: str, hidden: int, inner: int) -> Group:
    return {
        "gate": TensorSpec(f"{prefix}gate_proj.weight", (inner, hidden)),
        "up": TensorSpec(f"{prefix}up_proj.weight", (inner, hidden)),
        "down": TensorSpec(f"{prefix}down_proj.weight", (hidden, inner)),
    }


def _stored_experts(config: ModelConfig, layout: ExpertLayout) -> range | tuple[None]:
    """Expert ids with tensors of their own; (None,) stands for all experts in one tensor."""
    return range(config.num_experts) if layout is ExpertLayout.PER_EXPERT else (None,)


def projection_specs(
    config: ModelConfig, layer: LayerSpec, projection: str, expert_id: int | None
) -> Iterator[TensorSpec]:
    """A projection's weight, then its scale if it has one. expert_id None: the packed tensor of all experts."""
    name = _projection_name(layer, projection, expert_id)
    packed = (config.num_experts,) if expert_id is None else ()
    shape = projection_shape(config, projection)
    if config.fp8 is None:
        yield TensorSpec(f"{name}.weight", (*packed, *shape))
        return
    yield TensorSpec(f"{name}.weight", (*packed, *shape), TensorKind.FP8)
    scales = scale_shape(shape, config.fp8.block_size)
    yield TensorSpec(f"{name}.weight_scale_inv", (*packed, *scales), TensorKind.SCALE)


def _projection_name(layer: LayerSpec, projection: str, expert_id: int | None) -> str:
    owner = "moe." if expert_id is None else f"moe.experts.{expert_id}."
    return f"{_prefix(layer)}{owner}{projection}_proj"
