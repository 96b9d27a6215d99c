"""What the speculation benchmark measured, and the tables that show it. Measures nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from ops.bench.streams import Batch

OFF, ADAPTIVE = "off", "adaptive"
WITHIN = 0.97  # of the best fixed setting: what the adaptive one must reach
AIM = 1.3  # times the speed without drafts, at one stream


@dataclass
class Measured:
    """One setting in one round of one cell. draft_seconds: of passes with all drafts for each stream. num_experts: a
    sum over num_dispatches, one a layer of steps that had them all."""

    batches: list[Batch] = field(default_factory=list)
    draft_seconds: list[float] = field(default_factory=list)
    num_dispatches: int = 0
    num_experts: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(batch.num_tokens for batch in self.batches)

    @property
    def seconds_per_token(self) -> float:
        """Of a stream."""
        return fmean(batch.seconds_per_token for batch in self.batches)

    @property
    def tokens_per_step(self) -> float:
        """Of a stream: its mean acceptance length, the target's own token included."""
        return self.num_tokens / sum(batch.num_steps for batch in self.batches)

    @property
    def mean_drafts(self) -> float:
        """Of a stream and step."""
        return sum(batch.num_drafts for batch in self.batches) / sum(batch.num_steps for batch in self.batches)

    def step_seconds(self, num_rows: int) -> list[float]:
        """Of steps with so many rows."""
        return [step.seconds for batch in self.batches for step in batch.steps if step.num_rows == num_rows]

    @property
    def texts(self) -> list[list[int]]:
        return [stream.token_ids for batch in self.batches for stream in batch.streams]


@dataclass(frozen=True)
class Cell:
    """One domain at one number of streams: by round, each setting. warm_up: the round before, which counted experts."""

    domain: str
    streams: int
    warm_up: Mapping[str, Measured]
    rounds: tuple[Mapping[str, Measured], ...]

    @property
    def settings(self) -> list[str]:
        return list(self.warm_up)

    @property
    def best_fixed(self) -> str:
        """The fastest setting that is not adaptive; without drafts is one of them."""
        fixed = (name for name in self.settings if name != ADAPTIVE)
        return max(fixed, key=lambda name: median(self.speedups(name, OFF)))

    def seconds_per_token(self, setting: str) -> float:
        return median(measured[setting].seconds_per_token for measured in self.rounds)

    def tokens_per_second(self, setting: str) -> float:
        return self.streams / self.seconds_per_token(setting)

    def speedups(self, setting: str, base: str) -> list[float]:
        """How many times as fast as `base`, by round."""
        return [measured[base].seconds_per_token / measured[setting].seconds_per_token for measured in self.rounds]

    def tokens_per_step(self, setting: str) -> float:
        return median(measured[setting].tokens_per_step for measured in self.rounds)

    def mean_drafts(self, setting: str) -> float:
        return median(measured[setting].mean_drafts for measured in self.rounds)

    def num_equal_streams(self, setting: str) -> tuple[int, int]:
        """Streams with the tokens that they have without drafts, as far as both went, and all streams."""
        pairs = [
            pair for measured in self.rounds for pair in zip(measured[setting].texts, measured[OFF].texts, strict=True)
        ]
        return sum(all(a == b for a, b in zip(*pair, strict=False)) for pair in pairs), len(pairs)

    def to_dict(self) -> dict[str, object]:
        return {
            "domain": self.domain,
            "streams": self.streams,
            "tokens_per_round": self.rounds[0][OFF].num_tokens,
            "tokens_per_s": {name: round(self.tokens_per_second(name), 1) for name in self.settings},
            "ms_per_token": {name: round(1e3 * self.seconds_per_token(name), 3) for name in self.settings},
            "tokens_per_step": {name: round(self.tokens_per_step(name), 3) for name in self.settings},
            "speedups": {name: [round(x, 3) for x in self.speedups(name, OFF)] for name in self.settings},
            "against_best_fixed": [round(x, 3) for x in self.speedups(ADAPTIVE, self.best_fixed)],
        }


def full_rows(setting: str, streams: int) -> int:
    """Of a step in which every stream has all its drafts verified; with as many as pay there is no such number, and
    this is without drafts."""
    return streams * (1 + int(setting)) if setting.isdigit() else streams


def print_cells(cells: Sequence[Cell]) -> None:
    """One line for each cell and setting."""
    print(
        "drafts, tokens per step: of a stream, so the latter is the mean acceptance length. x off, x best fixed: speed,"
    )
    print("median of the rounds (and their range); best fixed: the fastest of those that are not adaptive.")
    columns = ("domain", "streams", "MTP", "tokens/s", "ms per token", "drafts", "tokens per step")
    _print_header(*columns, "x off", "x best fixed")
    for cell in cells:
        for name in cell.settings:
            ratios, against_best = cell.speedups(name, OFF), median(cell.speedups(name, cell.best_fixed))
            print(
                f"| {cell.domain} | {cell.streams} | {name} | {cell.tokens_per_second(name):.1f} "
                f"| {1e3 * cell.seconds_per_token(name):.2f} | {cell.mean_drafts(name):.2f} "
                f"| {cell.tokens_per_step(name):.2f} "
                f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {against_best:.2f} |"
            )


def print_step_costs(cells: Sequence[Cell], num_experts: int) -> None:
    """What a step of 1 + k rows for each stream costs, over all domains."""
    print(
        f"step: median, drafting for the next one included. experts: distinct ones of {num_experts}, mean of a layer."
    )
    print("x one row: tokens per step from which drafts pay. at most: speed-up if every draft were right.")
    _print_header("streams", "rows each", "step, ms", "drafting, ms", "experts", "x one row", f"for {AIM} x", "at most")
    for streams in sorted({cell.streams for cell in cells}):
        alike = [cell for cell in cells if cell.streams == streams]
        one_row_s = _step_seconds(alike, OFF)
        for name in (name for name in alike[0].settings if name != ADAPTIVE):
            rows = full_rows(name, 1)
            step_s, ratio = _step_seconds(alike, name), _step_seconds(alike, name) / one_row_s
            print(
                f"| {streams} | {rows} | {1e3 * step_s:.2f} | {1e3 * _draft_seconds(alike, name):.2f} "
                f"| {_experts(alike, name):.1f} | {ratio:.2f} | {AIM * ratio:.2f} | {rows / ratio:.2f} |"
            )


def print_verdict(cells: Sequence[Cell]) -> None:
    """What the benchmark is for, in three sentences."""
    against = {(cell.domain, cell.streams): median(cell.speedups(ADAPTIVE, cell.best_fixed)) for cell in cells}
    missed = {key: ratio for key, ratio in against.items() if ratio < WITHIN}
    print(
        f"adaptive reaches {WITHIN} of the best fixed setting in {len(against) - len(missed)} of {len(against)} cells"
    )
    for (domain, streams), ratio in missed.items():
        print(f"  missed: {domain}, {streams} streams, {ratio:.3f}")
    for cell in (cell for cell in cells if cell.streams == 1):
        speedup = median(cell.speedups(ADAPTIVE, OFF))
        verdict = "reached" if speedup >= AIM else "missed"
        print(f"one stream, {cell.domain}: adaptive is {speedup:.2f} x off; the aim of {AIM} is {verdict}")
    counts = [cell.num_equal_streams(name) for cell in cells for name in cell.settings if name != OFF]
    num_equal, num_streams = (sum(numbers) for numbers in zip(*counts, strict=True))
    print(f"streams with the very tokens that they have without drafts: {num_equal} of {num_streams}")


def _print_header(*columns: str) -> None:
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))


def _step_seconds(cells: Sequence[Cell], setting: str) -> float:
    return median(
        seconds
        for cell in cells
        for measured in cell.rounds
        for seconds in measured[setting].step_seconds(full_rows(setting, cell.streams))
    )


def _draft_seconds(cells: Sequence[Cell], setting: str) -> float:
    return median([s for cell in cells for measured in cell.rounds for s in measured[setting].draft_seconds] or [0.0])


def _experts(cells: Sequence[Cell], setting: str) -> float:
    """Distinct experts that a layer's rows went to."""
    total = sum(cell.warm_up[setting].num_experts for cell in cells)
    return total / sum(cell.warm_up[setting].num_dispatches for cell in cells)
