"""RecordingMeter: keeps what instruments record, and shows it as families. Knows no format and no network."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from ops.telemetry.cells import CounterCell, GaugeCell, HistogramCell, HistogramValue
from ops.telemetry.meter import NOTHING, Counter, Gauge, Histogram, LabelValue, Meter, label_values
from ops.telemetry.metrics import METRICS
from ops.telemetry.spec import Kind, MetricSpec, Owner

logger = logging.getLogger(__name__)

Cell = CounterCell | GaugeCell | HistogramCell
DROPPED = "step35_telemetry_dropped_total"


@dataclass(frozen=True)
class Point:
    """labels: values in the declared order. value: a HistogramValue of a histogram, else a number."""

    labels: tuple[str, ...]
    value: float | HistogramValue


@dataclass(frozen=True)
class Family:
    """All points of one metric at one moment."""

    spec: MetricSpec
    points: tuple[Point, ...]


class RecordingMeter(Meter):
    """All methods may be called from any thread."""

    def __init__(self, *owners: Owner) -> None:
        super().__init__(*owners)
        self._lock = threading.Lock()
        self._cells: dict[str, dict[tuple[str, ...], Cell]] = {}
        self._full: set[str] = set()
        self._dropped = self.counter(DROPPED)

    def counter(self, name: str, /, **labels: LabelValue) -> Counter:
        cell = self._cell(self._find(name, Kind.COUNTER), labels)
        return cell if isinstance(cell, CounterCell) else NOTHING

    def gauge(self, name: str, /, **labels: LabelValue) -> Gauge:
        cell = self._cell(self._find(name, Kind.GAUGE), labels)
        return cell if isinstance(cell, GaugeCell) else NOTHING

    def histogram(self, name: str, /, **labels: LabelValue) -> Histogram:
        cell = self._cell(self._find(name, Kind.HISTOGRAM), labels)
        return cell if isinstance(cell, HistogramCell) else NOTHING

    def families(self) -> tuple[Family, ...]:
        """What was recorded, in the order of the registry. A metric without a value is left out."""
        with self._lock:
            cells = {name: tuple(self._cells[name].items()) for name in METRICS if name in self._cells}
        families = (Family(METRICS[name], _points(found)) for name, found in cells.items())
        return tuple(family for family in families if family.points)

    def _cell(self, spec: MetricSpec, labels: dict[str, LabelValue]) -> Cell | None:
        values = label_values(spec, labels)
        with self._lock:
            cells = self._cells.setdefault(spec.name, {})
            if values not in cells and len(cells) < spec.max_label_sets:
                cells[values] = _new_cell(spec)
            cell = cells.get(values)
        if cell is None:
            self._note_full(spec)
        return cell

    def _note_full(self, spec: MetricSpec) -> None:
        self._dropped.add()
        if spec.name not in self._full:  # twice in a race does no harm
            self._full.add(spec.name)
            logger.warning("metric %s has %d label sets; no more are kept", spec.name, spec.max_label_sets)


def _new_cell(spec: MetricSpec) -> Cell:
    if spec.kind is Kind.HISTOGRAM:
        return HistogramCell(spec.buckets)
    return CounterCell() if spec.kind is Kind.COUNTER else GaugeCell()


def _points(cells: tuple[tuple[tuple[str, ...], Cell], ...]) -> tuple[Point, ...]:
    read = ((labels, cell.read()) for labels, cell in cells)
    return tuple(Point(labels, value) for labels, value in read if value is not None)
