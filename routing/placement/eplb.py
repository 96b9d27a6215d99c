"""EPLB, the public heuristic: replicate the hottest, then pack heaviest first into the lightest rank. Pure.

It looks at the load alone, not at where experts are. Packed without a constraint, as the public one does, two copies of
an expert may meet on one rank; the policies repair that, because an expert map does not allow it.
(DeepSeek-AI, Expert Parallelism Load Balancer, 2025: global and hierarchical.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from routing.experts import ExpertMap
from routing.placement.contract import FloatArray, PlacementProblem
from routing.placement.holders import Holders, map_of

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


def pack(weights: Sequence[float], num_packs: int) -> list[list[int]]:
    """Indices of the items of each pack, all packs equally full: the heaviest first, into the lightest with room."""
    room = len(weights) // num_packs
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    totals = [0.0] * num_packs
    for item in sorted(range(len(weights)), key=lambda idx: (-weights[idx], idx)):
        pack_id = min((p for p in range(num_packs) if len(packs[p]) < room), key=lambda p: (totals[p], p))
        packs[pack_id].append(item)
        totals[pack_id] += weights[item]
    return packs


def global_tables(load: Sequence[float], ep_size: int, slots_per_rank: int) -> list[list[int]]:
    """Logical ids of each rank as the public algorithm gives them: a rank may hold an expert twice."""
    replicated = replicate(load, ep_size * slots_per_rank)
    copies = [replicated.count(expert) for expert in range(len(load))]
    packs = pack([load[expert] / copies[expert] for expert in replicated], ep_size)
    return [[replicated[item] for item in items] for items in packs]


def hierarchical_tables(
    load: Sequence[float], ep_size: int, slots_per_rank: int, num_nodes: int, num_groups: int
) -> list[list[int]]:
    """The same with experts of a group on one node: groups are packed into nodes, then each node is a world."""
    size = len(load) // num_groups
    groups = [range(group * size, (group + 1) * size) for group in range(num_groups)]
    tables: list[list[int]] = []
    for node_groups in pack([sum(load[expert] for expert in group) for group in groups], num_nodes):
        experts = sorted(expert for group in node_groups for expert in groups[group])
        ranks = global_tables([load[expert] for expert in experts], ep_size // num_nodes, slots_per_rank)
        tables += [[experts[local] for local in rank] for rank in ranks]
    return tables


def without_duplicates(tables: Sequence[Sequence[int]], slots_per_rank: int) -> Holders:
    """The sets of each rank; a second copy on one rank goes to the emptiest rank without that expert, or nowhere."""
    holders = [set(rank) for rank in tables]
    for rank in tables:
        for expert in sorted((Counter(rank) - Counter(set(rank))).elements()):
            others = [r for r, held in enumerate(holders) if expert not in held and len(held) < slots_per_rank]
            if others:
                holders[min(others, key=lambda r: (len(holders[r]), r))].add(expert)
    return holders


class GlobalEplb:
    """See `contract.PlacementPolicy`. Knows no cost, no pins and no limit of moves."""

    def plan(self, problem: PlacementProblem) -> ExpertMap:
        layers = [without_duplicates(self._tables(problem, row), _slots(problem)) for row in _rows(problem.load)]
        return map_of(layers, problem.expert_map)

    def _tables(self, problem: PlacementProblem, load: Sequence[float]) -> list[list[int]]:
        return global_tables(load, problem.expert_map.ep_size, _slots(problem))


class HierarchicalEplb(GlobalEplb):
    """Groups of experts, one for each rank as the model was trained with, stay together on a node."""

    def _tables(self, problem: PlacementProblem, load: Sequence[float]) -> list[list[int]]:
        ep_size, hosts = problem.expert_map.ep_size, problem.host_of_rank
        num_nodes = math.gcd(ep_size, len(set(hosts)) if hosts is not None else NUM_NODES)
        return hierarchical_tables(load, ep_size, _slots(problem), num_nodes, num_groups=ep_size)


def _slots(problem: PlacementProblem) -> int:
    return problem.expert_map.slots_per_rank


def _rows(load: FloatArray) -> list[list[float]]:
    rows: list[list[float]] = load.tolist()
    return rows
