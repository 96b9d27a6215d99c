"""The benchmarks of placement and rebalancing: their arithmetic, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ops.bench.placement import LOADS, duplicates, measure, num_moves, per_step
from ops.bench.rebalance import Look, Run, effects
from ops.bench.traffic import Answer, Schedule, differing_answers, percentile
from routing.experts import expert_map_from_rows


def answer(domain: str, idx: int, text: str, times: tuple[float, ...] = (), error: str | None = None) -> Answer:
    return Answer((domain, idx), 0.0, times, len(times), text, error)


def test_domains_take_turns() -> None:
    """Each for its time, from the first again after the last."""
    schedule = Schedule(("code", "maths"), 60.0)
    assert [schedule.domain_at(at) for at in (0, 59.9, 60, 119, 120)] == ["code", "code", "maths", "maths", "code"]


def test_gaps_and_percentiles_by_hand() -> None:
    """A chunk's gap is told at its own time."""
    assert answer("code", 0, "x", (1.0, 3.0, 3.5)).gaps == [(3.0, 2.0), (3.5, 0.5)]
    assert [percentile([4, 1, 3, 2], share) for share in (0.0, 0.5, 0.99)] == [1, 3, 4]
    assert np.isnan(percentile([], 0.5))


def test_answers_that_differ() -> None:
    """Between runs or within one; a failed one says nothing of the model."""
    same = [answer("code", 0, "a"), answer("code", 1, "b")]
    other = [answer("code", 0, "a"), answer("code", 1, "c"), answer("maths", 0, "d")]
    assert differing_answers([same, other]) == [("code", 1)]
    assert differing_answers([same, [answer("code", 1, "", error="gone")]]) == []


def test_an_effect_compares_with_the_minute_before() -> None:
    """A rebalance at second 100 of four seconds: chunks before it came every second, those in it every two."""
    times = (*map(float, range(41, 101)), 102.0, 104.0)
    history = [
        {"outcome": "done", "started_at": 1100.0, "seconds": 4.0},
        {"outcome": "abandoned", "started_at": 1100.0, "seconds": 4.0},
    ]
    status = {"balancer": {"history": history}, "step_p50_ms": 5.0, "step_p99_ms": 9.0}
    run = Run("auto", 0.0, [answer("code", 0, "x", times)], [Look(104.0, 1104.0, status)])
    (effect,) = effects(run)
    assert (effect.start, effect.end) == (100.0, 104.0)
    assert effect.before[:2] == (1000.0, 1000.0)
    assert effect.during[:2] == (2000.0, 2000.0)
    assert effect.during[2:] == (5.0, 9.0)


def test_moves_by_hand() -> None:
    """An expert that changes its slot is no move, one that changes its rank is."""
    before = expert_map_from_rows([[0, 1, -1, 2, 3, -1]], 4, 2)
    after = expert_map_from_rows([[1, 0, 2, -1, 3, 2]], 4, 2)
    assert num_moves(before, after) == 1


def test_doubled_experts_are_counted() -> None:
    """One expert with all the load, whose copies fill both ranks."""
    assert duplicates(np.array([[1000.0, 1.0, 1.0, 1.0]]), 2, 4) == 2


@pytest.mark.parametrize("name", LOADS)
def test_every_policy_is_measured_on_every_load(name: str) -> None:
    """Nothing is better than what is possible, and ours is not slower than EPLB."""
    rng = np.random.default_rng(0)
    load, other = (per_step(LOADS[name](rng, 1)) for _ in range(2))
    assert load.sum() == pytest.approx(512)
    rows = list(measure(name, load, other, slots=1))
    assert {row.policy for row in rows} == {"linear", "eplb", "eplb_hierarchical", "tier_time"}
    for row in rows:
        assert row.time >= 1 - 1e-9
        assert row.balancedness <= row.best_balancedness + 1e-9
    for cost in {row.cost for row in rows}:
        times = {row.policy: row.time for row in rows if row.cost == cost}
        assert times["tier_time"] <= 1.02 * times["eplb"]
        assert times["tier_time"] <= times["linear"] + 1e-9
