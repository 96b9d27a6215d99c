"""Speculation loses nothing: greedy answers with drafts are those without, and sampled ones have their distribution.

    python -m ops.bench.lossless [--checkpoint FOLDER]

Prompts that the model has not seen, of every kind, in deterministic mode. They are answered once without drafts, in
one process; then with drafts, whatever the batch, the room and the processes, which must give the very same tokens.
Where drafts are drawn by chance tokens differ, and how often each comes must not. Exit status 1 if something differs,
or if a configuration put nothing to the test: no draft right or none wrong, no preemption where room is scarce.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch

from actors.attention.config import AttentionConfig, MtpConfig
from actors.attention.engine import load_engine
from actors.attention.step import EngineStep
from actors.local_cluster import LocalCluster
from actors.messages import GenerateRequest, SamplingSpec
from actors.weights.check import read_model_config
from ops.bench.answers import Answer, Run, answer_together
from ops.bench.domains import mixed_prompts
from ops.bench.expert_ranks import TIMEOUT_S, shared_experts
from ops.bench.speculation import CHECKPOINT
from ops.bench.token_frequencies import Frequencies, compare_frequencies, num_significant, print_frequencies
from routing.experts import linear_expert_map

NUM_CORES = 2
MAX_MODEL_LEN = 768
OFF, ADAPTIVE = MtpConfig(mode="off"), MtpConfig(mode="adaptive", max_drafts=3)
FIXED_1, FIXED_3 = MtpConfig(mode="fixed", max_drafts=1), MtpConfig(mode="fixed", max_drafts=3)
BATCH_OF_1, BATCH_OF_8 = {"max_running": 1}, {"max_running": 8}
SHORT_STEPS = {"max_running": 8, "max_step_tokens": 24}
SCARCE = {"kv_cache_tokens": 1024, "block_size": 4}  # admitted with a small block to grow by, answers soon need more
SAMPLED_TOKENS = 6  # one after the prompt, up to four from a step with three drafts, and what follows them
SAMPLED_PROMPTS = {"small talk": 4, "tool call": 6, "code": 9, "text": 10}  # numbers among the mixed prompts
COLUMNS = (
    "attention over shm",
    "configuration",
    "prompts",
    "tokens",
    "differing",
    "preemptions",
    "acceptance length",
    "seconds",
)
BASE = AttentionConfig(
    deterministic=True,
    max_running=32,
    max_waiting=1_000_000,
    max_model_len=MAX_MODEL_LEN,
    kv_cache_tokens=32 * MAX_MODEL_LEN,
    exchange_timeout_s=TIMEOUT_S,
    mtp=OFF,
)


@dataclass(frozen=True)
class Configuration:
    """Engines that must answer as one without drafts does. change: of BASE. num_attention: attention ranks, in this
    process, that share expert processes; 0: the expert ranks are in this process too."""

    name: str
    mtp: MtpConfig
    change: Mapping[str, int] = field(default_factory=dict)
    num_attention: int = 0

    @property
    def engine(self) -> AttentionConfig:
        return BASE.model_copy(update={"mtp": self.mtp, **self.change})


WITHOUT = Configuration("no drafts", OFF)
WITHOUT_SAMPLED = Configuration("no drafts, sampled", OFF, {"block_size": 4})  # small: little of a prompt is run again
BY_CHANCE = Configuration(
    "drafts by chance", MtpConfig(mode="fixed", max_drafts=3, sample_drafts=True), WITHOUT_SAMPLED.change
)
ONE_PROCESS = (
    Configuration("fixed 3, batch of 1", FIXED_3, BATCH_OF_1),
    Configuration("fixed 3, batch of 8", FIXED_3, BATCH_OF_8),
    Configuration("fixed 3, batch of 32", FIXED_3),
    Configuration("fixed 1, batch of 32", FIXED_1),
    Configuration("adaptive, batch of 1", ADAPTIVE, BATCH_OF_1),
    Configuration("adaptive, batch of 8", ADAPTIVE, BATCH_OF_8),
    Configuration("adaptive, batch of 32", ADAPTIVE),
    Configuration("fixed 3, batch of 8, prompts in chunks of 24 rows", FIXED_3, SHORT_STEPS),
    Configuration("fixed 3, batch of 32, scarce KV", FIXED_3, SCARCE),
    Configuration("adaptive, batch of 32, scarce KV", ADAPTIVE, SCARCE),
)
EXPERT_PROCESSES = (
    Configuration("fixed 3, batch of 32", FIXED_3, num_attention=1),
    Configuration("adaptive, batch of 8", ADAPTIVE, BATCH_OF_8, num_attention=1),
    Configuration("fixed 3, batches of 8", FIXED_3, BATCH_OF_8, num_attention=2),
    Configuration("adaptive, batches of 32, scarce KV", ADAPTIVE, SCARCE, num_attention=2),
)


@dataclass(frozen=True)
class Plan:
    """What is to be compared. tokens: of an answer at most. samples: of a sampled prompt, with drafts and without."""

    checkpoint: Path
    prompts: int
    tokens: int
    samples: int
    ep_size: int


@dataclass(frozen=True)
class Compared:
    """One configuration. differing: prompts that got another answer than without drafts."""

    configuration: Configuration
    run: Run
    seconds: float
    differing: tuple[str, ...]

    @property
    def problem(self) -> str | None:
        """What speaks against the claim, or makes this comparison say nothing."""
        num_drafted, num_accepted = sum(self.run.counts.drafted), sum(self.run.counts.accepted)
        if self.differing:
            return f"other answers than without drafts: {', '.join(self.differing[:8])}"
        if not 0 < num_accepted < num_drafted:
            return f"{num_accepted} of {num_drafted} drafts were right, so there was little to lose"
        if self.configuration.change == SCARCE and not self.run.num_preemptions:
            return "nothing was preempted"
        return None

    def to_dict(self) -> dict[str, object]:
        """A line of the table, by COLUMNS."""
        run = self.run
        values = (
            self.configuration.num_attention,
            self.configuration.name,
            len(run.by_request),
            run.num_tokens,
            len(self.differing),
            run.num_preemptions,
            round(run.counts.mean_acceptance_length, 2),
            round(self.seconds, 1),
        )
        return dict(zip(COLUMNS, values, strict=True))


def compare(plan: Plan, prompts: Sequence[Sequence[int]]) -> Iterator[Compared]:
    """Every configuration, those in one process first."""
    requests = [
        GenerateRequest(f"prompt-{idx}", tuple(prompt), SamplingSpec(plan.tokens, temperature=0.0))
        for idx, prompt in enumerate(prompts)
    ]
    with ProcessPoolExecutor(NUM_CORES, mp_context=get_context("spawn")) as executor:
        jobs = [(each, executor.submit(_in_one_process, plan, each, requests)) for each in (WITHOUT, *ONE_PROCESS)]
        (_, without), *others = jobs
        expected = without.result()[0].by_request
        for configuration, future in others:
            yield _compared(configuration, *future.result(), expected)
    for configuration, run, seconds in _over_shm(plan, requests):
        yield _compared(configuration, run, seconds, expected)


def compare_sampled(plan: Plan, prompts: Mapping[str, Sequence[int]]) -> list[Frequencies]:
    """How often tokens come at temperature 1, with drafts drawn by chance and without. prompts: by name."""
    with ProcessPoolExecutor(NUM_CORES, mp_context=get_context("spawn")) as executor:
        jobs = [
            executor.submit(_in_one_process, plan, each, _sampled(prompts, plan.samples, first_seed))
            for each, first_seed in ((WITHOUT_SAMPLED, 0), (BY_CHANCE, len(prompts) * plan.samples))
        ]
        without, drafted = (job.result()[0].by_request for job in jobs)
    return [compare_frequencies(name, _answers_to(name, without), _answers_to(name, drafted)) for name in prompts]


def problems_of(compared: Sequence[Compared], sampled: Sequence[Frequencies]) -> list[str]:
    """What speaks against the claim, in sentences; nothing if it holds."""
    problems = [f"{each.configuration.name}: {each.problem}" for each in compared if each.problem]
    if num := num_significant(sampled):
        problems.append(f"sampled: {num} tests say that tokens come more or less often than without drafts")
    return problems


def main() -> int:
    """Entry point; returns the exit status."""
    plan = _parse()
    torch.set_num_threads(1)
    prompts = mixed_prompts(plan.checkpoint, plan.prompts)
    _print_line(COLUMNS)
    _print_line(["---"] * len(COLUMNS))
    compared = []
    for each in compare(plan, prompts):
        compared.append(each)
        _print_line(each.to_dict().values())
    sampled = compare_sampled(plan, {name: prompts[idx] for name, idx in SAMPLED_PROMPTS.items()})
    print()
    print_frequencies(sampled)
    problems = problems_of(compared, sampled)
    print("\n" + "\n".join(problems or ["nothing is lost"]))
    record = {"greedy": [each.to_dict() for each in compared], "sampled": [asdict(each) for each in sampled]}
    print(json.dumps({"benchmark": "lossless", **record}))
    return 1 if problems else 0


def _in_one_process(plan: Plan, configuration: Configuration, requests: Sequence[GenerateRequest]) -> tuple[Run, float]:
    torch.set_num_threads(1)
    engine = LocalCluster(plan.checkpoint, configuration.engine, ep_size=plan.ep_size).engine
    return _timed([engine], requests)


def _over_shm(plan: Plan, requests: Sequence[GenerateRequest]) -> Iterator[tuple[Configuration, Run, float]]:
    """The configurations take turns with one set of expert processes."""
    model = read_model_config(plan.checkpoint)
    expert_map = linear_expert_map(len(model.moe_layers), model.num_experts, plan.ep_size)
    num_attention = max(each.num_attention for each in EXPERT_PROCESSES)
    with shared_experts(plan.checkpoint, BASE, expert_map, num_attention) as dispatchers:
        for each in EXPERT_PROCESSES:
            engines = [
                load_engine(each.engine, plan.checkpoint, plan.ep_size, dispatcher)
                for dispatcher in dispatchers[: each.num_attention]
            ]
            yield each, *_timed(engines, requests)


def _timed(engines: Sequence[EngineStep], requests: Sequence[GenerateRequest]) -> tuple[Run, float]:
    """What they answered, and in how many seconds."""
    began_at = time.perf_counter()
    return answer_together(engines, requests), time.perf_counter() - began_at


def _compared(configuration: Configuration, run: Run, seconds: float, expected: Mapping[str, Answer]) -> Compared:
    differing = (name for name, answered in run.by_request.items() if answered != expected[name])
    return Compared(configuration, run, seconds, tuple(differing))


def _sampled(prompts: Mapping[str, Sequence[int]], num_samples: int, first_seed: int) -> list[GenerateRequest]:
    """Every request has a seed of its own."""
    seeds = itertools.count(first_seed)
    return [
        GenerateRequest(f"{name} {idx}", tuple(prompt), SamplingSpec(SAMPLED_TOKENS, seed=next(seeds), ignore_eos=True))
        for name, prompt in prompts.items()
        for idx in range(num_samples)
    ]


def _answers_to(name: str, answers: Mapping[str, Answer]) -> list[tuple[int, ...]]:
    return [token_ids for request_id, (token_ids, _) in answers.items() if request_id.startswith(f"{name} ")]


def _print_line(values: Iterable[object]) -> None:
    print("| " + " | ".join(map(str, values)) + " |", flush=True)


def _parse() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=48, help="of a greedy answer at most")
    parser.add_argument("--samples", type=int, default=2000, help="of each sampled prompt, with and without drafts")
    parser.add_argument("--ep-size", type=int, default=8, help="expert ranks")
    return Plan(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
