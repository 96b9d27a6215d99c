"""What a dashboard consists of, as frozen data: queries, panels, rows, boards. Pure; knows no JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from ops.dashboards.promql import PERCENTILES, quantile

GRID_WIDTH = 24


class Look(StrEnum):
    """How a panel shows its queries. The value is Grafana's name, except of a matrix, which is a table."""

    LINES = "timeseries"
    STAT = "stat"
    BARS = "bargauge"  # one bar for each series, as it is now
    TABLE = "table"
    MATRIX = "matrix"  # one value for each pair of two labels, as it is now
    HEATMAP = "heatmap"  # time by one label
    PHASES = "state-timeline"


class Unit(StrEnum):
    """Units of values, in Grafana's spelling."""

    NUMBER = "short"
    PLAIN = "none"  # a number that is not abbreviated, such as an epoch
    SHARE = "percentunit"
    SECONDS = "s"
    BYTES = "bytes"
    BYTES_PER_SECOND = "Bps"
    PER_SECOND = "cps"
    REQUESTS_PER_SECOND = "reqps"
    TOKENS_PER_SECOND = "suffix: tok/s"
    TOKENS = "suffix: tokens"
    TIMES = "suffix: x"  # one number over another


@dataclass(frozen=True)
class Query:
    """legend: with {{label}} in it."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Step:
    """From this value on a panel has this colour. value: None of the lowest step."""

    value: float | None
    colour: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """title and description are for who is on call. width, height: in Grafana's grid of 24 columns.

    steps: by value, ascending. low, high: bounds of the axis or the colours. rows, columns: labels of a matrix.
    is_stacked: lines that add up to something.
    """

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    look: Look = Look.LINES
    width: int = 8
    height: int = 8
    steps: tuple[Step, ...] = ()
    low: float | None = None
    high: float | None = None
    is_stacked: bool = False
    rows: str = ""
    columns: str = ""


@dataclass(frozen=True)
class Row:
    """Panels under a heading, laid out from left to right. is_collapsed: asks nothing until it is opened."""

    title: str
    panels: tuple[Panel, ...]
    is_collapsed: bool = False


@dataclass(frozen=True)
class Variable:
    """Something to choose at a dashboard's top. values: of a label of a metric, as Grafana asks for them.

    all_value: the regular expression for all of them; empty: one must be chosen.
    """

    name: str
    label: str
    values: str
    all_value: str = ""


@dataclass(frozen=True, kw_only=True)
class Board:
    """One dashboard. name: of its file. variables: beside those that every board has."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()


def stat(title: str, description: str, unit: Unit, expression: str, *steps: Step) -> Panel:
    """One number, as it is now."""
    return Panel(
        title=title,
        description=description,
        unit=unit,
        queries=(Query(expression, title),),
        look=Look.STAT,
        width=4,
        height=4,
        steps=steps,
    )


def lines(title: str, description: str, unit: Unit, *queries: Query) -> Panel:
    """Values over time."""
    return Panel(title=title, description=description, unit=unit, queries=queries)


def stacked(title: str, description: str, unit: Unit, *queries: Query) -> Panel:
    """Parts of a whole over time."""
    return replace(lines(title, description, unit, *queries), is_stacked=True)


def percentiles(title: str, description: str, histogram: str) -> Panel:
    """Seconds of a histogram: p50, p95 and p99."""
    queries = (Query(quantile(q, histogram), name) for q, name in PERCENTILES)
    return lines(title, description, Unit.SECONDS, *queries)


def as_share(panel: Panel) -> Panel:
    """From nothing to all, whatever is shown."""
    return replace(panel, low=0.0, high=1.0)


def sized(panel: Panel, width: int, height: int | None = None) -> Panel:
    return replace(panel, width=width, height=height or panel.height)


# Green is as it should be, red is somebody's work.
RED_FROM_1 = (Step(None, "green"), Step(1.0, "red"))
GREEN_FROM_1 = (Step(None, "red"), Step(1.0, "green"))


def red_from(warning: float, alarm: float) -> tuple[Step, ...]:
    """The higher the worse."""
    return Step(None, "green"), Step(warning, "orange"), Step(alarm, "red")


def green_from(alarm: float, good: float) -> tuple[Step, ...]:
    """The lower the worse."""
    return Step(None, "red"), Step(alarm, "orange"), Step(good, "green")
