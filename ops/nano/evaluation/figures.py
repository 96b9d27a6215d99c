"""The figures of the report as SVG files that are the same for the same measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ops.nano.data import arithmetic, tool_use
from ops.nano.data.python_texts import CODE
from ops.nano.evaluation.drafts import Acceptance
from ops.nano.evaluation.measurements import Measurements
from ops.nano.evaluation.routing import DomainRouting, RoutingResults
from ops.nano.evaluation.targets import DRAFTS, WELL_FORMED

CONTRASTING = (arithmetic.SKILL, tool_use.SKILL, CODE)  # domains of the load figure, if they were measured
WIDTH = 8.5  # inches
MAIN, SECOND, GREY = "#2166ac", "#d6604d", "#7f7f7f"
POSITIONS = ("#08519c", "#4292c6", "#9ecae1")  # of a draft, the first the darkest

STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "grid.color": "#e3e3e3",
    "legend.frameon": False,
    "figure.facecolor": "white",  # a page may be dark
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "nano",  # ids do not depend on the time
}
Drawing = Callable[[Measurements], Figure | None]


def draw_figures(measurements: Measurements, folder: Path) -> list[str]:
    """Draw those whose parts were measured; their names. Figures of parts that are missing are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, drawing in DRAWINGS.items():
        with mpl.rc_context(STYLE):
            figure = drawing(measurements)
            if figure is None:
                (folder / name).unlink(missing_ok=True)
                continue
            figure.savefig(folder / name, format="svg", metadata={"Date": None, "Creator": None})
        names.append(name)
    return names


def _training(measurements: Measurements) -> Figure | None:
    if not measurements.training:
        return None
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    panels = figure.subplots(1, len(measurements.training), squeeze=False)[0]
    for axes, curve in zip(panels, measurements.training, strict=True):
        drafts = [name for name in curve.losses if name.startswith("draft_")]
        colours = POSITIONS if drafts else (MAIN,)
        for name, colour in zip(drafts or ["loss"], colours, strict=False):
            millions = [tokens / 1e6 for tokens in curve.tokens]
            axes.plot(millions, curve.losses[name], color=colour, linewidth=1.4, label=name.replace("_", " "))
        if drafts:
            axes.legend()
        axes.set_title(curve.phase)
        axes.set_xlabel("million tokens")
        axes.set_ylabel("loss, nats per weighted token")
        axes.grid(visible=True)
    return figure


def _accuracy(measurements: Measurements) -> Figure | None:
    if measurements.answers is None:
        return None
    rows = [(_title(skill.skill), skill.exact.value, MAIN) for skill in measurements.answers]
    rows += [
        (f"{skill.skill}, calls", skill.calls.valid.value, SECOND) for skill in measurements.answers if skill.calls
    ]
    well_formed = [skill.well_formed for skill in measurements.answers]
    share = sum(part.count for part in well_formed) / max(1, sum(part.total for part in well_formed))
    rows.append(("well-formed, all skills", share, GREY))
    names, shares, colours = zip(*rows[::-1], strict=True)
    figure = Figure(figsize=(WIDTH, 0.8 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, [100 * share for share in shares], color=colours, height=0.68)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(f"percent of held-out turns (exact answers; aim for well-formed ones {100 * WELL_FORMED:.0f})")
    axes.grid(visible=True, axis="x")
    return figure


def _acceptance(measurements: Measurements) -> Figure | None:
    if measurements.drafts is None or not measurements.drafts.greedy:
        return None
    kinds = {"greedy": measurements.drafts.greedy, "sampled at temperature 1": measurements.drafts.sampled}
    shown = {title: rows for title, rows in kinds.items() if rows}
    figure = Figure(figsize=(WIDTH, 2.7 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for axes, (title, rows) in zip(panels, shown.items(), strict=True):
        _acceptance_bars(axes, rows)
        axes.set_title(f"{title}: share of drafts accepted, given that all before were (lines: aims)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3)
    return figure


def _acceptance_bars(axes: Axes, rows: Mapping[str, Acceptance]) -> None:
    width = 0.27
    for position, (colour, aim) in enumerate(zip(POSITIONS, DRAFTS, strict=True)):
        shares = [100 * row.by_position[position] if position < len(row.by_position) else 0.0 for row in rows.values()]
        places = [idx + (position - 1) * width for idx in range(len(rows))]
        axes.bar(places, shares, width * 0.94, color=colour, label=f"draft {position + 1}")
        axes.axhline(100 * aim, color=colour, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
    lengths = [f"{row.mean_length:.2f}" for row in rows.values()]
    names = [f"{_title(domain)}\n{length}" for domain, length in zip(rows, lengths, strict=True)]
    axes.set_xticks(range(len(rows)), names, fontsize=7.5)
    axes.set_xlabel("domain, and mean number of tokens of a step")
    axes.set_ylabel("percent")
    axes.set_ylim(0, 100)
    axes.set_xlim(-0.6, len(rows) - 0.4)


def _load(measurements: Measurements) -> Figure | None:
    if measurements.routing is None:
        return None
    results = measurements.routing
    domains = _contrasting(results)
    figure = Figure(figsize=(WIDTH, 1.75 * len(domains) + 0.5), layout="constrained")
    panels = figure.subplots(len(domains), 1, squeeze=False)[:, 0]
    shares = [_relative_load(domain) for domain in domains]
    highest = max(value for rows in shares for row in rows for value in row)
    for axes, domain, rows in zip(panels, domains, shares, strict=True):
        # By the square root: experts at twice the mean are to be seen beside one at eight times.
        norm = PowerNorm(0.5, vmin=0.0, vmax=highest)
        # "none" would leave the enlarging to whoever shows the picture, and most blur it.
        image = axes.imshow(rows, aspect="auto", cmap="Blues", norm=norm, interpolation="nearest")
        axes.set_yticks(range(len(rows)), [str(layer.layer_id) for layer in domain.layers])
        size = results.num_experts // results.num_ranks
        axes.set_xticks(range(0, results.num_experts, size))
        for rank in range(1, results.num_ranks):
            axes.axvline(rank * size - 0.5, color=SECOND, linewidth=0.7)
        axes.set_title(_title(domain.domain))
        axes.set_ylabel("layer")
    panels[-1].set_xlabel("expert (lines: EP ranks)")
    figure.colorbar(
        image, ax=list(panels), label="load over the layer's mean", shrink=0.8, ticks=range(int(highest) + 1)
    )
    return figure


def _contrasting(results: RoutingResults) -> Sequence[DomainRouting]:
    own = [domain for domain in results.domains if not domain.is_foreign]
    return [domain for domain in own if domain.domain in CONTRASTING] or own[: len(CONTRASTING)]


def _relative_load(domain: DomainRouting) -> list[list[float]]:
    return [[count / fmean(layer.load) for count in layer.load] for layer in domain.layers]


def _confidence(measurements: Measurements) -> Figure | None:
    if measurements.routing is None:
        return None
    results = measurements.routing
    figure = Figure(figsize=(WIDTH, 1.1 + 0.23 * len(results.domains)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for place, domain in enumerate(results.domains):
        colour = SECOND if domain.is_foreign else MAIN
        label = "never trained on" if domain.is_foreign else "trained on"
        masses = [100 * layer.mass for layer in domain.layers]
        left.plot(masses, [place] * len(masses), linestyle="", marker="|", color=colour, alpha=0.55)
        left.plot(fmean(masses), place, linestyle="", marker="o", color=colour, label=label)
        right.plot(fmean(layer.margin for layer in domain.layers), place, marker="o", color=colour)
    left.axvline(100 * results.top_k / results.num_experts, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    left.set_yticks(range(len(results.domains)), [_title(domain.domain) for domain in results.domains])
    left.invert_yaxis()
    left.set_title("probability mass on the chosen experts")
    left.set_xlabel("percent (bars: layers; line: no preference)")
    right.set_title("margin of the last chosen expert")
    right.set_xlabel("score plus bias")
    right.set_xlim(0.0, 1.08 * max(right.get_xlim()[1], 1e-6))
    right.xaxis.set_major_locator(MaxNLocator(5))
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=2)
    for axes in (left, right):
        axes.grid(visible=True)
    return figure


def _title(domain: str) -> str:
    return domain.replace("_", " ")


DRAWINGS: Mapping[str, Drawing] = {
    "training.svg": _training,
    "accuracy.svg": _accuracy,
    "acceptance.svg": _acceptance,
    "load.svg": _load,
    "confidence.svg": _confidence,
}
