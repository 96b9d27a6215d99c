"""The fit of an expert rank's price: exact where data allow, the prior where they do not, never negative."""

from __future__ import annotations

import numpy as np
import pytest

from routing.load.cost_fit import NO_MOMENTS, CostFit, ExpertCost, cost_moments, fit_cost

PRIOR = ExpertCost(1e-4, 1e-5, 1e-6)


def calls(rng: np.random.Generator, cost: ExpertCost, num_calls: int, noise: float = 0.0) -> np.ndarray:
    """Moments of calls on a rank of 36 slots; pairs are at least the distinct experts."""
    distinct = rng.integers(1, 37, num_calls).astype(np.float64)
    pairs = distinct + rng.integers(0, 100, num_calls)
    seconds = cost.seconds(distinct, pairs) * (1.0 + noise * rng.standard_normal(num_calls))
    return cost_moments(distinct, pairs, seconds)


def prices(cost: ExpertCost) -> tuple[float, float, float]:
    return cost.per_expert_s, cost.per_pair_s, cost.fixed_s


@pytest.mark.parametrize("seed", range(5))
def test_exact_timings_give_exact_prices(seed: int) -> None:
    """Without noise the prices come back, also when one of them is zero."""
    rng = np.random.default_rng(seed)
    for cost in (ExpertCost(2e-4, 3e-6, 5e-5), ExpertCost(0.0, 3e-6, 5e-5), ExpertCost(2e-4, 0.0, 0.0)):
        fitted = fit_cost(calls(rng, cost, 200), PRIOR)
        assert prices(fitted) == pytest.approx(prices(cost), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_noise_averages_out(seed: int) -> None:
    """A fifth of noise on each of 5000 calls leaves a few hundredths on the prices."""
    cost = ExpertCost(2e-4, 2e-5, 1e-4)
    fitted = fit_cost(calls(np.random.default_rng(seed), cost, 5000, noise=0.2), PRIOR)
    assert prices(fitted)[:2] == pytest.approx(prices(cost)[:2], rel=0.1)


def test_a_negative_price_becomes_zero() -> None:
    """Time that falls with the pairs: the pairs cost nothing, and the others explain as much as they can."""
    rng = np.random.default_rng(0)
    distinct, pairs = rng.integers(1, 37, 500).astype(float), rng.integers(40, 400, 500).astype(float)
    fitted = fit_cost(cost_moments(distinct, pairs, 1e-3 + 1e-4 * distinct - 1e-6 * pairs), PRIOR)
    assert fitted.per_pair_s == 0.0
    assert fitted.per_expert_s == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize(
    ("distinct", "pairs"),
    [
        (np.arange(1.0, 37.0), np.arange(1.0, 37.0)),  # too few
        (np.full(500, 8.0), np.arange(500.0)),  # distinct experts never vary
        (np.tile(np.arange(1.0, 37.0), 20), np.tile(np.arange(1.0, 37.0), 20) * 3.0),  # always together
    ],
)
def test_the_prior_holds_until_prices_can_be_told_apart(distinct: np.ndarray, pairs: np.ndarray) -> None:
    """Too few calls, or calls that are too much alike."""
    assert fit_cost(cost_moments(distinct, pairs, distinct + pairs), PRIOR) is PRIOR
    assert fit_cost(NO_MOMENTS, PRIOR) is PRIOR


def test_work_that_seems_free_is_not_believed() -> None:
    """A placement cannot be planned with prices of zero."""
    rng = np.random.default_rng(0)
    assert fit_cost(calls(rng, ExpertCost(0.0, 0.0, 1e-3), 200), PRIOR) is PRIOR


def test_ranks_merge_and_old_calls_are_forgotten() -> None:
    """The moments of two ranks are those of all their calls; after ten half-lives only the new price is left."""
    rng = np.random.default_rng(3)
    old, new = ExpertCost(1e-4, 1e-5, 1e-5), ExpertCost(3e-4, 4e-5, 1e-5)
    fit = CostFit(PRIOR, half_life_s=60.0)
    assert fit.cost() is PRIOR
    for rank in range(4):
        fit.add(calls(rng, old, 40), now=float(rank))
    assert prices(fit.cost()) == pytest.approx(prices(old), rel=1e-4)
    assert fit.num_calls == pytest.approx(160.0, rel=0.05)
    fit.add(calls(rng, new, 400), now=603.0)
    assert prices(fit.cost())[:2] == pytest.approx(prices(new)[:2], rel=1e-2)
