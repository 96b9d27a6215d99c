"""Puts pinned experts where an operator wants them, making room with as little change as possible. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from routing.placement.holders import Holders


def pinned_holders(holders: Holders, pins: Mapping[int, tuple[int, ...]], slots_per_rank: int) -> Holders:
    """Holders in which every pinned expert is exactly on its ranks. Raises ValueError when there is no room."""
    result = [set(held) for held in holders]
    for expert, ranks in sorted(pins.items()):
        left = [rank for rank, held in enumerate(result) if expert in held and rank not in ranks]
        for rank in left:
            result[rank].remove(expert)
        for rank in ranks:
            if expert not in result[rank]:
                if len(result[rank]) >= slots_per_rank:
                    _make_room(result, rank, pins, slots_per_rank)
                result[rank].add(expert)
    return result


def _make_room(holders: Holders, rank: int, pins: Mapping[int, tuple[int, ...]], slots_per_rank: int) -> None:
    """Take one expert that is not pinned off a full rank: a redundant copy, else one that another rank has room for."""
    movable = sorted(holders[rank] - pins.keys())
    for expert in movable:
        if sum(expert in held for held in holders) > 1:
            holders[rank].remove(expert)
            return
    for expert in movable:
        for other, held in sorted(enumerate(holders), key=lambda entry: (len(entry[1]), entry[0])):
            if other != rank and len(held) < slots_per_rank:
                holders[rank].remove(expert)
                held.add(expert)
                return
    raise ValueError(f"there is no room for a pinned expert on rank {rank}: every slot holds a pinned or an only copy")
