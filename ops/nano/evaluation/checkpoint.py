"""A checkpoint as it is measured: its model in float32 over whole sequences, its tokenizer, and its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from actors.model.config import ModelConfig
from actors.weights.check import read_model_config
from ops.nano.data.rendering import Renderer
from ops.nano.dense import DenseModel
from ops.nano.model import Tensors


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by name, float32; their values are those that are stored."""

    folder: Path
    config: ModelConfig
    tensors: Tensors
    tokenizer: Tokenizer

    @property
    def renderer(self) -> Renderer:
        return Renderer(self.tokenizer)

    def model(self) -> DenseModel:
        """The model in float32. Run it without gradients."""
        return DenseModel(self.config, self.tensors, torch.float32)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that `ops.nano.export` wrote. Raises CheckpointError for one that is not sound, and ValueError
    for one with FP8 experts, which have no gradients and no place here."""
    config = read_model_config(folder)
    if config.fp8 is not None:
        raise ValueError(f"{folder} has FP8 experts; measure the bfloat16 checkpoint")
    tensors = {
        name: tensor.to(torch.float32) for path in _weight_files(folder) for name, tensor in load_file(path).items()
    }
    return Checkpoint(folder, config, tensors, Tokenizer.from_file(str(folder / "tokenizer.json")))


def fingerprint(folder: Path) -> str:
    """SHA-256 of all weights: `cat FOLDER/*.safetensors | sha256sum` gives the same."""
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
