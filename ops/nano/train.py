"""Trains the nano model: first the trunk, then its draft modules on the frozen trunk.

`python -m ops.nano.train` continues where the last run stopped. The model is the decoder that serves (`dense.py`), the
data come from seeded generators (`data/`), and every step depends on its number and the seed alone, so a run that was
interrupted goes on as if it had not been.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
from torch import Tensor

from actors.model.config import ModelConfig, parse_model_config
from ops.nano.data.corpus import learn_tokenizer
from ops.nano.data.library import load_library
from ops.nano.data.mixture import Mixture
from ops.nano.data.packing import batches
from ops.nano.data.rendering import Renderer
from ops.nano.dense import Batch, DenseModel
from ops.nano.losses import balance_loss, draft_loss, expert_counts, token_loss
from ops.nano.model import Fields, draft_tensors, initial_tensors, nano_fields, router_biases, start_drafts
from ops.nano.optimizer import optimizers
from ops.nano.run import Run, TrainingState
from ops.nano.tokenizer import end_token_ids

TRUNK, DRAFTS = "trunk", "drafts"


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Learning rates rise over `warmup_steps`, and fall to zero over the last `decay_fraction`.

    tokens: what each phase sees. rows, row_tokens: a batch; row_tokens is a multiple of the window. Every
    `long_every`-th batch of the last half has `long_rows` rows of the whole context instead.
    """

    tokens: Mapping[str, int]
    rows: int = 8
    row_tokens: int = 640
    long_every: int = 12
    long_rows: int = 1
    matrix_lr: float = 0.02
    vector_lr: float = 0.003
    warmup_steps: int = 40
    decay_fraction: float = 0.5
    balance_weight: float = 1e-3
    bias_rate: float = 5e-3
    draft_weights: tuple[float, ...] = (1.0, 0.8, 0.6)
    seed: int = 0

    def rate(self, phase: str, step: int, tokens_seen: int) -> float:
        """The learning rates' factor, 0 to 1."""
        progress = tokens_seen / self.tokens[phase]
        return min(1.0, (step + 1) / self.warmup_steps, max(0.0, 1.0 - progress) / self.decay_fraction)


class Trainer:
    """One phase: the tensors it trains, their optimizers, and the batches."""

    def __init__(
        self,
        recipe: Recipe,
        state: TrainingState,
        config: ModelConfig,
        mixture: Mixture,
        device: torch.device,
    ) -> None:
        self._recipe, self._phase, self._state = recipe, state.phase, state
        self._config, self._mixture, self._device = config, mixture, device
        self._biases = [state.tensors[name] for name in router_biases(config)]
        drafts = draft_tensors(config)
        frozen = set(router_biases(config)) | (drafts if state.phase == TRUNK else state.tensors.keys() - drafts)
        for name, tensor in state.tensors.items():
            tensor.requires_grad_(name not in frozen)
        trained = {name: tensor for name, tensor in state.tensors.items() if name not in frozen}
        self.optimizers = optimizers(
            trained, matrix_lr=recipe.matrix_lr, vector_lr=recipe.vector_lr, fused=device.type == "cuda"
        )
        self._full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self._model = DenseModel(config, state.tensors, torch.bfloat16)
        self._step_on = self._trunk_step if state.phase == TRUNK else self._draft_step

    def step(self) -> dict[str, float]:
        """One batch. Returns what is worth recording."""
        state = self._state
        batch = self._batch().to(self._device)
        rate = self._recipe.rate(self._phase, state.step, state.tokens_seen)
        for optimizer, full_rates in zip(self.optimizers, self._full_rates, strict=True):
            for group, full_rate in zip(optimizer.param_groups, full_rates, strict=True):
                group["lr"] = full_rate * rate
        record = self._step_on(batch, rate)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        state.tokens_seen += batch.token_ids.numel()
        return record

    def _batch(self) -> Batch:
        """The batch of this step, whatever steps were run before it."""
        recipe, state = self._recipe, self._state
        rng = random.Random(f"{recipe.seed} {self._phase} {state.step}")
        is_late = state.tokens_seen > self._recipe.tokens[self._phase] / 2
        is_long = is_late and state.step % recipe.long_every == 0
        shape = (recipe.long_rows, self._config.max_positions) if is_long else (recipe.rows, recipe.row_tokens)
        return next(batches(self._mixture.documents(rng, long=is_long), *shape))

    def _trunk_step(self, batch: Batch, rate: float) -> dict[str, float]:
        model, recipe = self._model, self._recipe
        loss = token_loss(model.logits(model.hidden(batch)), batch)
        balance = torch.stack([balance_loss(record) for record in model.routing]).mean()
        (loss + recipe.balance_weight * balance).backward()
        loads = torch.stack([expert_counts(record) for record in model.routing])
        self._balance_experts(loads, recipe.bias_rate * rate)
        return {
            "loss": loss.item(),
            "balance": balance.item(),
            "busiest_expert": (loads.amax(dim=1) / loads.mean(dim=1)).mean().item(),
        }

    @torch.no_grad()
    def _balance_experts(self, loads: Tensor, rate: float) -> None:
        """Loss-free balancing: a bias rises by a fixed step while its expert has less than its share of the load."""
        for bias, load in zip(self._biases, loads, strict=True):
            bias.add_(torch.sign(load.mean() - load), alpha=rate)

    def _draft_step(self, batch: Batch, rate: float) -> dict[str, float]:
        with torch.no_grad():
            hidden = self._model.hidden(batch)
        loss, losses = draft_loss(self._model, batch, hidden, self._recipe.draft_weights)
        loss.backward()
        return {"loss": loss.item(), **{f"draft_{k}": part.item() for k, part in enumerate(losses, start=1)}}


class SpeedColumn(ProgressColumn):
    """Tokens per second over the last minutes, once there is something to divide."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} tokens/s")


def train(run: Run, recipe: Recipe, overrides: Fields, device: torch.device) -> TrainingState:
    """Both phases, from wherever `run` was left. Returns the finished state."""
    tokenizer = run.tokenizer(lambda: learn_tokenizer(nano_fields(**overrides)["vocab_size"], recipe.seed))
    config = parse_model_config(nano_fields(**overrides, eos_token_id=end_token_ids(tokenizer)))
    mixture = Mixture(Renderer(tokenizer), load_library(held_out=False))
    state = run.restore(device) or TrainingState(
        TRUNK, _fresh_tensors(config, recipe.seed, device), step=0, tokens_seen=0
    )
    if state.phase == TRUNK:
        _train_phase(run, state, recipe, Trainer(recipe, state, config, mixture, device))
        state = TrainingState(DRAFTS, start_drafts(config, state.tensors), step=0, tokens_seen=0)
    _train_phase(run, state, recipe, Trainer(recipe, state, config, mixture, device))
    return state


def _fresh_tensors(config: ModelConfig, seed: int, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor.to(device) for name, tensor in initial_tensors(config, generator).items()}


def _train_phase(run: Run, state: TrainingState, recipe: Recipe, trainer: Trainer) -> None:
    """Steps until the phase has seen its tokens, recorded and saved on the way."""
    run.restore_optimizers(trainer.optimizers)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%  loss {task.fields[loss]:.3f}"),
        SpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    total = recipe.tokens[state.phase]
    with Progress(*columns, speed_estimate_period=300) as progress:
        bar = progress.add_task(state.phase, total=total, completed=state.tokens_seen, loss=float("nan"))
        while state.tokens_seen < total:
            record = trainer.step()
            run.record(state, record)
            progress.update(bar, completed=state.tokens_seen, loss=record["loss"])
            if run.is_due:
                run.save(state, trainer.optimizers)
    run.save(state, trainer.optimizers)


def smoke_fields() -> Fields:
    """A model that trains in seconds, every part of the real one in it."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "vocab_size": 512,
        "max_seq_len": 256,
        "max_position_embeddings": 256,
        "moe_num_experts": 16,
        "moe_top_k": 4,
        "moe_intermediate_size": 16,
        "share_expert_dim": 16,
    }


def recipe_of(options: argparse.Namespace) -> tuple[Recipe, Fields]:
    """The recipe and the fields that differ from the nano model's."""
    if options.smoke:
        tokens = {TRUNK: 8_000, DRAFTS: 4_000}
        return Recipe(tokens, rows=4, row_tokens=256, warmup_steps=2, seed=options.seed), smoke_fields()
    tokens = {TRUNK: int(options.trunk_tokens * 1e6), DRAFTS: int(options.draft_tokens * 1e6)}
    return Recipe(tokens, seed=options.seed), {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and say where the result is."""
    parser = argparse.ArgumentParser(prog="python -m ops.nano.train", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--run", type=Path, default=Path(".cache/nano"), help="folder of the run (default: .cache/nano)"
    )
    parser.add_argument("--trunk-tokens", type=float, default=14.0, help="millions of tokens for the trunk")
    parser.add_argument("--draft-tokens", type=float, default=3.0, help="millions of tokens for the draft modules")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--smoke", action="store_true", help="a tiny model for seconds, to see that everything runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe, overrides = recipe_of(options)
    identity = {name: value for name, value in asdict(recipe).items() if name != "tokens"}  # how long may change
    try:
        run = Run(options.run, {"recipe": identity, "model": overrides})
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    train(run, recipe, overrides, device)
    print(f"trained in {options.run}; write the checkpoint with: python -m ops.nano.export --run {options.run}")


if __name__ == "__main__":
    main()
