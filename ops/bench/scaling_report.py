"""What a run of the scaling benchmark prints."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ops.bench.scaling_changes import Effect, Felt, Run, lives
from ops.bench.traffic import differing_answers

MOST_RATIO = 1.5  # of the p99 during a change and before it
EXPECTED = [(1, 2), (2, 3), (3, 2), (2, 1)]  # the policy at most doubles and at most halves
SHOWN_FAILURES = 5

console = Console(width=130)


def report(run: Run) -> bool:
    """Tables, sentences and a line for programs. Whether nothing was lost and all changes came."""
    found, differing = run.effects, differing_answers([run.answers])
    console.print(_effect_table(run, found))
    console.print(_replica_table(run))
    _print_sentences(run, len(differing))
    summary = {
        "benchmark": "scaling",
        "failed": len(run.failures),
        "shed": run.num_shed,
        "differing": len(differing),
        "changes": [_for_programs(effect) for effect in found],
    }
    console.print(json.dumps(summary), soft_wrap=True, markup=False, highlight=False)
    seen = [(effect.change.decision.before, effect.change.decision.after) for effect in found]
    return not run.failures and not differing and run.problem is None and seen == EXPECTED


def _effect_table(run: Run, found: Sequence[Effect]) -> Table:
    """Each change against the time before it, as the streams that stay felt it."""
    table = Table("replicas", "decided at, s", "took, s", title="streams that stay, before and during each change")
    for column in ("before, s", "gap p50 / p99, ms", "p99, x", "longest gap, ms", "longest wait for a first token, ms"):
        table.add_column(column)
    for effect in found:
        change, before, during = effect.change, effect.before, effect.during
        table.add_row(
            f"{change.decision.before} -> {change.decision.after}",
            f"{change.start - run.began_at:.0f}",
            f"{change.end - change.start:.1f}",
            f"{effect.quiet_s:.0f}",
            f"{_gaps(before)} -> {_gaps(during)}",
            f"{effect.ratio:.2f}" + (f", more than {MOST_RATIO:g}" if effect.ratio > MOST_RATIO else ""),
            f"{_ms(before.longest_gap)} -> {_ms(during.longest_gap)}",
            f"{_ms(before.first_token)} -> {_ms(during.first_token)}",
        )
    return table


def _replica_table(run: Run) -> Table:
    table = Table("replica", "ready at, s", "left at, s")
    for name, came_at, left_at in lives(run.looks):
        left = "-" if left_at is None else f"{left_at - run.began_at:.0f}"
        table.add_row(name.rpartition("#")[2], f"{came_at - run.began_at:.0f}", left)
    return table


def _print_sentences(run: Run, num_differing: int) -> None:
    """Decisions in the policy's own words, and what became of the requests."""
    for decision in run.decisions:
        console.print(f"{decision.at - run.began_at:.0f} s: {decision.before} -> {decision.after}: {decision.why}")
    asked = [answer.question for answer in run.answers if answer.error is None]
    console.print(
        f"{len(run.answers)} requests: {len(run.failures)} failed, {run.num_shed} shed and asked again; "
        f"{len(asked)} answers to {len(set(asked))} questions, {num_differing} of which got different ones"
    )
    for answer in run.failures[:SHOWN_FAILURES]:
        console.print(f"failed, asked at {answer.sent_at - run.began_at:.0f} s: {answer.error}", markup=False)
    if run.problem is not None:
        console.print(run.problem, markup=False)


def _gaps(felt: Felt) -> str:
    return f"{_ms(felt.gap_p50)} / {_ms(felt.gap_p99)}"


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.0f}"


def _for_programs(effect: Effect) -> dict[str, float | None]:
    change = effect.change
    values = {
        "took_s": change.end - change.start,
        "quiet_s": effect.quiet_s,
        "gap_p99_before_s": effect.before.gap_p99,
        "gap_p99_during_s": effect.during.gap_p99,
        "ratio": effect.ratio,
    }
    rounded = {name: None if math.isnan(value) else round(value, 4) for name, value in values.items()}
    return {"from": change.decision.before, "to": change.decision.after, **rounded}
