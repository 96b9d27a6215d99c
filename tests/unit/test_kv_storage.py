"""KV memory: bytes of the published model, and pools sized from tokens or bytes."""

from dataclasses import replace

import pytest
import torch

from actors.cache.block_table import KvCache
from actors.cache.blocks import KvLayout
from actors.cache.storage import (
    KvDemand,
    KvPoolSizes,
    KvStorage,
    bytes_per_full_block,
    bytes_per_sliding_block,
    size_for_bytes,
    size_for_tokens,
    sliding_pool_blocks,
)
from actors.model.config import LayerSpec

LAYOUT = KvLayout(block_size=16, window=512)
DEMAND = KvDemand(max_model_len=262_144, max_running=32, max_step_tokens=2048)


def _layer(layer_id: int, window: int) -> LayerSpec:
    return LayerSpec(
        layer_id=layer_id,
        window=window,
        num_heads=96 if window else 64,
        num_kv_heads=8,
        head_dim=128,
        rotary_dim=64,
        rope_theta=1e4,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        moe_layer_idx=-1,
        top_k=8,
        routed_scale=3.0,
        routed_limit=0.0,
        shared_limit=0.0,
    )


REAL_LAYERS = [_layer(i, 0 if i % 4 == 0 else 512) for i in range(45)]


def test_bytes_of_the_published_model() -> None:
    """12 full layers cost 49,152 bytes a token, 33 sliding ones 66 MiB per window of 512 (bf16)."""
    assert bytes_per_full_block(REAL_LAYERS, LAYOUT, torch.bfloat16) == 16 * 49_152
    assert bytes_per_sliding_block(REAL_LAYERS, LAYOUT, torch.bfloat16) * (512 // 16) == 69_206_016


def test_storage_has_a_tensor_pair_per_layer_in_its_pool() -> None:
    """Shapes follow the pools, memory starts at zero, and the bytes add up."""
    layers = [_layer(0, 0), _layer(1, 512)]
    storage = KvStorage(layers, LAYOUT, KvPoolSizes(5, 3), dtype=torch.bfloat16)
    assert [tuple(kv.keys.shape) for kv in storage.layers] == [(5, 16, 8, 128), (3, 16, 8, 128)]
    assert storage.layers[0].values.dtype == torch.bfloat16
    assert not any(kv.keys.any() or kv.values.any() for kv in storage.layers)
    expected = 5 * bytes_per_full_block(layers, LAYOUT, torch.bfloat16)
    expected += 3 * bytes_per_sliding_block(layers, LAYOUT, torch.bfloat16)
    assert storage.num_bytes == expected


def test_a_byte_budget_is_used_and_not_exceeded() -> None:
    """One more full block would not fit."""
    budget = 40 * 2**30
    sizes = size_for_bytes(REAL_LAYERS, LAYOUT, DEMAND, torch.bfloat16, budget)
    full = bytes_per_full_block(REAL_LAYERS, LAYOUT, torch.bfloat16)
    used = sizes.full_blocks * full + sizes.sliding_blocks * bytes_per_sliding_block(
        REAL_LAYERS, LAYOUT, torch.bfloat16
    )
    assert budget - full < used <= budget
    assert sizes.full_blocks * LAYOUT.block_size >= DEMAND.max_model_len


def test_budgets_too_small_for_one_longest_sequence_say_the_numbers() -> None:
    """Both ways to size refuse, and name what is needed."""
    with pytest.raises(ValueError, match="kv_cache_tokens 262128 .*max_model_len 262144 .*16384 blocks"):
        size_for_tokens(LAYOUT, DEMAND, 262_128)
    with pytest.raises(ValueError, match="kv_cache_bytes 1073741824 .* one sequence of max_model_len 262144"):
        size_for_bytes(REAL_LAYERS, LAYOUT, DEMAND, torch.bfloat16, 2**30)
    assert size_for_tokens(LAYOUT, DEMAND, 262_144).full_blocks == 16_384


def test_a_model_without_full_layers_still_counts_its_blocks() -> None:
    """Full blocks then cost nothing, and there are enough for every running sequence."""
    layers = [_layer(1, 512)]
    sizes = size_for_bytes(layers, LAYOUT, DEMAND, torch.bfloat16, 2**30)
    assert sizes.full_blocks == 16_384 * 32


def test_the_sliding_pool_carries_every_window_and_a_full_step() -> None:
    """The worst alignment of 32 windows, one of them prefilling the whole budget, fits."""
    demand = replace(DEMAND, max_running=4, max_step_tokens=64)
    layout = KvLayout(block_size=16, window=45)
    worst = 3 * layout.max_sliding_blocks(1) + layout.max_sliding_blocks(61)
    assert sliding_pool_blocks(layout, demand) >= worst
    spread = 4 * layout.max_sliding_blocks(16)
    assert sliding_pool_blocks(layout, demand) >= spread
    # A window of 33: every second row of a sequence may start a block of its own.
    tight, shared = KvLayout(block_size=16, window=33), replace(demand, max_step_tokens=8)
    assert sliding_pool_blocks(tight, shared) >= 4 * tight.max_sliding_blocks(2)
    cached = replace(demand, cached_windows=2)
    assert sliding_pool_blocks(layout, cached) > sliding_pool_blocks(layout, demand)
    assert sliding_pool_blocks(KvLayout(16, 0), demand) == 0


def test_sized_pools_pass_the_cache_s_own_capacity_check() -> None:
    """What sizing promises is what the scheduler asks for at start."""
    sizes = size_for_tokens(LAYOUT, DEMAND, DEMAND.max_model_len)
    cache = KvCache(LAYOUT, num_full_blocks=sizes.full_blocks, num_sliding_blocks=sizes.sliding_blocks)
    cache.check_capacity(DEMAND.max_model_len, DEMAND.max_step_tokens)
