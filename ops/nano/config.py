"""config.json as plain fields: what every Step-3.5 model shares, what follows from its depth, and the nano model's."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

# Values that every Step-3.5 config shares (specification, section 1).
FAMILY: Fields = {
    "architectures": ["Step3p5ForCausalLM"],
    "model_type": "step3p5",
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "att_impl_type": "GQA",
    "yarn_only_types": ["full_attention"],
    "use_rope_layers": [],
    "use_qk_norm": True,
    "zero_centered": True,
    "use_head_wise_attn_gate": True,
    "sink": False,
    "tie_word_embeddings": False,
    "use_moe": True,
    "moe_every_n_layer": 1,
    "moe_layer_offset": 0,
    "moe_router_activation": "sigmoid",
    "moe_router_scaling_factor": 3.0,
    "norm_expert_weight": True,
    "use_moe_router_bias": True,
    "need_fp32_gate": True,
}
FP8_QUANTIZATION: Fields = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
PUBLISHED_FULL_THETA = 5_000_000.0


def nano_fields(**overrides: object) -> Fields:
    """config.json of the nano model. As in the published model the last layer attends to everything, the first three
    are dense, and the last two are clamped. Any field can be replaced."""
    sizes = {
        "hidden_size": 224,
        "intermediate_size": 448,
        "vocab_size": 1536,
        "num_attention_heads": 8,
        "num_attention_groups": 2,
        "head_dim": 32,
        "sliding_window": 64,
        "moe_num_experts": 64,
        "moe_top_k": 8,
        "moe_intermediate_size": 32,
        "share_expert_dim": 64,
    }
    return {
        **FAMILY,
        **sizes,
        **layers(num_layers=9, num_mtp=3, num_dense=3, limits=(7.0, 16.0), full_theta=100_000.0),
        **positions(max_positions=4096, original=2048),
        "attention_other_setting": sliding_attention(num_heads=12, num_groups=2, head_dim=32),
        **overrides,
    }


def smoke_fields() -> Fields:
    """What differs in a model that trains in seconds, with every part of the nano model in it."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "vocab_size": 512,
        "max_seq_len": 256,
        "max_position_embeddings": 256,
        "moe_num_experts": 16,
        "moe_top_k": 4,
        "moe_intermediate_size": 16,
        "share_expert_dim": 16,
    }


def layers(
    *,
    num_layers: int,
    num_mtp: int,
    num_dense: int,
    limits: tuple[float, float],
    full_theta: float = PUBLISHED_FULL_THETA,
) -> Fields:
    """One full-attention layer in four, dense layers first, clamps on the last two layers (shared: on the last).
    limits: of the routed experts and of the shared one. full_theta: rotary base of full-attention layers."""
    total = num_layers + num_mtp
    is_full = [layer_id % 4 == 0 and layer_id < num_layers for layer_id in range(total)]
    routed_limit, shared_limit = limits
    clamped = range(max(num_dense, num_layers - 2), num_layers)
    return {
        "num_hidden_layers": num_layers,
        "num_nextn_predict_layers": num_mtp,
        "layer_types": ["full_attention" if full else "sliding_attention" for full in is_full],
        "rope_theta": [full_theta if full else 10_000.0 for full in is_full],
        "partial_rotary_factors": [0.5 if full else 1.0 for full in is_full],
        "moe_layers_enum": ",".join(str(layer_id) for layer_id in range(num_dense, num_layers)),
        "swiglu_limits": [routed_limit if layer_id in clamped else 0.0 for layer_id in range(total)],
        "swiglu_limits_shared": [shared_limit if layer_id == num_layers - 1 else 0.0 for layer_id in range(total)],
    }


def positions(*, max_positions: int, original: int) -> Fields:
    """Context length, and the rotary scaling from the length that training began with."""
    return {
        "max_seq_len": max_positions,
        "max_position_embeddings": max_positions,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 2.0,
            "original_max_position_embeddings": original,
            "low_freq_factor": 1.0,
            "high_freq_factor": 32.0,
        },
    }


def sliding_attention(*, num_heads: int, num_groups: int, head_dim: int) -> Fields:
    """The sizes of sliding layers, which have more query heads than full ones."""
    return {
        "attention_type": "sliding_attention",
        "num_attention_heads": num_heads,
        "num_attention_groups": num_groups,
        "head_dim": head_dim,
        "true_head_dim": head_dim,
    }
