"""config.json as plain fields: the published one, a tiny one of any size, and the one of the demonstration model."""

from __future__ import annotations

from ops.nano.config import FAMILY, FP8_QUANTIZATION, Fields, layers, positions, sliding_attention

__all__ = ["FP8_QUANTIZATION", "Fields", "demo_config", "real_config", "tiny_config"]

_FAMILY: Fields = {
    **FAMILY,
    "auto_map": {
        "AutoConfig": "configuration_step3p5.Step3p5Config",
        "AutoModelForCausalLM": "modeling_step3p5.Step3p5ForCausalLM",
    },
    "transformers_version": "4.57.1",
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
        **layers(num_layers=45, num_mtp=3, num_dense=3, limits=(7, 16)),
        **positions(max_positions=262144, original=131072),
        "attention_other_setting": sliding_attention(num_heads=96, num_groups=8, head_dim=128),
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
        **layers(num_layers=8, num_mtp=3, num_dense=1, limits=(0.5, 1.0)),
        **positions(max_positions=8192, original=4096),
        "attention_other_setting": sliding_attention(num_heads=12, num_groups=4, head_dim=32),
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
        **layers(num_layers=num_layers, num_mtp=num_mtp, num_dense=min(2, num_layers - 1), limits=(0.5, 1.0)),
        **positions(max_positions=max_positions, original=max(1, max_positions // 2)),
        "attention_other_setting": sliding_attention(num_heads=3 * groups, num_groups=groups, head_dim=head_dim),
        **fields,
    }
