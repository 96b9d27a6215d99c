"""Everything that was measured of one checkpoint, and the file that keeps it for reports and other tools."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter

from ops.nano.evaluation.drafts import DraftResults
from ops.nano.evaluation.language import LanguageResults
from ops.nano.evaluation.results import ParityResult, SkillResult
from ops.nano.evaluation.routing import RoutingResults
from ops.nano.evaluation.training_curve import PhaseCurve


@dataclass(frozen=True)
class Origin:
    """How one part was measured. date: UTC."""

    command: str
    date: str
    machine: str
    seconds: float


@dataclass(frozen=True)
class Measurements:
    """Parts that were not measured are missing. origins: by the name of the part. fingerprint: of the checkpoint."""

    checkpoint: str
    fingerprint: str
    num_parameters: int
    num_bytes: int
    origins: Mapping[str, Origin] = field(default_factory=dict)
    training: tuple[PhaseCurve, ...] | None = None
    answers: tuple[SkillResult, ...] | None = None
    language: LanguageResults | None = None
    drafts: DraftResults | None = None
    routing: RoutingResults | None = None
    parity: ParityResult | None = None


_ADAPTER = TypeAdapter(Measurements)
_LIST_OF_NUMBERS = re.compile(r"\[[\s\d.,eE+-]+\]")


def write_measurements(path: Path, measurements: Measurements) -> None:
    """As JSON, a list of numbers in one line."""
    text = _ADAPTER.dump_json(measurements, indent=1).decode()
    text = _LIST_OF_NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text)
    path.write_text(text + "\n", encoding="utf-8")


def read_measurements(path: Path) -> Measurements:
    """Raises FileNotFoundError, and ValueError for a file of another form."""
    return _ADAPTER.validate_json(path.read_bytes())


def this_machine() -> str:
    """Processor, cores and versions, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    cores = len(os.sched_getaffinity(0))
    return f"{processor}, {cores} cores, Python {platform.python_version()}, torch {version('torch')}"
