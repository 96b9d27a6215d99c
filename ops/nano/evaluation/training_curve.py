"""The record of a training run, thinned to what a figure can show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NUM_POINTS = 100
HISTORY_NAME = "history.jsonl"


@dataclass(frozen=True)
class PhaseCurve:
    """One phase. tokens: seen at each point. losses: by name, the mean since the point before. steps: all of them."""

    phase: str
    steps: int
    tokens: tuple[int, ...]
    losses: Mapping[str, tuple[float, ...]]


def read_curves(run: Path) -> tuple[PhaseCurve, ...]:
    """The phases of a run in order. Raises FileNotFoundError when it has no history."""
    phases: dict[str, dict[int, dict[str, float]]] = {}
    for text in (run / HISTORY_NAME).read_text().splitlines():
        line = json.loads(text)
        # A step that was lost with a stop is told again; the later line is the one that counts.
        phases.setdefault(line["phase"], {})[line["step"]] = line
    return tuple(_curve(phase, [lines[step] for step in sorted(lines)]) for phase, lines in phases.items())


def _curve(phase: str, lines: Sequence[Mapping[str, float]]) -> PhaseCurve:
    names = [name for name in lines[0] if name == "loss" or name.startswith("draft_")]
    size = -(-len(lines) // NUM_POINTS)
    chunks = [lines[first : first + size] for first in range(0, len(lines), size)]
    losses = {
        name: tuple(round(sum(line[name] for line in chunk) / len(chunk), 4) for chunk in chunks) for name in names
    }
    return PhaseCurve(phase, len(lines), tuple(int(chunk[-1]["tokens"]) for chunk in chunks), losses)
