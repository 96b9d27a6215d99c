"""Measures a checkpoint on held-out data and writes RESULTS.md, results.json and the figures.

`python -m ops.nano.evaluate ops/nano/checkpoint --run .cache/nano`
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from actors.errors import CheckpointError
from actors.weights.check import check_checkpoint
from ops.nano.data.mixture import SKILLS
from ops.nano.data.python_texts import Library, load_library
from ops.nano.evaluation.answers import evaluate_answers
from ops.nano.evaluation.checkpoint import fingerprint, load_checkpoint
from ops.nano.evaluation.drafts import DraftResults, evaluate_drafts
from ops.nano.evaluation.engine import Engine
from ops.nano.evaluation.figures import draw_figures
from ops.nano.evaluation.inputs import continuations, domain_texts, foreign_pieces, standing_texts, written_texts
from ops.nano.evaluation.language import LanguageResults, evaluate_language
from ops.nano.evaluation.measurements import (
    Measurements,
    Origin,
    read_measurements,
    this_machine,
    write_measurements,
)
from ops.nano.evaluation.parity import compare_with_transformers
from ops.nano.evaluation.report import report
from ops.nano.evaluation.results import AnswerResults, ParityResult, SkillResult
from ops.nano.evaluation.routing import RoutingResults, evaluate_routing
from ops.nano.evaluation.training_curve import HISTORY_NAME, PhaseCurve, read_curves
from ops.nano.recipe import TRUNK
from ops.nano.run import start_of


@dataclass(frozen=True)
class Sizes:
    """How much each part looks at. per_skill: conversations that are answered; of them `num_sampled` also at
    temperature 1. *_tokens: of each domain; draft_tokens are those that the model wrote. continuations: of text and of
    code. parity_prompts: over all domains. foreign_pieces: of each kind that is made by chance."""

    per_skill: int = 200
    num_sampled: int = 40
    language_tokens: int = 60_000
    draft_tokens: int = 4_000
    routing_tokens: int = 8_000
    continuations: int = 24
    parity_prompts: int = 200
    foreign_pieces: int = 10


SMALL = Sizes(4, 2, 2_000, 200, 800, 2, 10, 2)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured, and how much. run: the folder of its training. earlier: phases that were over before it."""

    folder: Path
    run: Path | None
    sizes: Sizes
    earlier: tuple[PhaseCurve, ...] = ()


class Evaluation:
    """The parts of one evaluation, each measured when it is asked for; what several need is made once."""

    def __init__(self, subject: Subject) -> None:
        """Raises CheckpointError, ValueError as `load_checkpoint`."""
        self._subject, self._sizes = subject, subject.sizes
        self._checkpoint = load_checkpoint(subject.folder)

    def answers(self) -> tuple[SkillResult, ...]:
        return self._answers.skills

    def language(self) -> LanguageResults:
        curves = {curve.phase: curve for curve in self.training() or ()}
        return evaluate_language(
            self._checkpoint,
            held_out=self._library,
            training=load_library(held_out=False),
            num_tokens=self._sizes.language_tokens,
            trunk_tokens=curves[TRUNK].tokens[-1] if TRUNK in curves else None,
        )

    def drafts(self) -> DraftResults:
        sizes = self._sizes
        greedy, sampled = continuations(Engine(self._checkpoint.folder), self._library, sizes.continuations)
        return evaluate_drafts(
            self._checkpoint,
            greedy=written_texts({**self._answers.greedy, **greedy}, sizes.draft_tokens),
            sampled=written_texts({**self._answers.sampled, **sampled}, sizes.draft_tokens),
            on_text=standing_texts(self._library, self._checkpoint.renderer, 2 * sizes.draft_tokens),
            together=tuple(SKILLS),
        )

    def routing(self) -> RoutingResults:
        renderer, sizes = self._checkpoint.renderer, self._sizes
        return evaluate_routing(
            self._checkpoint,
            domain_texts(self._library, renderer, sizes.routing_tokens),
            foreign_pieces(self._library, renderer, sizes.foreign_pieces),
        )

    def parity(self) -> ParityResult:
        return compare_with_transformers(self._checkpoint.folder, num_prompts=self._sizes.parity_prompts)

    def training(self) -> tuple[PhaseCurve, ...] | None:
        """None without the folder of the run."""
        run = self._subject.run
        return None if run is None else (*self._subject.earlier, *read_curves(run))

    @cached_property
    def _answers(self) -> AnswerResults:
        sizes = self._sizes
        return evaluate_answers(self._checkpoint.folder, per_skill=sizes.per_skill, num_sampled=sizes.num_sampled)

    @cached_property
    def _library(self) -> Library:
        return load_library(held_out=True)


PARTS: Mapping[str, Callable[[Evaluation], Any]] = {
    "training": Evaluation.training,
    "answers": Evaluation.answers,
    "language": Evaluation.language,
    "drafts": Evaluation.drafts,
    "routing": Evaluation.routing,
    "parity": Evaluation.parity,
}
WITH_ANSWERS = ("answers", "drafts")  # measured in one process, the others in another


@dataclass(frozen=True)
class Part:
    """One measured part. value: None when there was nothing to measure. date: UTC, of its end."""

    name: str
    value: Any
    seconds: float
    date: str


def measure(subject: Subject, names: Sequence[str]) -> Iterator[Part]:
    """The named parts as they are ready, from two processes: a model this small makes no good use of a second core."""
    others = [name for name in names if name not in WITH_ANSWERS]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        futures = [executor.submit(_measured_quietly, subject, name) for name in others]
        for name in names:
            if name in WITH_ANSWERS:
                yield measured(_evaluation(subject), name)
        for future in futures:
            yield future.result()


def measured(evaluation: Evaluation, name: str) -> Part:
    """One part."""
    start = time.monotonic()
    value = PARTS[name](evaluation)
    return Part(name, value, round(time.monotonic() - start, 1), f"{datetime.now(UTC):%Y-%m-%d %H:%M}")


def _measured_quietly(subject: Subject, name: str) -> Part:
    """In another process, whose progress would be drawn over this one's."""
    torch.set_num_threads(1)
    with redirect_stdout(StringIO()):
        return measured(_evaluation(subject), name)


@cache
def _evaluation(subject: Subject) -> Evaluation:
    """One for each subject, as it is known in this process."""
    return Evaluation(subject)


def with_part(known: Measurements, part: Part, command: str) -> Measurements:
    """What is known already, with this part added or in place of an older one."""
    if part.value is None:
        return known
    origin = Origin(command, part.date, this_machine(), part.seconds)
    values: dict[str, Any] = {part.name: part.value}
    return replace(known, origins={**known.origins, part.name: origin}, **values)


def write(measurements: Measurements, folder: Path) -> None:
    """RESULTS.md, results.json and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_measurements(folder / "results.json", measurements)
    figures = draw_figures(measurements, folder / "figures")
    (folder / "RESULTS.md").write_text(report(measurements, figures), encoding="utf-8")


def known_before(folder: Path, out: Path) -> Measurements:
    """What `out` says of the same weights already; else what can be said without measuring. Raises CheckpointError."""
    summary, own = check_checkpoint(folder, ep_size=1), fingerprint(folder)
    path = out / "results.json"
    if path.exists() and (known := read_measurements(path)).fingerprint == own:
        return replace(known, checkpoint=str(folder))
    return Measurements(str(folder), own, summary.num_parameters, summary.num_bytes)


def earlier_phases(run: Path | None, out: Path) -> tuple[PhaseCurve, ...]:
    """How the checkpoint was trained from which a run went on, where `out` describes that checkpoint."""
    start = None if run is None else start_of(run)
    path = out / "results.json"
    if start is None or not path.exists() or (known := read_measurements(path)).fingerprint != start:
        return ()
    return known.training or ()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ops.nano.evaluate", description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint, in bfloat16")
    parser.add_argument("--out", type=Path, default=Path("ops/nano"), help="folder to write (default: ops/nano)")
    parser.add_argument("--run", type=Path, help="folder of the training run, for its curve")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}; others stay as they were")
    parser.add_argument("--per-skill", type=int, default=Sizes.per_skill, help="conversations that are answered")
    parser.add_argument("--small", action="store_true", help="a few of everything, to see that it runs")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and say what was reached."""
    parser = _parser()
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    if options.run is not None and not (options.run / HISTORY_NAME).exists():
        parser.error(f"--run: {options.run} has no {HISTORY_NAME}")
    if unknown := set(names) - set(PARTS):
        parser.error(f"--only: no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    sizes = SMALL if options.small else replace(Sizes(), per_skill=options.per_skill)
    try:
        load_checkpoint(options.checkpoint)
        known = known_before(options.checkpoint, options.out)
        earlier = earlier_phases(options.run, options.out)
    except (CheckpointError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    for part in measure(Subject(options.checkpoint, options.run, sizes, earlier), names):
        print(f"{part.name}: {part.seconds:.0f} s", flush=True)
        known = with_part(known, part, f"{parser.prog} {shlex.join(given)}")
        write(known, options.out)  # after each part, so that a failure of a later one loses nothing
    print(f"wrote {options.out / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
