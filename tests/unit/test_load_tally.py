"""Both tallies against a plain loop, against each other over the sizes that calls may have, and the norms that show a
collapsing or exploding expert."""

from __future__ import annotations

import math
import threading
from dataclasses import fields

import numpy as np
import pytest
import torch

from routing.load.cost_fit import cost_moments
from routing.load.expert_sample import ExpertSample
from routing.load.native_tally import NativeTally
from routing.load.tally import CallTally, ReferenceTally, open_tally

COUNTED = tuple(field.name for field in fields(ExpertSample))

Tallies = type[ReferenceTally] | type[NativeTally]
both = pytest.mark.parametrize("tally_class", [ReferenceTally, NativeTally])


def _slots(*slots: int) -> torch.Tensor:
    return torch.tensor(slots, dtype=torch.int32)


def _add(tally: CallTally, layer: int, *slots: int, seconds: float = 0.1) -> None:
    """A call whose outputs are ones."""
    tally.layers[layer].add(_slots(*slots), 1, seconds, torch.ones(len(slots), 3))


def _taken(tally: CallTally) -> ExpertSample:
    sample = tally.take()
    assert sample is not None
    return sample


@both
def test_calls_are_what_a_loop_counts(tally_class: Tallies) -> None:
    """Pairs, rows, distinct slots, apportioned seconds, norms and moments; a second sample begins at zero."""
    layers, slots, rng = 3, 5, np.random.default_rng(4)
    tally = tally_class(layers, slots, outputs_every=1)
    for _ in range(2):
        expected = ExpertSample.empty(layers, slots)
        for _ in range(30):
            layer, num_pairs, seconds = int(rng.integers(layers)), int(rng.integers(0, 9)), float(rng.random())
            pair_slot, outputs = rng.integers(0, slots, num_pairs).tolist(), torch.randn(num_pairs, 7)
            tally.layers[layer].add(_slots(*pair_slot), num_pairs // 2, seconds, outputs)
            expected.num_calls[layer] += 1
            expected.rows[layer] += num_pairs // 2
            expected.distinct[layer] += len(set(pair_slot))
            expected.cost[:] += cost_moments(len(set(pair_slot)), num_pairs, seconds)
            for slot, output in zip(pair_slot, outputs.tolist(), strict=True):
                expected.pairs[layer, slot] += 1
                expected.seconds[layer, slot] += seconds / num_pairs
                expected.norm_sums[layer, slot] += math.sqrt(sum(value**2 for value in output) / 7)
                expected.norm_counts[layer, slot] += 1
        sample = _taken(tally)
        for name in COUNTED:
            np.testing.assert_allclose(getattr(sample, name), getattr(expected, name), rtol=1e-12, err_msg=name)
    assert tally.take() is None


@pytest.mark.parametrize("num_pairs", [0, 1, 7, 64, 4096])
@pytest.mark.parametrize("slots", [1, 8, 40])
def test_native_is_the_reference(num_pairs: int, slots: int) -> None:
    """To the last bit, as both add the same numbers in the same order; but for norms, whose squares may be added in
    another."""
    native, reference = NativeTally(2, slots), ReferenceTally(2, slots)
    for layer in (0, 1, 1):
        pair_slot = torch.randint(0, slots, (num_pairs,), dtype=torch.int32)
        outputs = torch.randn(num_pairs, 33)
        for tally in (native, reference):
            tally.layers[layer].add(pair_slot, num_pairs, 0.3 * (1 + layer), outputs)
    one, other = _taken(native), _taken(reference)
    for name in COUNTED:
        rtol = 1e-12 if name == "norm_sums" else 0.0
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, err_msg=name)


@both
def test_what_is_not_there_is_refused(tally_class: Tallies) -> None:
    """And counts nothing."""
    tally = tally_class(2, 3)
    for slots in ((0, 3), (-1,)):
        with pytest.raises(ValueError, match="points at no slot"):
            _add(tally, 0, *slots)
    with pytest.raises(IndexError):
        _add(tally, 2, 0)
    assert tally.take() is None


@both
def test_nothing_is_lost_between_threads(tally_class: Tallies) -> None:
    """One serves, another takes samples: together they hold every call."""
    tally, is_over = tally_class(1, 2), threading.Event()

    def serve() -> None:
        for _ in range(2000):
            _add(tally, 0, 0, 1, 1)
        is_over.set()

    thread = threading.Thread(target=serve)
    thread.start()
    total = ExpertSample.empty(1, 2)
    while not is_over.wait(0.001):
        total += tally.take() or ExpertSample.empty(1, 2)
    thread.join(10.0)
    total += tally.take() or ExpertSample.empty(1, 2)
    assert (total.num_calls[0], total.pairs.tolist()) == (2000.0, [[2000.0, 4000.0]])


@both
def test_slots_are_read_at_once(tally_class: Tallies) -> None:
    """The frame's memory is used again as soon as it is answered."""
    tally, slots = tally_class(1, 4), _slots(0, 0, 1)
    tally.layers[0].add(slots, 2, 0.5, torch.ones(3, 2))
    slots.fill_(3)
    assert _taken(tally).pairs.tolist() == [[2.0, 1.0, 0.0, 0.0]]


@both
def test_norms_by_hand(tally_class: Tallies) -> None:
    """Vectors [3, 4] and [6, 8] have root mean squares of 5 / sqrt 2 and twice that."""
    tally = tally_class(2, 4)
    vectors = torch.tensor([[3.0, 4.0], [6.0, 8.0], [3.0, 4.0], [30.0, 40.0]])
    tally.layers[1].add(_slots(0, 0, 1, 3), 1, 0.1, vectors)
    sample = _taken(tally)
    unit = 5.0 / math.sqrt(2.0)
    np.testing.assert_allclose(sample.mean_norms()[1], [1.5 * unit, unit, np.nan, 10.0 * unit], rtol=1e-6)
    lowest, highest = sample.norm_ratios()
    np.testing.assert_allclose(lowest, [np.nan, 1.0 / 1.5], rtol=1e-6)
    np.testing.assert_allclose(highest, [np.nan, 10.0 / 1.5], rtol=1e-6)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_is_looked_at(tally_class: Tallies, dtype: torch.dtype) -> None:
    """Layers take turns, so one counter for all would look at the same few for ever: each layer has its own."""
    tally = tally_class(4, 2, outputs_every=8)
    for _ in range(16):
        for layer in tally.layers:
            layer.add(_slots(0), 1, 0.1, torch.ones(1, 3, dtype=dtype))
    sample = _taken(tally)
    assert sample.norm_counts[:, 0].tolist() == sample.norm_sums[:, 0].tolist() == [2.0] * 4


@both
def test_broken_outputs_poison_nothing(tally_class: Tallies) -> None:
    """NaN and infinity count as no norm at all, which is the lowest."""
    tally = tally_class(1, 3)
    tally.layers[0].add(_slots(0, 1, 2), 1, 0.1, torch.tensor([[math.nan], [math.inf], [2.0]]))
    assert _taken(tally).mean_norms().tolist() == [[0.0, 0.0, 2.0]]


def test_a_layer_keeps_its_memory() -> None:
    """Kernels count by address: it holds as long as the layer does, whatever becomes of the tally."""
    tally = NativeTally(2, 3)
    layer = tally.layers[1]
    address = layer.address
    assert address != tally.layers[0].address
    del tally
    layer.add(_slots(2), 1, 0.1, torch.ones(1, 3))
    assert layer.address == address


def test_a_sample_survives_the_way() -> None:
    """Shapes are checked as those of the attention side are; the moments travel in full."""
    tally = open_tally(2, 3)
    _add(tally, 1, 0, 2)
    sample = _taken(tally)
    read = ExpertSample.from_dict(sample.to_dict(), 2, 3)
    np.testing.assert_array_equal(read.cost, sample.cost)
    np.testing.assert_array_equal(read.pairs, sample.pairs)
    with pytest.raises(ValueError, match="bytes for an array of shape"):
        ExpertSample.from_dict(sample.to_dict(), 2, 4)


def test_the_fastest_is_native() -> None:
    """What is built is used."""
    assert isinstance(open_tally(1, 1), NativeTally)
