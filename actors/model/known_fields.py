"""Which fields a config.json may have: those that change nothing, those with one implemented value, and the others.

Knows names and pinned values only; the rest is read by `config.py`. A field it does not list is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.model.fields import shown

# Fields that cannot change what is computed.
NEUTRAL_FIELDS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "dtype",
        "initializer_range",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

# Fields with one implemented value.
PINNED_FIELDS: Mapping[str, Any] = {
    "model_type": "step3p5",
    "att_impl_type": "GQA",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "mlp_bias": False,
    "moe_every_n_layer": 1,
    "moe_layer_offset": 0,
    "moe_router_activation": "sigmoid",
    "need_fp32_gate": True,
    "norm_expert_weight": True,
    "sink": False,
    "tie_word_embeddings": False,
    "use_head_wise_attn_gate": True,
    "use_moe": True,
    "use_moe_router_bias": True,
    "use_qk_norm": True,
    "use_rope_layers": [],
    "zero_centered": True,
}

REQUIRED_FIELDS = (
    "attention_other_setting",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "model_type",
    "moe_intermediate_size",
    "moe_layers_enum",
    "moe_num_experts",
    "moe_router_scaling_factor",
    "moe_top_k",
    "num_attention_groups",
    "num_attention_heads",
    "num_hidden_layers",
    "partial_rotary_factors",
    "rope_theta",
    "share_expert_dim",
    "sliding_window",
    "vocab_size",
)

OPTIONAL_FIELDS = (
    "eos_token_id",
    "max_position_embeddings",
    "max_seq_len",
    "num_nextn_predict_layers",
    "quantization_config",
    "rms_norm_eps",
    "rope_scaling",
    "swiglu_limits",
    "swiglu_limits_shared",
    "yarn_only_types",
)


def field_problems(fields: Mapping[str, Any]) -> list[str]:
    """What is missing, not implemented or unknown among the fields of a config.json: one sentence each."""
    known = NEUTRAL_FIELDS | PINNED_FIELDS.keys() | set(REQUIRED_FIELDS) | set(OPTIONAL_FIELDS)
    problems = [f"{name} is missing" for name in REQUIRED_FIELDS if name not in fields]
    problems += [
        f"{name} = {shown(fields[name])} is not implemented: only {value!r} is"
        for name, value in PINNED_FIELDS.items()
        if name in fields and fields[name] != value
    ]
    problems += [
        f"{name} = {shown(fields[name])} is not a field this program knows; it could change the computation"
        for name in sorted(fields.keys() - known)
    ]
    return problems
