"""What a level of load did to those who asked: latencies, losses, tokens. Pure.

A percentile is of answers that came; those that were sent away or failed are counted beside it. One that the number of
answers cannot tell (p99.9 of 200) is not shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from rich.table import Table

from ops.bench.load_loops import Asked
from ops.bench.traffic import Answer, percentile

SHED_STATUSES = (429, 503)
LATE_SHARE = 0.1  # of the median wait for a first token
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
LATENCIES = {
    "first token": "from the moment when the request was due",
    "inter-token": "between two events of a stream; with drafts an event may carry several tokens",
    "end to end": "from the moment when the request was due to its last token",
}


@dataclass(frozen=True)
class Percentiles:
    """In seconds, by name; None: too few values to tell."""

    count: int
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Row:
    """One level of load. load: requests offered a second, or streams. seconds: that were counted.

    num_asked: requests that were due in them; each was answered, shed (429 or 503) or failed. errors: failures by
    class. retry_after_s: the longest that a shed request was told. answered_per_s, tokens_per_s: what came in these
    seconds, whenever it was asked for. lag_p99_s: how late this program sent.
    """

    load: float
    seconds: float
    num_asked: int
    num_answered: int
    num_shed: int
    num_failed: int
    shed: Mapping[str, int]
    retry_after_s: float | None
    errors: Mapping[str, int]
    answered_per_s: float
    tokens_per_s: float
    lag_p99_s: float | None
    latencies: Mapping[str, Percentiles]

    @property
    def share_lost(self) -> float:
        return (self.num_shed + self.num_failed) / self.num_asked if self.num_asked else 0.0

    @property
    def is_late(self) -> bool:
        """Are the latencies partly this program's own?"""
        first = self.latencies["first token"].values["p50"]
        return self.lag_p99_s is not None and first is not None and self.lag_p99_s > LATE_SHARE * first


def row_of(load: float, asked: Sequence[Asked], start: float, end: float) -> Row:
    """start, end: the counted part of the run. Requests due before it are warm-up."""
    counted = [each for each in asked if start <= each.due_at < end]
    answered = [each for each in counted if each.answer.error is None]
    shed = [each.answer for each in counted if is_shed(each.answer)]
    failed = [each.answer for each in counted if each.answer.error is not None and not is_shed(each.answer)]
    seconds = end - start
    return Row(
        load=load,
        seconds=seconds,
        num_asked=len(counted),
        num_answered=len(answered),
        num_shed=len(shed),
        num_failed=len(failed),
        shed=dict(Counter(str(answer.status) for answer in shed)),
        retry_after_s=max((answer.retry_after_s for answer in shed if answer.retry_after_s is not None), default=None),
        errors=dict(Counter((answer.error or "").partition(":")[0] for answer in failed)),
        answered_per_s=sum(_ended_within(each.answer, start, end) for each in asked) / seconds,
        tokens_per_s=sum(_tokens_within(each.answer, start, end) for each in asked) / seconds,
        lag_p99_s=percentile([each.lag_s for each in counted], 0.99) if counted else None,
        latencies=_latencies(answered),
    )


def is_shed(answer: Answer) -> bool:
    """Sent away: it would work later."""
    return answer.status in SHED_STATUSES


def percentiles(values: Sequence[float]) -> Percentiles:
    """Those that so many values can tell: at least one lies above."""
    return Percentiles(
        len(values),
        {
            name: percentile(values, share) if len(values) >= ceil(round(1.0 / (1.0 - share), 6)) else None
            for name, share in SHARES.items()
        },
    )


def count_table(rows: Sequence[Row], unit: str) -> Table:
    """How many were answered and lost, and what came of it."""
    table = Table(unit, "asked", "answered", "shed", "failed", "answered/s", "tokens/s", "sent late p99, ms", "losses")
    for row in rows:
        lag = "-" if row.lag_p99_s is None else f"{1e3 * row.lag_p99_s:.1f}"
        cells = (f"{row.load:g}", row.num_asked, row.num_answered, row.num_shed, row.num_failed)
        rates = (f"{row.answered_per_s:.2f}", f"{row.tokens_per_s:.1f}", lag)
        table.add_row(*map(str, cells), *rates, _losses(row))
    return table


def latency_table(rows: Sequence[Row], unit: str) -> Table:
    """Percentiles in milliseconds, each with the number of values it is of."""
    table = Table(unit, "latency, ms", *SHARES, "of so many")
    for row in rows:
        for name, found in row.latencies.items():
            values = ("-" if value is None else f"{1e3 * value:.1f}" for value in found.values.values())
            table.add_row(f"{row.load:g}", name, *values, str(found.count))
    return table


def _latencies(answered: Sequence[Asked]) -> dict[str, Percentiles]:
    told = [each for each in answered if each.answer.times]  # an empty answer has no first token
    values = (
        [each.answer.times[0] - each.due_at for each in told],
        [gap for each in told for _, gap in each.answer.gaps],
        [each.answer.times[-1] - each.due_at for each in told],
    )
    return {name: percentiles(found) for name, found in zip(LATENCIES, values, strict=True)}


def _ended_within(answer: Answer, start: float, end: float) -> bool:
    return answer.error is None and start <= (answer.times[-1] if answer.times else answer.sent_at) < end


def _tokens_within(answer: Answer, start: float, end: float) -> float:
    """Tokens spread evenly over the events of their answer: how many each carried is not told."""
    if answer.error is not None or not answer.times:
        return 0.0
    return answer.num_tokens * sum(start <= at < end for at in answer.times) / len(answer.times)


def _losses(row: Row) -> str:
    shed = [f"{number} x HTTP {status}" for status, number in sorted(row.shed.items())]
    if shed and row.retry_after_s is not None:
        shed[-1] += f" (retry after {row.retry_after_s:g} s)"
    return ", ".join([*shed, *(f"{number} x {error}" for error, number in sorted(row.errors.items()))])
