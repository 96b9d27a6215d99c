"""LoadMonitor: counts what the gates of one attention actor choose, at the price of a few references per layer.

The engine's thread hands over each gate's output and goes on. Steps are counted in groups, in a fixed number of
operations where the outputs lie, and read only when somebody asks: no step waits for a device.

Legend: L MoE layers, E logical experts, K experts per token, S steps of a group, R their tokens, B buckets.
"""

from __future__ import annotations

import threading
from typing import Protocol

import torch
from torch import Tensor

from routing.load.gate_sums import Kept, Step, num_tokens, open_gate_sums
from routing.load.sample import LoadSample

MAX_GROUP_STEPS, MAX_GROUP_TOKENS = 32, 1024  # counted together: so long their gate outputs are kept
MARGIN_TOKENS = 4096  # over which a layer's mean margin is remembered


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
        self._sums = open_gate_sums(*self._shape, self._device)
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
            self._group_tokens += num_tokens(step)
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
            sums, self._sums = self._sums, open_gate_sums(*self._shape, self._device)
        if group:
            sums.add(group, self._margin_unit())
        return sums.sample() if sums.num_steps else None

    @torch.inference_mode()
    def _count_group(self) -> None:
        group, self._group, self._group_tokens = self._group, [], 0
        mean_margin, num_counted = self._sums.add(group, self._margin_unit())
        if self._mean_margin is None:
            self._mean_margin = mean_margin
        else:
            self._mean_margin = self._mean_margin.lerp(mean_margin, num_counted / (num_counted + MARGIN_TOKENS))

    def _margin_unit(self) -> Tensor | None:
        return None if self._mean_margin is None else self._margin_scale * self._mean_margin
