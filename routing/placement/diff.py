"""From one map to another by stages that never leave an expert unserved. Pure.

While a stage is prepared, the map before it and the map after it are both served, so a stage fills only slots that were
empty, and what it takes away becomes empty only after it. A rank without an empty slot first gives up redundant copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from routing.experts import EMPTY_SLOT, ExpertMap, Int32Array
from routing.placement.holders import held_of, holders_of, slots_of
from routing.placement.layer_path import LayerPath


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
    changed = np.flatnonzero((held_of(current) != held_of(target)).any(axis=(1, 2))).tolist()
    ways = {layer: list(_way(current, target, layer)) for layer in changed}
    stages: list[Stage] = []
    before = current
    for number in range(max(map(len, ways.values()), default=0)):
        table = before.physical_to_logical.copy()
        for layer, steps in ways.items():
            if number < len(steps):
                table[layer] = np.array(steps[number]).ravel()
        stages.append(_stage(before, table))
        before = stages[-1].expert_map
    return Migration(tuple(stages))


def _way(current: ExpertMap, target: ExpertMap, moe_layer_idx: int) -> Iterator[list[list[int]]]:
    return LayerPath(slots_of(current)[moe_layer_idx].tolist(), holders_of(target, moe_layer_idx)).steps()


def _stage(before: ExpertMap, table: Int32Array) -> Stage:
    is_filled = (table != EMPTY_SLOT) & (table != before.physical_to_logical)
    moves = tuple(
        Move(layer, int(table[layer, physical]), *divmod(physical, before.slots_per_rank))
        for layer, physical in np.argwhere(is_filled).tolist()
    )
    return Stage(replace(before, map_epoch=before.map_epoch + 1, physical_to_logical=table), moves)
