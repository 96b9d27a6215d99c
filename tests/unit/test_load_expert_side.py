"""ExpertMonitor: what it hands to its tally, and the norms that show a collapsing or exploding expert."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from routing.load.expert_side import ExpertMonitor, ExpertSample


def _slots(*slots: int) -> torch.Tensor:
    return torch.tensor(slots, dtype=torch.int32)


def test_slots_are_read_at_once() -> None:
    """The frame's memory is used again as soon as it is answered."""
    monitor, slots = ExpertMonitor(1, 4), _slots(0, 0, 1)
    monitor.record(0, slots, 2, 0.5, torch.ones(3, 2))
    slots.fill_(3)
    sample = monitor.take()
    assert sample is not None
    assert sample.pairs.tolist() == [[2.0, 1.0, 0.0, 0.0]]


def test_norms_by_hand() -> None:
    """Vectors [3, 4] and [6, 8] have root mean squares of 5 / sqrt 2 and twice that."""
    monitor = ExpertMonitor(2, 4)
    vectors = torch.tensor([[3.0, 4.0], [6.0, 8.0], [3.0, 4.0], [30.0, 40.0]])
    monitor.record(1, _slots(0, 0, 1, 3), 1, 0.1, vectors)
    sample = monitor.take()
    assert sample is not None
    unit = 5.0 / math.sqrt(2.0)
    np.testing.assert_allclose(sample.mean_norms()[1], [1.5 * unit, unit, np.nan, 10.0 * unit], rtol=1e-6)
    lowest, highest = sample.norm_ratios()
    np.testing.assert_allclose(lowest, [np.nan, 1.0 / 1.5], rtol=1e-6)
    np.testing.assert_allclose(highest, [np.nan, 10.0 / 1.5], rtol=1e-6)


def test_every_layer_is_looked_at() -> None:
    """Layers take turns, so one counter for all would look at the same few for ever: each layer has its own."""
    monitor = ExpertMonitor(4, 2, outputs_every=8)
    for _ in range(16):
        for layer in range(4):
            monitor.record(layer, _slots(0), 1, 0.1, torch.ones(1, 3))
    sample = monitor.take()
    assert sample is not None
    assert sample.norm_counts[:, 0].tolist() == [2.0] * 4


def test_broken_outputs_poison_nothing() -> None:
    """NaN and infinity count as no norm at all, which is the lowest."""
    monitor = ExpertMonitor(1, 3)
    monitor.record(0, _slots(0, 1, 2), 1, 0.1, torch.tensor([[math.nan], [math.inf], [2.0]]))
    sample = monitor.take()
    assert sample is not None
    assert sample.mean_norms().tolist() == [[0.0, 0.0, 2.0]]


def test_a_sample_survives_the_way() -> None:
    """Shapes are checked as those of the attention side are; the moments travel in full."""
    monitor = ExpertMonitor(2, 3)
    monitor.record(1, _slots(0, 2), 1, 0.1, torch.ones(2, 3))
    sample = monitor.take()
    assert sample is not None
    read = ExpertSample.from_dict(sample.to_dict(), 2, 3)
    np.testing.assert_array_equal(read.cost, sample.cost)
    np.testing.assert_array_equal(read.pairs, sample.pairs)
    with pytest.raises(ValueError, match="bytes for an array of shape"):
        ExpertSample.from_dict(sample.to_dict(), 2, 4)
