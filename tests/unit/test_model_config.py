"""config.json is understood field by field or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from actors.errors import ConfigError
from actors.model.config import parse_model_config
from tests.fakes.configs import real_config, tiny_config


def test_the_published_config_gives_the_published_layers() -> None:
    """Head counts, windows, rotation, scaling, experts and clamps of the 48 layers follow the specification's table."""
    config = parse_model_config(
        {**real_config(), "auto_map": {}, "architectures": ["Step3p5ForCausalLM"], "transformers_version": "4.57.1"}
    )
    assert (config.num_layers, len(config.mtp_layers), len(config.moe_layers)) == (45, 3, 42)
    assert (config.hidden_size, config.vocab_size, config.max_positions) == (4096, 128896, 262144)
    assert (config.num_experts, config.top_k, config.rms_norm_eps) == (288, 8, 1e-5)
    for spec in (*config.layers, *config.mtp_layers):
        is_full = spec.layer_id % 4 == 0 and spec.layer_id <= 44
        assert spec.window == (0 if is_full else 512)
        assert spec.num_heads == (64 if is_full else 96)
        assert spec.rotary_dim == (64 if is_full else 128)
        assert spec.rope_theta == (5e6 if is_full else 1e4)
        assert (spec.rope_scaling is not None) == is_full
        assert spec.is_moe == (3 <= spec.layer_id <= 44)
        assert spec.moe_layer_idx == (spec.layer_id - 3 if spec.is_moe else -1)
        assert spec.routed_limit == (7.0 if spec.layer_id in (43, 44) else 0.0)
        assert spec.shared_limit == (16.0 if spec.layer_id == 44 else 0.0)
        assert spec.routed_scale == 3.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sink": True}, "sink = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"moe_router_activation": "softmax"}, "moe_router_activation"),
        ({"norm_expert_weight": False}, "norm_expert_weight"),
        ({"use_rope_layers": [1]}, "use_rope_layers"),
        ({"zero_centered": False}, "zero_centered"),
        ({"moe_n_group": 8}, "moe_n_group = 8 is not a field"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling"),
        ({"layer_types": ["full_attention"] * 6}, "layer_types has 6 entries"),
        ({"layer_types": ["linear_attention"] * 9}, "layer_types[0] = 'linear_attention'"),
        ({"moe_layers_enum": "2,99"}, "moe_layers_enum"),
        ({"moe_layers_enum": "two"}, "moe_layers_enum"),
        ({"moe_top_k": 17}, "moe_top_k 17 exceeds"),
        ({"num_attention_heads": 5}, "5 query heads"),
        ({"partial_rotary_factors": [0.3] * 9}, "partial_rotary_factors[0]"),
        ({"hidden_size": "64"}, "hidden_size = '64'"),
        ({"hidden_size": 0}, "hidden_size = 0"),
        ({"max_seq_len": 7}, "max_position_embeddings and max_seq_len"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"eos_token_id": "im_end"}, "eos_token_id"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    """A field or value that could change the computation is an error that names it."""
    with pytest.raises(ConfigError, match=_escaped(named)):
        parse_model_config({**tiny_config(), **change})


def test_every_problem_is_listed_at_once() -> None:
    """Missing, pinned and unknown fields come in one error."""
    fields = {**tiny_config(), "sink": True, "novelty": 1}
    del fields["vocab_size"]
    with pytest.raises(ConfigError) as caught:
        parse_model_config(fields)
    assert len(caught.value.problems) == 3


def test_eps_defaults_to_1e_5() -> None:
    """The published file has no rms_norm_eps; 1e-6 would be wrong."""
    fields = tiny_config()
    fields.pop("rms_norm_eps", None)
    assert parse_model_config(fields).rms_norm_eps == 1e-5


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "[]().*+?" else char for char in text)
