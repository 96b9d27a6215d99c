"""The memory behind the blocks: one LayerKV per layer, and how many blocks of each pool a budget buys.

Knows layers, bytes and devices; which block belongs to whom is the affair of `block_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from actors.cache.blocks import KvLayout
from actors.kernels.contract import LayerKV
from actors.model.config import LayerSpec


@dataclass(frozen=True)
class KvPoolSizes:
    """Blocks of each pool."""

    full_blocks: int
    sliding_blocks: int


@dataclass(frozen=True)
class KvDemand:
    """What the pools must be able to hold.

    max_model_len: tokens of the longest sequence. max_running: sequences at once. max_step_tokens: rows of a step.
    cached_windows: sliding windows kept beyond that for prefixes that nobody runs at the moment.
    """

    max_model_len: int
    max_running: int
    max_step_tokens: int
    cached_windows: int = 0


class KvStorage:
    """Keys and values of `layers`, zeroed: a kernel may load a whole block and mask, so garbage must not be NaN."""

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        layout: KvLayout,
        sizes: KvPoolSizes,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.sizes = sizes
        self.layers = tuple(_allocate(spec, layout, sizes, dtype, device) for spec in layers)

    @property
    def num_bytes(self) -> int:
        return sum(kv.keys.nbytes + kv.values.nbytes for kv in self.layers)


def bytes_per_full_block(layers: Sequence[LayerSpec], layout: KvLayout, dtype: torch.dtype) -> int:
    """Bytes of one block of the full pool, all its layers."""
    return sum(_bytes_per_block(spec, layout, dtype) for spec in layers if not spec.is_sliding)


def bytes_per_sliding_block(layers: Sequence[LayerSpec], layout: KvLayout, dtype: torch.dtype) -> int:
    """Bytes of one block of the sliding pool, all its layers."""
    return sum(_bytes_per_block(spec, layout, dtype) for spec in layers if spec.is_sliding)


def sliding_pool_blocks(layout: KvLayout, demand: KvDemand) -> int:
    """Sliding blocks with which the sliding pool is never what a step lacks."""
    if layout.window == 0:
        return 0
    # Rows are shared among the sequences: each may hold a window and one block more for the start of its rows.
    per_sequence = layout.max_sliding_blocks(1) + 1
    rows = layout.num_blocks(demand.max_step_tokens)
    return per_sequence * (demand.max_running + demand.cached_windows) + rows


def size_for_tokens(layout: KvLayout, demand: KvDemand, kv_cache_tokens: int) -> KvPoolSizes:
    """Pools whose full part holds `kv_cache_tokens`. ValueError if the longest sequence would not fit."""
    sizes = KvPoolSizes(layout.num_blocks(kv_cache_tokens), sliding_pool_blocks(layout, demand))
    needed = layout.num_blocks(demand.max_model_len)
    if sizes.full_blocks < needed:
        raise ValueError(
            f"kv_cache_tokens {kv_cache_tokens} is less than a sequence of max_model_len {demand.max_model_len} needs "
            f"({needed} blocks of {layout.block_size}): raise kv_cache_tokens or lower max_model_len"
        )
    return sizes


def size_for_bytes(
    layers: Sequence[LayerSpec], layout: KvLayout, demand: KvDemand, dtype: torch.dtype, kv_cache_bytes: int
) -> KvPoolSizes:
    """Pools that use at most `kv_cache_bytes`, sliding first. ValueError if the longest sequence would not fit."""
    sliding_blocks = sliding_pool_blocks(layout, demand)
    sliding_bytes = sliding_blocks * bytes_per_sliding_block(layers, layout, dtype)
    full_block_bytes = bytes_per_full_block(layers, layout, dtype)
    needed = layout.num_blocks(demand.max_model_len)
    needed_bytes = sliding_bytes + needed * full_block_bytes
    if needed_bytes > kv_cache_bytes:
        raise ValueError(
            f"kv_cache_bytes {kv_cache_bytes} is less than the {needed_bytes} needed: {sliding_bytes} for the sliding "
            f"windows of max_running {demand.max_running}, {needed * full_block_bytes} for one sequence of "
            f"max_model_len {demand.max_model_len}"
        )
    # Blocks without a full-attention layer cost nothing; their number then only has to cover the demand.
    spare = (kv_cache_bytes - sliding_bytes) // full_block_bytes if full_block_bytes else needed * demand.max_running
    return KvPoolSizes(spare, sliding_blocks)


def _allocate(
    spec: LayerSpec, layout: KvLayout, sizes: KvPoolSizes, dtype: torch.dtype, device: torch.device | str
) -> LayerKV:
    num_blocks = sizes.sliding_blocks if spec.is_sliding else sizes.full_blocks
    shape = (num_blocks, layout.block_size, spec.num_kv_heads, spec.head_dim)
    return LayerKV(
        keys=torch.zeros(shape, dtype=dtype, device=device), values=torch.zeros(shape, dtype=dtype, device=device)
    )


def _bytes_per_block(spec: LayerSpec, layout: KvLayout, dtype: torch.dtype) -> int:
    return 2 * layout.block_size * spec.num_kv_heads * spec.head_dim * dtype.itemsize
