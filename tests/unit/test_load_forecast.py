"""Error measures of a forecast, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from routing.experts import expert_map_from_rows
from routing.load.forecast import FORECAST_KIND, forecast, rank_load_error, shares, total_variation
from routing.load.sample import LOAD_KINDS, LoadSample


def test_total_variation_by_hand() -> None:
    """Loads are compared as shares: 3 : 1 against 1 : 1 moves a quarter, and what has no load counts as even."""
    loads = np.array([[3.0, 1.0], [10.0, 10.0], [5.0, 0.0], [0.0, 0.0]])
    other = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0], [1.0, 1.0]])
    assert total_variation(loads, other).tolist() == [0.25, 0.0, 1.0, 0.0]
    assert shares(loads).sum(axis=1).tolist() == [1.0] * 4


def test_rank_load_error_by_hand() -> None:
    """Expected 3 : 1, came 1 : 3: half of the load comes to the other rank. Changes within a rank cost nothing."""
    expert_map = expert_map_from_rows([[0, 1, 2, 3]], 4, ep_size=2)
    expected = np.array([[3.0, 0.0, 1.0, 0.0]])
    assert rank_load_error(expected, np.array([[0.0, 1.0, 0.0, 3.0]]), expert_map).tolist() == [0.5]
    assert rank_load_error(expected, np.array([[0.0, 3.0, 0.0, 1.0]]), expert_map).tolist() == [0.0]


@pytest.mark.parametrize("kind", LOAD_KINDS)
def test_a_forecast_is_the_window_per_step(kind: str) -> None:
    """Each kind reads its own matrix."""
    sample = LoadSample.empty(1, 2)
    getattr(sample, kind)[0, 1] = 6.0
    window = LoadSample(**{**vars(sample), "num_steps": 3.0})
    assert forecast(window, kind).tolist() == [[0.0, 2.0]]  # type: ignore[arg-type]
    assert forecast(window).tolist() == [[0.0, 2.0 * (kind == FORECAST_KIND)]]
