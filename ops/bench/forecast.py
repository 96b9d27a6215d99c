"""Which count of past load forecasts the next window best: plain tokens, gate mass, or soft load, on real nano traffic.

    python -m ops.bench.forecast [--checkpoint FOLDER] [--tokens N]

Streams ask question after question of one engine in this process, of all kinds in turn ("mixed") or of one domain after
the other ("switching"). The gates are counted in pieces of some 256 tokens, which make up windows of several sizes. A
window's shares of load are compared with the tokens of the next window: total variation distance, mean over MoE layers,
and the same between EP ranks of consecutive experts. Differences are paired, against plain tokens; below zero is better
than those. Their intervals are bootstraps over pairs of windows. Last, maps are planned from each forecast with no
redundant slots, and judged by the next window.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import cycle
from operator import add
from pathlib import Path

import numpy as np
import torch

from actors.attention.config import AttentionConfig, MtpConfig
from actors.kernels.contract import GateOutput
from actors.local_cluster import LocalCluster
from actors.messages import GenerateRequest, SamplingSpec
from actors.weights.check import read_model_config
from ops.bench.domains import DOMAINS, mixed_prompts, prompts
from ops.bench.speculation import CHECKPOINT
from routing.experts import ExpertMap, linear_expert_map
from routing.load.forecast import rank_load_error, total_variation
from routing.load.monitor import LoadMonitor
from routing.load.sample import LoadSample
from routing.load.sums import FloatArray
from routing.placement.contract import PlacementProblem, TierCost, placement_policy
from routing.placement.score import rank_pairs

PIECE_TOKENS = 256
WINDOW_PIECES = (1, 4, 16)
PHASE_PIECES = 16  # of a domain before the next
SCALES = (0.25, 0.5, 1.0, 2.0)
NUM_STREAMS, MAX_ANSWER_TOKENS, MAX_MODEL_LEN, NUM_PROMPTS = 16, 48, 768, 1000
NUM_BOOTSTRAPS, SEED = 2000, 5
EP_SIZE = 8
COST = TierCost(per_expert_s=20e-6, per_pair_s=8e-6)  # of about this size on the machines where nano runs

Pieces = Sequence[Mapping[str, LoadSample]]
"""By kind of forecast; the tokens of all are the same."""


@dataclass(frozen=True)
class Difference:
    """Mean over pairs of windows of one forecast's error less that of plain tokens, and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """One kind of forecast on one traffic and window. error: mean total variation over experts. rank_error: over EP
    ranks. worse: of `error` than plain tokens. num_moves, balancedness: of maps planned from it, means over windows."""

    traffic: str
    window_tokens: int
    num_pairs: int
    kind: str
    error: float
    rank_error: float
    worse: Difference
    num_moves: float
    balancedness: float


class Counted:
    """An engine whose gates several monitors look at, one for each scale of the soft load."""

    def __init__(self, checkpoint: Path) -> None:
        config = AttentionConfig(
            max_running=NUM_STREAMS,
            max_model_len=MAX_MODEL_LEN,
            kv_cache_tokens=NUM_STREAMS * MAX_MODEL_LEN,
            mtp=MtpConfig(mode="off"),
        )
        self.model = read_model_config(checkpoint)
        self.engine = LocalCluster(checkpoint, config, ep_size=EP_SIZE).engine
        shape = len(self.model.moe_layers), self.model.num_experts
        self._monitors = {scale: LoadMonitor(*shape, margin_scale=scale) for scale in SCALES}
        self._num_tokens = 0
        self._num_requests = 0
        self.engine._decoder._observe = self._observe

    def pieces(self, questions: Iterator[Sequence[int]], num_pieces: int) -> Iterator[Mapping[str, LoadSample]]:
        """Answer questions until there are so many pieces, then forget those that are under way."""
        running: set[str] = set()
        while num_pieces:
            while len(running) < NUM_STREAMS:
                running.add(self._ask(next(questions)))
            self.engine.run()
            for monitor in self._monitors.values():
                monitor.end_step()
            running -= {event.request_id for event in self.engine.take_events() if event.finish_reason is not None}
            if self._num_tokens >= PIECE_TOKENS:
                self._num_tokens = 0
                num_pieces -= 1
                yield self._take()
        for request_id in running:
            self.engine.abort(request_id)

    def _ask(self, prompt: Sequence[int]) -> str:
        self._num_requests += 1
        spec = SamplingSpec(max_tokens=MAX_ANSWER_TOKENS, temperature=0.0)
        request_id = str(self._num_requests)
        self.engine.add(GenerateRequest(request_id, tuple(prompt[-MAX_MODEL_LEN // 2 :]), spec), now=0.0)
        return request_id

    def _observe(self, moe_layer_idx: int, gate: GateOutput) -> None:
        if moe_layer_idx == 0:
            self._num_tokens += len(gate.topk_ids)
        for monitor in self._monitors.values():
            monitor.observe(moe_layer_idx, gate)

    def _take(self) -> Mapping[str, LoadSample]:
        samples = {scale: monitor.take() for scale, monitor in self._monitors.items()}
        assert all(samples.values()), "a piece has tokens"
        return {f"soft x{scale:g}": sample for scale, sample in samples.items() if sample is not None}


def main() -> None:
    """Print a table and one JSON line."""
    options = _parse()
    torch.set_num_threads(1)
    counted = Counted(options.checkpoint)
    model = counted.model
    expert_map = linear_expert_map(len(model.moe_layers), model.num_experts, EP_SIZE)
    print(
        "| traffic | window tokens | pairs | forecast | error % | rank error % | worse by % (95 %) | moves | balance |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    results = []
    for traffic, questions in _traffic(options.checkpoint).items():
        pieces = list(_of_traffic(counted, questions, options.tokens // PIECE_TOKENS))
        for size in WINDOW_PIECES:
            results += [_shown(result) for result in _compare(traffic, pieces, size, expert_map)]
    print(json.dumps({"benchmark": "forecast", "results": [asdict(result) for result in results]}))


def _traffic(checkpoint: Path) -> Mapping[str, Sequence[Iterator[Sequence[int]]]]:
    """The prompts of every phase in turn; the first phase follows the last."""
    domains = [cycle(prompts(checkpoint, domain, NUM_PROMPTS)) for domain in DOMAINS]
    return {"mixed": [cycle(mixed_prompts(checkpoint, NUM_PROMPTS))], "switching": domains}


def _of_traffic(
    counted: Counted, phases: Sequence[Iterator[Sequence[int]]], num_pieces: int
) -> Iterator[Mapping[str, LoadSample]]:
    if len(phases) == 1:
        yield from counted.pieces(phases[0], num_pieces)
        return
    for _, phase in zip(range(0, num_pieces, PHASE_PIECES), cycle(phases), strict=False):
        yield from counted.pieces(phase, PHASE_PIECES)


def _compare(traffic: str, pieces: Pieces, size: int, expert_map: ExpertMap) -> Iterator[Result]:
    """Every kind of forecast on windows of `size` pieces."""
    windows = [
        {kind: reduce(add, (piece[kind] for piece in pieces[first : first + size])) for kind in pieces[0]}
        for first in range(0, len(pieces) - size + 1, size)
    ]
    any_kind = next(iter(pieces[0]))
    forecasts = {
        "tokens": [window[any_kind].load("tokens") for window in windows],
        "gate mass": [window[any_kind].load("gate_mass") for window in windows],
        **{kind: [window[kind].load("soft") for window in windows] for kind in pieces[0]},
    }
    came = forecasts["tokens"][1:]
    plain = _errors(forecasts["tokens"], came)
    for kind, loads in forecasts.items():
        errors = _errors(loads, came)
        ranks = [rank_load_error(load, after, expert_map).mean() for load, after in zip(loads, came, strict=False)]
        num_moves, balancedness = _planned(loads, came, expert_map)
        yield Result(
            traffic=traffic,
            window_tokens=size * PIECE_TOKENS,
            num_pairs=len(errors),
            kind=kind,
            error=float(errors.mean()),
            rank_error=float(np.mean(ranks)),
            worse=_difference(errors - plain),
            num_moves=num_moves,
            balancedness=balancedness,
        )


def _errors(loads: Sequence[FloatArray], came: Sequence[FloatArray]) -> FloatArray:
    return np.array([total_variation(load, after).mean() for load, after in zip(loads, came, strict=False)])


def _difference(differences: FloatArray) -> Difference:
    """A bootstrap over the pairs."""
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(differences), (NUM_BOOTSTRAPS, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
    return Difference(float(differences.mean()), float(low), float(high))


def _planned(loads: Sequence[FloatArray], came: Sequence[FloatArray], expert_map: ExpertMap) -> tuple[float, float]:
    """A map after each window, from the one before: experts loaded each time, and how balanced the next window is."""
    policy, moves, balance, current = placement_policy("tier_time"), [], [], expert_map
    for load, after in zip(loads, came, strict=False):
        planned = policy.plan(PlacementProblem(current, load, COST))
        moves.append(len(_held(planned) - _held(current)))
        pairs = rank_pairs(planned, after)
        balance.append(float((pairs.mean(axis=1) / pairs.max(axis=1)).mean()))
        current = planned
    return float(np.mean(moves)), float(np.mean(balance))


def _held(expert_map: ExpertMap) -> set[tuple[int, int, int]]:
    """(MoE layer, EP rank, logical expert) of every copy; in which slot does not matter."""
    return {
        (layer, physical_id // expert_map.slots_per_rank, int(logical))
        for layer, row in enumerate(expert_map.physical_to_logical)
        for physical_id, logical in enumerate(row)
    }


def _shown(result: Result) -> Result:
    worse = result.worse
    print(
        f"| {result.traffic} | {result.window_tokens} | {result.num_pairs} | {result.kind} | {result.error:.2%} "
        f"| {result.rank_error:.2%} | {worse.mean:+.2%} ({worse.low:+.2%} to {worse.high:+.2%}) "
        f"| {result.num_moves:.1f} | {result.balancedness:.3f} |",
        flush=True,
    )
    return result


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--tokens", type=int, default=65536, help="of each traffic, prompts and answers")
    return parser.parse_args()


if __name__ == "__main__":
    main()
