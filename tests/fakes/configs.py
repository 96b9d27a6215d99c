"""config.json as plain fields: the published one, a tiny one of any size, and the one of the demonstration model."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]

FP8_QUANTIZATION: Fields = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}

# Values that every Step-3.5 config shares (specification, section 1).
_FAMILY: Fields = {
    "architectures": ["Step3p5ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_step3p5.Step3p5Config",
        "AutoModelForCausalLM": "modeling_step3p5.Step3p5ForCausalLM",
    },
    "model_type": "step3p5",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
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


def real_config() -> Fields:
    """The published config of Step-3.5-Flash in bfloat16."""
    sizes = {
        "hidden_size": 4096,
        "intermediate_size": 11264,
        "vocab_size": 128896,
        "eos_token_id": [1, 2, 128007],
        "num_attention_heads": 64,
        "num_attention_groups": 8,
        "head_dim": 128,
        "sliding_window": 512,
        "moe_num_experts": 288,
        "moe_top_k": 8,
        "moe_intermediate_size": 1280,
        "share_expert_dim": 1280,
    }
    return {
        **_FAMILY,
        **sizes,
        **_layers(num_layers=45, num_mtp=3, num_dense=3, limits=(7, 16)),
        **_positions(max_positions=262144, original=131072),
        "attention_other_setting": _sliding_attention(num_heads=96, num_groups=8, head_dim=128),
    }


def demo_config() -> Fields:
    """The model of the benchmarks: 44M parameters, every feature of the real one."""
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 768,
        "vocab_size": 4096,
        "eos_token_id": [1, 2],
        "num_attention_heads": 8,
        "num_attention_groups": 4,
        "head_dim": 32,
        "sliding_window": 512,
        "moe_num_experts": 64,
        "moe_top_k": 8,
        "moe_intermediate_size": 96,
        "share_expert_dim": 96,
    }
    return {
        **_FAMILY,
        **sizes,
        **_layers(num_layers=8, num_mtp=3, num_dense=1, limits=(0.5, 1.0)),
        **_positions(max_positions=8192, original=4096),
        "attention_other_setting": _sliding_attention(num_heads=12, num_groups=4, head_dim=32),
    }


def tiny_config(**overrides: object) -> Fields:
    """A model that runs in milliseconds. Any field can be replaced; the per-layer lists and what the sliding layers
    repeat follow from the layer counts, groups and head size given, unless they are replaced themselves.
    """
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "vocab_size": 512,
        "eos_token_id": [1, 2],
        "num_attention_heads": 4,
        "num_attention_groups": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "moe_num_experts": 16,
        "moe_top_k": 4,
        "moe_intermediate_size": 32,
        "share_expert_dim": 32,
    }
    fields: Fields = {**sizes, **overrides}
    num_layers, num_mtp = fields.get("num_hidden_layers", 6), fields.get("num_nextn_predict_layers", 3)
    groups, head_dim = fields["num_attention_groups"], fields["head_dim"]
    max_positions = fields.get("max_position_embeddings", 512)
    return {
        **_FAMILY,
        **_layers(num_layers=num_layers, num_mtp=num_mtp, num_dense=min(2, num_layers - 1), limits=(0.5, 1.0)),
        **_positions(max_positions=max_positions, original=max(1, max_positions // 2)),
        "attention_other_setting": _sliding_attention(num_heads=3 * groups, num_groups=groups, head_dim=head_dim),
        **fields,
    }


def _layers(*, num_layers: int, num_mtp: int, num_dense: int, limits: tuple[float, float]) -> Fields:
    """One full-attention layer in four, dense layers first, clamps on the last two layers (shared: on the last)."""
    total = num_layers + num_mtp
    is_full = [layer_id % 4 == 0 and layer_id < num_layers for layer_id in range(total)]
    routed_limit, shared_limit = limits
    clamped = range(max(num_dense, num_layers - 2), num_layers)
    return {
        "num_hidden_layers": num_layers,
        "num_nextn_predict_layers": num_mtp,
        "layer_types": ["full_attention" if full else "sliding_attention" for full in is_full],
        "rope_theta": [5_000_000.0 if full else 10_000.0 for full in is_full],
        "partial_rotary_factors": [0.5 if full else 1.0 for full in is_full],
        "moe_layers_enum": ",".join(str(layer_id) for layer_id in range(num_dense, num_layers)),
        "swiglu_limits": [routed_limit if layer_id in clamped else 0.0 for layer_id in range(total)],
        "swiglu_limits_shared": [shared_limit if layer_id == num_layers - 1 else 0.0 for layer_id in range(total)],
    }


def _positions(*, max_positions: int, original: int) -> Fields:
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


def _sliding_attention(*, num_heads: int, num_groups: int, head_dim: int) -> Fields:
    return {
        "attention_type": "sliding_attention",
        "num_attention_heads": num_heads,
        "num_attention_groups": num_groups,
        "head_dim": head_dim,
        "true_head_dim": head_dim,
    }
