"""Which slices of a checkpoint each role and EP rank needs. Pure; knows nothing of files.

The attention role reads whole tensors; an expert rank reads the experts of its slots and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from actors.model.config import LayerSpec, ModelConfig
from actors.weights.tensors import (
    PROJECTIONS,
    ExpertLayout,
    TensorSpec,
    attention_group,
    dense_mlp_group,
    embedding,
    expert_tensors,
    ffn_norm,
    gate_group,
    head_group,
    mtp_group,
    mtp_head_group,
    projection_specs,
    shared_expert_group,
)
from routing.experts import EMPTY_SLOT, ExpertMap


@dataclass(frozen=True)
class TensorSlice:
    """A run of consecutive elements of a stored tensor, in row-major order, seen as `shape`."""

    name: str
    first_element: int
    shape: tuple[int, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ProjectionSlice:
    """One projection [out, in] of one expert; `scale` [ceil(out / bo), ceil(in / bi)] when it is stored in fp8."""

    weight: TensorSlice
    scale: TensorSlice | None


@dataclass(frozen=True)
class SlotPlan:
    """The slices that fill one expert slot of one rank."""

    moe_layer_idx: int
    slot: int
    logical_id: int
    gate: ProjectionSlice
    up: ProjectionSlice
    down: ProjectionSlice


def attention_plan(config: ModelConfig, *, include_mtp: bool) -> tuple[TensorSpec, ...]:
    """Every tensor that an attention rank reads, each as a whole."""
    specs = [embedding(config), *head_group(config).values()]
    for layer in config.layers:
        specs += _layer_specs(config, layer)
    for layer in config.mtp_layers if include_mtp else ():
        specs += [*_layer_specs(config, layer), *mtp_group(config, layer).values()]
        specs += mtp_head_group(config, layer).values()
    return tuple(specs)


def expected_tensors(config: ModelConfig, layout: ExpertLayout = ExpertLayout.PACKED) -> tuple[TensorSpec, ...]:
    """Every tensor of a complete checkpoint."""
    return (*attention_plan(config, include_mtp=True), *expert_tensors(config, layout))


def expert_plan(
    config: ModelConfig, expert_map: ExpertMap, ep_rank: int, layout: ExpertLayout = ExpertLayout.PACKED
) -> tuple[SlotPlan, ...]:
    """The filled slots of one rank, by MoE layer and slot; empty slots do not appear.

    Raises ValueError when the map is not one for this config, or has no such rank.
    """
    check_expert_map(config, expert_map, ep_rank)
    return tuple(
        slot_plan(config, layer, slot, int(logical_id), layout)
        for layer, slots in zip(config.moe_layers, expert_map.local_experts(ep_rank), strict=True)
        for slot, logical_id in enumerate(slots)
        if logical_id != EMPTY_SLOT
    )


def slot_plan(config: ModelConfig, layer: LayerSpec, slot: int, logical_id: int, layout: ExpertLayout) -> SlotPlan:
    """The slices that put one logical expert of a MoE layer into a slot."""
    gate, up, down = (_projection_slice(config, layer, name, logical_id, layout) for name in PROJECTIONS)
    return SlotPlan(layer.moe_layer_idx, slot, logical_id, gate, up, down)


def check_expert_map(config: ModelConfig, expert_map: ExpertMap, ep_rank: int) -> None:
    """Raises ValueError, with the numbers, when a map or rank does not fit the config."""
    expected = (len(config.moe_layers), config.num_experts)
    if (expert_map.num_moe_layers, expert_map.num_logical_experts) != expected:
        raise ValueError(
            f"the expert map is for {expert_map.num_moe_layers} MoE layers of {expert_map.num_logical_experts} experts,"
            f" the config has {expected[0]} of {expected[1]}"
        )
    if not 0 <= ep_rank < expert_map.ep_size:
        raise ValueError(f"ep_rank {ep_rank} must lie in [0, {expert_map.ep_size})")


def detect_layout(config: ModelConfig, names: Collection[str]) -> ExpertLayout:
    """Per-expert if the checkpoint names single experts and no packed tensor; packed otherwise."""
    if any(spec.name in names for spec in expert_tensors(config, ExpertLayout.PACKED)):
        return ExpertLayout.PACKED
    per_expert = any(spec.name in names for spec in expert_tensors(config, ExpertLayout.PER_EXPERT))
    return ExpertLayout.PER_EXPERT if per_expert else ExpertLayout.PACKED


def _layer_specs(config: ModelConfig, layer: LayerSpec) -> Iterator[TensorSpec]:
    yield from attention_group(config, layer).values()
    if layer.is_moe:
        yield from gate_group(config, layer).values()
        yield from shared_expert_group(config, layer).values()
    else:
        yield ffn_norm(config, layer)
        yield from dense_mlp_group(config, layer).values()


def _projection_slice(
    config: ModelConfig, layer: LayerSpec, projection: str, logical_id: int, layout: ExpertLayout
) -> ProjectionSlice:
    is_packed = layout is ExpertLayout.PACKED
    specs = projection_specs(config, layer, projection, None if is_packed else logical_id)
    slices = []
    for spec in specs:
        shape = spec.shape[-2:]
        first = logical_id * math.prod(shape) if is_packed else 0
        slices.append(TensorSlice(spec.name, first, shape))
    return ProjectionSlice(slices[0], slices[1] if config.fp8 else None)
