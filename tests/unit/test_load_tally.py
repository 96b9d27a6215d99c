"""Both tallies against a plain loop, and against each other over the sizes that calls may have."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from routing.load.cost_fit import cost_moments
from routing.load.expert_sample import ExpertSample
from routing.load.native_tally import NativeTally
from routing.load.tally import COUNTED, CallTally, ReferenceTally, open_tally

both = pytest.mark.parametrize("tally_class", [ReferenceTally, NativeTally])


def _slots(*slots: int) -> torch.Tensor:
    return torch.tensor(slots, dtype=torch.int32)


def _taken(tally: CallTally, layers: int, slots: int) -> ExpertSample:
    sample = ExpertSample.empty(layers, slots)
    tally.take(sample)
    return sample


@both
def test_calls_are_what_a_loop_counts(tally_class: type[CallTally]) -> None:
    """Pairs, rows, distinct slots, apportioned seconds and moments; a second sample begins at zero."""
    layers, slots, rng = 3, 5, np.random.default_rng(4)
    tally = tally_class(layers, slots)  # type: ignore[call-arg]
    for _ in range(2):
        expected = ExpertSample.empty(layers, slots)
        for _ in range(30):
            layer, num_pairs, seconds = int(rng.integers(layers)), int(rng.integers(0, 9)), float(rng.random())
            pair_slot = rng.integers(0, slots, num_pairs).tolist()
            tally.add(layer, _slots(*pair_slot), num_pairs // 2, seconds)
            expected.num_calls[layer] += 1
            expected.rows[layer] += num_pairs // 2
            expected.distinct[layer] += len(set(pair_slot))
            expected.cost[:] += cost_moments(len(set(pair_slot)), num_pairs, seconds)
            for slot in pair_slot:
                expected.pairs[layer, slot] += 1
                expected.seconds[layer, slot] += seconds / num_pairs
        sample = _taken(tally, layers, slots)
        for name in COUNTED:
            np.testing.assert_allclose(getattr(sample, name), getattr(expected, name), rtol=1e-12, err_msg=name)
    assert not any(getattr(_taken(tally, layers, slots), name).any() for name in COUNTED)


@pytest.mark.parametrize("num_pairs", [0, 1, 7, 64, 4096])
@pytest.mark.parametrize("slots", [1, 8, 40])
def test_native_is_the_reference(num_pairs: int, slots: int) -> None:
    """To the last bit: both add the same numbers in the same order."""
    native, reference = NativeTally(2, slots), ReferenceTally(2, slots)
    for layer in (0, 1, 1):
        pair_slot = torch.randint(0, slots, (num_pairs,), dtype=torch.int32)
        for tally in (native, reference):
            tally.add(layer, pair_slot, num_pairs, 0.3 * (1 + layer))
    one, other = (_taken(tally, 2, slots) for tally in (native, reference))
    for name in COUNTED:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@both
def test_what_is_not_there_is_refused(tally_class: type[CallTally]) -> None:
    """And counts nothing."""
    tally = tally_class(2, 3)  # type: ignore[call-arg]
    for layer, slots in ((2, _slots(0)), (-1, _slots(0)), (0, _slots(0, 3)), (0, _slots(-1))):
        with pytest.raises(ValueError, match="no such MoE layer|points at no slot"):
            tally.add(layer, slots, 1, 0.1)
    assert not any(getattr(_taken(tally, 2, 3), name).any() for name in COUNTED)


@both
def test_nothing_is_lost_between_threads(tally_class: type[CallTally]) -> None:
    """One serves, another takes samples: together they hold every call."""
    tally, is_over = tally_class(1, 2), threading.Event()  # type: ignore[call-arg]

    def serve() -> None:
        for _ in range(2000):
            tally.add(0, _slots(0, 1, 1), 2, 0.5)
        is_over.set()

    thread = threading.Thread(target=serve)
    thread.start()
    total = ExpertSample.empty(1, 2)
    while not is_over.wait(0.001):
        total += _taken(tally, 1, 2)
    thread.join(10.0)
    total += _taken(tally, 1, 2)
    assert (total.num_calls[0], total.pairs.tolist()) == (2000.0, [[2000.0, 4000.0]])


def test_the_fastest_is_native() -> None:
    """What is built is used."""
    assert isinstance(open_tally(1, 1), NativeTally)
