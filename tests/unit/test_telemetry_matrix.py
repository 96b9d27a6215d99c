"""The expert matrix: its text is, byte for byte, what the client library writes for the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from ops.telemetry.matrix import ExpertMatrix
from ops.telemetry.metrics import METRICS

NAME = "step35_expert_load_tokens"
PROCESS = {"role": "coordinator", "member": 'a "quoted" \\ name'}


@pytest.mark.parametrize("kind", ["loads", "large", "special"])
def test_text_equals_the_client_library(kind: str) -> None:
    """Small loads take the fast way; numbers that Go writes otherwise than Python take the other."""
    array = np.random.default_rng(3).exponential(20.0, (3, 5))
    if kind == "large":
        array *= 1e6
    if kind == "special":
        array[0] = [np.nan, np.inf, -np.inf, 0.0, 1e-9]
    matrix = ExpertMatrix((3, 4, 44), 5)
    matrix.set({NAME: array})
    assert matrix.text(PROCESS) == _by_the_client_library((3, 4, 44), array)


def test_full_model() -> None:
    """42 layers and 288 experts, three matrices: every series once."""
    matrix = ExpertMatrix(tuple(range(3, 45)), 288)
    names = [name for name, spec in METRICS.items() if spec.kind == "matrix"]
    matrix.set({name: np.ones((42, 288)) for name in names})
    lines = [line for line in matrix.text(PROCESS).decode().splitlines() if not line.startswith("#")]
    assert len(set(lines)) == len(lines) == len(names) * 42 * 288


def test_arrays_are_copied_and_replaced() -> None:
    """Whoever gave an array may go on counting in it; labels of a new process reach the cached part of each line."""
    matrix, array = ExpertMatrix((3,), 2), np.ones((1, 2))
    matrix.set({NAME: array})
    array += 5
    assert matrix.text(PROCESS) == _by_the_client_library((3,), np.ones((1, 2)))
    matrix.set({NAME: array})
    assert matrix.text(PROCESS) == _by_the_client_library((3,), array)
    assert b'member="b"' in matrix.text({"role": "coordinator", "member": "b"})
    matrix.set({})
    assert matrix.text(PROCESS) == b""


def test_wrong_names_shapes_and_sizes_are_refused() -> None:
    """Before any of it can be scraped."""
    matrix = ExpertMatrix((3, 4), 5)
    with pytest.raises(ValueError, match="is no expert matrix"):
        matrix.set({"step35_map_epoch": np.ones((2, 5))})
    with pytest.raises(ValueError, match=r"has shape \(5, 2\), must be \(2, 5\)"):
        matrix.set({NAME: np.ones((5, 2))})
    with pytest.raises(ValueError, match=r"must be within \(64, 512\)"):
        ExpertMatrix((3, 4), 513)


def _by_the_client_library(layer_ids: tuple[int, ...], array: np.ndarray) -> bytes:
    registry = CollectorRegistry()
    gauge = Gauge(NAME, METRICS[NAME].help, [*PROCESS, "layer", "expert"], registry=registry)
    for layer_id, row in zip(layer_ids, array, strict=True):
        for expert, value in enumerate(row):
            gauge.labels(*PROCESS.values(), layer_id, expert).set(value)
    return generate_latest(registry)
