"""config.json is understood field by field or refused by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from actors.errors import ConfigError
from actors.model.config import parse_model_config
from actors.model.known_fields import OPTIONAL_FIELDS, PINNED_FIELDS, REQUIRED_FIELDS
from tests.fakes.configs import FP8_QUANTIZATION, real_config, tiny_config


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
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method = 'awq'"),
        ({"quantization_config": {}}, "quantization_config.quant_method is missing"),
        ({"eos_token_id": "im_end"}, "eos_token_id"),
        ({"eos_token_id": [1, 512]}, "eos_token_id = [1, 512] must be a token id below 512"),
        ({"yarn_only_types": ["full-attention"]}, "yarn_only_types = ['full-attention']"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 must be an integer of 1 to 1000"),
        ({"moe_num_experts": 10**9}, "moe_num_experts = 1000000000"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    """A field or value that could change the computation is an error that names it."""
    with pytest.raises(ConfigError, match=_escaped(named)):
        parse_model_config({**tiny_config(), **change})


NOT_A_NUMBER: list[Any] = [True, "1", {}, math.nan, math.inf, -math.inf, -1, 10**400]
NOT_AN_INTEGER: list[Any] = [*NOT_A_NUMBER, [], 1.5]
NOT_A_NUMBER_ABOVE_0 = [*NOT_A_NUMBER, None, [], 0, 1e31]
NOT_A_LIST: list[Any] = [True, "x", 5, {}, [], [True], [None], ["x"], [[]], [math.nan]]
NOT_AN_OBJECT: list[Any] = [True, "fp8", 5, [], ["x"], 1.5]
LAYERS = 9  # of tiny_config, draft modules included
ONE_BAD_ENTRY = [[bad, *[1.0] * (LAYERS - 1)] for bad in (*NOT_A_NUMBER, None, [])]
SCALING = tiny_config()["rope_scaling"]
OTHER = tiny_config()["attention_other_setting"]

BAD_VALUES: dict[str, list[Any]] = {
    **dict.fromkeys(
        [
            *("head_dim", "hidden_size", "intermediate_size", "moe_intermediate_size", "moe_num_experts", "moe_top_k"),
            *("num_attention_groups", "num_attention_heads", "num_hidden_layers", "share_expert_dim"),
            *("sliding_window", "vocab_size", "max_position_embeddings", "max_seq_len"),
        ],
        [*NOT_AN_INTEGER, None, 0, 2**31],
    ),
    "num_nextn_predict_layers": [*NOT_AN_INTEGER, None, 1001],
    "moe_router_scaling_factor": NOT_A_NUMBER_ABOVE_0,
    "rms_norm_eps": NOT_A_NUMBER_ABOVE_0,
    "rope_theta": [*NOT_A_NUMBER_ABOVE_0, 0.5, [1.0], *ONE_BAD_ENTRY],
    "partial_rotary_factors": [*NOT_A_NUMBER_ABOVE_0, 1.1, 0.01, [1.0], *ONE_BAD_ENTRY],
    "swiglu_limits": [*NOT_A_NUMBER, [], [1.0], *ONE_BAD_ENTRY],
    "swiglu_limits_shared": [*NOT_A_NUMBER, [], [1.0], *ONE_BAD_ENTRY],
    "layer_types": [*NOT_A_LIST, None, [None] * LAYERS, [[]] * LAYERS, "full_attention"],
    "moe_layers_enum": [*NOT_A_LIST, None, "", ",", "-1", "6", "1.5", "1" * 5000],
    "yarn_only_types": NOT_A_LIST,
    "eos_token_id": [True, "x", {}, [True], ["1"], [None], -1, 1.5, math.nan, 10**400],
    "attention_other_setting": [
        *NOT_AN_OBJECT,
        None,
        {},
        *({**OTHER, name: None} for name in OTHER),
        *({**OTHER, "num_attention_heads": bad} for bad in (*NOT_AN_INTEGER, 5)),
        {**OTHER, "novelty": 1},
    ],
    "rope_scaling": [
        *NOT_AN_OBJECT,
        {},
        *({**SCALING, name: bad} for name in SCALING for bad in (*NOT_A_NUMBER, None, 0)),
        {**SCALING, "factor": 0.5},
        {**SCALING, "low_freq_factor": 32.0},
        {**SCALING, "original_max_position_embeddings": 1.5},
        {**SCALING, "type": "yarn"},
        {**SCALING, "novelty": 1},
    ],
    "quantization_config": [
        *NOT_AN_OBJECT,
        *({**FP8_QUANTIZATION, name: bad} for name in FP8_QUANTIZATION for bad in (None, "x", [], {}, 128)),
        *({**FP8_QUANTIZATION, "weight_block_size": [128, bad]} for bad in NOT_AN_INTEGER),
    ],
}


def test_bad_values_are_tried_for_every_field_with_a_meaning() -> None:
    """Whoever adds a field adds its bad values; `model_type` has one legal value and is tried above."""
    assert BAD_VALUES.keys() | {"model_type"} == {*REQUIRED_FIELDS, *OPTIONAL_FIELDS}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_wrong_values_are_config_errors_that_name_the_field(name: str) -> None:
    """Whatever JSON can hold: never another exception, never accepted."""
    for value in BAD_VALUES[name]:
        with pytest.raises(ConfigError) as caught:
            parse_model_config({**tiny_config(), name: value})
        assert any(name in problem for problem in caught.value.problems), value


@pytest.mark.parametrize("name", sorted(PINNED_FIELDS))
def test_other_values_of_pinned_fields_are_refused(name: str) -> None:
    """Also null, and values that have no order."""
    for value in (None, "x", [None], {}, math.nan, 10**400):
        with pytest.raises(ConfigError, match=f"{name} = "):
            parse_model_config({**tiny_config(), name: value})


@pytest.mark.parametrize(
    "name", ["swiglu_limits", "swiglu_limits_shared", "rope_scaling", "yarn_only_types", "quantization_config"]
)
def test_null_means_absent_where_a_field_may_be_absent(name: str) -> None:
    """Published files write null for a feature that is off."""
    fields = tiny_config()
    fields.pop(name, None)
    assert parse_model_config({**fields, name: None}) == parse_model_config(fields)


def test_one_number_stands_for_every_layer() -> None:
    """Per-layer numbers may be written once."""
    config = parse_model_config({**tiny_config(), "rope_theta": 7, "swiglu_limits": 2.5})
    assert {spec.rope_theta for spec in (*config.layers, *config.mtp_layers)} == {7.0}
    assert {spec.routed_limit for spec in config.moe_layers} == {2.5}


def test_long_and_deep_values_make_short_messages() -> None:
    """A file of many megabytes must not become a message of many megabytes, nor a RecursionError."""
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    for value in ("x" * 100_000, [1] * 100_000, deep):
        with pytest.raises(ConfigError) as caught:
            parse_model_config({**tiny_config(), "hidden_size": value})
        assert len(str(caught.value)) < 400


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
