"""What a rank loads is, bit by bit, its part of the checkpoint, and it reads no byte of another part."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.errors import CheckpointError
from actors.kernels.contract import ExpertWeights
from actors.model.config import parse_model_config
from actors.weights.check import slots_bytes
from actors.weights.index import TensorInfo
from actors.weights.loader import load_attention_weights, load_expert_weights, load_slot
from actors.weights.plan import expert_plan, slot_plan
from actors.weights.shard import DenseWeights, MoeWeights
from actors.weights.source import MemorySource, ProgressSource, SafetensorsSource, WeightSource
from actors.weights.tensors import ExpertLayout
from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, linear_expert_map
from tests.fakes.checkpoint import random_weights, write_checkpoint
from tests.fakes.configs import FP8_QUANTIZATION, tiny_config

FIELDS = tiny_config(num_hidden_layers=4, num_nextn_predict_layers=2, vocab_size=40)
CONFIG = parse_model_config(FIELDS)
FP8_FIELDS = {**FIELDS, "quantization_config": {**FP8_QUANTIZATION, "weight_block_size": [24, 48]}}
PROJECTIONS = ("gate", "up", "down")
# Both MoE layers place 16 experts on 3 ranks of 7 slots: copies of 0..2 on other ranks, and two empty slots.
REDUNDANT_ROWS = [[*range(7), *range(7, 13), 0, 13, 14, 15, 1, EMPTY_SLOT, 2, EMPTY_SLOT]] * 2


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Every tensor of the checkpoint, whole."""
    return random_weights(FIELDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint on disk, in many small shards."""
    return write_checkpoint(tmp_path_factory.mktemp("packed"), FIELDS, max_shard_bytes=50_000)


class ReadLog:
    """A source that notes the bytes it was asked for."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self.reads: list[tuple[str, int, int]] = []

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._source.tensors

    def read_into(self, name: str, first_element: int, destination: Tensor) -> None:
        self.reads.append((name, first_element, destination.numel() * destination.itemsize))
        self._source.read_into(name, first_element, destination)


def flatten(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of nested dataclasses and tuples by path, such as `layers.0.attention.q`."""
    if isinstance(value, Tensor):
        return {prefix.removesuffix("."): value}
    items = (
        enumerate(value)
        if isinstance(value, tuple)
        else ((f.name, getattr(value, f.name)) for f in dataclass_fields(value))
    )
    return {path: leaf for name, item in items for path, leaf in flatten(item, f"{prefix}{name}.").items()}


def assert_holds(
    layers: list[ExpertWeights], expert_map: ExpertMap, ep_rank: int, weights: Mapping[str, Tensor]
) -> None:
    """Each slot equals its expert's slice of the whole packed tensor; an empty slot is zero."""
    for spec, layer, slots in zip(CONFIG.moe_layers, layers, expert_map.local_experts(ep_rank), strict=True):
        for projection in PROJECTIONS:
            packed = weights[f"model.layers.{spec.layer_id}.moe.{projection}_proj.weight"]
            expected = [packed[e] if e != EMPTY_SLOT else torch.zeros_like(packed[0]) for e in slots]
            assert torch.equal(getattr(layer, projection), torch.stack(expected))


@pytest.mark.parametrize("ep_size", [1, 2, 4, 8, 16])
def test_slices_of_every_rank_of_every_ep_size(folder: Path, weights: dict[str, Tensor], ep_size: int) -> None:
    """Slices read from disk equal slices of the whole tensors."""
    expert_map = linear_expert_map(2, 16, ep_size)
    with SafetensorsSource(folder) as source:
        for ep_rank in range(ep_size):
            assert_holds(load_expert_weights(source, CONFIG, expert_map, ep_rank), expert_map, ep_rank, weights)


@pytest.mark.parametrize("ep_rank", [0, 1, 2])
def test_redundant_maps_and_empty_slots(folder: Path, weights: dict[str, Tensor], ep_rank: int) -> None:
    """Copies hold the same bits as the original; empty slots are zero."""
    expert_map = expert_map_from_rows(REDUNDANT_ROWS, num_logical_experts=16, ep_size=3)
    with SafetensorsSource(folder) as source:
        assert_holds(load_expert_weights(source, CONFIG, expert_map, ep_rank), expert_map, ep_rank, weights)


def test_a_rank_may_hold_nothing(weights: dict[str, Tensor]) -> None:
    """A rank with only empty slots loads zeros and reads nothing."""
    source = ReadLog(MemorySource(weights))
    expert_map = expert_map_from_rows([[*range(16), *[EMPTY_SLOT] * 16]] * 2, num_logical_experts=16, ep_size=2)
    assert_holds(load_expert_weights(source, CONFIG, expert_map, 1), expert_map, 1, weights)
    assert source.reads == []


def test_per_expert_names_give_the_same_shard(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """The other layout of the same weights loads to the same bits."""
    expert_map = expert_map_from_rows(REDUNDANT_ROWS, num_logical_experts=16, ep_size=3)
    write_checkpoint(tmp_path, FIELDS, layout="per_expert")
    with SafetensorsSource(tmp_path) as source:
        assert_holds(load_expert_weights(source, CONFIG, expert_map, 1), expert_map, 1, weights)


@pytest.mark.parametrize("layout", ["packed", "per_expert"])
def test_fp8_experts(tmp_path: Path, layout: str) -> None:
    """fp8 loads as the product of value and block scale, computed here element by element, in bfloat16."""
    stored = random_weights(FP8_FIELDS)
    write_checkpoint(tmp_path, FP8_FIELDS, layout=layout)
    expert_map = linear_expert_map(2, 16, 4)
    with SafetensorsSource(tmp_path) as source:
        layers = load_expert_weights(source, parse_model_config(FP8_FIELDS), expert_map, 3)
    name = "model.layers.3.moe.down_proj.weight"
    block_of_row, block_of_column = torch.arange(64) // 24, torch.arange(32) // 48
    scale = stored[f"{name}_scale_inv"][12:][:, block_of_row][:, :, block_of_column]
    assert layers[1].down.dtype == torch.bfloat16
    assert torch.equal(layers[1].down, (stored[name][12:].float() * scale).bfloat16())


def test_fp8_is_near_the_weights_it_was_made_from(weights: dict[str, Tensor]) -> None:
    """All three projections land in their places: fp8 is within its precision of the unquantised checkpoint."""
    expert_map = linear_expert_map(2, 16, 1)
    source = MemorySource(random_weights(FP8_FIELDS))
    for exact, layer in zip(
        load_expert_weights(MemorySource(weights), CONFIG, expert_map, 0),
        load_expert_weights(source, parse_model_config(FP8_FIELDS), expert_map, 0, dtype=torch.float32),
        strict=True,
    ):
        for projection in PROJECTIONS:
            # 2^-4 relative for e4m3, plus 2^-8 for the bfloat16 it is compared with; small values: the block's step.
            torch.testing.assert_close(
                getattr(layer, projection), getattr(exact, projection).float(), rtol=0.07, atol=2e-3
            )


def test_a_rank_reads_its_slices_and_no_other_byte(folder: Path) -> None:
    """Each expert is read once, at its own offset, and the bytes add up to the rank's share of the plan."""
    expert_map = linear_expert_map(2, 16, 8)
    with SafetensorsSource(folder) as files:
        source = ReadLog(files)
        load_expert_weights(source, CONFIG, expert_map, 5)
        planned = slots_bytes(expert_plan(CONFIG, expert_map, 5), files.tensors)
    one = 64 * 32
    assert sorted(source.reads) == sorted(
        (f"model.layers.{layer_id}.moe.{projection}_proj.weight", expert_id * one, one * 2)
        for layer_id in (2, 3)
        for projection in PROJECTIONS
        for expert_id in (10, 11)
    )
    assert sum(num_bytes for _, _, num_bytes in source.reads) == planned == 2 * 2 * 3 * one * 2


def test_the_kernel_counts_the_same_bytes(folder: Path) -> None:
    """Linux saw this process read the rank's share of the files, not a page more: nothing is mapped or read around."""
    expert_map = linear_expert_map(2, 16, 8)
    with SafetensorsSource(folder) as source:
        planned = slots_bytes(expert_plan(CONFIG, expert_map, 5), source.tensors)
        before = bytes_read_by_this_process()
        load_expert_weights(source, CONFIG, expert_map, 5)
        num_read = bytes_read_by_this_process() - before
    # Reading the counter reads some hundred bytes itself.
    assert planned <= num_read <= planned + 1000


def bytes_read_by_this_process() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("num_modules", [0, 1, 2])
def test_attention_weights_are_the_stored_tensors(folder: Path, weights: dict[str, Tensor], num_modules: int) -> None:
    """Every field holds the tensor of its name; only router and bias change their format."""
    with SafetensorsSource(folder) as source:
        loaded = flatten(load_attention_weights(source, CONFIG, num_draft_modules=num_modules))
    expected = {
        "embed": "model.embed_tokens.weight",
        "head.norm": "model.norm.weight",
        "head.output": "lm_head.weight",
        "layers.0.attention.norm": "model.layers.0.input_layernorm.weight",
        "layers.1.attention.head_gate": "model.layers.1.self_attn.g_proj.weight",
        "layers.1.attention.q_norm": "model.layers.1.self_attn.q_norm.weight",
        "layers.1.attention.k_norm": "model.layers.1.self_attn.k_norm.weight",
        "layers.0.ffn.norm": "model.layers.0.post_attention_layernorm.weight",
        "layers.0.ffn.mlp.gate": "model.layers.0.mlp.gate_proj.weight",
        "layers.0.ffn.mlp.up": "model.layers.0.mlp.up_proj.weight",
        "layers.0.ffn.mlp.down": "model.layers.0.mlp.down_proj.weight",
        "layers.3.ffn.gate.norm": "model.layers.3.post_attention_layernorm.weight",
        "layers.3.ffn.shared.gate": "model.layers.3.share_expert.gate_proj.weight",
        "layers.3.ffn.shared.up": "model.layers.3.share_expert.up_proj.weight",
        "layers.3.ffn.shared.down": "model.layers.3.share_expert.down_proj.weight",
        **{f"layers.2.attention.{x}": f"model.layers.2.self_attn.{x}_proj.weight" for x in "qkvo"},
    }
    draft_module = {
        "mtp.1.input.embed_norm": "model.layers.5.enorm.weight",
        "mtp.1.input.hidden_norm": "model.layers.5.hnorm.weight",
        "mtp.1.input.projection": "model.layers.5.eh_proj.weight",
        "mtp.1.layer.attention.q": "model.layers.5.self_attn.q_proj.weight",
        "mtp.1.layer.ffn.mlp.up": "model.layers.5.mlp.up_proj.weight",
        "mtp.1.head.norm": "model.layers.5.transformer.shared_head.norm.weight",
        "mtp.1.head.output": "model.layers.5.transformer.shared_head.output.weight",
    }
    for path, name in (expected | draft_module if num_modules > 1 else expected).items():
        assert torch.equal(loaded[path], weights[name]), path
    assert {path.split(".")[1] for path in loaded if path.startswith("mtp")} == set("01"[:num_modules])


def test_each_attention_tensor_is_loaded_once(weights: dict[str, Tensor]) -> None:
    """No stored tensor of the role is left out or read twice, and none of the experts is touched."""
    source = ReadLog(MemorySource(weights))
    load_attention_weights(source, CONFIG, num_draft_modules=len(CONFIG.mtp_layers))
    experts = {n for n in weights if any(n.endswith(f".moe.{projection}_proj.weight") for projection in PROJECTIONS)}
    assert sorted(name for name, _, _ in source.reads) == sorted(weights.keys() - experts)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32])
def test_router_and_bias_are_float32_always(weights: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """The gate's product runs in float32 whatever the rest is held in."""
    layer = load_attention_weights(MemorySource(weights), CONFIG, dtype=dtype).layers[2]
    assert isinstance(layer.ffn, MoeWeights)
    assert layer.ffn.gate.router.dtype == layer.ffn.gate.bias.dtype == torch.float32
    assert torch.equal(layer.ffn.gate.router, weights["model.layers.2.moe.gate.weight"].float())
    assert torch.equal(layer.ffn.gate.bias, weights["model.layers.2.moe.router_bias"])
    assert layer.ffn.gate.norm.dtype == layer.attention.q.dtype == (dtype or torch.bfloat16)


def test_conversion_of_tensors_larger_than_the_staging_buffer(
    weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor converted in pieces, the last one smaller, equals the tensor converted at once."""
    monkeypatch.setattr("actors.weights.loader.STAGING_ELEMENTS", 1000)
    source = ReadLog(MemorySource(weights))
    loaded = load_attention_weights(source, CONFIG, dtype=torch.float32)
    assert isinstance(loaded.layers[0].ffn, DenseWeights)
    assert torch.equal(loaded.layers[0].ffn.mlp.up, weights["model.layers.0.mlp.up_proj.weight"].float())
    assert max(num_bytes for _, _, num_bytes in source.reads) == 2000


def test_a_slot_can_be_replaced_in_place(weights: dict[str, Tensor]) -> None:
    """Loading one expert into a slot leaves the other slots as they are: what a rebalance does."""
    source = MemorySource(weights)
    expert_map = linear_expert_map(2, 16, 8)
    layers = load_expert_weights(source, CONFIG, expert_map, 0)
    load_slot(source, CONFIG, slot_plan(CONFIG, CONFIG.moe_layers[1], 1, 9, ExpertLayout.PACKED), layers[1])
    rows = [list(range(16)), [0, 9, *range(2, 9), 1, *range(10, 16)]]
    assert_holds(layers, expert_map_from_rows(rows, num_logical_experts=16, ep_size=8), 0, weights)


def test_progress_ends_at_the_total(weights: dict[str, Tensor]) -> None:
    """Progress never falls, and reaches exactly the planned bytes."""
    calls: list[tuple[int, int]] = []
    expert_map = linear_expert_map(2, 16, 4)
    memory = MemorySource(weights)
    total = slots_bytes(expert_plan(CONFIG, expert_map, 1), memory.tensors)
    source = ProgressSource(memory, total, lambda done, of: calls.append((done, of)))
    load_expert_weights(source, CONFIG, expert_map, 1)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (total, total)


def test_memory_and_files_are_one_contract(folder: Path, weights: dict[str, Tensor]) -> None:
    """Both sources describe the same tensors and give the same elements for the same run."""
    memory = MemorySource(weights)
    with SafetensorsSource(folder) as files:
        assert {n: (i.shape, i.dtype) for n, i in files.tensors.items()} == {
            n: (i.shape, i.dtype) for n, i in memory.tensors.items()
        }
        for source in (memory, files):
            part = torch.empty(2, 5, dtype=torch.bfloat16)
            source.read_into("lm_head.weight", 70, part)
            assert torch.equal(part.flatten(), weights["lm_head.weight"].flatten()[70:80])


@pytest.mark.parametrize(
    ("first_element", "destination", "problem"),
    [
        (0, torch.empty(3), "stored as BF16"),
        (-1, torch.empty(3, dtype=torch.bfloat16), "do not exist"),
        (40 * 64 - 2, torch.empty(3, dtype=torch.bfloat16), "do not exist"),
        (0, torch.empty(3, 4, dtype=torch.bfloat16).t(), "not contiguous"),
    ],
)
def test_reads_that_make_no_sense(
    folder: Path, weights: dict[str, Tensor], first_element: int, destination: Tensor, problem: str
) -> None:
    """Both sources refuse the same reads, before any byte moves."""
    with SafetensorsSource(folder) as files:
        for source in (MemorySource(weights), files):
            with pytest.raises(ValueError, match=problem):
                source.read_into("lm_head.weight", first_element, destination)


def test_reads_that_return_less_than_asked_for(
    folder: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux may return any part of a read; the rest is read from where that part ended."""
    whole_read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, position: whole_read(file, [parts[0][:7]], position))
    part = torch.empty(10, dtype=torch.bfloat16)
    with SafetensorsSource(folder) as source:
        source.read_into("lm_head.weight", 3, part)
    assert torch.equal(part, weights["lm_head.weight"].flatten()[3:13])


def test_a_file_that_shrinks_after_the_check(tmp_path: Path) -> None:
    """A short read is a named failure, never leftover memory taken for weights."""
    write_checkpoint(tmp_path, FIELDS)
    with SafetensorsSource(tmp_path) as source:
        shard = next(tmp_path.glob("*.safetensors"))
        with shard.open("r+b") as file:
            file.truncate(shard.stat().st_size // 2)
        with pytest.raises(CheckpointError, match="bytes early"):
            load_expert_weights(source, CONFIG, linear_expert_map(2, 16, 1), 0)


def test_a_broken_folder_is_not_opened(tmp_path: Path) -> None:
    """The source refuses a folder that the index finds broken."""
    with pytest.raises(CheckpointError, match="holds neither"):
        SafetensorsSource(tmp_path)


def test_a_closed_source_reads_nothing(folder: Path) -> None:
    """Closing is idempotent, and a read after it is an error."""
    source = SafetensorsSource(folder)
    source.close()
    source.close()
    with pytest.raises(ValueError, match="after close"):
        source.read_into("model.norm.weight", 0, torch.empty(64, dtype=torch.bfloat16))
