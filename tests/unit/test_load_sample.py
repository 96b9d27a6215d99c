"""Load samples: adding up, crossing a process, hostile input; and the window in which they fade."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from routing.load.sample import BUCKET_EDGES, MEASURES, NUM_BUCKETS, LoadSample
from routing.load.window import LoadWindow

LAYERS, EXPERTS = 2, 3


def random_sample(rng: np.random.Generator, layers: int = LAYERS, experts: int = EXPERTS) -> LoadSample:
    """Whole numbers, which add up exactly in any order."""
    fields = vars(LoadSample.empty(layers, experts)).items()
    numbers = {name: rng.integers(0, 1000, np.shape(value)) for name, value in fields}
    return LoadSample(**{name: 1.0 * number if np.shape(number) else float(number) for name, number in numbers.items()})


def same(one: LoadSample, other: LoadSample) -> bool:
    return all(np.array_equal(value, vars(other)[name]) for name, value in vars(one).items())


@pytest.mark.parametrize("seed", range(5))
def test_merging_is_associative_and_commutative(seed: int) -> None:
    """Samples of several actors may be added in any order; nothing counted is the neutral element."""
    rng = np.random.default_rng(seed)
    a, b, c = (random_sample(rng) for _ in range(3))
    assert same((a + b) + c, a + (b + c))
    assert same(a + b, b + a)
    assert same(a + LoadSample.empty(LAYERS, EXPERTS), a)


def test_samples_of_different_shapes_do_not_add_up() -> None:
    """An actor with another model is an error, not a broadcast."""
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"tokens of shape \(1, 3\)"):
        random_sample(rng) + random_sample(rng, layers=1)


def test_a_sample_survives_the_way() -> None:
    """Plain values whose sizes follow from the model, and the same numbers behind them."""
    sample = random_sample(np.random.default_rng(1))
    fields = sample.to_dict()
    assert {type(value) for value in fields.values()} == {float, bytes}
    assert len(fields["tokens"]) == LAYERS * EXPERTS * 4
    assert same(LoadSample.from_dict(fields, LAYERS, EXPERTS), sample)


def test_a_sample_of_the_large_model_is_small() -> None:
    """42 layers of 288 experts: what is sent every few seconds stays below 170 kB."""
    fields = LoadSample.empty(42, 288).to_dict()
    assert sum(len(value) for value in fields.values() if isinstance(value, bytes)) < 170_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", -1.0),
        ("num_steps", float("nan")),
        ("num_steps", True),
        ("num_steps", "1"),
        ("num_steps", 10**400),
        ("num_tokens", b""),
        ("tokens", b"\0" * 4),
        ("tokens", [0.0] * 6),
        ("tokens", np.array([-1.0] + [0.0] * 5, "<f4").tobytes()),
        ("soft", np.array([np.nan] + [0.0] * 5, "<f4").tobytes()),
        ("measure_sums", np.full(6, np.inf).tobytes()),
        ("unknown", 1.0),
    ],
)
def test_hostile_fields_are_refused(name: str, value: object) -> None:
    """Wrong types, sizes, signs, names and numbers are a ValueError that names the field."""
    fields: dict[str, Any] = {**LoadSample.empty(LAYERS, EXPERTS).to_dict(), name: value}
    with pytest.raises(ValueError, match=name if name != "unknown" else "mapping of"):
        LoadSample.from_dict(fields, LAYERS, EXPERTS)


@pytest.mark.parametrize("given", [None, [], {}, "tokens", {"tokens": b""}])
def test_what_is_no_sample_is_refused(given: object) -> None:
    """Anything but the mapping is a ValueError."""
    with pytest.raises(ValueError, match="mapping of"):
        LoadSample.from_dict(given, LAYERS, EXPERTS)


def test_buckets_cover_what_values_can_be() -> None:
    """Edges ascend, and a gate without preference, E = 288 and K = 8, lies within: mass 1 / 36, entropy 1."""
    assert BUCKET_EDGES.shape == (len(MEASURES), NUM_BUCKETS - 1)
    assert (np.diff(BUCKET_EDGES) > 0.0).all()
    assert BUCKET_EDGES[0, 0] < 8 / 288 < BUCKET_EDGES[0, -1] < 1.0
    assert BUCKET_EDGES[1, -1] == pytest.approx(1.0 - 2**-8)


def one_step(tokens: float) -> LoadSample:
    """One step of one token on one layer with two experts, `tokens` pairs on the first."""
    sample = LoadSample.empty(1, 2)
    sample.tokens[0, 0] = tokens
    sample.measure_sums[0, 0] = 0.25
    return LoadSample(**{**vars(sample), "num_steps": 1.0, "num_tokens": 1.0})


def test_a_window_forgets_by_half() -> None:
    """Half-life 10 s: what is 10 s old counts 1/2, 20 s old 1/4."""
    window = LoadWindow(1, 2, half_life_s=10.0)
    window.add(one_step(4.0), now=100.0)
    window.add(one_step(8.0), now=110.0)
    held = window.at(120.0)
    assert held.num_steps == pytest.approx(0.25 + 0.5)
    assert held.tokens[0, 0] == pytest.approx(4.0 * 0.25 + 8.0 * 0.5)
    assert held.load("tokens")[0, 0] == pytest.approx(5.0 / 0.75)
    assert held.mean("mass")[0] == pytest.approx(0.25)


def test_asking_changes_nothing() -> None:
    """A window is the same however often and whenever it was looked at."""
    asked, silent = LoadWindow(1, 2, 10.0), LoadWindow(1, 2, 10.0)
    for window in (asked, silent):
        window.add(one_step(4.0), now=0.0)
    asked.at(3.0)
    asked.at(50.0)
    for window in (asked, silent):
        window.add(one_step(1.0), now=5.0)
    assert same(asked.at(7.0), silent.at(7.0))


def test_time_that_stands_still_or_goes_back_forgets_nothing() -> None:
    """Samples of several actors come at one time, or slightly out of order."""
    window = LoadWindow(1, 2, 10.0)
    window.add(one_step(4.0), now=10.0)
    window.add(one_step(4.0), now=10.0)
    window.add(one_step(4.0), now=9.0)
    assert window.at(10.0).num_steps == 3.0
    assert window.at(20.0).num_steps == pytest.approx(1.5)
    window.clear()
    assert window.at(20.0).num_steps == 0.0
    assert not window.at(20.0).load("tokens").any()


def test_a_window_is_of_one_model() -> None:
    """A sample of another shape and a senseless half-life are ValueErrors."""
    with pytest.raises(ValueError, match="does not add up"):
        LoadWindow(1, 2, 10.0).add(LoadSample.empty(1, 3), now=0.0)
    with pytest.raises(ValueError, match="half_life_s"):
        LoadWindow(1, 2, 0.0)
