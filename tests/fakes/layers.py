"""Random layers and paged batches for kernel tests: weights sized so that outputs have magnitude about one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from actors.kernels.contract import (
    AttentionInputs,
    AttentionWeights,
    ExpertWeights,
    GateWeights,
    HeadWeights,
    Kernels,
    LayerKV,
    MlpWeights,
    SequenceRows,
)
from actors.model.config import LayerSpec

UNREADABLE_BLOCK = 1 << 40

BASE_SPEC = LayerSpec(
    layer_id=0,
    window=0,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    rotary_dim=16,
    rope_theta=1e4,
    rope_scaling=None,
    rms_norm_eps=1e-5,
    moe_layer_idx=0,
    top_k=4,
    routed_scale=3.0,
    routed_limit=0.0,
    shared_limit=0.0,
)

Chunk = tuple[int, int, int]
"""sequence, first position, number of rows."""


def layer_spec(**changes: Any) -> LayerSpec:
    """BASE_SPEC with changes."""
    return replace(BASE_SPEC, **changes)


def matrix(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random weights of variance 1 / in."""
    scale: float = shape[-1] ** -0.5
    return (torch.randn(shape) * scale).to(dtype)


def norm(width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A norm weight, stored as gamma - 1."""
    return (torch.randn(width) * 0.2).to(dtype)


def mlp_weights(hidden: int, intermediate: int, dtype: torch.dtype = torch.float32) -> MlpWeights:
    gate, up = matrix(intermediate, hidden, dtype=dtype), matrix(intermediate, hidden, dtype=dtype)
    return MlpWeights(gate, up, matrix(hidden, intermediate, dtype=dtype))


def expert_weights(slots: int, hidden: int, intermediate: int, dtype: torch.dtype = torch.float32) -> ExpertWeights:
    gate, up = matrix(slots, intermediate, hidden, dtype=dtype), matrix(slots, intermediate, hidden, dtype=dtype)
    return ExpertWeights(gate, up, matrix(slots, hidden, intermediate, dtype=dtype))


def gate_weights(num_experts: int, hidden: int, dtype: torch.dtype = torch.float32) -> GateWeights:
    return GateWeights(norm(hidden, dtype), matrix(num_experts, hidden), torch.randn(num_experts) * 0.1)


def head_weights(vocab: int, hidden: int, dtype: torch.dtype = torch.float32) -> HeadWeights:
    return HeadWeights(norm(hidden, dtype), matrix(vocab, hidden, dtype=dtype))


def attention_weights(spec: LayerSpec, hidden: int, dtype: torch.dtype = torch.float32) -> AttentionWeights:
    query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return AttentionWeights(
        norm=norm(hidden, dtype),
        q=matrix(query, hidden, dtype=dtype),
        k=matrix(key_value, hidden, dtype=dtype),
        v=matrix(key_value, hidden, dtype=dtype),
        o=matrix(hidden, query, dtype=dtype),
        head_gate=matrix(spec.num_heads, hidden, dtype=dtype),
        q_norm=norm(spec.head_dim, dtype),
        k_norm=norm(spec.head_dim, dtype),
    )


@dataclass(frozen=True)
class AttentionRun:
    """One attention layer and some sequences. hidden: [length, H] of each sequence."""

    spec: LayerSpec
    weights: AttentionWeights
    hidden: Sequence[Tensor]
    block_size: int = 8
    kv_dtype: torch.dtype = torch.float32

    def outputs(self, kernels: Kernels, steps: Sequence[Sequence[Chunk]]) -> list[Tensor]:
        """Run the steps on an empty cache; the output of every sequence, [length, H]."""
        cache, tables = self._empty_cache(), self._tables()
        outputs = [torch.zeros_like(hidden) for hidden in self.hidden]
        for chunks in steps:
            rows = torch.cat([self.hidden[s][first : first + num] for s, first, num in chunks])
            result = kernels.attention_half(rows, self.weights, self.spec, self._inputs(chunks, tables), cache)
            for (s, first, num), part in zip(chunks, result.split([num for *_, num in chunks]), strict=True):
                outputs[s][first : first + num] = part
        return outputs

    def whole(self) -> list[Chunk]:
        """Every sequence in one chunk."""
        return [(s, 0, len(hidden)) for s, hidden in enumerate(self.hidden)]

    def _empty_cache(self) -> LayerKV:
        num_blocks = sum(-(-len(hidden) // self.block_size) for hidden in self.hidden) + 1
        shape = (num_blocks, self.block_size, self.spec.num_kv_heads, self.spec.head_dim)
        # NaN shows a read of anything not written.
        return LayerKV(*(torch.full(shape, float("nan"), dtype=self.kv_dtype) for _ in range(2)))

    def _tables(self) -> list[Tensor]:
        counts = [-(-len(hidden) // self.block_size) for hidden in self.hidden]
        return list(torch.randperm(sum(counts)).split(counts))

    def _inputs(self, chunks: Sequence[Chunk], tables: Sequence[Tensor]) -> AttentionInputs:
        positions = [torch.arange(first, first + num) for _, first, num in chunks]
        slots, sequences, row = [], [], 0
        for (s, first, num), run in zip(chunks, positions, strict=True):
            slots.append(tables[s][run // self.block_size] * self.block_size + run % self.block_size)
            sequences.append(SequenceRows(row, num, first, self._forget_expired(tables[s], first)))
            row += num
        return AttentionInputs(torch.cat(positions), torch.cat(slots), sequences)

    def _forget_expired(self, table: Tensor, first_position: int) -> Tensor:
        """Entries behind the window of the first row may be arbitrary."""
        table = table.clone()
        if self.spec.window:
            table[: max(0, first_position - self.spec.window + 1) // self.block_size] = UNREADABLE_BLOCK
        return table
