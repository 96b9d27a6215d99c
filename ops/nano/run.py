"""A training run on disk: tokenizer, state, and the record of what it measured.

Everything is written beside its final place and renamed, so a run that is stopped at any moment can go on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

SAVE_SECONDS = 240.0
START_FIELD = "start"  # of recipe.json: fingerprint of the checkpoint that the run went on from


@dataclass
class TrainingState:
    """What training changes. tensors: by checkpoint name, float32. step, tokens_seen: within the phase."""

    phase: str
    tensors: dict[str, Tensor]
    step: int
    tokens_seen: int


class Run:
    """Owns a folder. `recipe`: what the run was started with; another one is refused rather than mixed in."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Raises ValueError when the folder holds a run with another recipe."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._saved: dict[str, Any] | None = None
        self._last_save = time.monotonic()
        path = folder / "recipe.json"
        text = json.dumps(recipe, indent=1, sort_keys=True) + "\n"
        if path.exists() and path.read_text() != text:
            raise ValueError(f"{folder} holds a run with another recipe; choose another folder or remove it")
        self._replace(path, text.encode())

    def tokenizer(self, learn: Callable[[], Tokenizer]) -> Tokenizer:
        """The run's tokenizer, learnt the first time."""
        path = self._folder / "tokenizer.json"
        if not path.exists():
            self._replace(path, learn().to_str(pretty=False).encode())
        return Tokenizer.from_file(str(path))

    def restore(self) -> TrainingState | None:
        """The state that was saved last; its optimizers follow with `restore_optimizers`."""
        path = self._folder / "state.pt"
        if not path.exists():
            return None
        self._saved = torch.load(path, map_location="cpu", weights_only=True)
        return TrainingState(**self._saved["state"])

    def restore_optimizers(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Once, for the phase that was interrupted; a new phase starts with fresh ones."""
        saved, self._saved = self._saved, None
        if saved is not None:
            for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)

    @property
    def is_due(self) -> bool:
        """Whether the last save is too long ago."""
        return time.monotonic() - self._last_save > SAVE_SECONDS

    def save(self, state: TrainingState, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Make this the state from which the run goes on."""
        tensors = {name: tensor.detach() for name, tensor in state.tensors.items()}
        content = {
            "state": {
                "phase": state.phase,
                "tensors": tensors,
                "step": state.step,
                "tokens_seen": state.tokens_seen,
            },
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        beside = self._folder / "state.pt.new"
        torch.save(content, beside)
        os.replace(beside, self._folder / "state.pt")
        self._last_save = time.monotonic()

    def record(self, state: TrainingState, values: Mapping[str, float]) -> None:
        """One line of history for each step. Steps that were lost with a stop are told again."""
        line = {"phase": state.phase, "step": state.step, "tokens": state.tokens_seen, **values}
        with (self._folder / "history.jsonl").open("a") as history:
            history.write(json.dumps(line) + "\n")

    @staticmethod
    def _replace(path: Path, content: bytes) -> None:
        beside = path.with_name(path.name + ".new")
        beside.write_bytes(content)
        os.replace(beside, path)


def finished_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a run as they were saved last. Raises FileNotFoundError when it has saved none."""
    saved = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    tensors: dict[str, Tensor] = saved["state"]["tensors"]
    return tensors


def finished_tokenizer(folder: Path) -> Tokenizer:
    """The run's tokenizer."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def start_of(folder: Path) -> str | None:
    """Fingerprint of the checkpoint from which the run went on; None for one that began afresh."""
    fingerprint: str | None = json.loads((folder / "recipe.json").read_text()).get(START_FIELD)
    return fingerprint


def model_overrides(folder: Path) -> dict[str, Any]:
    """The fields of the run's model that differ from the nano model's."""
    overrides: dict[str, Any] = json.loads((folder / "recipe.json").read_text())["model"]
    return overrides
