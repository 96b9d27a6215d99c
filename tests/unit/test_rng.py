"""Random numbers are a function of (seed, position): an independent Philox, pinned values, and their spread."""

import itertools

import pytest

from actors.sampling.rng import fresh_seed, uniform

MASK = 2**64 - 1
PINNED = [0.011546754286331562, 0.4502664720018066, 0.6944737111101833]


def _philox_4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, written from the paper: ten rounds of two multiplications, the key bumped between rounds."""
    for _ in range(10):
        low = counter[0] * 0xD2E7470EE14C6C93
        high = counter[2] * 0xCA5A826395121157
        counter = [(high >> 64) ^ counter[1] ^ key[0], high & MASK, (low >> 64) ^ counter[3] ^ key[1], low & MASK]
        key = [(key[0] + 0x9E3779B97F4A7C15) & MASK, (key[1] + 0xBB67AE8584CAA73B) & MASK]
    return counter


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, -1, -(2**63) + 1])
@pytest.mark.parametrize("position", [0, 1, 262_143])
def test_numbers_are_philox_of_seed_and_position(seed: int, position: int) -> None:
    """The generator counts up before its first block, so word 0 of the counter is 1."""
    raw = _philox_4x64_10([1, position, 0, 0], [seed & MASK, 0])[0]
    assert uniform(seed, position) == (raw >> 11) / 2**53


def test_pinned_values() -> None:
    """A seed must mean the same tokens after an upgrade; these never change."""
    assert [uniform(0, 0), uniform(42, 7), uniform(-1, 262_143)] == PINNED


def test_every_argument_matters_and_order_does_not() -> None:
    """Different arguments give different numbers; calls in between change nothing."""
    arguments = list(itertools.product((1, 2), (3, 4, 5)))
    forward = [uniform(*args) for args in arguments]
    backward = [uniform(*args) for args in reversed(arguments)]
    assert forward == backward[::-1]
    assert len(set(forward)) == len(forward)


def test_numbers_are_uniform_over_positions() -> None:
    """Chi-square over 16 bins of 4,000 positions: 15 degrees of freedom, below the 99.9th percentile, 37.7."""
    bins = [0] * 16
    for position in range(4000):
        bins[int(uniform(5, position) * 16)] += 1
    assert sum((count - 250) ** 2 / 250 for count in bins) < 37.7


def test_fresh_seeds_fit_and_differ() -> None:
    """63 bits, and not the same twice."""
    seeds = {fresh_seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
