"""The plan against the published checkpoint: counts and bytes to the last one, and what each rank reads."""

from __future__ import annotations

import pytest

from actors.model.config import ModelConfig, parse_model_config
from actors.weights.check import find_problems, summarize
from actors.weights.index import TensorInfo
from actors.weights.plan import attention_plan, detect_layout, expected_tensors, expert_plan
from actors.weights.tensors import ExpertLayout, TensorKind, TensorSpec
from routing.experts import EMPTY_SLOT, check_ep_size, expert_map_from_rows, linear_expert_map
from tests.fakes.configs import FP8_QUANTIZATION, real_config, tiny_config

CODES = {TensorKind.MODEL: "BF16", TensorKind.ROUTER_BIAS: "F32", TensorKind.FP8: "F8_E4M3", TensorKind.SCALE: "F32"}
REAL = parse_model_config(real_config())
REAL_FP8 = parse_model_config({**real_config(), "quantization_config": FP8_QUANTIZATION})


def headers(config: ModelConfig, layout: ExpertLayout = ExpertLayout.PACKED) -> dict[str, TensorInfo]:
    """What the headers of a sound checkpoint would say."""
    return {spec.name: TensorInfo(spec.shape, CODES[spec.kind]) for spec in expected_tensors(config, layout)}


def test_published_checkpoint_to_the_byte() -> None:
    """The published config implies the published 804 tensors, bytes and parameters."""
    summary = summarize(REAL, headers(REAL), ep_size=8)
    assert (summary.num_tensors, summary.num_bytes) == (804, 398_768_626_944)
    assert summary.num_parameters == 199_384_301_376
    assert (summary.experts_per_rank, summary.layout, summary.dtype) == (36, ExpertLayout.PACKED, "BF16")


def test_published_roles_share_the_bytes() -> None:
    """Expert ranks read 36 x 42 experts of 15,728,640 parameters each; attention and MTP read the rest."""
    summary = summarize(REAL, headers(REAL), ep_size=8)
    assert summary.rank_bytes == (36 * 42 * 15_728_640 * 2,) * 8
    assert summary.expert_bytes == sum(summary.rank_bytes) == 190_253_629_440 * 2
    assert summary.attention_bytes + summary.mtp_bytes + summary.expert_bytes == summary.num_bytes
    assert summary.mtp_bytes == 2_428_171_008 * 2


def test_published_fp8_checkpoint_to_the_byte() -> None:
    """fp8 experts with fp32 block scales give the size that was computed from the published one."""
    summary = summarize(REAL_FP8, headers(REAL_FP8), ep_size=8)
    assert summary.num_bytes == 208_561_446_144
    assert summary.num_parameters == 199_384_301_376
    assert summary.rank_bytes == ((190_253_629_440 + 46_448_640) // 8,) * 8
    assert summary.held_rank_bytes == summarize(REAL, headers(REAL), ep_size=8).rank_bytes


def test_per_expert_layout_holds_the_same_bytes() -> None:
    """Naming experts one by one adds tensors, not bytes."""
    layout = ExpertLayout.PER_EXPERT
    summary = summarize(REAL, headers(REAL, layout), ep_size=8)
    assert summary.num_bytes == 398_768_626_944
    assert summary.num_tensors == 804 - 3 * 42 + 3 * 42 * 288
    assert summary.layout is layout


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (128896, 4096)),
        ("model.layers.0.self_attn.q_proj.weight", (8192, 4096)),
        ("model.layers.1.self_attn.q_proj.weight", (12288, 4096)),
        ("model.layers.47.self_attn.o_proj.weight", (4096, 12288)),
        ("model.layers.44.self_attn.g_proj.weight", (64, 4096)),
        ("model.layers.45.mlp.down_proj.weight", (4096, 11264)),
        ("model.layers.3.moe.gate.weight", (288, 4096)),
        ("model.layers.3.moe.router_bias", (288,)),
        ("model.layers.3.moe.gate_proj.weight", (288, 1280, 4096)),
        ("model.layers.44.moe.down_proj.weight", (288, 4096, 1280)),
        ("model.layers.44.share_expert.down_proj.weight", (4096, 1280)),
        ("model.layers.45.eh_proj.weight", (4096, 8192)),
        ("model.layers.46.transformer.shared_head.norm.weight", (4096,)),
        ("model.layers.47.transformer.shared_head.output.weight", (128896, 4096)),
    ],
)
def test_published_shapes(name: str, shape: tuple[int, ...]) -> None:
    """Names and shapes are those of the published table."""
    assert {spec.name: spec.shape for spec in expected_tensors(REAL)}[name] == shape


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.3.moe.gate_proj.weight_scale_inv", (288, 10, 32)),
        ("model.layers.3.moe.down_proj.weight_scale_inv", (288, 32, 10)),
    ],
)
def test_published_scale_shapes(name: str, shape: tuple[int, ...]) -> None:
    """One scale per 128 x 128 block of each expert."""
    assert TensorSpec(name, shape, TensorKind.SCALE) in expected_tensors(REAL_FP8)


def test_scales_of_edge_blocks() -> None:
    """A size that is no multiple of the block has a scale for its last, smaller block."""
    quantization = {**FP8_QUANTIZATION, "weight_block_size": [24, 48]}
    config = parse_model_config(tiny_config(quantization_config=quantization))
    shapes = {spec.name: spec.shape for spec in expected_tensors(config)}
    # gate is [32, 64] in blocks of 24 x 48: 2 x 2. down is [64, 32]: 3 x 1.
    assert shapes["model.layers.2.moe.gate_proj.weight_scale_inv"] == (16, 2, 2)
    assert shapes["model.layers.2.moe.down_proj.weight_scale_inv"] == (16, 3, 1)


@pytest.mark.parametrize("config", [REAL, REAL_FP8], ids=["bf16", "fp8"])
@pytest.mark.parametrize("layout", ExpertLayout)
def test_a_sound_checkpoint_has_no_problems(config: ModelConfig, layout: ExpertLayout) -> None:
    """The plan accepts what it implies, in both layouts, and recognises the layout."""
    tensors = headers(config, layout)
    assert detect_layout(config, tensors.keys()) is layout
    assert find_problems(config, tensors) == ()


def test_every_tensor_has_exactly_one_role() -> None:
    """Attention and expert tensors do not overlap and leave nothing out."""
    names = [spec.name for spec in expected_tensors(REAL)]
    attention = {spec.name for spec in attention_plan(REAL, include_mtp=True)}
    experts = {name for name in names if ".moe." in name and name.rpartition(".moe.")[2].partition(".")[0] != "gate"}
    experts -= {name for name in names if name.endswith("router_bias")}
    assert len(names) == len(set(names))
    assert attention | experts == set(names)
    assert not attention & experts


def test_without_mtp_the_plan_stops_at_the_trunk() -> None:
    """The flag removes the draft modules and nothing else."""
    trunk = {spec.name for spec in attention_plan(REAL, include_mtp=False)}
    extra = {spec.name for spec in attention_plan(REAL, include_mtp=True)} - trunk
    assert len(extra) == 3 * 17
    assert {int(name.split(".")[2]) for name in extra} == {45, 46, 47}


@pytest.mark.parametrize("ep_size", [size for size in range(1, 289) if 288 % size == 0])
def test_ranks_of_every_ep_size_read_each_expert_once(ep_size: int) -> None:
    """Under the linear map every (layer, expert) is read by one rank, at its place in the packed tensor."""
    config = parse_model_config(tiny_config(moe_num_experts=288, num_hidden_layers=4))
    expert_map = linear_expert_map(2, 288, ep_size)
    plans = [plan for ep_rank in range(ep_size) for plan in expert_plan(config, expert_map, ep_rank)]
    assert sorted((plan.moe_layer_idx, plan.logical_id) for plan in plans) == [
        (layer, expert) for layer in range(2) for expert in range(288)
    ]
    assert all(plan.slot == plan.logical_id % (288 // ep_size) for plan in plans)
    assert all(plan.down.weight.first_element == plan.logical_id * 64 * 32 for plan in plans)


def test_one_rank_of_eight_holds_36_experts_of_42_layers() -> None:
    """The last EP8 rank of the published model reads experts 252..287, packed behind one another."""
    plans = expert_plan(REAL, linear_expert_map(42, 288, 8), ep_rank=7)
    assert [(p.moe_layer_idx, p.logical_id) for p in plans] == [(m, e) for m in range(42) for e in range(252, 288)]
    assert plans[0].gate.weight.name == "model.layers.3.moe.gate_proj.weight"
    assert plans[0].gate.weight.first_element == 252 * 1280 * 4096


@pytest.mark.parametrize("ep_size", [0, -1, 5, 7, 289, 576])
def test_ep_sizes_that_do_not_divide(ep_size: int) -> None:
    """An EP size that does not divide the experts is refused with both numbers."""
    with pytest.raises(ValueError, match=f"{ep_size}.*288"):
        check_ep_size(288, ep_size)


def test_slots_of_a_redundant_map() -> None:
    """A copied expert is read into each of its slots; an empty slot is not planned."""
    config = parse_model_config(tiny_config(moe_num_experts=4, moe_top_k=2, num_hidden_layers=3))
    rows = [[0, 1, 3, 2, 3, EMPTY_SLOT]]
    expert_map = expert_map_from_rows(rows, num_logical_experts=4, ep_size=2)
    slots = [[(p.slot, p.logical_id) for p in expert_plan(config, expert_map, ep_rank)] for ep_rank in (0, 1)]
    assert slots == [[(0, 0), (1, 1), (2, 3)], [(0, 2), (1, 3)]]


def test_a_map_for_another_model_is_refused() -> None:
    """Layers and experts of the map must be those of the config, and the rank one of the map's."""
    with pytest.raises(ValueError, match="42 of 288"):
        expert_plan(REAL, linear_expert_map(41, 288, 8), 0)
    with pytest.raises(ValueError, match=r"ep_rank 8 must lie in \[0, 8\)"):
        expert_plan(REAL, linear_expert_map(42, 288, 8), 8)
