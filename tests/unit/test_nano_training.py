"""The parts of the nano model's training: optimizers, balance of the experts, rates, and gradients over processes."""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

from actors.model.config import parse_model_config
from ops.nano import gradients, train
from ops.nano.config import nano_fields, smoke_fields
from ops.nano.data.mixture import Mixture
from ops.nano.data.python_texts import Library
from ops.nano.data.rendering import Renderer
from ops.nano.dense import RoutingRecord
from ops.nano.gradients import GradientComputer, GradientPool, StepReport, Work, shared, trained_names
from ops.nano.losses import NUM_GROUPS, balance_loss, expert_counts
from ops.nano.model import initial_tensors, router_biases
from ops.nano.optimizer import Muon, optimizers, orthogonalised
from ops.nano.recipe import DRAFTS, POLISH, TRUNK, Recipe
from ops.nano.run import Run, TrainingState
from ops.nano.tokenizer import DIGITS_BY_ONE, train_tokenizer

CPU = torch.device("cpu")
SMOKE = parse_model_config(nano_fields(**smoke_fields(), eos_token_id=[1, 2]))
SMALL_LIBRARY = Library(code=(Path(train.__file__).read_text(),), prose=(str(argparse.__doc__) * 5,))


class TestOptimizer:
    @pytest.mark.parametrize("shape", [(48, 16), (16, 48), (3, 64, 24), (2, 3, 16, 40)])
    def test_orthogonalised_matrices_turn_and_do_not_stretch(self, shape: tuple[int, ...]) -> None:
        """Singular values lie in the known range of five steps, and the directions stay; for stacks, tall and wide."""
        u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        stretches = torch.logspace(-1.5, 0.5, u.shape[-1])
        matrices = u * stretches @ v
        values = torch.linalg.diagonal(u.mT @ orthogonalised(matrices).float() @ v.mT)
        assert values.min() > 0.65
        assert values.max() < 1.25
        assert torch.linalg.svdvals(orthogonalised(matrices).float()).max() < 1.25

    def test_a_stack_is_its_matrices(self) -> None:
        """Experts do not meet in the update, and one without a gradient stays where it is."""
        matrices = torch.randn(3, 16, 24)
        matrices[1] = 0
        together = orthogonalised(matrices)
        assert not together[1].any()
        assert torch.equal(together[0], orthogonalised(matrices[0]))

    @pytest.mark.parametrize("shape", [(24, 8), (8, 24), (3, 12, 12)])
    def test_steps_go_downhill(self, shape: tuple[int, ...]) -> None:
        """Every step of the first twenty lowers a distance, by at most the step that the learning rate allows."""
        target, start = torch.randn(shape), torch.randn(shape)
        parameter = start.clone().requires_grad_()
        optimizer = Muon([parameter], lr=0.02, weight_decay=0.0)
        distances = []
        for _ in range(20):
            optimizer.zero_grad()
            distance = (parameter - target).square().sum()
            distance.backward()
            optimizer.step()
            distances.append(distance.item())
        assert distances == sorted(distances, reverse=True)
        longest = 0.02 * 1.25 * max(1.0, shape[-2] / shape[-1]) ** 0.5
        assert torch.linalg.svdvals(parameter.detach() - start).max() < 20 * longest

    def test_weight_decay_shrinks(self) -> None:
        """Without a slope a matrix shrinks by the rate times the decay."""
        parameter = torch.ones(4, 4, requires_grad=True)
        parameter.grad = torch.zeros(4, 4)
        Muon([parameter], lr=0.5, weight_decay=0.1).step()
        assert torch.allclose(parameter, torch.tensor(0.95))

    def test_every_tensor_has_one_optimizer(self) -> None:
        """Inner matrices go to Muon; embedding, heads, routers and all vectors to Adam; nothing twice, nothing left."""
        tensors = initial_tensors(SMOKE, torch.Generator())
        name_of = {id(tensor): name for name, tensor in tensors.items()}
        muon, adam = (
            {name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}
            for optimizer in optimizers(tensors, matrix_lr=0.1, vector_lr=0.2)
        )
        assert muon | adam == tensors.keys()
        assert not muon & adam
        assert all(tensors[name].dim() > 1 for name in muon)
        matrices = {name for name in adam if tensors[name].dim() > 1}
        outer = {"model.embed_tokens.weight", "lm_head.weight"}
        routers = {f"model.layers.{spec.layer_id}.moe.gate.weight" for spec in SMOKE.moe_layers}
        heads = {f"model.layers.{spec.layer_id}.transformer.shared_head.output.weight" for spec in SMOKE.mtp_layers}
        assert matrices == outer | routers | heads


class TestBalance:
    def test_balanced_groups_have_loss_one(self) -> None:
        """Whatever the load within a group: 16 experts in 8 groups, of each group one expert has all."""
        scores = torch.full((8, 16), 0.5)
        topk_ids = torch.arange(0, 16, 2).repeat(8, 1)[:, :4].clone()
        topk_ids[4:] += 8
        assert balance_loss(RoutingRecord(scores, topk_ids)).item() == pytest.approx(1.0)

    def test_the_loss_by_hand(self) -> None:
        """Two tokens on 8 experts, one for each group: 8 * (3/4 * 0.35 + 1/4 * 0.15)."""
        scores = torch.tensor([[0.5, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05], [0.4, 0.4, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]])
        topk_ids = torch.tensor([[0, 0], [0, 1]])
        probability = (scores / scores.sum(dim=1, keepdim=True)).mean(dim=0)
        assert probability[:2].tolist() == pytest.approx([0.35, 0.15])
        expected = NUM_GROUPS * (3 / 4 * 0.35 + 1 / 4 * 0.15)
        assert balance_loss(RoutingRecord(scores, topk_ids)).item() == pytest.approx(expected)
        assert expert_counts(RoutingRecord(scores, topk_ids)).tolist() == [3, 1, 0, 0, 0, 0, 0, 0]

    def test_skew_costs_and_the_gradient_mends_it(self) -> None:
        """Tokens that prefer the experts of one group cost more than one; a step downhill makes them prefer it less."""
        scores = torch.full((32, 16), 0.3)
        scores[:, :2] = 0.9
        scores.requires_grad_()
        loss = balance_loss(RoutingRecord(scores, scores.topk(2).indices))
        loss.backward()
        assert loss > 1.5
        assert scores.grad is not None
        assert (scores.grad[:, :2] > 0).all()
        assert (scores.grad[:, 2:] < 0).all()

    def test_the_bias_rises_for_idle_experts(self) -> None:
        """By a fixed step: up below the mean load of the layer, down above it, not at all for exactly the mean."""
        state = TrainingState(TRUNK, initial_tensors(SMOKE, torch.Generator()), step=0, tokens_seen=0)
        loads = torch.full((len(SMOKE.moe_layers), SMOKE.num_experts), 10.0)
        loads[1, 2], loads[1, 5] = 4.0, 16.0
        recipe = Recipe({TRUNK: 1000}, warmup_steps=4, bias_rate=0.01)
        pool = cast(GradientPool, FixedReport(StepReport({"loss": 1.0}, loads, num_tokens=100)))
        train.Trainer(recipe, state, SMOKE, pool).step()
        biases = torch.stack([state.tensors[name] for name in router_biases(SMOKE)])
        expected = torch.zeros_like(biases)
        expected[1, 2], expected[1, 5] = 0.0025, -0.0025  # a quarter, in the first of four warming steps
        assert torch.allclose(biases, expected)
        assert (state.step, state.tokens_seen) == (1, 100)


class FixedReport:
    """In place of a GradientPool: leaves no gradients, and always reports the same."""

    def __init__(self, report: StepReport) -> None:
        self._report = report

    def compute(self, step: int, *, is_late: bool) -> StepReport:
        return self._report


class TestRecipe:
    def test_rates_rise_stay_and_fall(self) -> None:
        """Up over the first steps, one until the decay begins, then straight to nothing at the end of the phase."""
        recipe = Recipe({TRUNK: 1000, DRAFTS: 10}, warmup_steps=4, decay_fraction=0.5)
        rates = [recipe.rate(TRUNK, step, 50 * step) for step in range(22)]
        assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
        assert rates[3:11] == [1.0] * 8
        assert rates[10:20] == pytest.approx([1 - 0.1 * step for step in range(10)])
        assert rates[20:] == [0.0, 0.0]

    def test_polishing_begins_gently_and_falls(self) -> None:
        """A fraction of the full rates at most, and less with every step once it is reached."""
        recipe = Recipe({POLISH: 1000}, warmup_steps=4, polish_rate=0.4)
        rates = [recipe.rate(POLISH, step, 50 * step) for step in range(21)]
        assert rates[0] == 0.25
        assert rates[1:] == pytest.approx([0.4 * (1 - step / 20) for step in range(1, 21)])

    def test_a_run_keeps_its_recipe_but_may_become_longer(self, tmp_path: Path) -> None:
        """Another seed or model is refused, more tokens are not."""
        recipe = Recipe({TRUNK: 1000})
        Run(tmp_path, {"recipe": recipe.identity(), "model": {}})
        Run(tmp_path, {"recipe": replace(recipe, tokens={TRUNK: 2000}).identity(), "model": {}})
        for seed, model in ((1, {}), (0, smoke_fields())):
            with pytest.raises(ValueError, match="another recipe"):
                Run(tmp_path, {"recipe": replace(recipe, seed=seed).identity(), "model": model})


@pytest.fixture(scope="module")
def mixture() -> Mixture:
    """Enough of the real mixture for a model that learns nothing."""
    tokenizer = train_tokenizer([*SMALL_LIBRARY.code, *SMALL_LIBRARY.prose], 500, DIGITS_BY_ONE)
    return Mixture(Renderer(tokenizer), SMALL_LIBRARY)


def work(mixture: Mixture, phase: str = TRUNK) -> Work:
    tensors = initial_tensors(SMOKE, torch.Generator().manual_seed(1))
    recipe = Recipe({TRUNK: 1000, DRAFTS: 1000}, rows=4, row_tokens=128)
    return Work(recipe, phase, SMOKE, mixture, shared(tensors, CPU))


class TestGradients:
    def test_two_processes_give_the_mean_of_their_parts(self, mixture: Mixture) -> None:
        """Gradients are the mean, values likewise, loads and tokens the sum of what each part gives by itself."""
        by_hand = [self._part(work(mixture), part) for part in range(2)]
        assert not torch.equal(by_hand[0][0], by_hand[1][0])
        together = work(mixture)
        with GradientPool(together, 2, CPU) as pool:
            report = pool.compute(3, is_late=False)
        names = [name for name in together.tensors if name in trained_names(TRUNK, SMOKE)]
        flat = torch.cat([_gradient(together.tensors[name]).flatten() for name in names])
        mean = (by_hand[0][0] + by_hand[1][0]) / 2
        assert torch.allclose(flat, mean, rtol=1e-3, atol=1e-6 * mean.abs().max().item())
        reports = [part[1] for part in by_hand]
        assert report.values["loss"] == pytest.approx(sum(part.values["loss"] for part in reports) / 2, rel=1e-5)
        assert report.num_tokens == sum(part.num_tokens for part in reports) == 4 * 128
        assert report.loads is not None
        assert report.loads.sum() == 4 * 128 * SMOKE.top_k * len(SMOKE.moe_layers)

    def _part(self, part_work: Work, part: int) -> tuple[Tensor, StepReport]:
        size = sum(part_work.tensors[name].numel() for name in trained_names(TRUNK, SMOKE))
        flat = torch.full((size,), torch.nan)  # what was there before must not matter
        return flat, GradientComputer(part_work, flat, part, 2, CPU).compute(3, is_late=False)

    def test_a_step_depends_on_its_number_alone(self, mixture: Mixture) -> None:
        """A step has the same gradients whatever was computed before it, and the next step others."""
        computers = [(flat, GradientComputer(work(mixture), flat, 0, 2, CPU)) for flat in self._buffers()]
        (fresh, first), (used, second) = computers
        first.compute(5, is_late=True)
        second.compute(0, is_late=False)
        second.compute(5, is_late=True)
        assert torch.equal(fresh, used)
        assert fresh.any()
        second.compute(6, is_late=True)
        assert not torch.equal(fresh, used)

    def _buffers(self) -> list[Tensor]:
        tensors = initial_tensors(SMOKE, torch.Generator())
        size = sum(tensors[name].numel() for name in trained_names(TRUNK, SMOKE))
        return [torch.zeros(size), torch.zeros(size)]

    def test_a_process_that_died_is_reported(self, mixture: Mixture) -> None:
        """The step fails at once instead of waiting for an answer."""
        with GradientPool(work(mixture), 2, CPU) as pool:
            (process,) = active_children()
            process.kill()
            process.join()
            with pytest.raises((EOFError, ConnectionError)):
                pool.compute(0, is_late=False)

    def test_a_process_that_hangs_is_reported(self, mixture: Mixture, monkeypatch: pytest.MonkeyPatch) -> None:
        """A step waits for its parts no longer than the deadline."""
        with GradientPool(work(mixture), 2, CPU) as pool:
            (process,) = active_children()
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            with monkeypatch.context() as patch:
                patch.setattr(gradients, "STEP_DEADLINE", 0.0)
                with pytest.raises(TimeoutError, match="no answer within 0 s"):
                    pool.compute(0, is_late=False)
            process.kill()

    def test_rows_must_divide(self, mixture: Mixture) -> None:
        """A batch that would lose rows is refused."""
        with pytest.raises(ValueError, match="4 rows do not divide over 3"):
            GradientPool(work(mixture), 3, CPU)


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad
