"""What counting load and confidence costs: step times with the monitors of both tiers on and off, in one run.

    python -m ops.bench.monitor [--checkpoint FOLDER]

First with the expert ranks in this process and its one thread, where what all nine monitors cost adds up in the step;
then with a process for each rank, as in a cluster. Both settings take turns step by step, and each step is compared
with the one beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from actors.attention.config import AttentionConfig, MtpConfig
from actors.attention.engine import build_engine, valid_vocab_size
from actors.attention.step import EngineStep
from actors.messages import GenerateRequest, SamplingSpec
from actors.model.config import ModelConfig
from actors.weights.check import read_model_config
from actors.weights.loader import load_attention_weights
from actors.weights.source import SafetensorsSource
from ops.bench.domains import mixed_prompts
from ops.bench.expert_ranks import TIMEOUT_S, local_experts, separate_experts
from ops.bench.streams import StreamTimer
from routing.dispatcher import TimedDispatcher
from routing.experts import linear_expert_map

CHECKPOINT = Path(__file__).parents[1] / "nano" / "checkpoint"
MAX_STREAMS, EP_SIZE = 32, 8
MAX_MODEL_LEN = 1024


def config_of(name: str) -> AttentionConfig:
    """name: "on" or "off"."""
    return AttentionConfig(
        max_running=MAX_STREAMS,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_tokens=MAX_STREAMS * MAX_MODEL_LEN,
        exchange_timeout_s=TIMEOUT_S,
        mtp=MtpConfig(mode="off"),
        monitor_load=name == "on",
    )


def engines(checkpoint: Path, model: ModelConfig, experts: Mapping[str, TimedDispatcher]) -> Mapping[str, EngineStep]:
    """By "on" and "off"; they share the attention tier's weights."""
    with SafetensorsSource(checkpoint) as source:
        weights = load_attention_weights(source, model)
    num_tokens = valid_vocab_size(checkpoint, model)
    return {
        name: build_engine(config_of(name), model, weights, dispatcher, num_tokens)
        for name, dispatcher in experts.items()
    }


@contextmanager
def tiers(checkpoint: Path, model: ModelConfig, *, is_separate: bool) -> Iterator[Mapping[str, TimedDispatcher]]:
    """Expert ranks for both settings."""
    expert_map = linear_expert_map(len(model.moe_layers), model.num_experts, EP_SIZE)
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(separate_experts(checkpoint, config_of(name), expert_map))
            if is_separate
            else local_experts(checkpoint, config_of(name), expert_map)
            for name in ("on", "off")
        }


def start(engine: EngineStep, prompts: Sequence[Sequence[int]], name: str) -> StreamTimer:
    """All these streams, each with its first token."""
    spec = SamplingSpec(max_tokens=MAX_MODEL_LEN // 2, temperature=0.0, ignore_eos=True)
    requests = [GenerateRequest(f"{name}-{idx}", tuple(prompt), spec) for idx, prompt in enumerate(prompts)]
    timer = StreamTimer(engine, requests)
    timer.start()
    return timer


@dataclass(frozen=True)
class Ratios:
    """Step time on / off of one round. typical: the median over pairs of steps. total: of all steps together, with
    those now and then in which a group of steps is counted, and those that something else disturbed."""

    typical: float
    total: float


def paired_ratios(
    both: Mapping[str, EngineStep], prompts: Sequence[Sequence[int]], num_steps: int, number: int
) -> Ratios:
    """Of pairs of steps, one right after the other, so that a machine that becomes slower slows both. What was counted
    is taken, as a report would."""
    timers = {name: start(engine, prompts, f"{name}{number}") for name, engine in both.items()}
    pairs, total_s = [], dict.fromkeys(both, 0.0)
    for idx in range(num_steps):
        order = ("on", "off") if idx % 2 else ("off", "on")
        took_s = {name: timers[name].step() for name in order}
        pairs.append(took_s["on"] / took_s["off"])
        total_s = {name: total_s[name] + took_s[name] for name in both}
    for name, timer in timers.items():
        timer.forget()
        monitor = both[name].monitor
        if monitor is not None:
            monitor.take()
    return Ratios(median(pairs), total_s["on"] / total_s["off"])


def ratios(
    both: Mapping[str, EngineStep], prompts: Sequence[Sequence[int]], rounds: int, num_steps: int
) -> list[Ratios]:
    """Of each round; the first warms up and is left out."""
    return [paired_ratios(both, prompts, num_steps, number) for number in range(rounds + 1)][1:]


def row(form: str, streams: int, found: Sequence[Ratios]) -> str:
    """Of the table: medians over the rounds, and the range of the rounds."""
    typical, total = [ratio.typical for ratio in found], [ratio.total for ratio in found]
    return (
        f"| {form} | {streams} | {median(typical):.4f} | {min(typical):.3f} to {max(typical):.3f} "
        f"| {median(total):.4f} | {min(total):.3f} to {max(total):.3f} |"
    )


def main() -> None:
    """Both forms of the cluster, at all levels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, MAX_STREAMS])
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=48, help="of each round")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a replica
    model = read_model_config(options.checkpoint)
    prompts = [ids[-MAX_MODEL_LEN // 2 :] for ids in mixed_prompts(options.checkpoint, MAX_STREAMS)]
    rows: dict[str, list[list[float]]] = {}
    print("step time on / off, median over the rounds and their range; all: of a round's steps together")
    print("| expert ranks | streams | typical step | range | all | range |\n|---|---|---|---|---|---|")
    for is_separate, form in ((False, "in one process"), (True, "eight processes")):
        with tiers(options.checkpoint, model, is_separate=is_separate) as experts:
            both = engines(options.checkpoint, model, experts)
            for streams in options.streams:
                found = ratios(both, prompts[:streams], options.rounds, options.steps)
                print(row(form, streams, found), flush=True)
                rows[f"{form}, {streams}"] = [[round(ratio.typical, 4), round(ratio.total, 4)] for ratio in found]
    print(json.dumps({"benchmark": "monitor", "ratios": rows}))


if __name__ == "__main__":
    main()
