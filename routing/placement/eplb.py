"""EPLB, the public heuristic: replicate the hottest, then pack heaviest first into the lightest rank. Pure.

It looks at the load alone, not at where experts are. Packed without a constraint, as the public one does, two copies of
an expert may meet on one rank; an expert map does not allow that, so the policies pack a copy onto a rank without the
expert, and give up one that finds none.
(DeepSeek-AI, Expert Parallelism Load Balancer, 2025: global and hierarchical.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from routing.experts import ExpertMap
from routing.placement.contract import PlacementProblem
from routing.placement.holders import held_of, map_of, map_of_held
from routing.placement.pinning import pinned

NUM_NODES = 2  # of the hierarchical form where nobody says which ranks share a host


def replicate(load: Sequence[float], num_physical: int) -> list[int]:
    """Logical ids of all physical experts: each one once, and every further copy goes to the highest load per copy."""
    copies = [1] * len(load)
    replicated = list(range(len(load)))
    for _ in range(num_physical - len(load)):
        hottest = max(range(len(load)), key=lambda expert: (load[expert] / copies[expert], -expert))
        copies[hottest] += 1
        replicated.append(hottest)
    return replicated


def pack(weights: Sequence[float], num_packs: int, experts: Sequence[int] | None = None) -> list[list[int]]:
    """Indices of the items of each pack, none fuller than an equal part: heaviest first, into the lightest with room.

    experts: of each item. No pack gets one twice then, and an item that finds no pack is left out.
    """
    room = len(weights) // num_packs
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    totals = [0.0] * num_packs
    has: list[set[int]] = [set() for _ in range(num_packs)]
    for item in sorted(range(len(weights)), key=lambda idx: (-weights[idx], idx)):
        key = item if experts is None else experts[item]
        if open_packs := [p for p in range(num_packs) if len(packs[p]) < room and key not in has[p]]:
            pack_id = min(open_packs, key=lambda p: (totals[p], p))
            packs[pack_id].append(item)
            has[pack_id].add(key)
            totals[pack_id] += weights[item]
    return packs


def global_tables(
    load: Sequence[float], ep_size: int, slots_per_rank: int, *, is_repaired: bool = False
) -> list[list[int]]:
    """Logical ids of each rank as the public algorithm gives them: a rank may hold an expert twice, unless repaired."""
    replicated = replicate(load, ep_size * slots_per_rank)
    copies = Counter(replicated)
    weights = [load[expert] / copies[expert] for expert in replicated]
    packs = pack(weights, ep_size, replicated if is_repaired else None)
    return [[replicated[item] for item in items] for items in packs]


def hierarchical_tables(
    load: Sequence[float],
    nodes: Sequence[Sequence[int]],
    slots_per_rank: int,
    num_groups: int,
    *,
    is_repaired: bool = False,
) -> list[list[int]]:
    """The same with experts of a group on one node: groups are packed into nodes, then each node is a world.

    nodes: the ranks of each, all equally many.
    """
    size = len(load) // num_groups
    groups = [range(group * size, (group + 1) * size) for group in range(num_groups)]
    tables: dict[int, list[int]] = {}
    for ranks, own in zip(nodes, pack([sum(load[e] for e in group) for group in groups], len(nodes)), strict=True):
        experts = sorted(expert for group in own for expert in groups[group])
        world = [load[expert] for expert in experts]
        local = global_tables(world, len(ranks), slots_per_rank, is_repaired=is_repaired)
        tables |= {rank: [experts[idx] for idx in row] for rank, row in zip(ranks, local, strict=True)}
    return [tables[rank] for rank in sorted(tables)]


def num_duplicates(tables: Sequence[Sequence[int]]) -> int:
    """Copies that share their rank with another one of the same expert."""
    return sum(len(rank) - len(set(rank)) for rank in tables)


def nodes_of(ep_size: int, host_of_rank: Sequence[int] | None) -> list[Sequence[int]]:
    """The ranks of each host; one node for all where hosts have different numbers of ranks."""
    if host_of_rank is None:
        host_of_rank = [rank * NUM_NODES // ep_size for rank in range(ep_size)]
    nodes = [[r for r, host in enumerate(host_of_rank) if host == each] for each in sorted(set(host_of_rank))]
    return list(nodes) if len({len(node) for node in nodes}) == 1 else [range(ep_size)]


class GlobalEplb:
    """See `contract.PlacementPolicy`. Knows neither cost nor limits; pins are put right afterwards."""

    def plan(self, problem: PlacementProblem) -> ExpertMap:
        """Raises ValueError when there is no room for the pins."""
        rows: list[list[float]] = problem.load.tolist()
        layers = [[set(rank) for rank in self._tables(problem, row)] for row in rows]
        held = held_of(map_of(layers, problem.expert_map))
        return map_of_held(pinned(held, problem), problem.expert_map)

    def _tables(self, problem: PlacementProblem, load: Sequence[float]) -> list[list[int]]:
        expert_map = problem.expert_map
        return global_tables(load, expert_map.ep_size, expert_map.slots_per_rank, is_repaired=True)


class HierarchicalEplb(GlobalEplb):
    """Groups of experts, one for each rank as the model was trained with, stay together on a node."""

    def _tables(self, problem: PlacementProblem, load: Sequence[float]) -> list[list[int]]:
        ep_size = problem.expert_map.ep_size
        nodes = nodes_of(ep_size, problem.host_of_rank)
        slots = problem.expert_map.slots_per_rank
        return hierarchical_tables(load, nodes, slots, num_groups=ep_size, is_repaired=True)
