"""How good placement policies are, without a cluster: balance, predicted time, moves and planning time.

    python -m ops.bench.placement [--layers 42] [--results ops/nano/results.json]

Synthetic loads have the shape of Step-3.5-Flash: 42 MoE layers of 288 experts on 8 ranks. The nano model's loads are
those that `ops.nano.evaluate` measured by domain. Everything follows from fixed seeds but the planning times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from routing.experts import ExpertMap, linear_expert_map
from routing.placement.contract import FloatArray, PlacementProblem, TierCost, placement_policy
from routing.placement.eplb import global_tables
from routing.placement.holders import holders_of
from routing.placement.score import balancedness, layer_seconds, least_seconds, most_balanced, rank_pairs

EXPERTS, RANKS, TOP_K, TOKENS = 288, 8, 8, 64
POLICIES = ("linear", "eplb", "eplb_hierarchical", "tier_time")
# Pairs alone decide at large batches; at small ones reading an expert costs as much as several pairs.
COSTS: Mapping[str, TierCost] = {"pairs only": TierCost(0.0, 1e-6), "touch = 16 pairs": TierCost(16e-6, 1e-6)}
DRIFT = 0.1
SEED = 35

LEGEND = """\
balance: mean over layers of mean / max pairs of a rank, and the most that so many slots allow.
time: predicted, over the least possible. plan: one run.
moves: experts loaded from the linear map; after drift: once a tenth of the load is another's.
doubled: (layer, rank) pairs with two copies of an expert in the public EPLB; the policy here repairs them.
"""


@dataclass(frozen=True)
class Row:
    """One policy on one load. balancedness, time: of the planned map, the latter over the least possible time. moves:
    from the linear map; drift_moves: after the load has drifted by a tenth. plan_ms: of the first plan."""

    load: str
    slots: int
    cost: str
    policy: str
    balancedness: float
    best_balancedness: float
    time: float
    moves: int
    drift_moves: int
    plan_ms: float
    duplicates: int


def zipf(exponent: float) -> Callable[[np.random.Generator, int], FloatArray]:
    """Popular experts anywhere, anew in each layer."""

    def load(rng: np.random.Generator, num_layers: int) -> FloatArray:
        return np.stack([rng.permutation(_zipf_shares(exponent)) for _ in range(num_layers)])

    return load


def correlated(rng: np.random.Generator, num_layers: int) -> FloatArray:
    """Layers that resemble one another: one ranking, of which each layer exchanges a tenth."""
    order = rng.permutation(EXPERTS)
    rows = []
    for _ in range(num_layers):
        own = order.copy()
        chosen = rng.choice(EXPERTS, EXPERTS // 10, replace=False)
        own[chosen] = rng.permutation(own[chosen])
        rows.append(_zipf_shares(1.0)[own])
    return np.stack(rows)


def one_domain(rng: np.random.Generator, num_layers: int) -> FloatArray:
    """Half of the load on one expert in twenty, neighbours that one rank holds."""
    load = np.ones((num_layers, EXPERTS))
    num_hot = EXPERTS // 20
    for row in load:
        first = int(rng.integers(0, EXPERTS - num_hot))
        row[first : first + num_hot] += EXPERTS / num_hot
    return load


LOADS: Mapping[str, Callable[[np.random.Generator, int], FloatArray]] = {
    "Zipf 0.5": zipf(0.5),
    "Zipf 1.0": zipf(1.0),
    "Zipf 1.5": zipf(1.5),
    "correlated": correlated,
    "one domain": one_domain,
}


def per_step(load: FloatArray) -> FloatArray:
    """Pairs of each expert in a step of TOKENS tokens."""
    scaled: FloatArray = load / load.sum(axis=1, keepdims=True) * TOKENS * TOP_K
    return scaled


def measure(name: str, load: FloatArray, other: FloatArray, slots: int, ep_size: int = RANKS) -> Iterator[Row]:
    """Every policy and cost. other: another load of the same kind, of which a tenth is mixed in as drift."""
    start = linear_expert_map(load.shape[0], load.shape[1], ep_size, num_redundant_slots=slots)
    drifted = (1.0 - DRIFT) * load + DRIFT * other
    num_copies = slots * ep_size
    for cost_name, cost in COSTS.items():
        for policy_name in POLICIES:
            policy = placement_policy(policy_name)
            began_at = time.perf_counter()
            planned = policy.plan(PlacementProblem(start, load, cost))
            plan_ms = 1e3 * (time.perf_counter() - began_at)
            again = policy.plan(PlacementProblem(planned, drifted, cost))
            yield Row(
                load=name,
                slots=slots,
                cost=cost_name,
                policy=policy_name,
                balancedness=float(balancedness(rank_pairs(planned, load)).mean()),
                best_balancedness=float(most_balanced(load, ep_size, num_copies).mean()),
                time=_over_least(planned, load, cost, num_copies),
                moves=num_moves(start, planned),
                drift_moves=num_moves(planned, again),
                plan_ms=plan_ms,
                duplicates=duplicates(load, ep_size, start.slots_per_rank) if policy_name == "eplb" else 0,
            )


def num_moves(before: ExpertMap, after: ExpertMap) -> int:
    """Experts that a rank must load."""
    layers = range(before.num_moe_layers)
    return sum(
        len(new - old)
        for idx in layers
        for old, new in zip(holders_of(before, idx), holders_of(after, idx), strict=True)
    )


def duplicates(load: FloatArray, ep_size: int, slots_per_rank: int) -> int:
    """(layer, rank) pairs on which the public EPLB puts two copies of an expert."""
    tables = (rank for row in load.tolist() for rank in global_tables(row, ep_size, slots_per_rank))
    return sum(max(Counter(rank).values()) > 1 for rank in tables)


def nano_loads(results: Path) -> dict[str, FloatArray]:
    """By domain, [L, E], what the nano model's gates chose of held-out text. Empty without results."""
    if not results.exists():
        return {}
    domains = json.loads(results.read_text())["routing"]["domains"]
    return {
        domain["domain"]: np.array([layer["load"] for layer in domain["layers"]], dtype=np.float64)
        for domain in domains
        if domain["domain"] in ("arithmetic", "tools", "code", "text")
    }


def report(title: str, rows: Sequence[Row]) -> None:
    """A table for people."""
    print(f"\n{title}\n")
    print("| load | slots | price | policy | balance | of at most | time | moves | after drift | plan, ms | doubled |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.load} | {row.slots} | {row.cost} | {row.policy} | {row.balancedness:.3f} | "
            f"{row.best_balancedness:.3f} | {row.time:.3f} | {row.moves} | {row.drift_moves} | {row.plan_ms:.0f} | "
            f"{row.duplicates or ''} |"
        )


def main() -> None:
    """All loads, all policies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=42)
    parser.add_argument("--slots", type=int, nargs="+", default=[0, 1, 2, 4, 8], help="redundant ones of each rank")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "nano" / "results.json")
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)
    loads = {name: [per_step(make(rng, options.layers)) for _ in range(2)] for name, make in LOADS.items()}
    nano = {name: per_step(load) for name, load in nano_loads(options.results).items()}
    rows: list[Row] = []
    nano_rows: list[Row] = []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("planning", total=(len(loads) + len(nano)) * len(options.slots))
        for slots in options.slots:
            for name, (load, other) in loads.items():
                rows += measure(name, load, other, slots)
                progress.advance(task)
            for name, load in nano.items():
                nano_rows += measure(name, load, next(other for key, other in nano.items() if key != name), slots)
                progress.advance(task)
    print(LEGEND)
    report(f"{options.layers} layers of {EXPERTS} experts on {RANKS} ranks", rows)
    if nano_rows:
        report(
            "nano model, 6 layers of 64 experts on 8 ranks, held-out text by domain; drift is towards another",
            nano_rows,
        )
    print(json.dumps({"benchmark": "placement", "rows": [asdict(row) for row in (*rows, *nano_rows)]}))


def _zipf_shares(exponent: float) -> FloatArray:
    return np.asarray(1.0 / np.arange(1, EXPERTS + 1) ** exponent, dtype=np.float64)


def _over_least(planned: ExpertMap, load: FloatArray, cost: TierCost, num_copies: int) -> float:
    least = least_seconds(load, cost, planned.ep_size, num_copies).sum()
    return float(layer_seconds(planned, load, cost).sum() / least)


if __name__ == "__main__":
    main()
