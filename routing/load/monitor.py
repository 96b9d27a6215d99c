"""LoadMonitor: counts what the gates of one attention actor choose, at the price of a few references per layer.

The engine's thread hands over each gate's output and goes on. Steps are counted in groups, in a fixed number of
operations where the outputs lie, and read only when somebody asks: no step waits for a device.

Legend: L MoE layers, E logical experts, K experts per token, S steps of a group, R their tokens, B buckets.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from routing.load.sample import BUCKET_EDGES, MEASURES, NUM_BUCKETS, LoadSample

MAX_GROUP_STEPS, MAX_GROUP_TOKENS = 32, 1024  # counted together: so long their gate outputs are kept
MARGIN_TOKENS = 4096  # over which a layer's mean margin is remembered
CONTESTED_SHARE = 0.5  # of a last choice, that counts for the runner-up when the margin is 0: it might go either way


class Confidence(Protocol):
    """table: float32 [4, T], mass, entropy, margin and runner-up, -1 for none (actors/kernels/contract.py)."""

    @property
    def table(self) -> Tensor: ...


class Choice(Protocol):
    """What a gate made of T tokens. topk_ids: int64 [T, K], the contested one last. topk_weights: float32 [T, K]."""

    @property
    def topk_ids(self) -> Tensor: ...
    @property
    def topk_weights(self) -> Tensor: ...
    @property
    def confidence(self) -> Confidence: ...


Kept = tuple[Tensor, Tensor, Tensor]
"""topk_ids, topk_weights and confidence table: not the whole output, whose hidden states would stay with it."""
Step = Sequence[Sequence[Kept]]
"""By MoE layer, the micro-batches."""


class LoadMonitor:
    """`observe`, `end_step` and `drop_step` belong to the engine's thread, `take` may be called by any."""

    def __init__(
        self,
        num_moe_layers: int,
        num_logical_experts: int,
        *,
        device: torch.device | str = "cpu",
        margin_scale: float = 1.0,
    ) -> None:
        """margin_scale: a last choice by a margin m counts with 0.5 * exp(-m / (margin_scale * mean margin of its
        layer)) for the runner-up in the soft load."""
        self._shape = (num_moe_layers, num_logical_experts)
        self._device = torch.device(device)
        self._margin_scale = margin_scale
        self._mean_margin: Tensor | None = None
        self._lock = threading.Lock()
        self._sums = _DeviceSums(*self._shape, self._device)
        self._group: list[Step] = []
        self._group_tokens = 0
        self._step: list[list[Kept]] = [[] for _ in range(num_moe_layers)]

    def observe(self, moe_layer_idx: int, choice: Choice) -> None:
        """A gate has chosen for one micro-batch of the step. Keeps the tensors, which nobody may write any more."""
        self._step[moe_layer_idx].append((choice.topk_ids, choice.topk_weights, choice.confidence.table))

    def end_step(self) -> None:
        """The step is done and counts. One that did not pass every layer does not."""
        step, self._step = self._step, [[] for _ in self._step]
        if not step or not step[0] or any(len(layer) != len(step[0]) for layer in step):
            return
        with self._lock:
            self._group.append(step)
            self._group_tokens += sum(ids.shape[0] for ids, _, _ in step[0])
            if len(self._group) >= MAX_GROUP_STEPS or self._group_tokens >= MAX_GROUP_TOKENS:
                self._count_group()

    def drop_step(self) -> None:
        """Forget what was observed since the last step ended: it failed and will be repeated."""
        if any(self._step):
            self._step = [[] for _ in self._step]

    @torch.inference_mode()
    def take(self) -> LoadSample | None:
        """Everything since the last call, and None if there was no step. Waits for the device; no step waits for it."""
        with self._lock:
            group, self._group, self._group_tokens = self._group, [], 0
            sums, self._sums = self._sums, _DeviceSums(*self._shape, self._device)
        if group:
            sums.add(group, self._margin_unit())
        return sums.sample() if sums.num_steps else None

    @torch.inference_mode()
    def _count_group(self) -> None:
        group, self._group, self._group_tokens = self._group, [], 0
        mean_margin, num_tokens = self._sums.add(group, self._margin_unit())
        if self._mean_margin is None:
            self._mean_margin = mean_margin
        else:
            self._mean_margin = self._mean_margin.lerp(mean_margin, num_tokens / (num_tokens + MARGIN_TOKENS))

    def _margin_unit(self) -> Tensor | None:
        return None if self._mean_margin is None else self._margin_scale * self._mean_margin


class _DeviceSums:
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
        """Count a group of steps. margin_unit: [L]; None takes the group's own means. Returns the mean margins of the
        group, [L], and its number of tokens."""
        kept = [part for layer in zip(*group, strict=True) for step in layer for part in step]
        ids = torch.cat([part[0] for part in kept]).unflatten(0, (self._num_layers, -1))
        weights = torch.cat([part[1] for part in kept]).view(ids.shape)
        table = torch.cat([part[2] for part in kept], dim=1).view(4, *ids.shape[:2]).nan_to_num(0.0)
        margins = table[2].mean(dim=1)
        shares = _contested_shares(table, margins if margin_unit is None else margin_unit)
        self._count_experts(ids, weights, table[3].to(torch.int64), shares)
        self._count_distinct(ids, [sum(part[0].shape[0] for part in step[0]) for step in group])
        self._count_measures(table[: len(MEASURES)])
        self.num_steps += len(group)
        self._num_tokens += ids.shape[1]
        return margins, ids.shape[1]

    def sample(self) -> LoadSample:
        """The sums on the host."""
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
