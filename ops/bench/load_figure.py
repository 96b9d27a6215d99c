"""Draws latency, tokens and losses against load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ops.bench.load_report import LATENCIES, Row

COLOURS = {"first token": "tab:blue", "inter-token": "tab:green", "end to end": "tab:purple"}
STYLES = {"p50": "-", "p90": "--", "p99": ":"}
LOSSES = {"shed": "tab:orange", "failed": "tab:red"}


def draw(rows: Sequence[Row], unit: str, title: str, path: Path) -> None:
    """A PNG. unit: of the load. A percentile that is not known leaves a gap."""
    figure = Figure(figsize=(8, 7), layout="constrained", dpi=110, facecolor="white")
    latency, tokens, losses = figure.subplots(3, sharex=True, height_ratios=(3, 1.2, 1))
    loads = [row.load for row in rows]
    _draw_latency(latency, rows, loads)
    tokens.plot(loads, [row.tokens_per_s for row in rows], color="black", marker="o", markersize=4)
    tokens.set_ylabel("tokens/s")
    tokens.set_ylim(bottom=0)
    _draw_losses(losses, rows, loads)
    losses.set_xlabel(unit)
    for axes in (latency, tokens, losses):
        axes.grid(visible=True, which="major", color="0.88", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})


def _draw_latency(axes: Axes, rows: Sequence[Row], loads: Sequence[float]) -> None:
    for name in LATENCIES:
        for share, style in STYLES.items():
            values = [_milliseconds(row, name, share) for row in rows]
            axes.plot(loads, values, style, color=COLOURS[name], marker="o", markersize=4, label=f"{name}, {share}")
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds")
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left", fontsize=8, ncols=len(LATENCIES))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend


def _draw_losses(axes: Axes, rows: Sequence[Row], loads: Sequence[float]) -> None:
    for (name, colour), numbers in zip(
        LOSSES.items(), ([row.num_shed for row in rows], [row.num_failed for row in rows]), strict=True
    ):
        shares = [100.0 * number / max(row.num_asked, 1) for number, row in zip(numbers, rows, strict=True)]
        axes.plot(loads, shares, color=colour, marker="o", markersize=4, label=name)
    axes.set_ylabel("% of requests")
    axes.set_ylim(bottom=0, top=max(1.0, axes.get_ylim()[1]))
    axes.legend(loc="upper left", fontsize=8, ncols=2)


def _milliseconds(row: Row, name: str, share: str) -> float:
    value = row.latencies[name].values[share]
    return float("nan") if value is None else 1e3 * value
