"""A tiny run from text to service: trained, stopped and continued, exported in both formats, served."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from actors.attention.config import AttentionConfig
from actors.local_cluster import LocalCluster, tokens_of
from actors.messages import FinishReason, GenerateRequest, SamplingSpec
from actors.model.config import parse_model_config
from actors.weights.check import check_checkpoint, read_model_config
from actors.weights.plan import expected_tensors
from actors.weights.quantization import FP8_MAX, dequantize_blocks
from ops.nano import export, train
from ops.nano.config import nano_fields, smoke_fields
from ops.nano.data import corpus, python_texts
from ops.nano.data.conversation import user
from ops.nano.data.packing import stack
from ops.nano.data.python_texts import Library
from ops.nano.data.rendering import Document, Renderer
from ops.nano.dense import DenseModel
from ops.nano.evaluation.checkpoint import fingerprint, load_checkpoint
from ops.nano.model import router_biases
from ops.nano.recipe import DRAFTS, PHASES, POLISH, TRUNK
from ops.nano.run import Run, TrainingState, finished_tensors, finished_tokenizer, start_of

pytestmark = pytest.mark.timeout(60)  # the first test waits for a model to be trained
CPU = torch.device("cpu")
SMOKE = parse_model_config(nano_fields(**smoke_fields(), eos_token_id=[1, 2]))
SMALL_LIBRARY = Library(code=(Path(train.__file__).read_text(),), prose=(str(argparse.__doc__) * 5,))


class StoppedRun(Run):
    """A run that saves every step, and whose process is stopped while it records the steps named."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any], stops: set[tuple[str, int]]) -> None:
        super().__init__(folder, recipe)
        self._stops = stops

    @property
    def is_due(self) -> bool:
        return True

    def record(self, state: TrainingState, values: Mapping[str, float]) -> None:
        super().record(state, values)
        if (state.phase, state.step) in self._stops:
            self._stops.remove((state.phase, state.step))
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def small_corpus() -> Iterator[None]:
    """The library is one file, and the tokenizer is learnt from a few conversations."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (python_texts, train):
            patch.setattr(module, "load_library", lambda *, held_out: SMALL_LIBRARY)
        patch.setattr(corpus, "CHATS_PER_SKILL", 20)
        patch.setattr(corpus, "PIECES_PER_DOMAIN", 5)
        yield


def smoke_run(folder: Path, stops: set[tuple[str, int]]) -> None:
    """Train the smoke model on ten full batches, three to polish it and four for drafts, starting again after stops."""
    recipe, overrides = train.recipe_of(argparse.Namespace(smoke=True, seed=0))
    tokens_per_step = recipe.rows * recipe.row_tokens
    # Every third batch of the last half of a phase is one long row.
    steps = {TRUNK: 10, POLISH: 3, DRAFTS: 4}
    tokens = {phase: number * tokens_per_step for phase, number in steps.items()}
    recipe = replace(recipe, tokens=tokens, long_every=3)
    identity = {"recipe": recipe.identity(), "model": overrides}
    for _ in range(len(stops)):
        with pytest.raises(KeyboardInterrupt):
            train.train(StoppedRun(folder, identity, stops), recipe, overrides, num_processes=1, device=CPU)
    train.train(Run(folder, identity), recipe, overrides, num_processes=1, device=CPU)


def polished_run(folder: Path, start: Path) -> None:
    """Go on from a finished checkpoint: two steps to polish it, three for its drafts."""
    recipe, overrides = train.recipe_of(argparse.Namespace(smoke=True, seed=1))
    tokens_per_step = recipe.rows * recipe.row_tokens
    recipe = replace(recipe, tokens={TRUNK: 0, POLISH: 2 * tokens_per_step, DRAFTS: 3 * tokens_per_step})
    checkpoint = load_checkpoint(start)
    run = Run(folder, train.identity(recipe, overrides, checkpoint))
    train.train(run, recipe, overrides, num_processes=1, device=CPU, start=checkpoint)


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small_corpus: None) -> Path:
    """A smoke run that was never stopped."""
    folder: Path = tmp_path_factory.mktemp("run")
    smoke_run(folder, stops=set())
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["bfloat16", "fp8"])
def exported(request: pytest.FixtureRequest, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the run."""
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    export.main(["--run", str(trained), "--out", str(folder), *(["--fp8"] if request.param else [])])
    return folder


class TestSmokeRun:
    def test_training_lowers_the_loss(self, trained: Path) -> None:
        """The trunk first, twice, then the drafts; steps are counted, and what they saw."""
        steps = history(trained)
        trunk, polish, drafts = ([step for step in steps if step["phase"] == phase] for phase in PHASES)
        assert steps == trunk + polish + drafts
        for phase in (trunk, polish, drafts):
            assert [step["step"] for step in phase] == list(range(1, len(phase) + 1))
            assert all(before["tokens"] < after["tokens"] for before, after in pairwise(phase))
        assert trunk[-1]["loss"] < trunk[0]["loss"] - 0.5
        assert drafts[-1]["loss"] < drafts[0]["loss"] - 0.3

    def test_a_stopped_run_ends_as_if_it_was_not(self, trained: Path, tmp_path: Path, small_corpus: None) -> None:
        """Stopped in every phase and at a seam, it has the same bits, and tells the lost steps again."""
        stops = {(TRUNK, 1), (TRUNK, 6), (POLISH, 2), (DRAFTS, 1), (DRAFTS, 3)}
        smoke_run(tmp_path, set(stops))
        expected, actual = finished_tensors(trained), finished_tensors(tmp_path)
        assert expected.keys() == actual.keys()
        assert all(torch.equal(expected[name], actual[name]) for name in expected)
        told = Counter((step["phase"], step["step"]) for step in history(tmp_path))
        assert told == Counter((step["phase"], step["step"]) for step in history(trained)) + Counter(stops)


@pytest.fixture(scope="module")
def start(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint from which another run goes on."""
    folder: Path = tmp_path_factory.mktemp("start")
    export.main(["--run", str(trained), "--out", str(folder)])
    return folder


class TestPolishingFurther:
    def test_a_finished_checkpoint_is_where_it_begins(
        self, trained: Path, start: Path, tmp_path: Path, small_corpus: None
    ) -> None:
        """No trunk is trained afresh, the tokenizer stays, and drafts go on from the modules that are there."""
        polished_run(tmp_path, start)
        steps = history(tmp_path)
        assert [step["phase"] for step in steps] == [POLISH] * 2 + [DRAFTS] * 3
        assert finished_tokenizer(tmp_path).to_str() == finished_tokenizer(trained).to_str()
        fresh = [step["loss"] for step in history(trained) if step["phase"] == DRAFTS]
        assert steps[2]["loss"] < (fresh[0] + fresh[-1]) / 2, "modules made anew would begin where they did then"
        before, after = stored_tensors(start), finished_tensors(tmp_path)
        assert any(not torch.equal(before[name], after[name]) for name in before)

    def test_the_run_says_where_it_began(self, start: Path, tmp_path: Path, small_corpus: None) -> None:
        """The checkpoint's fingerprint is part of what the run is: going on from another one is refused."""
        polished_run(tmp_path, start)
        assert start_of(tmp_path) == fingerprint(start)
        recipe, overrides = train.recipe_of(argparse.Namespace(smoke=True, seed=1))
        with pytest.raises(ValueError, match="another recipe"):
            Run(tmp_path, train.identity(recipe, overrides, None))


class TestExport:
    def test_the_checkpoint_is_complete(self, exported: Path) -> None:
        """The check of the server accepts it, for any number of ranks that divides the experts."""
        summary = check_checkpoint(exported, ep_size=8)
        assert (summary.config.num_layers, len(summary.config.mtp_layers)) == (9, 3)
        assert summary.num_parameters == sum(prod(spec.shape) for spec in expected_tensors(SMOKE))

    def test_it_holds_what_was_trained(self, trained: Path, exported: Path) -> None:
        """Rounded to bfloat16, biases exactly, and experts in e4m3 to half a step of it."""
        tensors, stored = finished_tensors(trained), stored_tensors(exported)
        assert stored.keys() == tensors.keys()
        biases = set(router_biases(SMOKE))
        for name, tensor in tensors.items():
            if name in biases:
                assert torch.equal(stored[name], tensor)
            elif is_fp8(exported) and tensor.dim() == 3:
                largest = tensor.abs().amax(dim=(1, 2), keepdim=True)  # smaller than a block, so it has one scale
                error = (stored[name] - tensor).abs()
                assert (error <= e4m3_error(tensor, largest)).all()
                assert not torch.equal(stored[name], tensor.to(torch.bfloat16).float())
            else:
                assert torch.equal(stored[name], tensor.to(torch.bfloat16).float())

    def test_it_is_served(self, trained: Path, exported: Path) -> None:
        """The split cluster says token for token what the decoder of the training says with the stored weights."""
        tokenizer = finished_tokenizer(trained)
        prompt = tuple(Renderer(tokenizer).prompt([user("What is the capital of Norway?")]))
        cluster = LocalCluster(exported, AttentionConfig(param_dtype="float32", max_model_len=128), ep_size=4)
        sampling = SamplingSpec(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=0)
        events = cluster.generate([GenerateRequest("r", prompt, sampling)])["r"]
        expected = greedy(stored_tensors(exported), prompt, tokenizer.get_vocab_size(), 12)
        assert events[-1].finish_reason is FinishReason.LENGTH
        assert tokens_of(events) == [token_id for token_id, _ in expected]
        logprobs = [entry.logprob for event in events for entry in event.logprobs]
        assert logprobs == pytest.approx([logprob for _, logprob in expected], abs=1e-3)

    def test_a_new_export_leaves_nothing_of_the_old(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Scales and smaller shards of an export in the other format are gone."""
        for options, shard_bytes, num_scales in ((["--fp8"], 100_000, 3 * len(SMOKE.moe_layers)), ([], 10**7, 0)):
            monkeypatch.setattr(export, "MAX_SHARD_BYTES", shard_bytes)
            export.main(["--run", str(trained), "--out", str(tmp_path), *options])
            names = [name for shard in tmp_path.glob("*.safetensors") for name in load_file(shard)]
            assert sum(name.endswith("_scale_inv") for name in names) == num_scales
            assert check_checkpoint(tmp_path, ep_size=8).num_tensors == len(names)

    @pytest.mark.parametrize("name", ["thesis.txt", "model-00001-of-00001.safetensors"])
    def test_foreign_files_are_kept(
        self, name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A folder with something else in it, be it weights of another model, is refused and stays as it is."""
        (tmp_path / name).write_text("precious")
        with pytest.raises(SystemExit):
            export.main(["--run", str(trained), "--out", str(tmp_path)])
        assert "choose another folder" in capsys.readouterr().err
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "precious")]

    def test_a_larger_model_is_not_overwritten(self, exported: Path, trained: Path) -> None:
        """An export replaces a model of its own size only."""
        fields = nano_fields(**smoke_fields() | {"vocab_size": 1024})
        with pytest.raises(FileExistsError, match="weights of another model"):
            export.export(exported, fields, finished_tensors(trained), finished_tokenizer(trained))
        check_checkpoint(exported, ep_size=8)

    def test_a_run_that_saved_nothing_is_no_checkpoint(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is said which file is missing, and nothing is written."""
        recipe, overrides = train.recipe_of(argparse.Namespace(smoke=True, seed=0))
        Run(tmp_path / "run", {"recipe": recipe.identity(), "model": overrides})
        with pytest.raises(SystemExit):
            export.main(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
        assert "state.pt" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_blocks_at_the_edges_are_smaller(self) -> None:
        """Experts of no whole number of blocks: each block has the scale of its own largest value."""
        weights = torch.randn(2, 160, 144)
        weights[1, 128:, 128:] *= 100
        quantized, scales = export.quantize_stack(weights, (128, 128))
        assert quantized.shape == weights.shape
        assert scales.shape == (2, 2, 2)
        assert scales[1, 1, 1].item() == pytest.approx(weights[1, 128:, 128:].abs().max().item() / FP8_MAX)
        for weight, values, scale in zip(weights, quantized, scales, strict=True):
            spread = scale.repeat_interleave(128, 0)[:160].repeat_interleave(128, 1)[:, :144]
            error = (dequantize_blocks(values, scale, (128, 128)) - weight).abs()
            assert (error <= e4m3_error(weight, spread * FP8_MAX)).all()


def e4m3_error(values: Tensor, largest: Tensor) -> Tensor:
    """Half a step of three mantissa bits, or of the smallest numbers, where `largest` is stored as 448."""
    return torch.maximum(values.abs() / 2**4, largest / FP8_MAX / 2**10) * (1 + 1e-5)


def is_fp8(folder: Path) -> bool:
    return read_model_config(folder).fp8 is not None


def stored_tensors(folder: Path) -> dict[str, Tensor]:
    """Every weight of a checkpoint in float32, experts multiplied with their scales."""
    stored = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    return {
        name: _scaled(tensor, stored[f"{name}_scale_inv"]) if f"{name}_scale_inv" in stored else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith("_scale_inv")
    }


def _scaled(experts: Tensor, scales: Tensor) -> Tensor:
    pairs = zip(experts, scales, strict=True)
    return torch.stack([dequantize_blocks(expert, scale, (128, 128)) for expert, scale in pairs])


@torch.no_grad()
def greedy(
    tensors: Mapping[str, Tensor], prompt: tuple[int, ...], vocab_size: int, num_tokens: int
) -> list[tuple[int, float]]:
    """The likeliest continuation by the decoder of the training, in float32: token ids and their logprobs among the
    first `vocab_size`, behind which rows have no token."""
    model = DenseModel(SMOKE, tensors, torch.float32)
    token_ids, logprobs = list(prompt), []
    for _ in range(num_tokens):
        batch = stack([[Document(token_ids, [0.0] * len(token_ids))]], num_tokens=128)
        last = model.logits(model.hidden(batch))[len(token_ids) - 1, :vocab_size].log_softmax(dim=-1)
        token_ids.append(int(last.argmax()))
        logprobs.append(last.max().item())
    return list(zip(token_ids[len(prompt) :], logprobs, strict=True))
