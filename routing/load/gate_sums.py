"""GateSums: what the gates of some steps chose, added up. This is the reference, which runs on any device; on the CPU
routing/native/gate_sums.cpp does the same in one pass over the tokens.

Legend: L MoE layers, E logical experts, K experts per token, S steps of a group, R their tokens, B buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from routing.load.sample import BUCKET_EDGES, MEASURES, NUM_BUCKETS, LoadSample

CONTESTED_SHARE = 0.5  # of a last choice, that counts for the runner-up when the margin is 0: it might go either way

Kept = tuple[Tensor, Tensor, Tensor]
"""Of a micro-batch's gate: topk_ids, topk_weights and confidence table: not the whole output, whose hidden states would
stay with it."""
Step = Sequence[Sequence[Kept]]
"""By MoE layer, the micro-batches."""


class GateSums(Protocol):
    """Sums since it was made."""

    num_steps: int

    def add(self, group: Sequence[Step], margin_unit: Tensor | None) -> tuple[Tensor, int]:
        """Count a group of steps. margin_unit: float32 [L]; None takes the group's own means. Returns the mean margins
        of the group, [L], and its number of tokens."""

    def sample(self) -> LoadSample:
        """The sums on the host."""


class DeviceSums:
    """The arrays of a LoadSample where the gates run. Indices are flat: layer * E + expert, row * B + bucket."""

    def __init__(self, num_moe_layers: int, num_logical_experts: int, device: torch.device) -> None:
        self._num_layers, self._num_experts, self._device = num_moe_layers, num_logical_experts, device
        self.num_steps = self._num_tokens = 0
        # tokens, gate mass, and what soft load has more than tokens
        self._experts = self._zeros(3, num_moe_layers * num_logical_experts)
        self._buckets = self._zeros(len(MEASURES) * num_moe_layers * NUM_BUCKETS)
        self._measure_sums = self._zeros(len(MEASURES), num_moe_layers)
        self._distinct = self._zeros(num_moe_layers)
        self._edges = torch.tensor(BUCKET_EDGES, dtype=torch.float32, device=device)

    def add(self, group: Sequence[Step], margin_unit: Tensor | None) -> tuple[Tensor, int]:
        ids, weights, table = joined(group)
        table = table.nan_to_num(0.0)
        margins = table[2].mean(dim=1)
        shares = _contested_shares(table, margins if margin_unit is None else margin_unit)
        self._count_experts(ids, weights, table[3].to(torch.int64), shares)
        self._count_distinct(ids, list(map(num_tokens, group)))
        self._count_measures(table[: len(MEASURES)])
        self.num_steps += len(group)
        self._num_tokens += ids.shape[1]
        return margins, ids.shape[1]

    def sample(self) -> LoadSample:
        num_layers = self._num_layers
        tokens, gate_mass, shift = self._experts.cpu().numpy().reshape(3, num_layers, self._num_experts)
        return LoadSample(
            num_steps=float(self.num_steps),
            num_tokens=float(self._num_tokens),
            tokens=tokens,
            gate_mass=gate_mass,
            soft=tokens + shift,
            distinct=self._distinct.cpu().numpy(),
            histograms=self._buckets.cpu().numpy().reshape(len(MEASURES), num_layers, NUM_BUCKETS),
            measure_sums=self._measure_sums.cpu().numpy(),
        )

    def _count_experts(self, ids: Tensor, weights: Tensor, runner_up: Tensor, shares: Tensor) -> None:
        """ids, weights: [L, R, K]. runner_up, shares: [L, R]."""
        first = self._firsts(self._num_layers, self._num_experts)
        flat = (ids + first.unsqueeze(2)).flatten()
        # A token whose weights are not finite has been chosen experts, of which nothing can be said.
        mass = (weights / weights.sum(dim=2, keepdim=True)).nan_to_num(0.0, 0.0, 0.0)
        self._add_at(self._experts[0], flat, torch.ones_like(mass))
        self._add_at(self._experts[1], flat, mass)
        self._add_at(self._experts[2], ids[:, :, -1] + first, -shares)
        self._add_at(self._experts[2], runner_up.clamp(min=0) + first, shares)

    def _count_distinct(self, ids: Tensor, step_tokens: Sequence[int]) -> None:
        """ids: [L, R, K]. step_tokens: [S]."""
        num_steps = len(step_tokens)
        step = torch.from_numpy(np.repeat(np.arange(num_steps), step_tokens)).to(self._device)
        first = self._firsts(self._num_layers, num_steps * self._num_experts) + step * self._num_experts
        is_touched = torch.zeros(self._num_layers * num_steps * self._num_experts, device=self._device)
        is_touched.index_fill_(0, (ids + first.unsqueeze(2)).flatten(), 1.0)
        self._distinct += is_touched.view(self._num_layers, -1).sum(dim=1)

    def _count_measures(self, measures: Tensor) -> None:
        """measures: [3, L, R]."""
        buckets = torch.searchsorted(self._edges, measures.flatten(1), right=True)
        first = self._firsts(len(MEASURES) * self._num_layers, NUM_BUCKETS)
        self._add_at(self._buckets, buckets.view(len(first), -1) + first, torch.ones_like(measures))
        self._measure_sums += measures.sum(dim=2, dtype=torch.float64)

    def _firsts(self, num_rows: int, width: int) -> Tensor:
        """int64 [num_rows, 1]: where each row of a flat array begins."""
        return torch.arange(0, num_rows * width, width, device=self._device).unsqueeze(1)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    @staticmethod
    def _add_at(target: Tensor, index: Tensor, values: Tensor) -> None:
        # Not bincount: on a GPU that waits to learn its largest index.
        target.scatter_add_(0, index.flatten(), values.flatten().to(torch.float64))


def _contested_shares(table: Tensor, margin_unit: Tensor) -> Tensor:
    """[L, R]: how much of each last choice counts for the runner-up. table: [4, L, R]. margin_unit: [L]."""
    unit = margin_unit.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    shares = CONTESTED_SHARE * torch.exp(-table[2] / unit)
    return shares.masked_fill(table[3] < 0.0, 0.0)


def joined(group: Sequence[Step]) -> Kept:
    """A group's gates side by side: ids and weights, [L, R, K], and the table, [4, L, R]; tokens in the order of the
    steps."""
    kept = [part for layer in zip(*group, strict=True) for step in layer for part in step]
    ids = torch.cat([part[0] for part in kept]).unflatten(0, (len(group[0]), -1))
    weights = torch.cat([part[1] for part in kept]).view(ids.shape)
    return ids, weights, torch.cat([part[2] for part in kept], dim=1).view(4, *ids.shape[:2])


def num_tokens(step: Step) -> int:
    """Of one step; each passes every layer."""
    return sum(part[0].shape[0] for part in step[0])


def open_gate_sums(num_moe_layers: int, num_logical_experts: int, device: torch.device) -> GateSums:
    """The fastest there is for this device."""
    if device.type == "cpu":
        try:
            from routing.load.native_gate_sums import NativeGateSums
        except ImportError:  # not built
            pass
        else:
            return NativeGateSums(num_moe_layers, num_logical_experts)
    return DeviceSums(num_moe_layers, num_logical_experts, device)
