"""Writes a trained model as a checkpoint in the published layout, in bfloat16 or with FP8 experts.

`python -m ops.nano.export --run .cache/nano --out FOLDER [--fp8]`
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from actors.model.config import ModelConfig, parse_model_config
from actors.weights.check import CONFIG_NAME, MAX_CONFIG_BYTES, check_checkpoint
from actors.weights.index import INDEX_NAME
from actors.weights.json_object import read_object
from actors.weights.plan import expected_tensors
from actors.weights.quantization import quantize_blocks
from actors.weights.tensors import TensorKind
from ops.nano.checkpoint_files import write_json, write_shards
from ops.nano.config import FP8_QUANTIZATION, Fields, nano_fields
from ops.nano.run import finished_tensors, finished_tokenizer, model_overrides
from ops.nano.tokenizer import end_token_ids, write_tokenizer_files

MAX_SHARD_BYTES = 10_000_000  # several small files, as a large checkpoint has
FP8_FIELDS: Fields = {"quantization_config": FP8_QUANTIZATION}
MODEL_CARD = Path(__file__).with_name("model_card.md")


def export(folder: Path, fields: Fields, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> None:
    """Write a complete checkpoint. tensors: by name, float32; `quantization_config` among the fields makes the routed
    experts fp8. Raises FileExistsError for a folder that holds anything but an older export of this model."""
    folder.mkdir(parents=True, exist_ok=True)
    _check_is_ours(folder, fields)
    for path in [folder / INDEX_NAME, *folder.glob("*.safetensors")]:
        path.unlink(missing_ok=True)
    fields = fields | {"eos_token_id": end_token_ids(tokenizer)}
    config = parse_model_config(fields)
    write_json(folder / CONFIG_NAME, fields)
    write_json(folder / "generation_config.json", {name: fields[name] for name in ("bos_token_id", "eos_token_id")})
    write_tokenizer_files(folder, tokenizer.to_str(pretty=False), config.max_positions)
    (folder / "README.md").write_text(MODEL_CARD.read_text(encoding="utf-8"), encoding="utf-8")
    stored = stored_tensors(config, tensors)
    write_shards(folder, {name: tensor.nbytes for name, tensor in stored.items()}, stored.__getitem__, MAX_SHARD_BYTES)


_OURS = {".json", ".safetensors", ".md"}
_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")


def _check_is_ours(folder: Path, fields: Fields) -> None:
    """Raises FileExistsError unless the folder is empty or holds an older export of a model of the same size."""
    suffixes = {path.suffix for path in folder.iterdir()}
    if suffixes - _OURS:
        raise FileExistsError(f"{folder} holds files that are not of a checkpoint; choose another folder")
    if ".safetensors" not in suffixes:
        return
    try:
        older = read_object(folder / CONFIG_NAME, MAX_CONFIG_BYTES)
    except (OSError, ValueError):
        older = {}
    if any(older.get(name) != fields[name] for name in _SIZES):
        raise FileExistsError(f"{folder} holds the weights of another model; choose another folder")


def stored_tensors(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of the checkpoint in the format it is stored in, by name."""
    stored: dict[str, Tensor] = {}
    for spec in expected_tensors(config):
        if spec.kind is TensorKind.FP8:
            assert config.fp8 is not None  # only then are there such tensors
            quantized, scales = quantize_stack(tensors[spec.name], config.fp8.block_size)
            stored[spec.name], stored[f"{spec.name}_scale_inv"] = quantized, scales
        elif spec.kind is not TensorKind.SCALE:
            dtype = torch.float32 if spec.kind is TensorKind.ROUTER_BIAS else torch.bfloat16
            stored[spec.name] = tensors[spec.name].to(dtype).contiguous()
    return stored


def quantize_stack(weights: Tensor, block_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[E, out, in] to e4m3 and its scales, expert by expert. Blocks at the edges are smaller."""
    pairs = [quantize_blocks(weight, block_size) for weight in weights]
    quantized, scales = zip(*pairs, strict=True)
    return torch.stack(quantized), torch.stack(scales)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a run, and say what was written."""
    parser = argparse.ArgumentParser(prog="python -m ops.nano.export", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--run", type=Path, default=Path(".cache/nano"), help="folder of the run (default: .cache/nano)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--fp8", action="store_true", help="routed experts in FP8 with 128x128 blocks")
    options = parser.parse_args(arguments)
    try:
        fields = nano_fields(**model_overrides(options.run)) | (FP8_FIELDS if options.fp8 else {})
        export(options.out, fields, finished_tensors(options.run), finished_tokenizer(options.run))
    except OSError as error:
        parser.exit(1, f"{error}\n")
    summary = check_checkpoint(options.out, ep_size=1)
    print(
        f"wrote {options.out}: {summary.num_parameters / 1e6:.1f}M parameters, {summary.num_tensors} tensors,"
        f" {summary.num_bytes / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
