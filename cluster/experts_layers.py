"""The layers of the expert tier on a terminal: how evenly their load lies on the ranks, how sure routing is. Pure.

Takes of four layouts the fullest that the terminal is wide enough for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from cluster.experts_status import ExpertTierStatus, LayerStatus

MAX_LAYERS = 16  # more are cut down to
NUM_WORST = 12
BALANCED, UNBALANCED = 1.0, 1.5  # of the mean: loads up to here are green, from here on red
BARS = "▁▂▃▄▅▆▇█"
ALL_LAYERS = -1  # stands for the number of a layer in the line that sums them up
UNLIMITED = 10_000

LEGEND = (
    "Load: (row, expert) pairs of a rank in % of its layer's mean; 100 everywhere is perfect. bal.: mean load / "
    "greatest load. touch: distinct experts a rank touches in a step, mean/most. cop.: redundant copies. mass, entr, "
    "marg.: how sure the routing is (mass high, entropy low, margin high). norms: least-greatest activation norm of an "
    "expert over the median. !: the router drifts here."
)


class Layout(Enum):
    """What is told of each rank, from much to little."""

    LOADS_AND_EXPERTS = "load %/experts touched"
    LOADS = "load %"
    BARS = "load %, least and most @ rank, and a bar for each rank"
    EXTREMES = "load %, least and most @ rank"


class LayersTable:
    """One line for each layer, and one for all of them. Many layers are cut down to the worst, unless `show_all`."""

    def __init__(self, status: ExpertTierStatus, *, show_all: bool) -> None:
        self._status = status
        self._rows = status.layers if show_all else worst_layers(status.layers)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for layout in Layout:
            if layout is Layout.BARS and options.ascii_only:
                continue
            table = self.table(layout)
            needed = Measurement.get(console, options.update(width=UNLIMITED), table).maximum
            if needed <= options.max_width:
                break
        yield table

    def table(self, layout: Layout) -> Table:
        """In one of the layouts."""
        status, rows = self._status, self._rows
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", title_justify="left")
        table.title = f"{layout.value}; {self._which()}"
        for name, min_width in _columns(layout, status.ep_size):
            table.add_column(name, justify="right", no_wrap=True, min_width=min_width)
        for layer in (*rows, all_layers(status)):
            table.add_row(*_cells(layer, layout), style="bold" if layer.layer_id == ALL_LAYERS else "")
        return table

    def _which(self) -> str:
        num_rows, num_layers = len(self._rows), len(self._status.layers)
        if num_rows == num_layers:
            return f"{num_layers} layers"
        return f"the {num_rows} worst of {num_layers} layers, --all shows each"


def worst_layers(layers: Sequence[LayerStatus]) -> Sequence[LayerStatus]:
    """All of few. Of many those that drift and the least balanced, in their order."""
    if len(layers) <= MAX_LAYERS:
        return layers
    by_need = sorted(layers, key=lambda layer: (not layer.is_drifting, layer.balancedness))
    return sorted(by_need[:NUM_WORST], key=lambda layer: layer.layer_id)


def all_layers(status: ExpertTierStatus) -> LayerStatus:
    """Means over layers, but the sum of copies and the extremes of norms. Drift is each layer's own."""
    layers = status.layers
    lows = [layer.norm_low for layer in layers if layer.norm_low is not None]
    highs = [layer.norm_high for layer in layers if layer.norm_high is not None]
    return replace(
        layers[0],
        layer_id=ALL_LAYERS,
        rank_pairs=tuple(map(_mean, zip(*map(relative_loads, layers), strict=True))),
        rank_experts=tuple(map(_mean, zip(*(layer.rank_experts for layer in layers), strict=True))),
        balancedness=status.balancedness,
        num_copies=sum(layer.num_copies for layer in layers),
        mass=_mean([layer.mass for layer in layers]),
        entropy=_mean([layer.entropy for layer in layers]),
        margin=_mean([layer.margin for layer in layers]),
        norm_low=min(lows, default=None),
        norm_high=max(highs, default=None),
        is_drifting=False,
    )


def relative_loads(layer: LayerStatus) -> list[float]:
    """Of each rank over their mean; zeros without load."""
    mean = _mean(layer.rank_pairs)
    return [pairs / mean if mean else 0.0 for pairs in layer.rank_pairs]


def load_style(load: float) -> str:
    """From green for the mean or less over yellow to red."""
    share = min(max((load - BALANCED) / (UNBALANCED - BALANCED), 0.0), 1.0)
    red, green = round(255 * min(2.0 * share, 1.0)), round(200 * min(2.0 - 2.0 * share, 1.0))
    return f"rgb({red},{green},0)"


def _columns(layout: Layout, num_ranks: int) -> Iterator[tuple[str, int]]:
    """Names and least widths, which keep the layout from changing with every figure that grows by a digit."""
    yield "layer", 5
    yield "bal.", 4
    if layout in (Layout.LOADS_AND_EXPERTS, Layout.LOADS):
        width = len("100/20") if layout is Layout.LOADS_AND_EXPERTS else len("100")
        yield from ((f"r{ep_rank}", width) for ep_rank in range(num_ranks))
    else:
        yield from (("least", len("50 @10")), ("most", len("150 @10")))
    if layout is Layout.BARS:
        yield "ranks", num_ranks
    if layout is not Layout.LOADS_AND_EXPERTS:
        yield "touch", 5
    yield from (("cop.", 4), ("mass", 4), ("entr", 4), ("marg.", 5), ("norms", len("0.5-1.5")))


def _cells(layer: LayerStatus, layout: Layout) -> Iterator[Text]:
    loads, touched = relative_loads(layer), layer.rank_experts
    name = "all" if layer.layer_id == ALL_LAYERS else str(layer.layer_id)
    yield Text(f"{name}!" if layer.is_drifting else f"{name} ", style="yellow" if layer.is_drifting else "")
    yield Text(f"{layer.balancedness:.2f}", style=load_style(max(loads)))
    if layout is Layout.LOADS_AND_EXPERTS:
        yield from (_load(load, f"/{experts:.0f}") for load, experts in zip(loads, touched, strict=True))
    elif layout is Layout.LOADS:
        yield from map(_load, loads)
    else:
        yield from (_load(load, f" @{loads.index(load)}") for load in (min(loads), max(loads)))
    if layout is Layout.BARS:
        yield Text.assemble(*((load_bar(load), load_style(load)) for load in loads))
    if layout is not Layout.LOADS_AND_EXPERTS:
        yield Text(f"{_mean(touched):.0f}/{max(touched):.0f}")
    yield from _confidence(layer)


def _confidence(layer: LayerStatus) -> Iterator[Text]:
    yield Text(str(layer.num_copies))
    yield Text(f"{100 * layer.mass:.0f}%")
    yield Text(f"{layer.entropy:.2f}")
    yield Text(f"{layer.margin:.3f}")
    low, high = layer.norm_low, layer.norm_high
    yield Text("-" if low is None or high is None else f"{low:.1f}-{high:.1f}")


def _load(load: float, more: str = "") -> Text:
    return Text(f"{100 * load:.0f}{more}", style=load_style(load))


def load_bar(load: float) -> str:
    """The mean is half a bar, twice the mean a whole one."""
    return BARS[min(int(load * len(BARS) / 2), len(BARS) - 1)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
