"""Native kernels against the reference, per operation and number of rows, in turns within one run.

    python -m ops.bench.kernels

Times are processor time of the one thread, so that being preempted does not count; neighbours still share caches and
clock, so compare the ratios of one run. Rows of `attention_half` are decoding sequences of 256 tokens, those of
`prefill` one prompt.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import median

import torch

from actors.kernels.contract import AttentionInputs, Kernels, LayerKV, SequenceRows
from actors.kernels.native.kernels import NativeKernels
from actors.kernels.reference.kernels import ReferenceKernels
from tests.fakes import layers

ROWS = (1, 4, 8, 32, 128)
CONTEXT_TOKENS, BLOCK_SIZE = 256, 16
EPS = 1e-5

Call = Callable[[Kernels], object]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. slots: experts of one of eight ranks, which sees as many pairs as the batch has rows."""

    name: str
    hidden: int
    intermediate: int
    dense_intermediate: int
    num_experts: int
    slots: int
    vocab: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


SHAPES = (
    Shape("demo", 256, 96, 512, 64, 8, 4096, 8, 4, 32),
    Shape("larger", 1024, 320, 2816, 288, 36, 8192, 16, 8, 64),
)


@dataclass(frozen=True)
class Result:
    """Medians in microseconds. exact: the reference with independent rows, which is what the native kernels promise."""

    shape: str
    weights: str
    operation: str
    rows: int
    native_us: float
    reference_us: float
    exact_us: float

    @property
    def ratios(self) -> tuple[float, float]:
        """How many times the reference, fast and exact, takes as long."""
        return self.reference_us / self.native_us, self.exact_us / self.native_us


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(description="Native kernels against the reference.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| shape | operation | rows | native us | reference us | exact us | reference/native | exact/native |")
    print("|---|---|---|---|---|---|---|---|")
    results = [_shown(result) for result in _measure_all(options.weights, options.rounds)]
    print(json.dumps({"kernels": [asdict(result) for result in results]}))


def _measure_all(weights: str, rounds: int) -> Iterator[Result]:
    for shape in SHAPES:
        for operation, prepare in OPERATIONS.items():
            for rows in ROWS:
                call = prepare(shape, rows, getattr(torch, weights))
                micros = _interleaved(call, rounds)
                yield Result(shape.name, weights, operation, rows, *micros)


def _interleaved(call: Call, rounds: int) -> list[float]:
    """Median microseconds of each implementation; they take turns, so that all meet the same neighbours."""
    implementations: list[Kernels] = [NativeKernels(EPS), ReferenceKernels(EPS), ReferenceKernels(EPS, True)]
    micros: list[list[float]] = [[] for _ in implementations]
    for _ in range(rounds + 2):
        for kernels, times in zip(implementations, micros, strict=True):
            started = time.thread_time_ns()
            call(kernels)
            times.append((time.thread_time_ns() - started) / 1e3)
    return [round(median(times[2:]), 1) for times in micros]


def _head(shape: Shape, rows: int, dtype: torch.dtype) -> Call:
    weights, hidden = layers.head_weights(shape.vocab, shape.hidden, dtype), torch.randn(rows, shape.hidden)
    return lambda kernels: kernels.head(hidden, weights)


def _gate(shape: Shape, rows: int, dtype: torch.dtype) -> Call:
    weights = layers.gate_weights(shape.num_experts, shape.hidden, dtype)
    spec, hidden = layers.layer_spec(top_k=8), torch.randn(rows, shape.hidden)
    return lambda kernels: kernels.gate(hidden, weights, spec)


def _shared_expert(shape: Shape, rows: int, dtype: torch.dtype) -> Call:
    weights = layers.mlp_weights(shape.hidden, shape.intermediate, dtype)
    spec, hidden = layers.layer_spec(), torch.randn(rows, shape.hidden)
    return lambda kernels: kernels.shared_expert(hidden, weights, spec)


def _dense_half(shape: Shape, rows: int, dtype: torch.dtype) -> Call:
    weights = layers.mlp_weights(shape.hidden, shape.dense_intermediate, dtype)
    norm, spec, hidden = layers.norm(shape.hidden, dtype), layers.layer_spec(), torch.randn(rows, shape.hidden)
    return lambda kernels: kernels.dense_half(hidden, norm, weights, spec)


def _expert_mlp(shape: Shape, rows: int, dtype: torch.dtype) -> Call:
    weights = layers.expert_weights(shape.slots, shape.hidden, shape.intermediate, dtype)
    hidden, pair_row = torch.randn(rows, shape.hidden), torch.arange(rows, dtype=torch.int32)
    pair_slot = torch.randint(0, shape.slots, (rows,), dtype=torch.int32)
    return lambda kernels: kernels.expert_mlp(hidden, pair_row, pair_slot, weights, 0.0)


def _decode(shape: Shape, rows: int, dtype: torch.dtype) -> Call:
    return _attention(shape, [(CONTEXT_TOKENS - 1, 1)] * rows, dtype)


def _prefill(shape: Shape, rows: int, dtype: torch.dtype) -> Call:
    return _attention(shape, [(0, rows)], dtype)


def _attention(shape: Shape, runs: list[tuple[int, int]], dtype: torch.dtype) -> Call:
    """One attention half. runs: first position and number of rows of every sequence."""
    spec = layers.layer_spec(
        num_heads=shape.num_heads, num_kv_heads=shape.num_kv_heads, head_dim=shape.head_dim, rotary_dim=shape.head_dim
    )
    blocks_each = CONTEXT_TOKENS // BLOCK_SIZE
    tables = torch.randperm(len(runs) * blocks_each).split(blocks_each)
    positions, slots, sequences, row = [], [], [], 0
    for (first, num), table in zip(runs, tables, strict=True):
        run = torch.arange(first, first + num)
        positions.append(run)
        slots.append(table[run // BLOCK_SIZE] * BLOCK_SIZE + run % BLOCK_SIZE)
        sequences.append(SequenceRows(row, num, first, table))
        row += num
    inputs = AttentionInputs(torch.cat(positions), torch.cat(slots), sequences)
    pool = (len(runs) * blocks_each, BLOCK_SIZE, shape.num_kv_heads, shape.head_dim)
    cache = LayerKV(torch.randn(pool), torch.randn(pool))
    weights, hidden = layers.attention_weights(spec, shape.hidden, dtype), torch.randn(row, shape.hidden)
    return lambda kernels: kernels.attention_half(hidden, weights, spec, inputs, cache)


def _shown(result: Result) -> Result:
    fast, exact = result.ratios
    print(
        f"| {result.shape} | {result.operation} | {result.rows} | {result.native_us:.1f} | {result.reference_us:.1f} "
        f"| {result.exact_us:.1f} | {fast:.2f} | {exact:.2f} |",
        flush=True,
    )
    return result


OPERATIONS: dict[str, Callable[[Shape, int, torch.dtype], Call]] = {
    "expert_mlp": _expert_mlp,
    "shared_expert": _shared_expert,
    "dense_half": _dense_half,
    "gate": _gate,
    "head": _head,
    "attention_half": _decode,
    "prefill": _prefill,
}


if __name__ == "__main__":
    main()
