"""Layers x EP ranks as blocks: how high and how red a block is tells a rank's load in a layer. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from cluster.experts_layers import load_bar, load_style, relative_loads
from cluster.experts_status import ExpertTierStatus, LayerStatus

ASCII_RAMP = " .:-=+*#%@"
NO_LOAD = "-"
MAX_CELL_WIDTH = 2
SHARE_WIDTH = len("  100%")
LEAST_LINES = 3  # a title and two ranks
LEAST_AXIS_LINES = 6


def heat_lines(status: ExpertTierStatus, *, width: int, height: int, is_ascii: bool) -> list[Text]:
    """At most so many lines, none wider; empty without room or load. Ranks and layers that do not fit are left out:
    the least loaded ranks and the best balanced layers."""
    label_width = len(f"r{status.ep_size - 1} ")
    room = width - label_width - SHARE_WIDTH
    if height < LEAST_LINES or room < 1 or status.window_tokens <= 0.0:
        return []
    layers = _least_balanced(status.layers, room)
    has_axis = height >= LEAST_AXIS_LINES
    shares = _rank_shares(status.layers, status.ep_size)
    ranks = _fullest(shares, height - 1 - has_axis)
    cell_width = max(1, min(MAX_CELL_WIDTH, room // len(layers)))
    loads = [relative_loads(layer) if sum(layer.rank_pairs) else None for layer in layers]
    lines = [Text(_title(status, len(ranks), len(layers)), style="bold")]
    if has_axis:
        lines.append(Text(label_width * " " + _axis(layers, cell_width), style="dim"))
    for rank in ranks:
        line = Text(f"r{rank}".ljust(label_width))
        for load in loads:
            _add_cell(line, None if load is None else load[rank], cell_width, is_ascii=is_ascii)
        share = "-" if shares[rank] is None else f"{100 * (shares[rank] or 0.0):.0f}%"
        lines.append(line.append(share.rjust(SHARE_WIDTH)))
    for line in lines:
        line.truncate(width, overflow="crop")
    return lines


def _add_cell(line: Text, load: float | None, width: int, *, is_ascii: bool) -> None:
    if load is None:
        line.append(NO_LOAD * width)
    else:
        block = ASCII_RAMP[min(int(load * len(ASCII_RAMP) / 2), len(ASCII_RAMP) - 1)] if is_ascii else load_bar(load)
        line.append(block * width, style=load_style(load))


def _title(status: ExpertTierStatus, num_ranks: int, num_layers: int) -> str:
    ranks = f"{num_ranks} of {status.ep_size}" if num_ranks < status.ep_size else str(num_ranks)
    total = len(status.layers)
    layers = f"{num_layers} of {total}" if num_layers < total else str(total)
    return f"load: {ranks} ranks x {layers} layers"


def _axis(layers: Sequence[LayerStatus], cell_width: int) -> str:
    """Numbers of layers above their cells, as many as do not touch."""
    axis = ""
    for idx, layer in enumerate(layers):
        start = idx * cell_width
        if not axis or start > len(axis):
            axis = axis.ljust(start) + str(layer.layer_id)
    return axis


def _rank_shares(layers: Sequence[LayerStatus], ep_size: int) -> list[float | None]:
    """Of each rank the mean over layers of its load over the layer's mean."""
    loads = [relative_loads(layer) for layer in layers if sum(layer.rank_pairs)]
    return [sum(load[rank] for load in loads) / len(loads) if loads else None for rank in range(ep_size)]


def _least_balanced(layers: Sequence[LayerStatus], at_most: int) -> list[LayerStatus]:
    chosen = sorted(layers, key=lambda layer: layer.balancedness)[:at_most]
    return sorted(chosen, key=lambda layer: layer.layer_id)


def _fullest(shares: Sequence[float | None], at_most: int) -> list[int]:
    return sorted(sorted(range(len(shares)), key=lambda rank: -(shares[rank] or 0.0))[:at_most])
