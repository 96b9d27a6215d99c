"""Figures and tables of a report in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ops.nano.evaluation.results import Rate


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The first column is text, the others are numbers. Ends with an empty line."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return [*(_row(cells) for cells in (headings, rule, *rows)), ""]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def rate(rate_: Rate | None) -> str:
    """With the number of cases behind it; empty where there are none."""
    return "" if rate_ is None or not rate_.total else f"{percent(rate_.value)} of {rate_.total}"


def _row(cells: Sequence[object]) -> str:
    escaped = [str(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"
