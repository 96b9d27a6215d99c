"""Trains the nano model: the trunk, the trunk again where it was weakest, then its draft modules on the frozen trunk.

`python -m ops.nano.train` continues where the last run stopped. The model is the decoder that serves (`dense.py`), the
data come from seeded generators (`data/`), and every step depends on its number and the seed alone, so a run that was
interrupted goes on as if it had not been.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from tokenizers import Tokenizer
from torch import Tensor

from actors.errors import CheckpointError
from actors.model.config import ModelConfig, parse_model_config
from ops.nano.config import Fields, nano_fields, smoke_fields
from ops.nano.data.corpus import learn_tokenizer
from ops.nano.data.mixture import Mixture
from ops.nano.data.python_texts import load_library
from ops.nano.data.rendering import Renderer
from ops.nano.evaluation.checkpoint import Checkpoint, fingerprint, load_checkpoint
from ops.nano.gradients import GradientPool, Work, shared, trained_names
from ops.nano.model import initial_tensors, router_biases, start_drafts
from ops.nano.optimizer import optimizers
from ops.nano.recipe import DRAFTS, PHASES, POLISH, TRUNK, Recipe
from ops.nano.run import START_FIELD, Run, TrainingState
from ops.nano.tokenizer import end_token_ids


class Trainer:
    """One phase: owns its optimizers and changes `state` step by step."""

    def __init__(self, recipe: Recipe, state: TrainingState, config: ModelConfig, pool: GradientPool) -> None:
        self._recipe, self._state, self._pool = recipe, state, pool
        self._biases = [state.tensors[name] for name in router_biases(config)]
        names = trained_names(state.phase, config)
        trained = {name: tensor for name, tensor in state.tensors.items() if name in names}
        self.optimizers = optimizers(trained, matrix_lr=recipe.matrix_lr, vector_lr=recipe.vector_lr)
        self._full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]

    def step(self) -> dict[str, float]:
        """One batch. Returns what is worth recording."""
        recipe, state = self._recipe, self._state
        is_late = state.tokens_seen > recipe.tokens[state.phase] / 2
        report = self._pool.compute(state.step, is_late=is_late)
        rate = recipe.rate(state.phase, state.step, state.tokens_seen)
        for optimizer, full_rates in zip(self.optimizers, self._full_rates, strict=True):
            for group, full_rate in zip(optimizer.param_groups, full_rates, strict=True):
                group["lr"] = full_rate * rate
            optimizer.step()
        if report.loads is not None:
            self._balance_experts(report.loads, recipe.bias_rate * rate)
        state.step += 1
        state.tokens_seen += report.num_tokens
        return report.values

    @torch.no_grad()
    def _balance_experts(self, loads: Tensor, rate: float) -> None:
        """Loss-free balancing: a bias rises by a fixed step while its expert has less than its share of the load."""
        for bias, load in zip(self._biases, loads, strict=True):
            bias.add_(torch.sign(load.mean() - load).to(bias.device), alpha=rate)


def train(
    run: Run,
    recipe: Recipe,
    overrides: Fields,
    *,
    num_processes: int,
    device: torch.device,
    start: Checkpoint | None = None,
) -> None:
    """All phases, from wherever `run` was left. start: a finished checkpoint to polish further, draft modules too."""
    tokenizer = run.tokenizer(lambda: start.tokenizer if start else _learnt_tokenizer(recipe, overrides))
    config = parse_model_config(nano_fields(**overrides, eos_token_id=end_token_ids(tokenizer)))
    mixture = Mixture(Renderer(tokenizer), load_library(held_out=False))
    state = run.restore() or _first_state(config, recipe, start)
    for phase in PHASES[PHASES.index(state.phase) :]:
        if phase != state.phase:
            has_no_drafts = phase == DRAFTS and start is None
            tensors = start_drafts(config, state.tensors) if has_no_drafts else state.tensors
            state = TrainingState(phase, tensors, step=0, tokens_seen=0)
        state.tensors = shared(state.tensors, device)
        work = Work(recipe, phase, config, mixture, state.tensors)
        with GradientPool(work, num_processes, device) as pool:
            _train_phase(run, state, recipe, Trainer(recipe, state, config, pool))


def _learnt_tokenizer(recipe: Recipe, overrides: Fields) -> Tokenizer:
    return learn_tokenizer(nano_fields(**overrides)["vocab_size"], recipe.seed)


def _first_state(config: ModelConfig, recipe: Recipe, start: Checkpoint | None) -> TrainingState:
    """A fresh trunk to train, or a finished one to polish."""
    if start is not None:
        return TrainingState(POLISH, dict(start.tensors), step=0, tokens_seen=0)
    tensors = initial_tensors(config, torch.Generator().manual_seed(recipe.seed))
    return TrainingState(TRUNK, tensors, step=0, tokens_seen=0)


def _train_phase(run: Run, state: TrainingState, recipe: Recipe, trainer: Trainer) -> None:
    """Steps until the phase has seen its tokens, recorded and saved on the way."""
    run.restore_optimizers(trainer.optimizers)
    progress_text = TextColumn("{task.percentage:3.0f}%  loss {task.fields[loss]:.3f}")
    columns = (TextColumn("{task.description}"), BarColumn(), progress_text, SpeedColumn())
    total = recipe.tokens[state.phase]
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), speed_estimate_period=300) as progress:
        bar = progress.add_task(state.phase, total=total, completed=state.tokens_seen, loss=float("nan"))
        while state.tokens_seen < total:
            record = trainer.step()
            run.record(state, record)
            progress.update(bar, completed=state.tokens_seen, loss=record["loss"])
            if run.is_due:
                run.save(state, trainer.optimizers)
    run.save(state, trainer.optimizers)


class SpeedColumn(ProgressColumn):
    """Tokens per second over the last minutes, once there is something to divide."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} tokens/s")


def recipe_of(options: argparse.Namespace) -> tuple[Recipe, Fields]:
    """The recipe, and the fields in which the model differs from the nano model."""
    if options.smoke:
        tokens = {TRUNK: 12_000, POLISH: 2_000, DRAFTS: 6_000}
        return Recipe(
            tokens, rows=4, row_tokens=256, long_tokens=256, warmup_steps=2, seed=options.seed
        ), smoke_fields()
    millions = {TRUNK: options.trunk_tokens, POLISH: options.polish_tokens, DRAFTS: options.draft_tokens}
    return Recipe({phase: int(number * 1e6) for phase, number in millions.items()}, seed=options.seed), {}


def identity(recipe: Recipe, overrides: Fields, start: Checkpoint | None) -> dict[str, Any]:
    """What a run is, and must stay when it goes on."""
    own = {"recipe": recipe.identity(), "model": overrides}
    return own if start is None else own | {START_FIELD: fingerprint(start.folder)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say where the result is."""
    parser = argparse.ArgumentParser(prog="python -m ops.nano.train", description=__doc__.partition("\n")[0])
    parser.add_argument("--run", type=Path, default=Path(".cache/nano"), help="its folder (default: .cache/nano)")
    parser.add_argument("--trunk-tokens", type=float, default=10.6, help="millions of tokens for the trunk")
    parser.add_argument("--polish-tokens", type=float, default=1.5, help="millions of tokens for polishing the trunk")
    parser.add_argument("--draft-tokens", type=float, default=2.0, help="millions of tokens for the draft modules")
    parser.add_argument("--start", type=Path, help="a checkpoint to polish further, instead of a fresh trunk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="one for each core; a GPU is used by one")
    parser.add_argument("--smoke", action="store_true", help="a tiny model for seconds, to see that everything runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe, overrides = recipe_of(options)
    num_processes = options.processes if device.type == "cpu" else 1
    try:
        start = None if options.start is None else load_checkpoint(options.start)
        run = Run(options.run, identity(recipe, overrides, start))
    except (CheckpointError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    train(run, recipe, overrides, num_processes=num_processes, device=device, start=start)
    print(f"trained in {options.run}; write the checkpoint with: python -m ops.nano.export --run {options.run}")


if __name__ == "__main__":
    main()
