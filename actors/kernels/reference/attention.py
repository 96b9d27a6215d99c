"""The attention half of a layer over a paged cache (specification 2.3 to 2.5).

Legend: T tokens, H hidden, N query heads, G key/value heads, Q = N / G, D head size, L keys, W window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actors.kernels.contract import AttentionInputs, AttentionWeights, LayerKV, SequenceRows
from actors.kernels.reference.elementwise import elementwise
from actors.kernels.reference.linear import linear
from actors.kernels.reference.norm import rms_norm
from actors.kernels.reference.rope import apply_rope, rope_rotation
from actors.model.config import LayerSpec


def attention_half(
    hidden: Tensor,
    weights: AttentionWeights,
    spec: LayerSpec,
    inputs: AttentionInputs,
    cache: LayerKV,
    *,
    tile_rows: int,
) -> Tensor:
    """norm, q/k/v, QK norm, RoPE, cache write, attention, head gate, output, residual. [T, H] -> [T, H].

    tile_rows > 0 makes rows independent: fixed tiles in the products, and one query row at a time over exactly the
    keys it sees, so that neither the batch nor the chunking of a prompt can change a bit.
    """
    normed = rms_norm(hidden, weights.norm, spec.rms_norm_eps)
    query, key, value = project_qkv(normed, weights, spec, inputs.positions, tile_rows=tile_rows)
    _write(cache, inputs.slot_mapping, key, value)
    attend = _attend_by_row if tile_rows else _attend_by_sequence
    attended = torch.empty_like(query)
    for rows in inputs.sequences:
        attend(attended, query, rows, spec.window, cache)
    return hidden + gated_output(attended, normed, weights, tile_rows=tile_rows)


def project_qkv(
    normed: Tensor, weights: AttentionWeights, spec: LayerSpec, positions: Tensor, *, tile_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q [T, N, D] and k [T, G, D], normed then rotated; v [T, G, D] as projected."""
    eps = spec.rms_norm_eps
    query = linear(normed, weights.q, tile_rows).unflatten(1, (spec.num_heads, spec.head_dim))
    key = linear(normed, weights.k, tile_rows).unflatten(1, (spec.num_kv_heads, spec.head_dim))
    value = linear(normed, weights.v, tile_rows).unflatten(1, (spec.num_kv_heads, spec.head_dim))
    rotation = rope_rotation(positions, spec, is_padded=tile_rows > 0)
    query = apply_rope(rms_norm(query, weights.q_norm, eps), rotation)
    key = apply_rope(rms_norm(key, weights.k_norm, eps), rotation)
    return query, key, value


def gated_output(attended: Tensor, normed: Tensor, weights: AttentionWeights, *, tile_rows: int) -> Tensor:
    """Scale each head by its gate, then project. attended: [T, N, D]. normed: the input of q/k/v. -> [T, H]."""
    head_gate = elementwise(torch.sigmoid, linear(normed, weights.head_gate, tile_rows), is_padded=tile_rows > 0)
    return linear((attended * head_gate.unsqueeze(-1)).flatten(1), weights.o, tile_rows)


def attend_dense(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Grouped attention. query: [T, N, D]. key, value: [L, G, D]. visible: bool [T, L]. -> [T, N, D].

    Query head h reads key/value head h // Q. Softmax in fp32. A row that sees a key or value that is not finite becomes
    NaN; the others are what they would be without it.
    """
    num_rows, num_heads, head_dim = query.shape
    groups = key.shape[1]
    per_group = query.unflatten(1, (groups, num_heads // groups)).permute(1, 2, 0, 3)  # [G, Q, T, D]
    scores = per_group @ key.permute(1, 2, 0).unsqueeze(1) * head_dim**-0.5  # [G, Q, T, L]
    scores = scores.to(torch.float32).masked_fill(~visible, float("-inf"))
    # In a product, a weight of 0 does not hide a value of NaN.
    is_broken = ~value.isfinite().all(dim=-1).all(dim=-1)  # [L]
    value = value.masked_fill(is_broken[:, None, None], 0.0)
    mixed = scores.softmax(dim=-1).to(value.dtype) @ value.permute(1, 0, 2).unsqueeze(1)  # [G, Q, T, D]
    attended: Tensor = mixed.permute(2, 0, 1, 3).reshape(num_rows, num_heads, head_dim)
    return attended.masked_fill((visible & is_broken).any(dim=1)[:, None, None], float("nan"))


def _write(cache: LayerKV, slot_mapping: Tensor, key: Tensor, value: Tensor) -> None:
    cache.keys.view(-1, *cache.keys.shape[2:])[slot_mapping] = key.to(cache.keys.dtype)
    cache.values.view(-1, *cache.values.shape[2:])[slot_mapping] = value.to(cache.values.dtype)


def _attend_by_sequence(out: Tensor, query: Tensor, rows: SequenceRows, window: int, cache: LayerKV) -> None:
    """All rows of a sequence at once, masked: the fast form."""
    batch_rows = slice(rows.first_row, rows.first_row + rows.num_rows)
    end = rows.first_position + rows.num_rows
    start = max(0, rows.first_position - window + 1) if window else 0
    key, value = _gather(cache, rows.block_ids, start, end, query.dtype)
    positions = torch.arange(rows.first_position, end, device=query.device).unsqueeze(1)
    key_positions = torch.arange(start, end, device=query.device).unsqueeze(0)
    visible = key_positions <= positions
    if window:
        visible &= key_positions > positions - window
    out[batch_rows] = attend_dense(query[batch_rows], key, value, visible)


def _attend_by_row(out: Tensor, query: Tensor, rows: SequenceRows, window: int, cache: LayerKV) -> None:
    """One query row at a time over exactly its keys: the shape depends on the position alone."""
    for offset in range(rows.num_rows):
        row, position = rows.first_row + offset, rows.first_position + offset
        start = max(0, position - window + 1) if window else 0
        key, value = _gather(cache, rows.block_ids, start, position + 1, query.dtype)
        visible = torch.ones((1, position + 1 - start), dtype=torch.bool, device=query.device)
        # The copy gives every call the same memory alignment, which a BLAS may look at.
        out[row] = attend_dense(query[row : row + 1].clone(), key, value, visible)[0]


def _gather(cache: LayerKV, block_ids: Tensor, start: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values of positions start..end-1, each [end - start, G, D], freshly allocated."""
    positions = torch.arange(start, end, device=cache.keys.device)
    blocks = block_ids.to(positions.device)[positions // cache.block_size]
    slots = blocks * cache.block_size + positions % cache.block_size
    flat_keys, flat_values = (part.view(-1, *part.shape[2:]) for part in (cache.keys, cache.values))
    return flat_keys[slots].to(dtype), flat_values[slots].to(dtype)
