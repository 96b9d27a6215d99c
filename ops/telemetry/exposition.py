"""Families as Prometheus text, each under our name and under those that public dashboards know. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ops.telemetry.cells import HistogramValue
from ops.telemetry.recording import Family, Point
from ops.telemetry.spec import Alias, Kind, Owner

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PROCESS_LABELS = ("role", "member", "ep_rank")
ALIAS_LABELS = ("model_name", "engine")


@dataclass(frozen=True)
class ProcessLabels:
    """Who says it. ep_rank: of an expert actor. model_name: as clients name the model; aliases carry it."""

    role: Owner
    member: str
    ep_rank: int | None = None
    model_name: str = ""

    @property
    def own(self) -> Mapping[str, str]:
        """On everything under our names."""
        rank = {} if self.ep_rank is None else {"ep_rank": str(self.ep_rank)}
        return {"role": str(self.role), "member": self.member, **rank}

    @property
    def of_aliases(self) -> Mapping[str, str]:
        """On everything under names of others, which expect these two."""
        return {"model_name": self.model_name, "engine": self.member}


def prometheus_text(families: Iterable[Family], process: ProcessLabels) -> bytes:
    """The text format, version 0.0.4."""
    return generate_latest(_Families(tuple(families), process))


class _Families(Collector):
    def __init__(self, families: tuple[Family, ...], process: ProcessLabels) -> None:
        self._families = families
        self._process = process

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            yield _metric(family, family.spec.name, family.spec.label_names, self._process.own)
            for alias in family.spec.aliases:
                names, points = seen_by(alias, family)
                yield _metric(Family(family.spec, points), alias.name, names, self._process.of_aliases)


def seen_by(alias: Alias, family: Family) -> tuple[tuple[str, ...], tuple[Point, ...]]:
    """Label names and points of a family under another name."""
    names = family.spec.label_names
    kept = [idx for idx, name in enumerate(names) if name not in alias.drop]
    wanted = [(names.index(name), value) for name, value in alias.where]
    found = [point for point in family.points if all(point.labels[idx] == value for idx, value in wanted)]
    if alias.drop:
        found = _summed(found, kept)
    renamed = dict(alias.rename)
    return tuple(renamed.get(names[idx], names[idx]) for idx in kept), tuple(found)


def _summed(points: Iterable[Point], kept: list[int]) -> list[Point]:
    sums: dict[tuple[str, ...], float] = {}
    for point in points:
        assert not isinstance(point.value, HistogramValue), "an alias sums numbers, not histograms"
        labels = tuple(point.labels[idx] for idx in kept)
        sums[labels] = sums.get(labels, 0.0) + point.value
    return [Point(labels, value) for labels, value in sums.items()]


def _metric(family: Family, name: str, label_names: tuple[str, ...], process: Mapping[str, str]) -> Metric:
    labels, of_process = [*process, *label_names], list(process.values())
    text = family.spec.help
    if family.spec.kind is Kind.HISTOGRAM:
        return _histogram(HistogramMetricFamily(name, text, labels=labels), family, of_process)
    is_counter = family.spec.kind is Kind.COUNTER
    metric = (
        CounterMetricFamily(name, text, labels=labels) if is_counter else GaugeMetricFamily(name, text, labels=labels)
    )
    for point in family.points:
        assert not isinstance(point.value, HistogramValue), "a histogram's value in a family of numbers"
        metric.add_metric([*of_process, *point.labels], point.value)
    return metric


def _histogram(metric: HistogramMetricFamily, family: Family, of_process: list[str]) -> Metric:
    bounds = [*map(floatToGoString, family.spec.buckets), "+Inf"]
    for point in family.points:
        assert isinstance(point.value, HistogramValue), "a number in a family of histograms"
        buckets = list(zip(bounds, accumulate(point.value.counts), strict=True))
        metric.add_metric([*of_process, *point.labels], buckets, point.value.total)
    return metric
