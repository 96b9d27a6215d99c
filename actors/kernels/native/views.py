"""Checked native views of weights and batches, built once per object and forgotten with it.

Unpacking a dozen tensors costs more than a small product, and weights keep their addresses for life, so a view is kept
as long as the object it was made from. Knows shapes and dtypes; knows nothing of the operations.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from actors.errors import KernelError
from actors.kernels import _native
from actors.kernels.contract import AttentionInputs, AttentionWeights, ExpertWeights, GateWeights, LayerKV, MlpWeights
from actors.kernels.reference.rope import inverse_frequencies
from actors.model.config import LayerSpec, RopeScaling
from routing.load.tally import LayerTally

_WEIGHT_DTYPES = (torch.float32, torch.bfloat16)


View = TypeVar("View")


class ViewCache(Generic[View]):
    """One view per (object, spec), by identity. An entry dies with its object, before the id can be used again."""

    def __init__(self, build: Callable[..., View]) -> None:
        self._build = build
        self._views: dict[int, tuple[weakref.ref[Any], LayerSpec | None, View]] = {}

    def __len__(self) -> int:
        return len(self._views)

    def get(self, source: Any, spec: LayerSpec | None = None) -> View:
        entry = self._views.get(id(source))
        if entry is not None and entry[1] is spec and entry[0]() is source:
            return entry[2]
        view = self._build(source) if spec is None else self._build(source, spec)
        key, views = id(source), self._views
        self._views[key] = (weakref.ref(source, lambda _: views.pop(key, None)), spec, view)
        return view


def mlp_view(weights: MlpWeights) -> _native.GatedMlp:
    intermediate, hidden = _sizes(weights.gate, 2, "gate")
    return _native.GatedMlp(
        matrix(weights.gate, (intermediate, hidden), "gate"),
        matrix(weights.up, (intermediate, hidden), "up"),
        matrix(weights.down, (hidden, intermediate), "down"),
    )


def slots_view(weights: ExpertWeights) -> _native.GatedMlp:
    """The first slot; the others follow at equal distances."""
    slots, intermediate, hidden = _sizes(weights.gate, 3, "gate")
    return _native.GatedMlp(
        matrix(weights.gate, (slots, intermediate, hidden), "gate"),
        matrix(weights.up, (slots, intermediate, hidden), "up"),
        matrix(weights.down, (slots, hidden, intermediate), "down"),
    )


def gate_view(weights: GateWeights, spec: LayerSpec) -> _native.GateWeights:
    num_experts, hidden = _sizes(weights.router, 2, "router")
    if spec.top_k > num_experts:
        raise KernelError(f"top_k {spec.top_k} exceeds the router's {num_experts} experts")
    _check(weights.bias, (num_experts,), (torch.float32,), "bias")
    norm = _native.Norm(vector(weights.norm, hidden, "norm"), spec.rms_norm_eps)
    router = matrix(weights.router, (num_experts, hidden), "router")
    return _native.GateWeights(norm, router, weights.bias.data_ptr(), spec.top_k, spec.routed_scale)


def attention_view(weights: AttentionWeights, spec: LayerSpec) -> _native.AttentionLayer:
    hidden = _sizes(weights.q, 2, "q")[1]
    query, key_value = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    matrices = (
        matrix(weights.q, (query, hidden), "q"),
        matrix(weights.k, (key_value, hidden), "k"),
        matrix(weights.v, (key_value, hidden), "v"),
        matrix(weights.o, (hidden, query), "o"),
        matrix(weights.head_gate, (spec.num_heads, hidden), "head_gate"),
        vector(weights.q_norm, spec.head_dim, "q_norm"),
        vector(weights.k_norm, spec.head_dim, "k_norm"),
    )
    sizes = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.rotary_dim, spec.window)
    frequencies = _frequencies(spec.rotary_dim, spec.rope_theta, spec.rope_scaling)
    norm = _native.Norm(vector(weights.norm, hidden, "norm"), spec.rms_norm_eps)
    return _native.AttentionLayer(norm, matrices, sizes, frequencies.data_ptr())


def batch_view(inputs: AttentionInputs) -> _native.Batch:
    num_rows = _sizes(inputs.positions, 1, "positions")[0]
    _check(inputs.positions, (num_rows,), (torch.int64,), "positions")
    _check(inputs.slot_mapping, (num_rows,), (torch.int64,), "slot_mapping")
    sequences = []
    for rows in inputs.sequences:
        ids = rows.block_ids
        _check(ids, (ids.numel(),), (torch.int64,), "block_ids")
        sequences.append((rows.first_row, rows.num_rows, rows.first_position, ids.data_ptr(), ids.numel()))
    return _native.Batch(inputs.positions.data_ptr(), inputs.slot_mapping.data_ptr(), num_rows, sequences)


def cache_view(cache: LayerKV, spec: LayerSpec) -> _native.PagedCache:
    num_blocks, block_size = _sizes(cache.keys, 4, "keys")[:2]
    shape = (num_blocks, block_size, spec.num_kv_heads, spec.head_dim)
    _check(cache.keys, shape, _WEIGHT_DTYPES, "keys")
    _check(cache.values, shape, (cache.keys.dtype,), "values")
    is_bf16 = cache.keys.dtype is torch.bfloat16
    return _native.PagedCache(cache.keys.data_ptr(), cache.values.data_ptr(), is_bf16, num_blocks, block_size)


def matrix(tensor: Tensor, shape: tuple[int, ...], name: str) -> _native.Matrix:
    """A view of the last two dims; leading dims, if any, are consecutive matrices."""
    _check(tensor, shape, _WEIGHT_DTYPES, name)
    return _native.Matrix(tensor.data_ptr(), tensor.dtype is torch.bfloat16, shape[-2], shape[-1])


def vector(tensor: Tensor, width: int, name: str) -> _native.Matrix:
    """A view of [width] as one row."""
    _check(tensor, (width,), _WEIGHT_DTYPES, name)
    return _native.Matrix(tensor.data_ptr(), tensor.dtype is torch.bfloat16, 1, width)


def check_rows(hidden: Tensor, width: int) -> int:
    """Number of rows of `hidden`, which must be float32 [rows, width], contiguous, on the CPU."""
    shape = hidden.shape
    if hidden.dtype is not torch.float32 or len(shape) != 2 or shape[1] != width or not _is_readable(hidden):
        _check(hidden, (*shape[:-1], width)[-2:], (torch.float32,), "hidden")
    return shape[0]


def check_pairs(pair_row: Tensor, pair_slot: Tensor) -> None:
    """Both must be int32 [P], contiguous, on the CPU."""
    _check(pair_row, (pair_row.shape[0],), (torch.int32,), "pair_row")
    _check(pair_slot, (pair_row.shape[0],), (torch.int32,), "pair_slot")


# Native layers keep the address alone, so a table lives as long as the process. A cache would not do: when two threads
# miss together it keeps one result and hands the other out to die.
_FREQUENCIES: dict[tuple[int, float, RopeScaling | None], Tensor] = {}


def _frequencies(rotary_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """The one table of this rotation. Threads may ask at the same time: `setdefault` is atomic."""
    key = (rotary_dim, theta, scaling)
    return _FREQUENCIES.setdefault(key, inverse_frequencies(*key))


def _sizes(tensor: Tensor, num_dims: int, name: str) -> tuple[int, ...]:
    if tensor.dim() != num_dims:
        raise KernelError(f"native kernels: {name} has shape {list(tensor.shape)}, not {num_dims} dims")
    return tuple(tensor.shape)


def _check(tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], name: str) -> None:
    if tensor.dtype not in dtypes or tuple(tensor.shape) != shape or not _is_readable(tensor):
        raise KernelError(
            f"native kernels: {name} is {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            f"{'' if tensor.is_contiguous() else ', not contiguous'}; "
            f"they take {' or '.join(map(str, dtypes))} {list(shape)}, contiguous, on the cpu"
        )


def _is_readable(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.is_cpu


def tally_address(tally: LayerTally | None) -> int:
    """0: not to count."""
    if tally is None:
        return 0
    if not tally.address:
        raise KernelError("native kernels count in a native tally (routing/load/native_tally.py), not in a reference")
    return tally.address
