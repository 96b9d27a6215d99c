"""LoadPicture: everything the members have measured of the expert tier, merged, and what follows from it.

Owns the load window, the ranks' samples, the fitted cost and the drift detector. Pure: time is an argument. Knows
nothing of decisions.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

import numpy as np

from cluster.balancing import BalancingConfig
from cluster.membership import AttentionReport, ExpertReport
from routing.experts import ExpertMap
from routing.load.cost_fit import CostFit, ExpertCost
from routing.load.drift import DriftDetector, DriftState
from routing.load.expert_sample import ExpertSample
from routing.load.forecast import forecast
from routing.load.sample import LoadSample
from routing.load.sums import FloatArray
from routing.load.window import LoadWindow, fading
from routing.placement.contract import TierCost

logger = logging.getLogger(__name__)

PRIOR = ExpertCost(per_expert_s=16e-6, per_pair_s=1e-6)  # until the ranks have told: a touch costs as much as 16 pairs
STEP_TIMES_S = 10.0  # age up to which step times are shown


class LoadPicture:
    """One for a coordinator's life; after a restart the members' next reports draw it anew."""

    def __init__(self, config: BalancingConfig, expert_map: ExpertMap) -> None:
        self._config = config
        self._shape = (expert_map.num_moe_layers, expert_map.num_logical_experts)
        self._rank_shape = (expert_map.num_moe_layers, expert_map.slots_per_rank)
        self._window = LoadWindow(*self._shape, config.half_life_s)
        self._ranks = [_FadingRank(self._rank_shape, config.half_life_s) for _ in range(expert_map.ep_size)]
        self._fit = CostFit(PRIOR, config.half_life_s)
        self._drift = DriftDetector(*self._shape)
        self._step_times: deque[tuple[float, tuple[float, ...]]] = deque(maxlen=1024)
        self._began_at: float | None = None

    def note_attention(self, report: AttentionReport, now: float) -> None:
        """A report of an attention actor. What cannot be read is logged and left out."""
        if report.step_seconds:
            self._step_times.append((now, report.step_seconds))
        if report.sample is None:
            return
        try:
            sample = LoadSample.from_dict(report.sample, *self._shape)
        except ValueError as error:
            logger.warning("a load sample was left out: %s", error)
            return
        self._began_at = now if self._began_at is None else self._began_at
        self._window.add(sample, now)
        self._drift.update(self._window.at(now), now)

    def note_expert(self, report: ExpertReport, ep_rank: int, now: float) -> None:
        """A report of an expert rank. What cannot be read is logged and left out."""
        if report.sample is None:
            return
        try:
            sample = ExpertSample.from_dict(report.sample, *self._rank_shape)
        except ValueError as error:
            logger.warning("a sample of EP rank %d was left out: %s", ep_rank, error)
            return
        self._ranks[ep_rank].add(sample, now)
        self._fit.add(sample.cost, now)

    def window(self, now: float) -> LoadSample:
        """What the attention tier counted, old steps counting less."""
        return self._window.at(now)

    def rank_sample(self, ep_rank: int, now: float) -> ExpertSample:
        """What one rank counted, old calls counting less."""
        return self._ranks[ep_rank].at(now)

    def load(self, now: float) -> FloatArray:
        """float64 [L, E]: expected pairs of each logical expert in a step."""
        return forecast(self._window.at(now), self._config.load)

    def cost(self) -> TierCost:
        """What an expert and a pair cost, as fitted."""
        fitted = self._fit.cost()
        return TierCost(fitted.per_expert_s, fitted.per_pair_s)

    def steps_per_s(self, now: float) -> float:
        """Of all attention actors, in the load window."""
        if self._began_at is None:
            return 0.0
        # A window of half-life h that has been filled for t seconds weighs as h / ln 2 * (1 - 2^(-t / h)) seconds.
        half_life_s = self._config.half_life_s
        weight_s = half_life_s / np.log(2.0) * (1.0 - fading(now - self._began_at, half_life_s))
        return float(self._window.at(now).num_steps / max(weight_s, 1.0))

    def has_enough(self, now: float) -> bool:
        """Whether the window holds enough to decide on."""
        return self._window.at(now).num_tokens >= self._config.min_tokens

    @property
    def drift(self) -> DriftState:
        return self._drift.state

    def rebase(self, now: float) -> None:
        """Experts have just been placed for the load that the window holds."""
        self._drift.rebase(self._window.at(now))

    def rank_pairs(self, now: float) -> FloatArray:
        """float64 [L, R]: pairs of a step on each rank, as the ranks counted them."""
        return self._per_step(np.stack([rank.at(now).pairs.sum(axis=1) for rank in self._ranks], axis=1), now)

    def rank_distinct(self, now: float) -> FloatArray:
        """float64 [L, R]: distinct experts of a step on each rank, as the ranks counted them."""
        return self._per_step(np.stack([rank.at(now).distinct for rank in self._ranks], axis=1), now)

    def norm_ratios(self, now: float) -> tuple[FloatArray, FloatArray]:
        """[L] each: smallest and largest mean activation norm of any slot over the median of all; NaN where none was
        looked at."""
        norms = np.concatenate([rank.at(now).mean_norms() for rank in self._ranks], axis=1)
        ratios = np.full((2, len(norms)), np.nan)
        for layer, row in enumerate(norms):
            known = row[~np.isnan(row)]
            if known.size and np.median(known) > 0.0:
                ratios[:, layer] = np.array([known.min(), known.max()]) / np.median(known)
        return ratios[0], ratios[1]

    def step_milliseconds(self, now: float) -> tuple[float, float]:
        """Median and 99th percentile of the steps of the last seconds; zeros without any."""
        seconds: Sequence[float] = [
            each for at, times in self._step_times if now - at <= STEP_TIMES_S for each in times
        ]
        if not seconds:
            return 0.0, 0.0
        median, slow = np.percentile(seconds, (50, 99))
        return float(1e3 * median), float(1e3 * slow)

    def _per_step(self, counts: FloatArray, now: float) -> FloatArray:
        per_step: FloatArray = counts / max(self._window.at(now).num_steps, 1e-9)
        return per_step


class _FadingRank:
    """Samples of one rank, forgotten by half within each half-life."""

    def __init__(self, shape: tuple[int, int], half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._sums = ExpertSample.empty(*shape)
        self._time = 0.0

    def add(self, sample: ExpertSample, now: float) -> None:
        self._sums = self.at(now) + sample
        self._time = max(now, self._time)

    def at(self, now: float) -> ExpertSample:
        return self._sums.scaled(fading(now - self._time, self._half_life_s))
