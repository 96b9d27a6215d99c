"""Both GateSums count alike, whatever gates put out; `test_load_monitor.py` has them against a loop over tokens."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from routing.load.gate_sums import DeviceSums, Kept, Step, open_gate_sums
from routing.load.native_gate_sums import NativeGateSums
from routing.load.sample import LoadSample
from tests.fakes.gates import gate_output

CPU = torch.device("cpu")


def _kept(num_tokens: int, num_experts: int, top_k: int) -> Kept:
    gate = gate_output(num_tokens, num_experts, top_k)
    return gate.topk_ids, gate.topk_weights, gate.confidence.table


def _group(num_layers: int, num_experts: int, top_k: int, sizes: list[list[int]]) -> list[Step]:
    """sizes: of the micro-batches of each step."""
    return [[[_kept(size, num_experts, top_k) for size in step] for _ in range(num_layers)] for step in sizes]


def _assert_alike(native: LoadSample, reference: LoadSample) -> None:
    """Counts to the last bit; sums of float32 values but for the last bits of those."""
    for name in ("num_steps", "num_tokens", "tokens", "distinct", "histograms"):
        np.testing.assert_array_equal(getattr(native, name), getattr(reference, name), err_msg=name)
    for name in ("gate_mass", "soft", "measure_sums"):
        np.testing.assert_allclose(getattr(native, name), getattr(reference, name), rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("num_layers", "num_experts", "top_k", "sizes"),
    [
        (1, 4, 4, [[1]]),
        (2, 8, 2, [[3], [1], [2]]),
        (3, 64, 8, [[5, 4], [7, 1], [1, 1]]),
        (42, 288, 8, [[64], [3]]),
    ],
)
@pytest.mark.parametrize("has_unit", [False, True])
def test_native_counts_as_the_reference(
    num_layers: int, num_experts: int, top_k: int, sizes: list[list[int]], has_unit: bool
) -> None:
    """Groups of any steps and micro-batches, with own mean margins and with given ones; groups add up."""
    native, reference = NativeGateSums(num_layers, num_experts), DeviceSums(num_layers, num_experts, CPU)
    unit = torch.linspace(1e-4, 0.1, num_layers) if has_unit else None
    for _ in range(3):
        group = _group(num_layers, num_experts, top_k, sizes)
        means, expected = native.add(group, unit), reference.add(group, unit)
        assert means[1] == expected[1] == sum(map(sum, sizes))
        torch.testing.assert_close(means[0], expected[0], rtol=1e-6, atol=1e-9)
    _assert_alike(native.sample(), reference.sample())


def test_broken_tables_count_as_in_the_reference() -> None:
    """NaN, infinities and weights of zero, in every column."""
    native, reference = NativeGateSums(2, 8), DeviceSums(2, 8, CPU)
    group = _group(2, 8, 2, [[6]])
    for layer in group[0]:
        _, weights, table = layer[0]
        table[0, 0], table[1, 1], table[2, 2], table[3, 3] = (float(text) for text in ("nan", "inf", "nan", "nan"))
        table[2, 4] = float("inf")
        weights[0], weights[1, 0] = 0.0, float("nan")
    for sums in (native, reference):
        sums.add(group, torch.zeros(2))
    _assert_alike(native.sample(), reference.sample())
    assert all(np.isfinite(array).all() for array in (native.sample().soft, native.sample().gate_mass))


def test_no_expert_beyond_the_last_is_counted() -> None:
    """An id that is not there is refused before anything is written."""
    for bad in (-1, 8):
        native, group = NativeGateSums(1, 8), _group(1, 8, 2, [[3]])
        group[0][0][0][0][1, 1] = bad
        with pytest.raises(ValueError, match="not there"):
            native.add(group, None)
        assert not native.sample().tokens.any()


def test_the_cpu_counts_natively() -> None:
    """And in torch where the module is not built."""
    assert isinstance(open_gate_sums(1, 4, CPU), NativeGateSums)
    script = (
        "import sys, torch; sys.modules['routing._gate_sums'] = None\n"
        "from routing.load.gate_sums import open_gate_sums\n"
        "print(type(open_gate_sums(1, 4, torch.device('cpu'))).__name__)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout.strip() == "DeviceSums"
