"""Speculation made testable: random checkpoints whose drafts are often right, lengths by chance, KV from scratch."""

from __future__ import annotations

import random
from collections.abc import Sequence as SequenceOf
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from actors.attention.sequence import Sequence, SequenceState
from actors.attention.step import EngineStep
from actors.cache.block_table import BlockTable
from actors.kernels.contract import AttentionInputs, LayerKV, SequenceRows
from actors.kernels.registry import load_kernels
from actors.model.config import LayerSpec
from actors.model.decoder import Decoder, run_passes
from actors.model.draft_modules import DraftModules
from actors.speculative.cost import StepCost
from actors.speculative.draft_length import Choice, DraftLengths
from actors.weights.check import read_model_config
from actors.weights.loader import load_attention_weights
from actors.weights.source import SafetensorsSource
from tests.fakes.checkpoint import write_checkpoint

LOUDNESS = 6.0  # of the newest token in the trunk's hidden state and in the modules'; the layers add about 1 each
SHARPNESS = 2.0  # of the logits: sampling at usual temperatures then still takes likely tokens


def write_drafting_checkpoint(folder: Path, fields: dict[str, Any], *, seed: int = 0) -> Path:
    """A random float32 checkpoint, with a vocabulary too small for a tokenizer.

    The newest token dominates what comes next, in the trunk as in the modules, which share the trunk's head. The
    layers, random as ever, blur this; so each draft is right sometimes.
    """
    write_checkpoint(folder, fields, seed=seed, dtype=torch.float32)
    (path,) = folder.glob("model-*.safetensors")
    weights = load_file(path)
    hidden_size, num_layers = fields["hidden_size"], fields["num_hidden_layers"]
    weights["model.embed_tokens.weight"] *= LOUDNESS
    weights["lm_head.weight"] *= SHARPNESS
    for layer_id in range(num_layers, num_layers + fields["num_nextn_predict_layers"]):
        prefix = f"model.layers.{layer_id}."
        of_hidden = weights[f"{prefix}eh_proj.weight"][:, hidden_size:]
        weights[f"{prefix}eh_proj.weight"] = torch.cat([LOUDNESS * torch.eye(hidden_size), of_hidden], dim=1)
        weights[f"{prefix}transformer.shared_head.output.weight"] = weights["lm_head.weight"].clone()
        weights[f"{prefix}transformer.shared_head.norm.weight"] = weights["model.norm.weight"].clone()
    save_file(weights, path, metadata={"format": "pt"})
    return folder


class RandomLengths(DraftLengths):
    """Every length that a sequence can use, by chance, for each sequence and step anew."""

    def __init__(self, max_drafts: int, seed: int) -> None:
        super().__init__("fixed", max_drafts, StepCost(num_experts=16, top_k=4))
        self._random = random.Random(seed)

    def without_rates(self, limits: SequenceOf[int], last: SequenceOf[int | None]) -> Choice:
        return Choice(tuple(self._random.randint(0, limit) for limit in limits), "fixed")


def draft_by_chance(engine: EngineStep, seed: int = 0) -> None:
    """From now on `engine` drafts as many tokens as `RandomLengths` says."""
    assert engine._speculation is not None
    engine._speculation._lengths = RandomLengths(engine._speculation._lengths.max_drafts, seed)


class TrueKv:
    """Keys and values of whole sequences of known tokens, computed at once and without an engine."""

    def __init__(self, folder: Path, engine: EngineStep, *, kernels: str) -> None:
        """engine: whose experts are used. kernels: the family."""
        self._config = read_model_config(folder)
        with SafetensorsSource(folder) as source:
            self._weights = load_attention_weights(
                source, self._config, dtype=torch.float32, num_draft_modules=len(self._config.mtp_layers)
            )
        self._kernels = load_kernels(
            "cpu", rms_norm_eps=self._config.rms_norm_eps, row_independent=True, families=(kernels, "reference")
        )
        self._dispatcher = engine._dispatcher

    @torch.inference_mode()
    def of(self, token_ids: SequenceOf[int]) -> list[LayerKV]:
        """One for each layer of the trunk, then for each module: keys, values [rows, kv heads, head dim].

        Module j reads token p + 1 + j, so it has 1 + j rows fewer than there are tokens.
        """
        num_layers, num_tokens = len(self._config.layers), len(token_ids)
        caches = [_one_block(spec, num_tokens) for spec in (*self._config.layers, *self._config.mtp_layers)]
        num_rows = [num_tokens] * num_layers
        ids = torch.tensor(token_ids)
        decoder = Decoder(self._config, self._weights, self._kernels, caches.__getitem__, torch.float32)
        trunk = decoder.forward(ids, lambda _spec: _whole(num_tokens), self._dispatcher)
        hidden = run_passes([trunk], self._dispatcher)[0]
        num_modules = len(self._config.mtp_layers)
        modules = DraftModules(self._config, self._weights, self._kernels, caches[num_layers:], num_modules)
        for module in range(num_modules):
            num_rows.append(max(0, num_tokens - 1 - module))
            if num_rows[-1]:
                hidden = modules.run(module, ids[1 + module :], hidden[: num_rows[-1]], _whole(num_rows[-1]))
        return [LayerKV(kv.keys[0, :n], kv.values[0, :n]) for kv, n in zip(caches, num_rows, strict=True)]


class KvRecord:
    """Copies of all rows of an engine's caches that hold what true tokens make of them, taken between its steps."""

    def __init__(self, engine: EngineStep) -> None:
        assert engine._speculation is not None
        self._engine = engine
        self._trunk = engine._decoder._caches
        self._specs = engine._decoder._config.layers
        self._modules = engine._speculation._drafter._modules._caches
        self._rows: list[tuple[Sequence, int, int, LayerKV]] = []  # sequence, index of the layer, first row, copies

    @property
    def num_rows(self) -> int:
        return sum(kv.keys.shape[0] for _, _, _, kv in self._rows)

    def take(self) -> None:
        """Copy what the running sequences hold."""
        for sequence in self._engine.scheduler.sequences():
            if sequence.state is not SequenceState.RUNNING:
                continue
            for layer, (spec, cache) in enumerate(zip(self._specs, self._trunk, strict=True)):
                self._copy(sequence, layer, cache, sequence.kv.sliding if spec.is_sliding else sequence.kv.full)
            for module, cache in enumerate(self._modules):
                self._copy(sequence, len(self._specs) + module, cache, sequence.kv.sliding)

    def wrong(self, true_kv: TrueKv) -> list[str]:
        """Where a copy differs, in any bit, from what the sequence's tokens make of it from scratch."""
        true = {sequence: true_kv.of(sequence.token_ids) for sequence in {sequence for sequence, *_ in self._rows}}
        return [
            f"{sequence.request_id} layer {layer} row {first + row}"
            for sequence, layer, first, kv in self._rows
            for row in _unequal_rows(kv, true[sequence][layer], first)
        ]

    def _copy(self, sequence: Sequence, layer: int, cache: LayerKV, table: BlockTable) -> None:
        block_size, module = self._engine._shape.block_size, layer - len(self._specs)
        first = table.first_live * block_size
        end = sequence.context_len if module < 0 else sequence.drafting.true_rows(module)
        if end > first:
            rows = torch.arange(first, end)
            blocks, slots = torch.from_numpy(table.ids)[rows // block_size], rows % block_size
            copies = LayerKV(cache.keys[blocks, slots], cache.values[blocks, slots])
            self._rows.append((sequence, layer, first, copies))


def _unequal_rows(kv: LayerKV, true: LayerKV, first: int) -> list[int]:
    part = slice(first, first + kv.keys.shape[0])
    unequal = (kv.keys != true.keys[part]) | (kv.values != true.values[part])
    rows: list[int] = unequal.flatten(1).any(dim=1).nonzero().flatten().tolist()
    return rows


def _one_block(spec: LayerSpec, num_tokens: int) -> LayerKV:
    zeros = torch.zeros((1, num_tokens, spec.num_kv_heads, spec.head_dim))
    return LayerKV(zeros, zeros.clone())


def _whole(num_rows: int) -> AttentionInputs:
    rows = torch.arange(num_rows)
    return AttentionInputs(rows, rows, (SequenceRows(0, num_rows, 0, torch.zeros(1, dtype=torch.int64)),))
