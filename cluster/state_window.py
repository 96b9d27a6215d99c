"""What members counted in the last seconds: rates and quantiles from differences between states. Pure.

None means that it is not known: nobody records it, or no report came meanwhile. It is never told as 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.cluster_state import ClusterState, MemberState, Points
from ops.telemetry.cells import HistogramValue
from ops.telemetry.metrics import METRICS

WINDOW_S = 10.0
LEAST_S = 0.05  # two reports that lie closer are one


@dataclass(frozen=True)
class Quantile:
    """is_above: it lies past the last bound of the histogram, which is the value."""

    value: float
    is_above: bool = False


@dataclass(frozen=True)
class _Pair:
    """A member when it was first seen in the window and now. seconds: between its two reports."""

    first: MemberState
    last: MemberState
    seconds: float


class StateHistory:
    """The states of the last WINDOW_S seconds, and always the one before the last: after a silence the window is as
    long as the silence was."""

    def __init__(self) -> None:
        self._states: deque[ClusterState] = deque()

    @property
    def states(self) -> tuple[ClusterState, ...]:
        """Oldest first."""
        return tuple(self._states)

    def push(self, state: ClusterState) -> None:
        """One whose clock stands still is the last one again. One whose clock went back is another coordinator's,
        whose times cannot be compared with those before."""
        if self._states and state.time < self._states[-1].time:
            self._states.clear()
        if self._states and state.time == self._states[-1].time:
            self._states.pop()
        self._states.append(state)
        while len(self._states) > 2 and self._states[1].time <= state.time - WINDOW_S:
            self._states.popleft()


class Window:
    """Differences between the first and the last of some states, for the members that are there now."""

    def __init__(self, states: Sequence[ClusterState]) -> None:
        """states: oldest first, at least one."""
        self.last = states[-1]
        self.seconds = self.last.time - states[0].time
        self._pairs = tuple(_pairs(states))

    def gauges(self, name: str) -> list[float]:
        """Every value there is now, of all members and label sets."""
        _check(name)
        points = (member.metrics.get(name, {}) for member in self.last.members)
        return [value for each in points for value in each.values() if isinstance(value, float)]

    def increases(self, name: str) -> dict[tuple[str, ...], float] | None:
        """By how much a counter rose, by labels, over all members."""
        sums: dict[tuple[str, ...], float] = {}
        for pair in self._with(name):
            for labels, value in _rises(pair, name).items():
                sums[labels] = sums.get(labels, 0.0) + value
        return sums or None

    def increase(self, name: str) -> float | None:
        found = self.increases(name)
        return None if found is None else sum(found.values())

    def rate(self, name: str) -> float | None:
        """A second, over all label sets: each member's own, added up, because members report at different times."""
        rates = [sum(_rises(pair, name).values()) / pair.seconds for pair in self._with(name)]
        return sum(rates) if rates else None

    def histogram(self, name: str) -> HistogramValue | None:
        """What was recorded meanwhile. Buckets of another version of this program are not known."""
        num_counts = len(METRICS[name].buckets) + 1
        counts, total = [0] * num_counts, 0.0
        found = [rise for pair in self._with(name) if (rise := _histogram_rise(pair, name)) is not None]
        for rise in found:
            if len(rise.counts) != num_counts:
                return None
            counts = [count + more for count, more in zip(counts, rise.counts, strict=True)]
            total += rise.total
        return HistogramValue(tuple(counts), total) if found else None

    def quantile(self, name: str, share: float) -> Quantile | None:
        """None also where nothing was recorded."""
        found = self.histogram(name)
        return None if found is None else quantile(METRICS[name].buckets, found.counts, share)

    def _with(self, name: str) -> Iterator[_Pair]:
        _check(name)
        return (pair for pair in self._pairs if name in pair.last.metrics)


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> Quantile | None:
    """Linear within a bucket, as Prometheus has it. counts: per bucket, the last above every bound. None of nothing."""
    left = share * sum(counts)
    if sum(counts) == 0:
        return None
    below = 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and left <= count:
            return Quantile(below + (bound - below) * left / count)
        left -= count
        below = bound
    return Quantile(bounds[-1], is_above=True)


def _pairs(states: Sequence[ClusterState]) -> Iterator[_Pair]:
    firsts: dict[str, tuple[float, MemberState]] = {}
    for state in states:
        for member in state.members:
            if member.metrics:  # known but not yet heard of: its totals would look like a rise
                firsts.setdefault(member.member, (state.time - member.age_s, member))
    for member in states[-1].members:
        if member.member in firsts:
            reported_at, first = firsts[member.member]
            seconds = states[-1].time - member.age_s - reported_at
            if seconds > LEAST_S:
                yield _Pair(first, member, seconds)


def _rises(pair: _Pair, name: str) -> dict[tuple[str, ...], float]:
    before: Points = pair.first.metrics.get(name, {})
    return {
        labels: _rise(value, before.get(labels, 0.0))
        for labels, value in pair.last.metrics[name].items()
        if isinstance(value, float)
    }


def _rise(now: float, before: float | HistogramValue) -> float:
    """A total that fell was begun anew."""
    return now - before if isinstance(before, float) and now >= before else now


def _histogram_rise(pair: _Pair, name: str) -> HistogramValue | None:
    now, before = _histogram(pair.last.metrics, name), _histogram(pair.first.metrics, name)
    if now is None or before is None or len(now.counts) != len(before.counts):
        return now
    counts = tuple(count - less for count, less in zip(now.counts, before.counts, strict=True))
    return now if min(counts) < 0 else HistogramValue(counts, now.total - before.total)


def _histogram(metrics: Mapping[str, Points], name: str) -> HistogramValue | None:
    """Histograms have no labels."""
    value = metrics.get(name, {}).get(())
    return value if isinstance(value, HistogramValue) else None


def _check(name: str) -> None:
    assert name in METRICS, f"{name} is not a metric of ours"
