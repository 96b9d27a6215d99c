"""One pass of an expert rank: merging, refusing alone, and surviving a kernel that fails."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from actors.expert.shard import ExpertShard
from actors.expert.step import serve_ready
from actors.kernels.contract import ExpertWeights
from actors.kernels.registry import KernelSet, load_kernels
from actors.model.config import ModelConfig, parse_model_config
from routing.experts import linear_expert_map
from routing.transport.contract import Work
from routing.wire import FrameKind, Header
from tests.fakes.configs import tiny_config

HIDDEN, SLOTS, EP_SIZE = 64, 4, 4


@dataclass
class RecordingPort:
    """An ExpertPort that hands out prepared works and keeps the answers."""

    works: list[Work]
    replies: dict[int, Tensor] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)

    def receive(self, timeout_s: float) -> list[Work]:
        works, self.works = self.works, []
        return works

    def reply(self, work: Work, outputs: Tensor) -> None:
        self.replies[work.bundle] = outputs.clone()

    def refuse(self, work: Work, reason: str) -> None:
        self.refusals[work.bundle] = reason


@pytest.fixture
def config() -> ModelConfig:
    return parse_model_config(tiny_config(moe_num_experts=SLOTS * EP_SIZE))


def _kernels(config: ModelConfig) -> KernelSet:
    return load_kernels("cpu", rms_norm_eps=config.rms_norm_eps, row_independent=True)


def _shard(config: ModelConfig, kernels: KernelSet) -> ExpertShard:
    intermediate = config.moe_intermediate_size
    weights = [
        ExpertWeights(
            torch.randn(SLOTS, intermediate, HIDDEN) / 8,
            torch.randn(SLOTS, intermediate, HIDDEN) / 8,
            torch.randn(SLOTS, HIDDEN, intermediate) / 6,
        )
        for _ in config.moe_layers
    ]
    expert_map = linear_expert_map(len(config.moe_layers), config.num_experts, EP_SIZE, map_epoch=3)
    return ExpertShard(config, expert_map, 1, weights, kernels)


def _work(bundle: int, rows: int, *, layer: int = 0, per_expert: bool = False, epoch: int = 3, slot: int = -1) -> Work:
    pair_row = torch.arange(rows).repeat_interleave(2).to(torch.int32)
    pair_slot = torch.tensor([0, 1 + bundle % 3], dtype=torch.int32).repeat(rows)
    if slot >= 0:
        pair_slot[0] = slot
    header = Header(FrameKind.DISPATCH, per_expert, torch.float32, epoch, 1, layer, 0, rows, 2 * rows, HIDDEN)
    return Work(bundle, header, torch.randn(rows, HIDDEN), pair_row, pair_slot, torch.rand(2 * rows))


@pytest.mark.parametrize("per_expert", [False, True])
def test_merged_frames_get_what_each_would_get_alone(config: ModelConfig, per_expert: bool) -> None:
    """Three bundles, two layers, one pass: every answer equals that of its frame served by itself, to the bit."""
    shard = _shard(config, _kernels(config))
    works = [_work(idx, 1 + idx, layer=idx % 2, per_expert=per_expert) for idx in range(5)]
    together = RecordingPort(list(works))
    assert serve_ready(together, shard, 0.0) == 5  # type: ignore[arg-type]
    for work in works:
        alone = RecordingPort([work])
        serve_ready(alone, shard, 0.0)  # type: ignore[arg-type]
        assert torch.equal(alone.replies[work.bundle], together.replies[work.bundle])
        vectors = work.header.num_pairs if per_expert else work.header.num_rows
        assert alone.replies[work.bundle].shape == (vectors, HIDDEN)


def test_partial_sums_are_the_weighted_vectors(config: ModelConfig) -> None:
    """The sum an expert rank returns is that of its per-expert vectors times the gate weights."""
    shard = _shard(config, _kernels(config))
    work = _work(0, 4)
    port = RecordingPort([work])
    serve_ready(port, shard, 0.0)  # type: ignore[arg-type]
    vectors = shard.compute(
        map_epoch=3,
        moe_layer_idx=0,
        hidden=work.hidden,
        pair_row=work.pair_row,
        pair_slot=work.pair_slot,
        pair_weight=work.pair_weight,
        per_expert=True,
    )
    expected = (vectors * work.pair_weight.unsqueeze(1)).view(4, 2, HIDDEN).sum(dim=1)
    torch.testing.assert_close(port.replies[0], expected)


@pytest.mark.parametrize(
    ("bad", "named"),
    [({"epoch": 2}, "map not served: epoch 2, only 3"), ({"slot": SLOTS}, "slot"), ({"layer": 99}, "MoE layer 99")],
)
def test_an_impossible_frame_is_refused_alone(config: ModelConfig, bad: dict[str, int], named: str) -> None:
    """A wrong epoch, slot or layer is answered with its reason; the other frames are served."""
    port = RecordingPort([_work(0, 2), _work(1, 2, **bad), _work(2, 2)])  # type: ignore[arg-type]
    serve_ready(port, _shard(config, _kernels(config)), 0.0)  # type: ignore[arg-type]
    assert set(port.replies) == {0, 2}
    assert named in port.refusals[1]


def test_a_kernel_that_fails_on_one_frame_fails_that_frame(config: ModelConfig) -> None:
    """When the grouped product raises, frames are tried apart: only the guilty one is refused."""
    kernels = _kernels(config)

    def fragile(hidden: Tensor, *rest: object) -> Tensor:
        if bool(torch.isinf(hidden).any()):
            raise RuntimeError("overflow")
        result: Tensor = kernels.expert_mlp(hidden, *rest)
        return result

    works = [_work(0, 2), _work(1, 2), _work(2, 2)]
    works[1].hidden[0, 0] = torch.inf
    port = RecordingPort(works)
    serve_ready(port, _shard(config, replace(kernels, expert_mlp=fragile)), 0.0)  # type: ignore[arg-type]
    assert set(port.replies) == {0, 2}
    assert "RuntimeError" in port.refusals[1]
