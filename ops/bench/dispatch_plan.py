"""What planning one dispatch costs: the reference in torch and its twin in C++, at the full model's shape.

    python -m ops.bench.dispatch_plan [--repeats N]

288 experts, 8 of them for each token, on 8 ranks with and without a redundant slot each; ids are drawn by Zipf's law
with exponent 1. Both plan the same batches in turn, and are compared to the bit before they are timed.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import numpy as np
import torch
from torch import Tensor

from routing.experts import ExpertMap, linear_expert_map
from routing.placement.contract import PlacementProblem, TierCost, placement_policy
from routing.plan import LayerRouting, PlanDispatch, layer_routing, plan_dispatch, planner

NUM_EXPERTS, TOP_K, EP_SIZE = 288, 8, 8
BATCHES = (1, 8, 32, 128, 512)


def draw(num_tokens: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """topk_ids, int64 [T, K], different within a token, and topk_weights, float32 [T, K], that sum to 1."""
    popularity = 1.0 / np.arange(1, NUM_EXPERTS + 1)
    # The largest of Gumbel-perturbed logarithms are a draw without replacement.
    scores = np.log(popularity) + rng.gumbel(size=(num_tokens, NUM_EXPERTS))
    ids = np.argsort(-scores, axis=1)[:, :TOP_K]
    weights = rng.dirichlet(np.ones(TOP_K), num_tokens).astype(np.float32)
    return torch.from_numpy(ids.copy()), torch.from_numpy(weights)


def maps() -> dict[str, ExpertMap]:
    """Without copies, and with eight of the hottest experts on a second rank."""
    empty = linear_expert_map(1, NUM_EXPERTS, EP_SIZE, num_redundant_slots=1)
    load = 1.0 / np.arange(1, NUM_EXPERTS + 1)[np.newaxis, :]
    problem = PlacementProblem(expert_map=empty, load=load, cost=TierCost(0.0, 1.0), max_moves=None)
    return {
        "no copies": linear_expert_map(1, NUM_EXPERTS, EP_SIZE),
        "one redundant slot": placement_policy("tier_time").plan(problem),
    }


def microseconds(plan: PlanDispatch, batches: list[tuple[Tensor, Tensor]], routing: LayerRouting) -> float:
    """Median over batches."""
    seconds = []
    for ids, weights in batches:
        began_at = time.perf_counter()
        plan(ids, weights, routing)
        seconds.append(time.perf_counter() - began_at)
    return 1e6 * median(seconds)


def check_equal(batches: list[tuple[Tensor, Tensor]], routing: LayerRouting, native: PlanDispatch) -> None:
    """Raises AssertionError where the twins differ."""
    for ids, weights in batches:
        expected, found = plan_dispatch(ids, weights, routing), native(ids, weights, routing)
        assert (expected.row_splits, expected.pair_splits) == (found.row_splits, found.pair_splits), "splits differ"
        for name in ("row_token", "pair_row", "pair_slot", "pair_weight", "pair_source"):
            assert torch.equal(getattr(expected, name), getattr(found, name)), f"{name} differs"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200, help="batches of each size")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rng, native = np.random.default_rng(0), planner("cpu")
    assert native is not plan_dispatch, "the native planner is not built"
    rows = []
    print("| map | tokens | rows | distinct (rank, expert) | torch us | C++ us | times faster |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, expert_map in maps().items():
        routing = layer_routing(expert_map, 0)
        for num_tokens in BATCHES:
            batches = [draw(num_tokens, rng) for _ in range(repeats)]
            check_equal(batches[:20], routing, native)
            took = [microseconds(plan, batches, routing) for plan in (plan_dispatch, native)]
            plan = native(*batches[0], routing)
            touched = sum(len(set(slots.tolist())) for slots in plan.pair_slot.split(plan.pair_splits))
            rows.append({"map": name, "tokens": num_tokens, "torch_us": took[0], "native_us": took[1]})
            print(
                f"| {name} | {num_tokens} | {sum(plan.row_splits)} | {touched} | {took[0]:.0f} | {took[1]:.1f} "
                f"| {took[0] / took[1]:.1f} |"
            )
    print(json.dumps({"benchmark": "dispatch-plan", "repeats": repeats, "rows": rows}))


if __name__ == "__main__":
    main()
