"""Stored slices to the tensors of one rank. Allocates each destination once and copies slices into it.

`dtype=None` keeps the stored format, in which fp8 becomes bfloat16. The router and its bias are float32 always.
Trusts that `actors.weights.check` has accepted the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actors.kernels.contract import (
    AttentionWeights,
    DraftInputWeights,
    ExpertWeights,
    GateWeights,
    HeadWeights,
    MlpWeights,
)
from actors.model.config import Fp8Config, LayerSpec, ModelConfig
from actors.weights.formats import TORCH_DTYPES
from actors.weights.plan import ProjectionSlice, SlotPlan, TensorSlice, detect_layout, expert_plan, slot_plan
from actors.weights.quantization import FP8, dequantize_blocks
from actors.weights.shard import AttentionTierWeights, DenseWeights, LayerWeights, MoeWeights, MtpWeights
from actors.weights.source import SafetensorsSource, WeightSource
from actors.weights.tensors import (
    PROJECTIONS,
    Group,
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
    projection_shape,
    shared_expert_group,
)
from routing.experts import EMPTY_SLOT, ExpertMap

STAGING_ELEMENTS = 8 * 1024 * 1024  # what a conversion or a copy to a GPU holds beside the shard: 16 MiB in bf16


def load_attention_weights(
    source: WeightSource,
    config: ModelConfig,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    num_draft_modules: int = 0,
) -> AttentionTierWeights:
    """Everything an attention rank holds, with the first draft modules. Raises CheckpointError on a failed read."""
    loader = _AttentionLoader(source, config, dtype, torch.device(device))
    return AttentionTierWeights(
        embed=loader.tensor(embedding(config)),
        layers=tuple(loader.layer(spec) for spec in config.layers),
        head=HeadWeights(**loader.group(head_group(config))),
        mtp=tuple(loader.mtp(spec) for spec in config.mtp_layers[:num_draft_modules]),
    )


def load_expert_weights(
    source: WeightSource,
    config: ModelConfig,
    expert_map: ExpertMap,
    ep_rank: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> list[ExpertWeights]:
    """One ExpertWeights per MoE layer, stacked by slot; empty slots are zero.

    Raises ValueError when map or rank do not fit the config, CheckpointError on a failed read.
    """
    layout = detect_layout(config, source.tensors.keys())
    plans = expert_plan(config, expert_map, ep_rank, layout)
    target = dtype or _stored_dtype(source, next(expert_tensors(config, layout)).name)
    layers = [_empty_slots(config, expert_map.slots_per_rank, target, torch.device(device)) for _ in config.moe_layers]
    for plan in plans:
        load_slot(source, config, plan, layers[plan.moe_layer_idx])
    for moe_layer_idx, slot in np.argwhere(expert_map.local_experts(ep_rank) == EMPTY_SLOT):
        clear_slot(layers[moe_layer_idx], slot)
    return layers


def load_slot(source: WeightSource, config: ModelConfig, plan: SlotPlan, weights: ExpertWeights) -> None:
    """Fill one slot of a rank's MoE layer, in place. Other slots may be in use meanwhile."""
    _fill_projection(source, plan.gate, weights.gate[plan.slot], config.fp8)
    _fill_projection(source, plan.up, weights.up[plan.slot], config.fp8)
    _fill_projection(source, plan.down, weights.down[plan.slot], config.fp8)


def clear_slot(weights: ExpertWeights, slot: int) -> None:
    """Make a slot of a rank's MoE layer zero, in place."""
    for stacked in (weights.gate, weights.up, weights.down):
        stacked[slot].zero_()


class SlotReader:
    """Reads single experts into the slots of a loaded rank, as often as it is asked. Used by one thread.

    The checkpoint is opened at the first read and stays open until `close`.
    """

    def __init__(self, checkpoint: Path, config: ModelConfig, layers: Sequence[ExpertWeights]) -> None:
        """layers: one entry per MoE layer, stacked by slot; filled in place."""
        self._checkpoint, self._config, self._layers = checkpoint, config, layers
        self._source: SafetensorsSource | None = None

    def fill(self, moe_layer_idx: int, slot: int, logical_id: int) -> int:
        """Put one expert into one slot; returns the bytes it takes there. Raises CheckpointError on a failed read."""
        if self._source is None:
            self._source = SafetensorsSource(self._checkpoint)
        layout = detect_layout(self._config, self._source.tensors.keys())
        weights = self._layers[moe_layer_idx]
        plan = slot_plan(self._config, self._config.moe_layers[moe_layer_idx], slot, logical_id, layout)
        load_slot(self._source, self._config, plan, weights)
        return sum(stacked[slot].nbytes for stacked in (weights.gate, weights.up, weights.down))

    def close(self) -> None:
        """Idempotent; no read may be under way."""
        if self._source is not None:
            self._source.close()
            self._source = None


class _AttentionLoader:
    """Reads whole tensors into new memory of one dtype and device."""

    def __init__(
        self, source: WeightSource, config: ModelConfig, dtype: torch.dtype | None, device: torch.device
    ) -> None:
        self._source, self._config, self._dtype, self._device = source, config, dtype, device

    def tensor(self, spec: TensorSpec, dtype: torch.dtype | None = None) -> Tensor:
        target = dtype or self._dtype or _stored_dtype(self._source, spec.name)
        destination = torch.empty(spec.shape, dtype=target, device=self._device)
        _fill(self._source, TensorSlice(spec.name, 0, spec.shape), destination)
        return destination

    def group(self, group: Group) -> dict[str, Tensor]:
        return {field: self.tensor(spec) for field, spec in group.items()}

    def layer(self, spec: LayerSpec) -> LayerWeights:
        attention = AttentionWeights(**self.group(attention_group(self._config, spec)))
        return LayerWeights(attention, self._moe(spec) if spec.is_moe else self._dense(spec))

    def mtp(self, spec: LayerSpec) -> MtpWeights:
        return MtpWeights(
            input=DraftInputWeights(**self.group(mtp_group(self._config, spec))),
            layer=self.layer(spec),
            head=HeadWeights(**self.group(mtp_head_group(self._config, spec))),
        )

    def _dense(self, spec: LayerSpec) -> DenseWeights:
        mlp = MlpWeights(**self.group(dense_mlp_group(self._config, spec)))
        return DenseWeights(self.tensor(ffn_norm(self._config, spec)), mlp)

    def _moe(self, spec: LayerSpec) -> MoeWeights:
        specs = gate_group(self._config, spec)
        gate = GateWeights(
            norm=self.tensor(specs["norm"]),
            router=self.tensor(specs["router"], torch.float32),
            bias=self.tensor(specs["bias"], torch.float32),
        )
        return MoeWeights(gate, MlpWeights(**self.group(shared_expert_group(self._config, spec))))


def _stored_dtype(source: WeightSource, name: str) -> torch.dtype:
    """What a tensor is held in when nothing else is asked for."""
    stored = TORCH_DTYPES[source.tensors[name].dtype]
    return torch.bfloat16 if stored == FP8 else stored


def _empty_slots(config: ModelConfig, num_slots: int, dtype: torch.dtype, device: torch.device) -> ExpertWeights:
    shapes = {name: (num_slots, *projection_shape(config, name)) for name in PROJECTIONS}
    return ExpertWeights(**{name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()})


def _fill_projection(
    source: WeightSource, projection: ProjectionSlice, destination: Tensor, fp8: Fp8Config | None
) -> None:
    if projection.scale is None or fp8 is None:
        _fill(source, projection.weight, destination)
        return
    quantized, scale_inv = _read(source, projection.weight), _read(source, projection.scale)
    destination.copy_(dequantize_blocks(quantized, scale_inv, fp8.block_size))


def _read(source: WeightSource, part: TensorSlice) -> Tensor:
    staging = torch.empty(part.shape, dtype=TORCH_DTYPES[source.tensors[part.name].dtype])
    source.read_into(part.name, part.first_element, staging)
    return staging


def _fill(source: WeightSource, part: TensorSlice, destination: Tensor) -> None:
    """Straight into the destination where format and device allow, through a small staging buffer otherwise."""
    stored = TORCH_DTYPES[source.tensors[part.name].dtype]
    if destination.dtype == stored and destination.device.type == "cpu":
        source.read_into(part.name, part.first_element, destination)
        return
    flat = destination.view(-1)
    for first in range(0, flat.numel(), STAGING_ELEMENTS):
        piece = flat[first : first + STAGING_ELEMENTS]
        piece.copy_(_read(source, TensorSlice(part.name, part.first_element + first, tuple(piece.shape))))
