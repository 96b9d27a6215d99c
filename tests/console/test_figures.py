"""Figures that the page makes itself, on numbers worked by hand: rates, quantiles, and what a rebalance cost."""

from __future__ import annotations

from typing import Any

import pytest

from tests.console.conftest import Page

WINDOW = "const { Window, quantile } = await import('/console/window.js');"
REGISTRY = {"wait": {"buckets": [1.0, 2.0, 4.0]}}
TEXTS = {
    "seconds(0.000265)": "265 µs",
    "seconds(0.0036)": "3.6 ms",
    "seconds(0.038)": "38 ms",
    "seconds(1.94)": "1.9 s",
    "seconds(1380)": "23 min",
    "seconds(undefined)": "no data",
    "percent(null)": "none",
    "rate(0.25)": "0.3/s",
    "times(9.97)": "10×",
    "quantile({ value: 2.5, isAbove: true })": "> 2.5 s",
    "ranks([2, 5])": "EP ranks 2, 5",
    "count(12345.4)": "12,345",
}


def test_counters_add_up_over_members_and_their_restarts(page: Page) -> None:
    """10 -> 16 of one and 5 -> 2 of one that began anew; one that is seen for the first time says nothing yet."""
    states = [
        _state(0.0, {"a": _counter(10.0), "b": _counter(5.0)}),
        _state(4.0, {"a": _counter(16.0), "b": _counter(2.0), "c": _counter(900.0)}),
    ]
    assert _window(page, states, "[w.increase('done'), w.rate('done'), w.sum('done')]") == [8.0, 2.0, 918.0]
    assert _window(page, states, "w.increases('done')") == [["stop", 8.0]]
    assert _window(page, states, "w.of(states[1].members[0]).increase('done')") == 6.0


def test_a_label_that_is_new_rose_from_nothing(page: Page) -> None:
    """The process was there before, so what it counts under a new label has happened since."""
    states = [_state(0.0, {"a": {}}), _state(2.0, {"a": _counter(3.0)})]
    assert _window(page, states, "w.increaseOf('done', 'stop')") == 3.0


def test_unknown_and_nothing_are_apart(page: Page) -> None:
    """Not recorded is undefined; recorded without an event is null; one state alone says nothing of rates."""
    states = [_state(at, {"a": _histogram([0, 0, 0, 0], 0.0)}) for at in (0.0, 5.0)]
    told = "[w.quantile('other', 0.5) === undefined, w.quantile('wait', 0.5) === null, w.mean('wait') === null]"
    assert _window(page, states, told) == [True, True, True]
    assert _window(page, states[:1], "[w.increase('done') === undefined, w.rate('done') === undefined]") == [True, True]


@pytest.mark.parametrize(
    ("counts", "share", "value", "is_above"),
    [
        ([4, 0, 0, 0], 0.5, 0.5, False),  # the middle of 0 to 1
        ([1, 2, 1, 0], 0.5, 1.5, False),  # the second of four ends the first half: half-way through 1 to 2
        ([1, 2, 1, 0], 1.0, 4.0, False),
        ([1, 0, 0, 3], 0.99, 4.0, True),  # above every bound: at least the last
    ],
)
def test_quantiles_of_buckets(page: Page, counts: list[int], share: float, value: float, is_above: bool) -> None:
    """Linear within a bucket, over the difference of two states."""
    states = [
        _state(0.0, {"a": _histogram([7, 7, 7, 7], 90.0)}),
        _state(5.0, {"a": _histogram([7 + each for each in counts], 97.0)}),
    ]
    found = _window(page, states, f"w.quantile('wait', {share})")
    assert found == {"value": pytest.approx(value), "isAbove": is_above}
    assert _window(page, states, "w.mean('wait')") == pytest.approx(7.0 / sum(counts))


def test_cost_of_a_rebalance_is_of_the_steps_around_it(page: Page) -> None:
    """Medians of step p99 in the minute before, while it ran, and in the minute after."""
    points = [{"time": at, "p99": 0.03 if at < 100 else 0.05 if at < 120 else 0.02} for at in range(0, 300)]
    record = {"started_at": 100, "seconds": 20}
    source = "const { stepTimes } = await import('/console/rebalances.js'); return stepTimes(values[0], values[1]);"
    assert page.call(source, record, points) == {"before": 0.03, "during": 0.05, "after": 0.02}
    unseen = page.call(source, {"started_at": -900, "seconds": 20}, points)
    assert unseen == {"before": None, "during": None, "after": None}


def test_history_forgets_and_knows_what_it_has(page: Page) -> None:
    """At most 120 states; the same moment twice is one; a window reaches as far back as it says."""
    source = """
    const { History } = await import('/console/history.js');
    const history = new History();
    const taken = [];
    for (let time = 1; time <= 200; time++) taken.push(history.push({ time }));
    return [taken.every(Boolean), history.push({ time: 200 }), history.last(1e9).length, history.last(30)[0].time];
    """
    assert page.call(source) == [True, False, 120, 170]


def test_numbers_read_well(page: Page) -> None:
    """Two digits that mean something, a unit, and words for what is not there."""
    calls = ", ".join(f"format.{call}" for call in TEXTS)
    said = page.call(f"const format = await import('/console/format.js'); return [{calls}];")
    assert dict(zip(TEXTS, said, strict=True)) == TEXTS


def _window(page: Page, states: list[dict[str, Any]], expression: str) -> Any:
    source = f"{WINDOW} const states = values[0]; const w = new Window(states, values[1]); return {expression};"
    return page.call(source, states, REGISTRY)


def _state(time: float, members: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"time": time, "members": [{"member": name, "metrics": metrics} for name, metrics in members.items()]}


def _counter(value: float) -> dict[str, Any]:
    return {"done": [[["stop"], value]]}


def _histogram(counts: list[int], total: float) -> dict[str, Any]:
    return {"wait": [[[], {"counts": counts, "total": total}]]}
