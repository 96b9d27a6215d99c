"""A checkpoint is refused before memory is allocated, with one error that lists everything wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.errors import CheckpointError, ConfigError
from actors.model.config import parse_model_config
from actors.weights.check import CONFIG_NAME, MAX_LISTED, check_checkpoint, find_problems
from actors.weights.index import INDEX_NAME, SINGLE_NAME, TensorInfo
from actors.weights.loader import load_attention_weights, load_expert_weights
from actors.weights.plan import expected_tensors
from actors.weights.source import SafetensorsSource
from actors.weights.tensors import TensorKind
from routing.experts import linear_expert_map
from tests.fakes.checkpoint import random_weights, write_checkpoint
from tests.fakes.configs import FP8_QUANTIZATION, tiny_config

FIELDS = tiny_config(num_hidden_layers=3, num_nextn_predict_layers=1, vocab_size=40)
CONFIG = parse_model_config(FIELDS)
ROUTER_BIAS = "model.layers.2.moe.router_bias"
Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    """The tensors of a sound checkpoint. Tests copy the dictionary before they change it."""
    return random_weights(FIELDS)


def write(folder: Path, weights: Weights) -> Path:
    save_file(weights, folder / SINGLE_NAME)
    (folder / CONFIG_NAME).write_text(json.dumps(FIELDS))
    return folder


def problems_of(folder: Path, ep_size: int = 4) -> tuple[str, ...]:
    with pytest.raises(CheckpointError) as caught:
        check_checkpoint(folder, ep_size)
    return caught.value.problems


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", ["packed", "per_expert"])
def test_sound_checkpoints_pass(tmp_path: Path, dtype: torch.dtype, layout: str) -> None:
    """Every format and layout is accepted, and the summary counts what the files hold."""
    write_checkpoint(tmp_path, FIELDS, dtype=dtype, layout=layout, max_shard_bytes=100_000)
    stored = [tensor for shard in tmp_path.glob("*.safetensors") for tensor in load_file(shard).values()]
    summary = check_checkpoint(tmp_path, ep_size=4)
    assert summary.num_tensors == len(stored)
    assert summary.num_bytes == sum(tensor.numel() * tensor.itemsize for tensor in stored)
    assert summary.num_parameters == sum(tensor.numel() for tensor in stored)
    assert summary.rank_bytes == (4 * 3 * 64 * 32 * dtype.itemsize,) * 4


def test_fp8_checkpoint_passes(tmp_path: Path) -> None:
    """Scales count as bytes and not as parameters."""
    fields = {**FIELDS, "quantization_config": {**FP8_QUANTIZATION, "weight_block_size": [24, 48]}}
    write_checkpoint(tmp_path, fields)
    # gate and up: [32, 64] in 2 x 2 blocks; down: [64, 32] in 3 x 1; fp32 scales.
    assert check_checkpoint(tmp_path, ep_size=2).rank_bytes == (8 * (3 * 64 * 32 + (4 + 4 + 3) * 4),) * 2


def test_one_error_lists_everything(tmp_path: Path, weights: Weights) -> None:
    """Missing, extra, mis-shaped and mis-typed tensors, and the EP size, come in one message."""
    broken = dict(weights)
    del broken["model.norm.weight"]
    broken["model.layers.9.enorm.weight"] = torch.zeros(64)
    broken["lm_head.weight"] = torch.zeros(41, 64, dtype=torch.bfloat16)
    broken[ROUTER_BIAS] = broken[ROUTER_BIAS].bfloat16()
    assert problems_of(write(tmp_path, broken), ep_size=5) == (
        "model.norm.weight [64] is missing",
        "model.layers.9.enorm.weight [64] F32 is not a tensor of this model",
        "lm_head.weight has shape [41, 64], the config implies [40, 64]",
        f"{ROUTER_BIAS} is stored as BF16, expected F32",
        "ep_size 5 must divide the 16 routed experts and not exceed them",
    )


def test_broken_files_are_in_the_same_error(tmp_path: Path) -> None:
    """A truncated shard is named next to the tensors that it takes along."""
    write_checkpoint(tmp_path, FIELDS, max_shard_bytes=100_000)
    shard = max(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    problems = problems_of(tmp_path, ep_size=3)
    assert f"{shard.name} cannot be used" in problems[0]
    assert any(problem.endswith("is missing") for problem in problems)
    assert "ep_size 3" in problems[-1]


def test_long_lists_are_cut_and_counted(tmp_path: Path, weights: Weights) -> None:
    """A checkpoint of another model does not bury the message: each kind is cut and counted by itself."""
    renamed = {f"other.{name}": tensor for name, tensor in weights.items()}
    problems, count = problems_of(write(tmp_path, renamed)), len(weights)
    assert len(problems) == 2 * (MAX_LISTED + 1)
    assert problems[MAX_LISTED] == f"and {count - MAX_LISTED} more missing tensors, {count} in all"
    assert problems[-1] == f"and {count - MAX_LISTED} more extra tensors, {count} in all"


def test_one_odd_format_is_the_problem_and_not_the_rest(tmp_path: Path, weights: Weights) -> None:
    """The format of most tensors is what the others are held to."""
    broken = {**weights, "model.norm.weight": weights["model.norm.weight"].float()}
    assert problems_of(write(tmp_path, broken)) == ("model.norm.weight is stored as F32, expected BF16",)


@pytest.mark.parametrize(("dtype", "code"), [(torch.float16, "F16"), (torch.int8, "I8"), (torch.float64, "F64")])
def test_formats_that_are_not_served_are_one_sentence(
    tmp_path: Path, weights: Weights, dtype: torch.dtype, code: str
) -> None:
    """Refused even when all tensors share it, and told once, not for every tensor."""
    stored = {name: tensor if name == ROUTER_BIAS else tensor.to(dtype) for name, tensor in weights.items()}
    (problem,) = problems_of(write(tmp_path, stored))
    assert problem == (
        f"the weights are stored as {code}; BF16 and F32 are served, and block-scaled FP8 for the routed experts"
    )


@pytest.mark.parametrize("quantization", [None, {**FP8_QUANTIZATION, "weight_block_size": [24, 48]}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_held_bytes_are_those_in_memory_after_loading(
    tmp_path: Path, quantization: dict[str, object] | None, dtype: torch.dtype
) -> None:
    """For every rank, the sum over its tensors; the draft modules are nobody's."""
    fields = {**FIELDS, "quantization_config": quantization}
    summary = check_checkpoint(write_checkpoint(tmp_path, fields, dtype=dtype), ep_size=4)
    expert_map = linear_expert_map(len(summary.config.moe_layers), summary.config.num_experts, 4)
    with SafetensorsSource(tmp_path) as source:
        attention = load_attention_weights(source, summary.config)
        ranks = [load_expert_weights(source, summary.config, expert_map, ep_rank) for ep_rank in range(4)]
    assert summary.held_attention_bytes == bytes_of(attention)
    assert summary.held_rank_bytes == tuple(bytes_of(rank) for rank in ranks)
    assert summary.attention_bytes + summary.mtp_bytes + summary.expert_bytes == summary.num_bytes


def bytes_of(value: object) -> int:
    """Bytes of every tensor in nested dataclasses, tuples and lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    items = value if isinstance(value, (list, tuple)) else vars(value).values()
    return sum(bytes_of(item) for item in items)


@pytest.mark.parametrize("scale_dtype", ["F32", "BF16"])
def test_both_scale_formats_are_accepted(scale_dtype: str) -> None:
    """The published fp8 files were not seen; either scale format gives the published size."""
    config = parse_model_config({**FIELDS, "quantization_config": FP8_QUANTIZATION})
    codes = {TensorKind.ROUTER_BIAS: "F32", TensorKind.FP8: "F8_E4M3", TensorKind.SCALE: scale_dtype}
    tensors = {s.name: TensorInfo(s.shape, codes.get(s.kind, "BF16")) for s in expected_tensors(config)}
    assert find_problems(config, tensors) == ()


def test_unquantised_experts_under_an_fp8_config_are_refused() -> None:
    """Weights without scales are named, and so is their format."""
    config = parse_model_config({**FIELDS, "quantization_config": FP8_QUANTIZATION})
    tensors = {s.name: TensorInfo(s.shape, "F32") for s in expected_tensors(CONFIG)}
    problems = find_problems(config, tensors)
    assert "model.layers.2.moe.gate_proj.weight_scale_inv [16, 1, 1] is missing" in problems
    assert "model.layers.2.moe.up_proj.weight is stored as F32, expected F8_E4M3" in problems


def test_mixed_expert_layouts_are_refused(tmp_path: Path, weights: Weights) -> None:
    """A single expert beside the packed tensors is extra."""
    name = "model.layers.2.moe.experts.0.gate_proj.weight"
    broken = {**weights, name: torch.zeros(32, 64, dtype=torch.bfloat16)}
    assert problems_of(write(tmp_path, broken)) == (f"{name} [32, 64] BF16 is not a tensor of this model",)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(json.dumps({**FIELDS, "hidden_act": "gelu"})),
        lambda path: path.write_text(json.dumps({**FIELDS, "new_feature": 1})),
    ],
    ids=["missing", "not json", "not an object", "value", "field"],
)
def test_a_config_that_cannot_be_used(tmp_path: Path, weights: Weights, break_it: Callable[[Path], object]) -> None:
    """With sound files the error is a ConfigError that names the file."""
    break_it(write(tmp_path, weights) / CONFIG_NAME)
    with pytest.raises(ConfigError, match=CONFIG_NAME):
        check_checkpoint(tmp_path, ep_size=4)


def test_config_and_files_broken_together(tmp_path: Path, weights: Weights) -> None:
    """Broken files are listed even when the config leaves nothing to compare them with."""
    write(tmp_path, weights)
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**FIELDS, "hidden_act": "gelu"}))
    (tmp_path / INDEX_NAME).write_text("{}")
    problems = problems_of(tmp_path)
    assert len(problems) == 2
    assert "hidden_act" in problems[0]
    assert INDEX_NAME in problems[1]
