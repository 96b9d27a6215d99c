"""LoadMonitor against a plain loop over tokens, and what it must forget or survive."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from actors.kernels.contract import GateConfidence, GateOutput
from routing.load import monitor as monitor_module
from routing.load.gate_sums import DeviceSums
from routing.load.monitor import LoadMonitor
from routing.load.native_gate_sums import NativeGateSums
from routing.load.sample import LOAD_KINDS, MEASURES, LoadSample, bucket_edges
from tests.fakes.gates import gate_output

Step = Sequence[Sequence[GateOutput]]
"""By micro-batch, the layers."""


@pytest.fixture(params=["native", "reference"], autouse=True)
def gate_sums(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with both."""
    kinds = {"native": lambda *args: NativeGateSums(*args[:2]), "reference": DeviceSums}
    monkeypatch.setattr(monitor_module, "open_gate_sums", kinds[request.param])


def random_step(num_layers: int, num_experts: int, top_k: int, sizes: Sequence[int]) -> Step:
    return [[gate_output(size, num_experts, top_k) for _ in range(num_layers)] for size in sizes]


def observe(monitor: LoadMonitor, step: Step) -> None:
    """Micro-batches take turns layer by layer, as they do when two are in flight."""
    for layer in range(len(step[0])):
        for microbatch in step:
            monitor.observe(layer, microbatch[layer])


def counted(steps: Sequence[Step], num_experts: int, units: np.ndarray) -> LoadSample:
    """The oracle: one token after the other. units: [L], the margin whose share is 0.5 / e."""
    num_layers = len(steps[0][0])
    sums = LoadSample.empty(num_layers, num_experts)
    num_tokens = 0
    for step in steps:
        touched: list[set[int]] = [set() for _ in range(num_layers)]
        for microbatch in step:
            num_tokens += len(microbatch[0].topk_ids)
            for layer, gate in enumerate(microbatch):
                for token, ids in enumerate(gate.topk_ids.tolist()):
                    weights = gate.topk_weights[token].double()
                    mass, entropy, margin, runner_up = gate.confidence.table[:, token].tolist()
                    sums.tokens[layer, ids] += 1.0
                    sums.gate_mass[layer, ids] += (weights / weights.sum()).numpy()
                    share = 0.5 * math.exp(-margin / units[layer]) if runner_up >= 0 else 0.0
                    sums.soft[layer, ids] += 1.0
                    sums.soft[layer, ids[-1]] -= share
                    sums.soft[layer, int(runner_up)] += share
                    touched[layer].update(ids)
                    for row, (name, value) in enumerate(zip(MEASURES, (mass, entropy, margin), strict=True)):
                        bucket = sum(value >= np.float32(edge) for edge in bucket_edges(name))
                        sums.histograms[row, layer, bucket] += 1.0
                        sums.measure_sums[row, layer] += value
        sums.distinct[:] += [len(ids) for ids in touched]
    totals = {name: getattr(sums, name) for name in (*LOAD_KINDS, "distinct", "histograms", "measure_sums")}
    return LoadSample(float(len(steps)), float(num_tokens), **totals)


def assert_close(actual: LoadSample, expected: LoadSample) -> None:
    """Counts are exact; of the rest each addend is a float32, so sums of positive ones are within 2^-22."""
    for name in ("num_steps", "num_tokens", "tokens", "distinct", "histograms"):
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)
    for name in ("gate_mass", "soft", "measure_sums"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=2**-22, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("num_experts", "top_k"), [(9, 3), (4, 4), (30, 1)])
@pytest.mark.parametrize("sizes", [[5], [3, 4], [1, 1]])
def test_a_group_of_steps_is_what_a_loop_counts(num_experts: int, top_k: int, sizes: list[int]) -> None:
    """Several layers, one or two micro-batches, with and without a runner-up; the margins' unit is the group's mean."""
    steps = [random_step(3, num_experts, top_k, [size + number for size in sizes]) for number in range(4)]
    monitor = LoadMonitor(3, num_experts)
    for step in steps:
        observe(monitor, step)
        monitor.end_step()
    sample = monitor.take()
    assert sample is not None
    margins = [[gate.confidence.margin for gate in microbatch] for step in steps for microbatch in step]
    units = np.array([torch.cat(layer).mean().item() for layer in zip(*margins, strict=True)])
    assert_close(sample, counted(steps, num_experts, units))
    assert monitor.take() is None


def test_groups_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """However steps are grouped the counts are the same; only the soft load knows other mean margins."""
    monkeypatch.setattr(monitor_module, "MAX_GROUP_TOKENS", 12)
    steps = [random_step(2, 16, 4, [5]) for _ in range(9)]
    monitor = LoadMonitor(2, 16)
    for step in steps:
        observe(monitor, step)
        monitor.end_step()
    sample = monitor.take()
    assert sample is not None
    expected = counted(steps, 16, np.ones(2))
    for name in ("num_steps", "num_tokens", "tokens", "distinct", "histograms"):
        np.testing.assert_array_equal(getattr(sample, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(sample.soft.sum(axis=1), sample.tokens.sum(axis=1))


def test_soft_load_by_hand() -> None:
    """Mean margin 0.2: a margin of 0 gives half a pair away, 0.4 gives 0.5 / e^2, and with a scale of 2 0.5 / e."""
    table = torch.tensor([[0.5, 0.5], [1.0, 1.0], [0.0, 0.4], [2.0, 3.0]])
    gate = GateOutput(torch.zeros(2, 4), torch.tensor([[0, 1], [0, 1]]), torch.ones(2, 2), GateConfidence(table))
    for scale in (1.0, 2.0):
        monitor = LoadMonitor(1, 4, margin_scale=scale)
        for _ in range(2):  # the second group knows the mean margin of the first
            monitor.observe(0, gate)
            monitor.end_step()
            monitor._count_group()
            sample = monitor.take()
        assert sample is not None
        far = 0.5 * math.exp(-2.0 / scale)
        np.testing.assert_allclose(sample.soft, [[2.0, 1.5 - far, 0.5, far]], atol=1e-6)


def test_a_dropped_step_leaves_nothing() -> None:
    """A step that fails halfway is forgotten; its repetition counts once."""
    good, bad = random_step(3, 8, 2, [4]), random_step(3, 8, 2, [4])
    monitor = LoadMonitor(3, 8)
    for layer in (0, 1):
        monitor.observe(layer, bad[0][layer])
    monitor.drop_step()
    observe(monitor, good)
    monitor.end_step()
    sample = monitor.take()
    assert sample is not None
    assert (sample.num_steps, sample.num_tokens) == (1.0, 4.0)
    np.testing.assert_array_equal(sample.tokens, counted([good], 8, np.ones(3)).tokens)


def test_a_step_that_missed_a_layer_does_not_count() -> None:
    """Sums of layers must be of the same tokens; the next step starts afresh. No observation at all is no step."""
    monitor, step = LoadMonitor(2, 8), random_step(2, 8, 2, [4])
    monitor.observe(0, step[0][0])
    monitor.end_step()
    monitor.end_step()
    assert monitor.take() is None
    observe(monitor, step)
    monitor.end_step()
    sample = monitor.take()
    assert sample is not None
    assert sample.num_steps == 1.0


def test_broken_tokens_poison_nothing() -> None:
    """A token of NaN has been chosen experts and counts as one without any confidence."""
    step = random_step(1, 8, 2, [3])
    gate = step[0][0]
    gate.topk_weights[1] = math.nan
    gate.confidence.table[:3, 1] = math.nan
    monitor = LoadMonitor(1, 8)
    observe(monitor, step)
    monitor.end_step()
    sample = monitor.take()
    assert sample is not None
    assert sample.tokens.sum() == 6.0
    assert sample.gate_mass.sum() == pytest.approx(2.0)
    assert sample.histograms.sum() == 9.0
    assert LoadSample.from_dict(sample.to_dict(), 1, 8).num_tokens == 3.0


def test_nothing_is_kept_of_the_hidden_states() -> None:
    """What waits to be counted holds ids, weights and confidence, not the rows of the model."""
    monitor, gate = LoadMonitor(1, 8), gate_output(2, 8, 2)
    monitor.observe(0, gate)
    kept = monitor._step[0][0]
    assert all(part is not gate.normed for part in kept)


def test_another_thread_may_take_while_steps_end() -> None:
    """Every step is in exactly one sample."""
    monitor, step = LoadMonitor(2, 8), random_step(2, 8, 2, [3])
    samples: list[LoadSample | None] = []
    is_over = threading.Event()

    def reader() -> None:
        while not is_over.is_set():
            samples.append(monitor.take())
            is_over.wait(0.001)

    thread = threading.Thread(target=reader)
    thread.start()
    with torch.inference_mode():
        for _ in range(200):
            observe(monitor, step)
            monitor.end_step()
    is_over.set()
    thread.join()
    taken = [sample for sample in (*samples, monitor.take()) if sample is not None]
    assert sum(sample.num_steps for sample in taken) == 200.0
    assert sum(sample.tokens.sum() for sample in taken) == 200 * 2 * 3 * 2
