"""Gradients of a step, computed by one process for each core.

Processes share the tensors; each runs one thread over rows of its own and leaves its gradients in shared memory. On a
CPU that is faster than one process with several threads: an operation of this small model is over before a second
thread has begun, and it waits for whatever else that thread's core has to do.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType

import torch
from torch import Tensor, multiprocessing

from actors.model.config import ModelConfig
from actors.weights.plan import expected_tensors
from ops.nano.data.mixture import POLISH_SHARES, SHARES, Mixture
from ops.nano.data.packing import batches
from ops.nano.dense import Batch, DenseModel
from ops.nano.losses import balance_loss, draft_loss, expert_counts, token_loss
from ops.nano.model import draft_tensors, router_biases
from ops.nano.recipe import DRAFTS, POLISH, Recipe

STEP_DEADLINE = 600.0  # seconds; a step takes one or two


@dataclass(frozen=True)
class Work:
    """What one process needs to know to compute gradients. tensors: shared, by checkpoint name."""

    recipe: Recipe
    phase: str
    config: ModelConfig
    mixture: Mixture
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class StepReport:
    """What a process saw in one step. values: what is worth recording. loads: float32 [MoE layers, E], how often each
    expert was chosen; None when the trunk is frozen."""

    values: dict[str, float]
    loads: Tensor | None
    num_tokens: int


def shared(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies in one block, which processes can share."""
    flat = torch.empty(sum(tensor.numel() for tensor in tensors.values()), device=device).share_memory_()
    copies = _views(flat, tensors)
    for name, tensor in tensors.items():
        copies[name].copy_(tensor.detach())
    return copies


def trained_names(phase: str, config: ModelConfig) -> set[str]:
    """Which tensors a phase changes by gradients."""
    drafts = draft_tensors(config)
    if phase == DRAFTS:
        return set(drafts)
    return {spec.name for spec in expected_tensors(config)} - drafts - set(router_biases(config))


class GradientComputer:
    """The part of one process: its share of every batch, forward and backward."""

    def __init__(self, work: Work, flat_gradient: Tensor, part: int, num_parts: int, device: torch.device) -> None:
        self._work, self._part, self._num_parts, self._device = work, part, num_parts, device
        trained = {name: work.tensors[name] for name in _trained(work)}
        for name, gradient in _views(flat_gradient, trained).items():
            trained[name].requires_grad_().grad = gradient
        self._flat_gradient = flat_gradient
        self._model = DenseModel(work.config, work.tensors, torch.bfloat16)
        self._compute = self._drafts if work.phase == DRAFTS else self._trunk

    def compute(self, step: int, *, is_late: bool) -> StepReport:
        """Leave the gradients of this step's part in the buffer."""
        self._flat_gradient.zero_()
        return self._compute(self._batch(step, is_late=is_late).to(self._device))

    def _batch(self, step: int, *, is_late: bool) -> Batch:
        """This part of the step's batch, whatever steps were run before."""
        recipe = self._work.recipe
        rng = random.Random(f"{recipe.seed} {self._work.phase} {step} {self._part}")
        is_long = is_late and step % recipe.long_every == 0
        shape = (1, recipe.long_tokens) if is_long else (recipe.rows // self._num_parts, recipe.row_tokens)
        shares = POLISH_SHARES if self._work.phase == POLISH else SHARES
        return next(batches(self._work.mixture.documents(rng, shares, long=is_long), *shape))

    def _trunk(self, batch: Batch) -> StepReport:
        model = self._model
        loss = token_loss(model.logits(model.hidden(batch)), batch)
        balance = torch.stack([balance_loss(record) for record in model.routing]).mean()
        (loss + self._work.recipe.balance_weight * balance).backward()
        loads = torch.stack([expert_counts(record) for record in model.routing])
        busiest = (loads.amax(dim=1) / loads.mean(dim=1)).mean().item()
        values = {"loss": loss.item(), "balance": balance.item(), "busiest_expert": busiest}
        return StepReport(values, loads.cpu(), batch.token_ids.numel())

    def _drafts(self, batch: Batch) -> StepReport:
        with torch.no_grad():
            hidden = self._model.hidden(batch)
        loss, losses = draft_loss(self._model, batch, hidden, self._work.recipe.draft_weights)
        loss.backward()
        values = {"loss": loss.item(), **{f"draft_{k}": part.item() for k, part in enumerate(losses, start=1)}}
        return StepReport(values, None, batch.token_ids.numel())


class GradientPool:
    """The processes of one phase. Part 0 is computed here; `close` ends the others."""

    def __init__(self, work: Work, num_processes: int, device: torch.device) -> None:
        """Raises ValueError when the rows do not divide over the processes."""
        if work.recipe.rows % num_processes:
            raise ValueError(f"{work.recipe.rows} rows do not divide over {num_processes} processes")
        size = sum(work.tensors[name].numel() for name in _trained(work))
        self._flat = [torch.zeros(size, device=device) for _ in range(num_processes)]
        context = multiprocessing.get_context("spawn")
        self._others = []
        for part, flat in list(enumerate(self._flat))[1:]:
            here, there = context.Pipe()
            arguments = (work, flat.share_memory_(), part, num_processes, there)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            there.close()
            self._others.append((process, here))
        self._own = GradientComputer(work, self._flat[0], 0, num_processes, device)

    def compute(self, step: int, *, is_late: bool) -> StepReport:
        """The mean gradients of all parts, left with the tensors in this process. Raises TimeoutError for a process
        that does not answer, EOFError or ConnectionError for one that has ended."""
        for _, connection in self._others:
            connection.send((step, is_late))
        reports = [self._own.compute(step, is_late=is_late)]
        for _, connection in self._others:
            if not connection.poll(STEP_DEADLINE):
                raise TimeoutError(f"a training process gave no answer within {STEP_DEADLINE:.0f} s")
            reports.append(connection.recv())
        for flat in self._flat[1:]:
            self._flat[0].add_(flat)
        self._flat[0].div_(len(self._flat))
        return _merged(reports)

    def close(self) -> None:
        """End the other processes."""
        for process, connection in self._others:
            connection.close()
            process.join(STEP_DEADLINE)

    def __enter__(self) -> GradientPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(work: Work, flat: Tensor, part: int, num_parts: int, connection: Connection) -> None:
    """Another process: answers each step until the pipe closes."""
    torch.set_num_threads(1)
    computer = GradientComputer(work, flat, part, num_parts, torch.device("cpu"))
    while True:
        try:
            step, is_late = connection.recv()
        except EOFError:
            return
        connection.send(computer.compute(step, is_late=is_late))


def _merged(reports: Sequence[StepReport]) -> StepReport:
    values = {name: sum(report.values[name] for report in reports) / len(reports) for name in reports[0].values}
    loads = [report.loads for report in reports if report.loads is not None]
    return StepReport(values, torch.stack(loads).sum(dim=0) if loads else None, sum(r.num_tokens for r in reports))


def _trained(work: Work) -> list[str]:
    """Names in the order of the checkpoint, which every process shares."""
    names = trained_names(work.phase, work.config)
    return [name for name in work.tensors if name in names]


def _views(flat: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Consecutive pieces of a flat tensor in the shapes of `tensors`."""
    pieces = flat.split([tensor.numel() for tensor in tensors.values()])
    return {name: piece.view(tensor.shape) for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)}
