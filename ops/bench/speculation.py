"""What drafting is worth: decode speed without MTP, with 1, 2 and 3 drafts, and adaptive, by domain and streams.

    python -m ops.bench.speculation [--checkpoint FOLDER]

Greedy, on prompts that the model has not seen, with the expert ranks in this process and then in processes of their
own. All settings share weights and experts and take turns step by step, so that what disturbs the machine disturbs all
alike. The first rounds are not timed: they fill the prefix cache, count experts and let the adaptive setting learn.
Ratios are medians over the rounds of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from actors.attention.config import AttentionConfig, MtpConfig
from actors.attention.engine import build_engine, valid_vocab_size
from actors.attention.step import EngineStep
from actors.messages import GenerateRequest, SamplingSpec
from actors.model.config import ModelConfig
from actors.speculative.cost import StepCost
from actors.weights.check import read_model_config
from actors.weights.loader import load_attention_weights
from actors.weights.source import SafetensorsSource
from ops.bench.domains import DOMAINS, prompts
from ops.bench.expert_ranks import TIMEOUT_S, CountingDispatcher, local_experts, separate_experts
from ops.bench.speculation_tables import Cell, Measured, full_rows, print_cells, print_step_costs, print_verdict
from ops.bench.streams import StreamTimer, decode_in_turns
from routing.dispatcher import TimedDispatcher
from routing.experts import linear_expert_map

CHECKPOINT = Path(__file__).parents[1] / "nano" / "checkpoint"
MAX_DRAFTS = 3
SETTINGS: Mapping[str, MtpConfig] = {
    "off": MtpConfig(mode="off"),
    **{str(k): MtpConfig(mode="fixed", max_drafts=k) for k in range(1, MAX_DRAFTS + 1)},
    "adaptive": MtpConfig(mode="adaptive", max_drafts=MAX_DRAFTS),
}
MAX_STREAMS = 32
MAX_MODEL_LEN = 2048
TOKENS_PER_STREAM = 1024  # room in the KV cache: a prompt, an answer, and prompts that are kept for the next round
MAX_BATCHES = 4  # different prompts for each measurement of a cell, where the streams leave any
WARM_UP_BATCHES = 4 * MAX_BATCHES


@dataclass(frozen=True)
class Plan:
    """What is to be measured. tokens: of an answer at most. rounds: timed ones."""

    checkpoint: Path
    streams: Sequence[int]
    tokens: int
    rounds: int
    domains: Sequence[str]
    separate_domains: Sequence[str]
    ep_size: int


class TimedCost(StepCost):
    """The engine's own prices, which also remember how long draft passes took. passes: number of drafts, seconds."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__(model.num_experts, model.top_k)
        self.passes: list[tuple[int, float]] = []

    def observe_drafting(self, num_modules: int, num_module_rows: int, num_drafts: int, seconds: float) -> None:
        super().observe_drafting(num_modules, num_module_rows, num_drafts, seconds)
        self.passes.append((num_drafts, seconds))


class Bench:
    """One engine for each setting, over the same weights and experts."""

    def __init__(self, plan: Plan, experts: TimedDispatcher) -> None:
        self._plan = plan
        self._model = read_model_config(plan.checkpoint)
        self._dispatchers = {name: CountingDispatcher(experts) for name in SETTINGS}
        self._costs = {name: TimedCost(self._model) for name in SETTINGS}
        self._engines = self._load()
        self._num_requests = 0

    def cell(self, domain: str, streams: int, progress: Progress, task: TaskID) -> Cell:
        """Measure all settings at one number of streams; the first rounds are for warming up."""
        batches = self._prompts(domain, streams)
        rounds: list[dict[str, Measured]] = []
        for idx in range(warm_up_rounds(streams) + self._plan.rounds):
            rounds.append({name: Measured() for name in SETTINGS})
            for batch in batches:
                self._measure(batch, rounds[-1], counts_experts=idx == 0)
                progress.advance(task)
        return Cell(domain, streams, warm_up=rounds[0], rounds=tuple(rounds[-self._plan.rounds :]))

    def _load(self) -> dict[str, EngineStep]:
        checkpoint, model = self._plan.checkpoint, self._model
        with SafetensorsSource(checkpoint) as source:
            weights = load_attention_weights(source, model, num_draft_modules=MAX_DRAFTS)
        num_tokens = valid_vocab_size(checkpoint, model)
        engines = {
            name: build_engine(engine_config(model, mtp), model, weights, self._dispatchers[name], num_tokens)
            for name, mtp in SETTINGS.items()
        }
        for name, engine in engines.items():
            if engine._speculation is not None:
                engine._speculation._lengths.cost = self._costs[name]
        return engines

    def _prompts(self, domain: str, streams: int) -> list[list[list[int]]]:
        longest = self._max_model_len // 2
        found = [ids[-longest:] for ids in prompts(self._plan.checkpoint, domain, MAX_STREAMS)]
        return [found[streams * idx : streams * (idx + 1)] for idx in range(num_batches(streams))]

    def _measure(self, batch: Sequence[list[int]], measured: Mapping[str, Measured], *, counts_experts: bool) -> None:
        timers = {name: self._start(name, batch) for name in SETTINGS}
        for name in SETTINGS:
            self._costs[name].passes.clear()
            self._dispatchers[name].count(full_rows(name, len(batch)) if counts_experts else None)
        for name, decoded in decode_in_turns(timers).items():
            num_drafts = full_rows(name, len(batch)) - len(batch)
            measured[name].batches.append(decoded)
            measured[name].draft_seconds += [s for number, s in self._costs[name].passes if number == num_drafts]
            measured[name].num_dispatches += self._dispatchers[name].num_dispatches
            measured[name].num_experts += self._dispatchers[name].num_experts

    def _start(self, name: str, batch: Sequence[list[int]]) -> StreamTimer:
        timer = StreamTimer(self._engines[name], [self._request(ids) for ids in batch])
        timer.start()
        return timer

    def _request(self, prompt_ids: Sequence[int]) -> GenerateRequest:
        self._num_requests += 1
        spec = SamplingSpec(max_tokens=self._plan.tokens, temperature=0.0)
        return GenerateRequest(f"bench-{self._num_requests}", tuple(prompt_ids), spec)

    @property
    def _max_model_len(self) -> int:
        return min(self._model.max_positions, MAX_MODEL_LEN)


def engine_config(model: ModelConfig, mtp: MtpConfig) -> AttentionConfig:
    """The defaults, with room for all streams and for their prompts in the prefix cache."""
    return AttentionConfig(
        max_running=MAX_STREAMS,
        max_model_len=min(model.max_positions, MAX_MODEL_LEN),
        kv_cache_tokens=MAX_STREAMS * TOKENS_PER_STREAM,
        cached_windows=4 * MAX_STREAMS,
        exchange_timeout_s=TIMEOUT_S,
        mtp=mtp,
    )


def num_batches(streams: int) -> int:
    return min(MAX_BATCHES, MAX_STREAMS // streams)


def warm_up_rounds(streams: int) -> int:
    return WARM_UP_BATCHES // num_batches(streams)


def measure(plan: Plan, experts: TimedDispatcher, domains: Sequence[str], title: str) -> list[Cell]:
    """Every cell of these domains, with a bar on standard error."""
    bench = Bench(plan, experts)
    num_runs = len(domains) * sum(num_batches(n) * (warm_up_rounds(n) + plan.rounds) for n in plan.streams)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=num_runs)
        return [bench.cell(domain, streams, progress, task) for domain in domains for streams in plan.streams]


def tiers(plan: Plan) -> Iterator[tuple[str, list[Cell]]]:
    """Both forms of the cluster, one after the other: a title and what was measured."""
    model = read_model_config(plan.checkpoint)
    expert_map = linear_expert_map(len(model.moe_layers), model.num_experts, plan.ep_size)
    tier = plan.checkpoint, engine_config(model, MtpConfig()), expert_map
    title = f"one process, {plan.ep_size} expert ranks in it"
    yield title, measure(plan, local_experts(*tier), plan.domains, title)
    if plan.separate_domains:
        title = f"{1 + plan.ep_size} processes, rows through shared memory"
        with separate_experts(*tier) as experts:
            cells = measure(plan, experts, plan.separate_domains, title)
        yield title, cells


def report(title: str, cells: Sequence[Cell], num_experts: int) -> None:
    """Tables for people, and a line for programs."""
    print(f"\n{title}\n")
    print_cells(cells)
    print()
    print_step_costs(cells, num_experts)
    print()
    print_verdict(cells)
    print(json.dumps({"benchmark": "speculation", "tier": title, "cells": [cell.to_dict() for cell in cells]}))


def main() -> None:
    """Entry point."""
    plan = _parse()
    torch.set_num_threads(1)  # as in a replica
    num_experts = read_model_config(plan.checkpoint).num_experts
    for title, cells in tiers(plan):
        report(title, cells, num_experts)


def _parse() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, MAX_STREAMS], help=f"1 to {MAX_STREAMS}")
    parser.add_argument("--tokens", type=int, default=40, help="of an answer at most; few end before")
    parser.add_argument("--rounds", type=int, default=8, help="timed ones; others warm up before")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=DOMAINS)
    parser.add_argument("--separate-domains", nargs="*", default=list(DOMAINS)[:1])
    parser.add_argument("--ep-size", type=int, default=8, help="expert ranks")
    return Plan(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
