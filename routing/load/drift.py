"""DriftDetector: whether the traffic is no longer what the experts were placed for, or the gates are less sure. Pure.

Two signals for each MoE layer. The load's distribution against its reference, the one that the last rebalance was
planned with or a slow average: Jensen-Shannon divergence beyond what samples of these sizes differ by chance. And the
mean mass on chosen experts against its own slow baseline. Time is an argument.

Legend: L MoE layers, E logical experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routing.load.forecast import shares
from routing.load.sample import LoadSample, bucket_edges
from routing.load.sums import FloatArray
from routing.load.window import fading


@dataclass(frozen=True)
class DriftSettings:
    """What counts as drift.

    min_divergence: nats beyond chance that are worth a reaction; loads with nothing in common are 0.69 apart.
    num_deviations: a layer drifts beyond this many standard deviations of chance, and its mass is low this many below
    its baseline. tokens_per_draw: tokens that tell as much as one drawn at random, as those of a text are alike.
    min_layers: share of the layers that must drift. release: share of both bounds below which a layer's drift ends.
    confirmations: updates in a row that must find it before it counts. half_life_s: of the slow averages.
    """

    min_divergence: float = 0.01
    num_deviations: float = 5.0
    tokens_per_draw: float = 16.0
    min_layers: float = 0.25
    release: float = 0.5
    confirmations: int = 2
    half_life_s: float = 600.0


@dataclass(frozen=True, eq=False)
class DriftState:
    """layers: MoE layers that drift, ascending. unsure_layers: those whose gates are less sure than they were.
    divergence: [L], nats beyond chance, may be negative. reasons: sentences for a person, empty without drift."""

    is_drifting: bool
    layers: tuple[int, ...]
    unsure_layers: tuple[int, ...]
    divergence: FloatArray
    reasons: tuple[str, ...]


class DriftDetector:
    """`update` with the load window after each report; `rebase` when experts are placed anew."""

    def __init__(self, num_moe_layers: int, num_logical_experts: int, settings: DriftSettings | None = None) -> None:
        self._settings = settings or DriftSettings()
        self._reference: _Reference | None = None
        self._baseline = _Baseline(num_moe_layers)
        self._load_alarm = _Alarm(num_moe_layers, self._settings)
        self._mass_alarm = _Alarm(num_moe_layers, self._settings)
        self._time = 0.0
        self._state = DriftState(False, (), (), np.zeros(num_moe_layers), ())

    @property
    def state(self) -> DriftState:
        """Of the last update."""
        return self._state

    def rebase(self, planned: LoadSample) -> None:
        """Experts are placed for this load: it is the reference from now on, and no drift is left."""
        self._reference = _Reference(shares(planned.tokens), max(planned.num_tokens, 1.0) ** -0.5, is_fixed=True)
        self._load_alarm.clear()

    def update(self, window: LoadSample, now: float) -> DriftState:
        """Judge what the window holds. Nothing changes while it holds no token."""
        if window.num_tokens <= 0.0:
            return self._state
        kept = fading(now - self._time, self._settings.half_life_s)
        self._time = max(now, self._time)
        divergence = self._judge_load(window, kept)
        self._mass_alarm.update(self._judge_mass(window, kept))
        self._state = self._describe(divergence)
        return self._state

    def _judge_load(self, window: LoadSample, kept: float) -> FloatArray:
        load = shares(window.tokens)
        if self._reference is None:
            self._reference = _Reference(load, window.num_tokens**-0.5, is_fixed=False)
        reference, settings = self._reference, self._settings
        per_token = 1.0 / window.num_tokens + reference.deviation**2
        chance, deviation = divergence_by_chance(window, reference.load, per_token * settings.tokens_per_draw)
        divergence = jensen_shannon(load, reference.load) - chance
        self._load_alarm.update(divergence / np.maximum(settings.min_divergence, settings.num_deviations * deviation))
        reference.follow(load, window.num_tokens, kept)
        return divergence

    def _judge_mass(self, window: LoadSample, kept: float) -> FloatArray:
        noise = mass_deviation(window) * np.sqrt(self._settings.tokens_per_draw / window.num_tokens)
        return self._baseline.deviations_below(window.mean("mass"), noise, kept) / self._settings.num_deviations

    def _describe(self, divergence: FloatArray) -> DriftState:
        layers, unsure = self._load_alarm.layers(), self._mass_alarm.layers()
        num_needed = max(1.0, self._settings.min_layers * len(divergence))
        reasons = []
        if len(layers) >= num_needed:
            worst = max(layers, key=lambda layer: divergence[layer])
            reasons.append(
                f"the load of {len(layers)} of {len(divergence)} MoE layers is not what experts were placed for, "
                f"most in layer {worst} by {divergence[worst]:.3f} nats"
            )
        if len(unsure) >= num_needed:
            reasons.append(f"the gates of {len(unsure)} of {len(divergence)} MoE layers are less sure than they were")
        return DriftState(bool(reasons), layers, unsure, divergence, tuple(reasons))


def jensen_shannon(one: FloatArray, other: FloatArray) -> FloatArray:
    """Divergence of two distributions in nats, 0 to log 2. [..., E] -> [...]."""
    middle = (one + other) / 2.0
    divergence: FloatArray = (_relative_entropy(one, middle) + _relative_entropy(other, middle)) / 2.0
    return divergence


def mass_deviation(window: LoadSample) -> FloatArray:
    """[L], standard deviation of a token's mass, from the histogram. A bucket is as good as its middle."""
    edges = np.concatenate(([0.0], bucket_edges("mass"), [1.0]))
    parts = shares(window.histogram("mass"))
    middles = (edges[1:] + edges[:-1]) / 2.0
    mean = parts @ middles
    deviation: FloatArray = np.sqrt(np.maximum(parts @ middles**2 - mean**2, 0.0))
    return deviation


def divergence_by_chance(window: LoadSample, reference: FloatArray, draws: float) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation, [L] each, of the divergence of two samples of one distribution.

    To second order the divergence is an eighth of sum((p - q)^2 / mean). Both samples scatter by p (1 - p) / pairs
    around the truth, so a sum over E experts that are in use has the chi-squared law: mean E - 1, variance 2 (E - 1),
    times the sum of 1 / pairs, over 8. draws: the sum of 1 / tokens, each of which makes K pairs.
    """
    top_k = window.tokens.sum(axis=1) / window.num_tokens
    in_use = np.maximum(((window.tokens > 0.0) | (reference > 0.0)).sum(axis=1), 2)
    unit = draws / np.maximum(top_k, 1.0) / 8.0
    return unit * (in_use - 1), unit * np.sqrt(2.0 * (in_use - 1))


@dataclass
class _Reference:
    """load: [L, E], shares. deviation: 1 / sqrt(tokens), by chance. is_fixed: the load that experts were placed for."""

    load: FloatArray
    deviation: float
    is_fixed: bool
    num_updates: int = 1

    def follow(self, load: FloatArray, num_tokens: float, kept: float) -> None:
        """A slow average moves on; the load of a rebalance stays. Windows overlap, so their chances are the same."""
        if not self.is_fixed:
            self.num_updates += 1
            rate = _rate(kept, self.num_updates)
            self.load = (1.0 - rate) * self.load + rate * load
            self.deviation = (1.0 - rate) * self.deviation + rate * num_tokens**-0.5


class _Baseline:
    """Slow mean and variance of each layer's mean mass, [L]."""

    MIN_UPDATES = 5  # before these nothing is known to be low
    MAX_STEP = 2.0  # deviations; what lies farther counts as this far

    def __init__(self, num_moe_layers: int) -> None:
        self._mean = np.zeros(num_moe_layers)
        self._variance = np.zeros(num_moe_layers)
        self._num_updates = 0

    def deviations_below(self, mass: FloatArray, noise: FloatArray, kept: float) -> FloatArray:
        """By how many deviations each layer lies below its baseline, before the baseline takes it in. noise: [L], the
        deviation that samples of this size have by chance, the least that is assumed."""
        below = self._mean - mass
        deviation = np.maximum(np.maximum(np.sqrt(self._variance), noise), 1e-12)
        deviations: FloatArray = below / deviation
        self._num_updates += 1
        if self._num_updates > self.MIN_UPDATES:
            # Taken in whole, a sudden fall would move the baseline and widen its deviation before it is found.
            below = np.clip(below, -self.MAX_STEP * deviation, self.MAX_STEP * deviation)
        rate = _rate(kept, self._num_updates)
        self._variance = (1.0 - rate) * (self._variance + rate * below**2)
        self._mean = self._mean - rate * below
        return deviations if self._num_updates > self.MIN_UPDATES else np.zeros_like(mass)


class _Alarm:
    """Which layers are past their bound, with hysteresis: past it several times in a row, until well below it."""

    def __init__(self, num_moe_layers: int, settings: DriftSettings) -> None:
        self._settings = settings
        self._num_past = np.zeros(num_moe_layers, dtype=np.int64)
        self._is_on: NDArray[np.bool_] = np.zeros(num_moe_layers, dtype=np.bool_)

    def update(self, of_bound: FloatArray) -> None:
        """of_bound: [L], 1 at the bound."""
        self._num_past = np.where(of_bound > 1.0, self._num_past + 1, 0)
        starts = self._num_past >= self._settings.confirmations
        self._is_on = starts | (self._is_on & (of_bound > self._settings.release))

    def clear(self) -> None:
        self._num_past[:] = 0
        self._is_on[:] = False

    def layers(self) -> tuple[int, ...]:
        return tuple(np.flatnonzero(self._is_on).tolist())


def _rate(kept: float, num_updates: int) -> float:
    """What an update counts in a slow average. The first ones count evenly, or the first of all would be the truth."""
    return max(1.0 - kept, 1.0 / num_updates)


def _relative_entropy(one: FloatArray, other: FloatArray) -> FloatArray:
    """sum(p log(p / q)), where what p does not have counts nothing."""
    ratio = np.divide(one, other, out=np.ones_like(one), where=one > 0.0)
    entropy: FloatArray = (one * np.log(ratio)).sum(axis=-1)
    return entropy
