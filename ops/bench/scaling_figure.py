"""Draws a run of the scaling benchmark: replicas and offered load above, what the streams that stay felt below."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ops.bench.scaling_changes import Run, felt

BIN_S = 5.0


def draw(run: Run, path: Path) -> None:
    """An SVG."""
    looks, began_at, ended_at = run.looks, run.began_at, run.looks[-1].at
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    numbers, gaps = figure.subplots(2, sharex=True, height_ratios=(1, 1.3))
    numbers.step(
        [look.at - began_at for look in looks],
        [len(look.ready) for look in looks],
        where="post",
        label="ready replicas",
    )
    times, streams = zip(*run.offered, (ended_at, run.offered[-1][1]), strict=True)
    numbers.step([at - began_at for at in times], streams, where="post", color="grey", label="streams")
    numbers.set_ylim(bottom=0)
    numbers.set_ylabel("replicas, streams")
    numbers.legend(loc="upper right", fontsize=8)
    bins = [began_at + BIN_S * number for number in range(int((ended_at - began_at) / BIN_S))]
    by_bin = [felt(run.staying, start, start + BIN_S) for start in bins]
    middles = [start - began_at + BIN_S / 2 for start in bins]
    for label, values in (("p99", [each.gap_p99 for each in by_bin]), ("p50", [each.gap_p50 for each in by_bin])):
        gaps.plot(middles, [1e3 * value for value in values], label=label, linewidth=1.4)
    for axes in (numbers, gaps):
        for change in run.changes:
            axes.axvspan(change.start - began_at, change.end - began_at, color="tab:orange", alpha=0.3)
    gaps.set_ylim(bottom=0)
    gaps.set_ylabel(f"inter-token gap, ms, of {BIN_S:g} s")
    gaps.set_xlabel("seconds; orange: from a decision of the policy until it was carried out")
    gaps.legend(loc="upper right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
