"""DriftDetector: silent on stationary traffic over many seeds, quick on a switch, and quiet again after a rebalance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from routing.load.drift import DriftDetector, DriftSettings, divergence_by_chance, jensen_shannon
from routing.load.sample import MEASURES, NUM_BUCKETS, LoadSample, bucket_edges
from routing.load.window import LoadWindow

LAYERS, EXPERTS, TOP_K = 6, 64, 8
PERIOD_S, HALF_LIFE_S = 5.0, 60.0
TEXT_TOKENS = 16  # tokens of a text choose the same experts: the most that the settings allow for


class Traffic:
    """Reports of texts whose experts come from one distribution per layer, and whose gates are about so sure."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.switch()
        self.mass = 0.4

    def switch(self) -> None:
        """Another domain."""
        self._parts = self._rng.dirichlet(np.full(EXPERTS, 2.0), LAYERS)

    def report(self, num_texts: int = 40) -> LoadSample:
        """One of `num_texts` texts, counted as one step."""
        sample = LoadSample.empty(LAYERS, EXPERTS)
        num_tokens = num_texts * TEXT_TOKENS
        mass = self._rng.normal(self.mass, 0.1, (LAYERS, num_texts)).clip(0.05, 0.95)
        for layer, parts in enumerate(self._parts):
            keys = np.log(parts) + self._rng.gumbel(size=(num_texts, EXPERTS))
            chosen = np.argsort(keys, axis=1)[:, -TOP_K:]  # without replacement, by weight
            sample.tokens[layer] = TEXT_TOKENS * np.bincount(chosen.flatten(), minlength=EXPERTS)
            buckets = np.searchsorted(bucket_edges("mass"), mass[layer], side="right")
            sample.histograms[0, layer] = TEXT_TOKENS * np.bincount(buckets, minlength=NUM_BUCKETS)
        sample.measure_sums[MEASURES.index("mass")] = TEXT_TOKENS * mass.sum(axis=1)
        return LoadSample(**{**vars(sample), "num_steps": 1.0, "num_tokens": float(num_tokens)})


class Run:
    """A window and a detector that follow traffic."""

    def __init__(self, seed: int) -> None:
        self.traffic = Traffic(seed)
        self.window = LoadWindow(LAYERS, EXPERTS, HALF_LIFE_S)
        self.detector = DriftDetector(LAYERS, EXPERTS)
        self.now = 0.0

    def alarms(self, num_reports: int) -> int:
        """In how many of the next reports there was drift."""
        num_alarms = 0
        for _ in range(num_reports):
            self.now += PERIOD_S
            self.window.add(self.traffic.report(), self.now)
            num_alarms += self.detector.update(self.window.at(self.now), self.now).is_drifting
        return num_alarms


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("is_rebased", [False, True])
def test_stationary_traffic_raises_no_alarm(seed: int, is_rebased: bool) -> None:
    """Chance alone, with tokens that come in bursts, never looks like drift: 150 reports of every seed."""
    run = Run(seed)
    if is_rebased:
        run.alarms(20)
        run.detector.rebase(run.window.at(run.now))
    assert run.alarms(150) == 0


@pytest.mark.parametrize("seed", range(8))
def test_a_switch_is_found_and_a_rebalance_ends_it(seed: int) -> None:
    """Another domain is drift within a half-life; once the experts are placed for it, it is what is expected."""
    run = Run(seed)
    run.alarms(30)
    run.detector.rebase(run.window.at(run.now))
    assert run.alarms(30) == 0
    run.traffic.switch()
    num_reports = int(HALF_LIFE_S / PERIOD_S)
    assert run.alarms(num_reports) > 0
    state = run.detector.state
    assert len(state.layers) == LAYERS
    assert "not what experts were placed for" in state.reasons[0]
    run.alarms(10 * num_reports)
    run.detector.rebase(run.window.at(run.now))
    assert run.alarms(30) == 0


def test_a_slow_average_gets_used_to_a_switch() -> None:
    """Without a rebalance the reference follows: traffic that stays as it is stops being drift."""
    run = Run(0)
    run.alarms(30)
    run.traffic.switch()
    assert run.alarms(30) > 0
    run.alarms(1000)
    assert run.alarms(10) == 0


@pytest.mark.parametrize("seed", range(4))
def test_gates_that_are_less_sure_raise_an_alarm(seed: int) -> None:
    """The same load, but the mass on chosen experts falls by a quarter: the router is off its ground."""
    run = Run(seed)
    assert run.alarms(40) == 0
    run.traffic.mass = 0.3
    assert run.alarms(40) > 0
    assert run.detector.state.layers == ()
    assert "less sure" in " ".join(run.detector.state.reasons) or not run.detector.state.is_drifting


def test_an_empty_window_says_nothing() -> None:
    """Before the first token, and after all have faded, the state stays as it was."""
    detector = DriftDetector(LAYERS, EXPERTS)
    assert not detector.update(LoadSample.empty(LAYERS, EXPERTS), 1.0).is_drifting


def test_alarms_start_late_and_end_late() -> None:
    """Past the bound twice in a row to start; below half of it to end."""
    detector = DriftDetector(2, 4, DriftSettings())
    alarm = detector._load_alarm
    states = []
    for value in (2.0, 0.0, 2.0, 2.0, 0.6, 0.6, 0.4, 0.6, 2.0):
        alarm.update(np.array([value, 0.0]))
        states.append(alarm.layers())
    assert states == [(), (), (), (0,), (0,), (0,), (), (), ()]


def test_jensen_shannon_by_hand() -> None:
    """Nothing in common is log 2, the same is 0, and the order does not matter."""
    one, other = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]])
    assert jensen_shannon(one, other).tolist() == pytest.approx([math.log(2.0), 0.0])
    half = jensen_shannon(np.array([0.5, 0.5]), np.array([1.0, 0.0]))
    middle = 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) + 0.5 * math.log(1.0 / 0.75)
    assert half == pytest.approx(middle)


def test_the_noise_floor_is_what_chance_does() -> None:
    """Independent pairs of one distribution: the mean divergence of 400 pairs of samples is the predicted one."""
    rng = np.random.default_rng(7)
    parts = rng.dirichlet(np.full(EXPERTS, 5.0))
    num_pairs = (4000, 9000)
    draws = [rng.multinomial(size, parts, 400) / size for size in num_pairs]
    found = jensen_shannon(*draws)
    sample = LoadSample.empty(1, EXPERTS)
    sample.tokens[0] = draws[0][0] * num_pairs[0]
    window = LoadSample(**{**vars(sample), "num_tokens": float(num_pairs[0])})
    mean, deviation = divergence_by_chance(window, draws[1][:1], sum(1.0 / size for size in num_pairs))
    assert found.mean() == pytest.approx(mean[0], rel=0.05)
    assert found.std() == pytest.approx(deviation[0], rel=0.15)
