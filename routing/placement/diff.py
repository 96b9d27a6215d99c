"""From one map to another by stages that never leave an expert unserved. Pure.

While a stage is prepared, the map before it and the map after it are both served, so a stage fills only slots that were
empty, and what it takes away becomes empty only after it. A rank without an empty slot first gives up redundant copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from routing.experts import EMPTY_SLOT, ExpertMap, Int32Array
from routing.placement.holders import Holders, holders_of


@dataclass(frozen=True)
class Move:
    """Load one expert from the checkpoint into one slot of a rank."""

    moe_layer_idx: int
    logical_id: int
    ep_rank: int
    slot: int


@dataclass(frozen=True)
class Stage:
    """expert_map: served once the moves are done. moves: all into slots that the map before leaves empty."""

    expert_map: ExpertMap
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Migration:
    """stages: in their order, none if nothing is to change. The last one's ranks hold what the target's hold."""

    stages: tuple[Stage, ...]

    @property
    def num_moves(self) -> int:
        return sum(len(stage.moves) for stage in self.stages)


def migration(current: ExpertMap, target: ExpertMap) -> Migration:
    """Stages from `current` to the sets of `target`, slots as they come; layers go side by side.

    Raises ValueError for a layer without any slot to spare, and for maps of different shapes.
    """
    if current.physical_to_logical.shape != target.physical_to_logical.shape or current.ep_size != target.ep_size:
        raise ValueError("both maps must have the same layers, ranks and slots")
    shape = (current.ep_size, current.slots_per_rank)
    layers = [
        _layer_steps(row.reshape(shape), holders_of(target, idx)) for idx, row in enumerate(current.physical_to_logical)
    ]
    stages: list[Stage] = []
    before = current
    for number in range(max(map(len, layers), default=0)):
        rows = [
            steps[min(number, len(steps) - 1)].reshape(-1) if steps else row
            for steps, row in zip(layers, before.physical_to_logical, strict=True)
        ]
        stages.append(_stage(before, np.stack(rows)))
        before = stages[-1].expert_map
    return Migration(tuple(stages))


def _stage(before: ExpertMap, table: Int32Array) -> Stage:
    is_filled = (table != EMPTY_SLOT) & (table != before.physical_to_logical)
    moves = tuple(
        Move(layer, int(table[layer, physical]), *divmod(physical, before.slots_per_rank))
        for layer, physical in np.argwhere(is_filled).tolist()
    )
    return Stage(replace(before, map_epoch=before.map_epoch + 1, physical_to_logical=table), moves)


def _layer_steps(slots: Int32Array, wanted: Holders) -> list[Int32Array]:
    """int32 [R, S] of one layer after each stage."""
    steps: list[Int32Array] = []
    while not _is_reached(slots, wanted):
        after = _step(slots, wanted)
        if not np.array_equal(after, slots):
            steps.append(after)
        else:  # every slot is taken by what must stay for now: let a copy give way, and come back at the end
            detour = _detour(slots, wanted)
            steps += [without := _step(slots, detour), after := _step(without, detour)]
        slots = after
    return steps


def _is_reached(slots: Int32Array, wanted: Holders) -> bool:
    return all(set(row[row != EMPTY_SLOT].tolist()) == target for row, target in zip(slots, wanted, strict=True))


def _step(slots: Int32Array, wanted: Holders) -> Int32Array:
    """As much as one stage can do: fill empty slots with what is missing, then let go of what has a copy elsewhere."""
    after = slots.copy()
    for row, target in zip(after, wanted, strict=True):
        missing = sorted(
            target - set(row.tolist()), key=lambda expert: (not _is_leaving(expert, slots, wanted), expert)
        )
        for slot, logical_id in zip(np.flatnonzero(row == EMPTY_SLOT).tolist(), missing, strict=False):
            row[slot] = logical_id
    copies = np.bincount(after[after != EMPTY_SLOT])
    for row, target in zip(after, wanted, strict=True):
        for slot in np.flatnonzero(row != EMPTY_SLOT).tolist():
            logical_id = int(row[slot])
            if logical_id not in target and copies[logical_id] > 1:
                copies[logical_id] -= 1
                row[slot] = EMPTY_SLOT
    return after


def _is_leaving(expert: int, slots: Int32Array, wanted: Holders) -> bool:
    """Whether a rank holds it that should not: bringing it elsewhere makes room there."""
    return any(expert in row and expert not in target for row, target in zip(slots, wanted, strict=True))


def _detour(slots: Int32Array, wanted: Holders) -> Holders:
    """What to want for two stages when nothing can move: one redundant copy less, on a rank that misses something; or
    elsewhere, in an empty slot or in a copy's place, an expert that stands in the way."""
    held = [set(row[row != EMPTY_SLOT].tolist()) for row in slots]
    copies = np.bincount(slots[slots != EMPTY_SLOT])
    detour = [set(target) for target in wanted]
    redundant = [
        (rank, expert) for rank, experts in enumerate(held) for expert in sorted(experts) if copies[expert] > 1
    ]
    for rank, expert in redundant:
        if wanted[rank] - held[rank]:
            detour[rank].discard(expert)
            return detour
    obstacle = min(expert for experts, target in zip(held, wanted, strict=True) for expert in experts - target)
    for rank, experts in enumerate(held):
        if len(experts) < slots.shape[1] and obstacle not in experts:
            detour[rank].add(obstacle)
            return detour
    if not redundant:
        raise ValueError("experts cannot move without a slot to spare: at least one redundant slot per rank is needed")
    rank, expert = redundant[0]
    detour[rank] = detour[rank] - {expert} | {obstacle}
    return detour
