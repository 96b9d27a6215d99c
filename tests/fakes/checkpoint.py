"""Random checkpoints of any size in the real layout: every tensor name, sharded index, config and tokenizer.

A tensor depends on its name and the seed alone, so packed and per-expert layouts hold the same weights.
`python -m tests.fakes.checkpoint --out DIR [--size demo|tiny] [--seed 0] [--dtype bfloat16]`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actors.model.config import ModelConfig, parse_model_config
from actors.weights.check import CONFIG_NAME, check_checkpoint
from actors.weights.index import INDEX_NAME
from actors.weights.plan import expected_tensors
from actors.weights.quantization import quantize_blocks
from actors.weights.tensors import ExpertLayout, TensorKind
from ops.nano.checkpoint_files import write_json, write_shards
from tests.fakes.configs import FP8_QUANTIZATION, demo_config, real_config, tiny_config
from tests.fakes.tokenizer import MIN_VOCAB_SIZE, eos_token_ids, write_tokenizer

__all__ = ["FP8_QUANTIZATION", "demo_config", "real_config", "tiny_config", "write_checkpoint"]

MARKER_NAME = "random_checkpoint.json"  # says that the folder is ours to overwrite, and what it was made from
RECIPE_VERSION = 2  # raised whenever the same arguments give other bytes
NORM_STD, ROUTER_BIAS_STD = 0.1, 0.05
SIZES = {"demo": demo_config, "tiny": tiny_config}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def write_checkpoint(
    folder: Path,
    config_fields: Mapping[str, Any],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "packed",
    max_shard_bytes: int = 50_000_000,
) -> Path:
    """Write a random checkpoint into `folder`, unless it holds the one these arguments describe. Returns `folder`.

    Weights keep activations near 1. `quantization_config` among the fields makes the routed experts fp8.
    layout: "packed" or "per_expert". A vocabulary below MIN_VOCAB_SIZE gets no tokenizer.
    Raises ConfigError, and FileExistsError for a folder that holds anything but an older random checkpoint.
    """
    fields = _complete_fields(config_fields, dtype)
    recipe = json.dumps([RECIPE_VERSION, fields, seed, layout, max_shard_bytes], sort_keys=True)
    if recipe_of(folder) == recipe:
        return folder
    config = parse_model_config(fields)
    _take_over(folder, recipe)
    write_json(folder / CONFIG_NAME, fields)
    generation = {name: fields[name] for name in ("bos_token_id", "eos_token_id")}
    write_json(folder / "generation_config.json", {**generation, "transformers_version": "4.57.1"})
    if fields["vocab_size"] >= MIN_VOCAB_SIZE:
        write_tokenizer(folder, fields["vocab_size"], fields["max_position_embeddings"])
    weights = RandomWeights(config, ExpertLayout(layout), seed, dtype)
    num_bytes = {name: weights.num_bytes(name) for name in weights.specs}
    write_shards(folder, num_bytes, weights.tensor, max_shard_bytes)
    return folder


def random_weights(
    config_fields: Mapping[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.bfloat16, layout: str = "packed"
) -> dict[str, Tensor]:
    """The tensors of `write_checkpoint` by name, without the files."""
    weights = RandomWeights(parse_model_config(config_fields), ExpertLayout(layout), seed, dtype)
    return {name: weights.tensor(name) for name in weights.specs}


def recipe_of(folder: Path) -> str | None:
    """What a finished random checkpoint was made from; None for anything else."""
    is_finished = (folder / MARKER_NAME).exists() and (folder / INDEX_NAME).exists()
    return (folder / MARKER_NAME).read_text() if is_finished else None


class RandomWeights:
    """The tensors of one checkpoint, each a function of (seed, name), made when asked for."""

    def __init__(self, config: ModelConfig, layout: ExpertLayout, seed: int, dtype: torch.dtype) -> None:
        self.specs = {spec.name: spec for spec in expected_tensors(config, layout)}
        self._seed = seed
        self._block_size = config.fp8.block_size if config.fp8 else (1, 1)
        self._formats = {
            TensorKind.MODEL: dtype,
            TensorKind.ROUTER_BIAS: torch.float32,
            TensorKind.FP8: torch.float8_e4m3fn,
            TensorKind.SCALE: torch.float32,
        }

    def num_bytes(self, name: str) -> int:
        return self.specs[name].num_elements * self._formats[self.specs[name].kind].itemsize

    def tensor(self, name: str) -> Tensor:
        spec = self.specs[name]
        if len(spec.shape) < 3:
            return self._matrix(name, name, spec.kind)
        result = torch.empty(spec.shape, dtype=self._formats[spec.kind])
        for expert_id in range(spec.shape[0]):
            expert_name = name.replace(".moe.", f".moe.experts.{expert_id}.")
            result[expert_id] = self._matrix(name, expert_name, spec.kind)
        return result

    def _matrix(self, name: str, seed_name: str, kind: TensorKind) -> Tensor:
        """One matrix or vector of the tensor `name`, with the random numbers of `seed_name`."""
        weight_name, seed_name = name.removesuffix("_scale_inv"), seed_name.removesuffix("_scale_inv")
        values = self._normal(seed_name, self.specs[weight_name].shape[-2:])
        if kind in (TensorKind.FP8, TensorKind.SCALE):
            quantized, scale_inv = quantize_blocks(values, self._block_size)
            return quantized if kind is TensorKind.FP8 else scale_inv
        return values.to(self._formats[kind])

    def _normal(self, seed_name: str, shape: tuple[int, ...]) -> Tensor:
        digest = hashlib.sha256(f"{self._seed}:{seed_name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.randn(shape, generator=generator) * _std(seed_name, shape)


def _std(name: str, shape: tuple[int, ...]) -> float:
    """Keeps activations near 1 through any number of layers."""
    if name.endswith("router_bias"):
        return ROUTER_BIAS_STD
    if len(shape) == 1:
        return NORM_STD
    return 1.0 if name.endswith("embed_tokens.weight") else 1.0 / math.sqrt(shape[1])


def _complete_fields(config_fields: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The fields with the format and stop ids that this checkpoint will have."""
    fields = {**config_fields, "torch_dtype": str(dtype).removeprefix("torch."), "bos_token_id": 0}
    has_tokenizer = fields["vocab_size"] >= MIN_VOCAB_SIZE
    return fields | {"eos_token_id": eos_token_ids(fields["vocab_size"]) if has_tokenizer else [1, 2]}


def _take_over(folder: Path, recipe: str) -> None:
    """Mark the folder as ours and remove an older random checkpoint, whose leftovers would contradict the new index."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / MARKER_NAME).exists():
        raise FileExistsError(f"{folder} holds files that are not a random checkpoint; they would be overwritten")
    (folder / MARKER_NAME).write_text(recipe)
    for path in [folder / INDEX_NAME, *folder.glob("model-*.safetensors")]:
        path.unlink(missing_ok=True)


def main() -> None:
    """Write a checkpoint and say what it is."""
    parser = argparse.ArgumentParser(description="Write a random checkpoint in the layout of Step-3.5-Flash.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    options = parser.parse_args()
    before = recipe_of(options.out)
    try:
        write_checkpoint(options.out, SIZES[options.size](), seed=options.seed, dtype=DTYPES[options.dtype])
    except FileExistsError as error:
        parser.exit(1, f"{error}\n")
    summary = check_checkpoint(options.out, ep_size=1)
    done = "kept" if recipe_of(options.out) == before else "wrote"
    print(
        f"{done} {options.out}: {options.size} random checkpoint, {summary.num_parameters / 1e6:.1f}M parameters,"
        f" {summary.num_tensors} tensors, {summary.num_bytes / 1e6:.1f} MB {options.dtype}, seed {options.seed}"
    )


if __name__ == "__main__":
    main()
