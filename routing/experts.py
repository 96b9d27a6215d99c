"""ExpertMap: which physical expert (rank and slot) holds which logical expert, per MoE layer.

Immutable and numbered by `map_epoch`. Physical ids are rank-major: physical_id = ep_rank * slots_per_rank + slot.
Knows nothing of load, weights or processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

PAIRS_PER_TOUCH = 16  # pairs that cost a rank as much as reading one expert's weights, until its tier has measured it
EMPTY_SLOT = -1

Int32Array = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ExpertMap:
    """Logical to physical experts for every MoE layer.

    physical_to_logical: int32 [num_moe_layers, ep_size * slots_per_rank], EMPTY_SLOT where a slot holds nothing.
    MoE layers are counted from 0 (`moe_layer_idx`), dense layers do not appear. The table is copied and read-only.
    Raises ValueError at birth when a logical expert has no copy, or two copies on one rank.
    """

    map_epoch: int
    ep_size: int
    num_logical_experts: int
    physical_to_logical: Int32Array

    def __post_init__(self) -> None:
        table = _int32_table(self.physical_to_logical)
        table.setflags(write=False)
        object.__setattr__(self, "physical_to_logical", table)
        _check(self)

    @property
    def num_moe_layers(self) -> int:
        return int(self.physical_to_logical.shape[0])

    @property
    def num_physical_experts(self) -> int:
        return int(self.physical_to_logical.shape[1])

    @property
    def slots_per_rank(self) -> int:
        return self.num_physical_experts // self.ep_size

    @cached_property
    def num_copies(self) -> Int32Array:
        """int32 [num_moe_layers, num_logical_experts]: physical copies of each logical expert, at least 1."""
        counts = np.zeros((self.num_moe_layers, self.num_logical_experts), dtype=np.int32)
        layers, physical = np.nonzero(self.physical_to_logical != EMPTY_SLOT)
        np.add.at(counts, (layers, self.physical_to_logical[layers, physical]), 1)
        return counts

    @cached_property
    def logical_to_physical(self) -> Int32Array:
        """int32 [num_moe_layers, num_logical_experts, max_copies]: physical ids ascending, -1 pads."""
        max_copies = int(self.num_copies.max(initial=1))
        table = np.full((*self.num_copies.shape, max_copies), -1, dtype=np.int32)
        for row, entries in zip(self.physical_to_logical, table, strict=True):
            held = np.flatnonzero(row != EMPTY_SLOT)
            by_logical = held[np.argsort(row[held], kind="stable")]
            logical = row[by_logical]
            # The n-th copy of an expert stands n places behind the expert's first one.
            entries[logical, np.arange(len(logical)) - np.searchsorted(logical, logical)] = by_logical
        return table

    def local_experts(self, ep_rank: int) -> Int32Array:
        """int32 [num_moe_layers, slots_per_rank]: the logical expert in each slot of one rank."""
        start = ep_rank * self.slots_per_rank
        return self.physical_to_logical[:, start : start + self.slots_per_rank]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExpertMap) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.map_epoch, self.ep_size, self.num_logical_experts, self.physical_to_logical.tobytes()))

    def to_dict(self) -> dict[str, object]:
        """Plain values only, so that a map crosses a process without pickle."""
        return {
            "map_epoch": self.map_epoch,
            "ep_size": self.ep_size,
            "num_logical_experts": self.num_logical_experts,
            "physical_to_logical": self.physical_to_logical.tolist(),
        }

    @classmethod
    def from_dict(cls, fields: object) -> ExpertMap:
        """Inverse of `to_dict`. Raises ValueError or KeyError on anything else; numbers are never rounded or parsed."""
        if not isinstance(fields, Mapping):
            raise ValueError(f"an expert map is a mapping of its fields, not {fields!r}")  # noqa: TRY004 - one kind
        numbers = {name: _whole(fields[name], name) for name in ("map_epoch", "ep_size", "num_logical_experts")}
        rows = fields["physical_to_logical"]
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise ValueError("physical_to_logical must be a list of lists")
        table = _int32_table([[_whole(logical, "a logical id") for logical in row] for row in rows])
        return cls(physical_to_logical=table, **numbers)


def linear_expert_map(
    num_moe_layers: int,
    num_logical_experts: int,
    ep_size: int,
    *,
    num_redundant_slots: int = 0,
    map_epoch: int = 0,
) -> ExpertMap:
    """Contiguous blocks of experts per rank, as the model was trained (specification, section 7).

    `num_redundant_slots` more slots per rank stay empty, for rebalancing. Raises ValueError when ep_size does not
    divide num_logical_experts.
    """
    check_ep_size(num_logical_experts, ep_size)
    per_rank = num_logical_experts // ep_size
    rows: list[int] = []
    for ep_rank in range(ep_size):
        rows.extend(range(ep_rank * per_rank, (ep_rank + 1) * per_rank))
        rows.extend([EMPTY_SLOT] * num_redundant_slots)
    return expert_map_from_rows([rows] * num_moe_layers, num_logical_experts, ep_size, map_epoch=map_epoch)


def expert_map_from_rows(
    rows: Sequence[Sequence[int]], num_logical_experts: int, ep_size: int, *, map_epoch: int = 0
) -> ExpertMap:
    """One sequence of logical ids (EMPTY_SLOT allowed) per MoE layer, rank-major. Raises ValueError as ExpertMap."""
    return ExpertMap(map_epoch, ep_size, num_logical_experts, _int32_table(rows))


def joined_slots(maps: Sequence[ExpertMap], ep_rank: int) -> Int32Array:
    """int32 [num_moe_layers, slots_per_rank]: what each slot of a rank must hold to serve all of these maps at once.

    Raises ValueError when two of them put different experts into one slot.
    """
    joined = maps[0].local_experts(ep_rank).copy()
    for expert_map in maps[1:]:
        other = expert_map.local_experts(ep_rank)
        if np.any((joined != other) & (joined != EMPTY_SLOT) & (other != EMPTY_SLOT)):
            epochs = [each.map_epoch for each in maps]
            raise ValueError(f"maps {epochs} put different experts into one slot of EP rank {ep_rank}")
        joined = np.where(joined == EMPTY_SLOT, other, joined)
    return joined


def check_ep_size(num_logical_experts: int, ep_size: int) -> None:
    """Raises ValueError, with both numbers, when experts cannot be divided over the ranks."""
    if ep_size < 1 or ep_size > num_logical_experts or num_logical_experts % ep_size:
        raise ValueError(f"ep_size {ep_size} must divide the {num_logical_experts} routed experts and not exceed them")


def _whole(value: object, name: str) -> int:
    # A bool is an int to Python, and here a mistake.
    if type(value) is not int:
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    return value


def _int32_table(rows: ArrayLike) -> Int32Array:
    """A copy. Raises ValueError for rows of different lengths and for numbers that int32 would change."""
    table = np.array(rows)
    limits = np.iinfo(np.int32)
    if table.size and (table.dtype.kind not in "iu" or table.min() < limits.min or table.max() > limits.max):
        raise ValueError(f"logical ids must be whole numbers of 32 bits, got an array of {table.dtype}")
    return table.astype(np.int32)


def _check(expert_map: ExpertMap) -> None:
    table, ep_size = expert_map.physical_to_logical, expert_map.ep_size
    if table.ndim != 2 or ep_size < 1 or table.shape[1] % ep_size:
        raise ValueError(f"physical_to_logical of shape {table.shape} does not divide over ep_size {ep_size}")
    if table.size and (table.min() < EMPTY_SLOT or table.max() >= expert_map.num_logical_experts):
        raise ValueError(f"logical ids must lie in [-1, {expert_map.num_logical_experts})")
    if table.shape[1] < expert_map.num_logical_experts:
        raise ValueError(f"{table.shape[1]} slots cannot hold {expert_map.num_logical_experts} logical experts")
    is_held = np.zeros((table.shape[0], expert_map.num_logical_experts + 1), dtype=np.bool_)
    np.put_along_axis(is_held, table, values=True, axis=1)  # empty slots are -1: the last column
    is_missing = ~is_held[:, :-1]
    slots = np.sort(table.reshape(len(table), ep_size, expert_map.slots_per_rank), axis=2)
    is_double = ((slots[..., 1:] == slots[..., :-1]) & (slots[..., 1:] != EMPTY_SLOT)).any(axis=2)
    for layer in np.flatnonzero(is_missing.any(axis=1) | is_double.any(axis=1)).tolist():
        if is_missing[layer].any():
            missing = np.flatnonzero(is_missing[layer]).tolist()
            raise ValueError(f"MoE layer {layer}: logical experts {missing[:8]} have no physical copy")
        ep_rank = int(is_double[layer].argmax())
        raise ValueError(f"MoE layer {layer}: rank {ep_rank} holds two copies of one logical expert")
