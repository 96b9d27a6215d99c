"""Native kernels equal the reference, on every instruction set of this machine, and are bitwise row-independent."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import actors.kernels as kernels_package
from actors.errors import KernelError
from actors.kernels import _native, registry
from actors.kernels.contract import (
    NO_RUNNER_UP,
    UNCONTESTED_MARGIN,
    AttentionInputs,
    DraftInputWeights,
    GateWeights,
    HeadWeights,
    Kernels,
    LayerKV,
    MlpWeights,
    SequenceRows,
)
from actors.kernels.native import views
from actors.kernels.native.kernels import NativeKernels
from actors.kernels.reference.kernels import ReferenceKernels
from actors.model.config import RopeScaling
from routing.load.native_tally import NativeTally
from routing.load.tally import ReferenceTally
from tests.fakes import layers

# An output sums at most K = 256 float32 products and has magnitude one. Rounding errors walk at random, so one product
# is off by about sqrt(K) * 2^-24 = 1e-6; up to three products and a softmax follow one another, and one element of a
# few thousand lies four deviations out: 2e-5. The largest difference seen is 5e-6; any mistake shows as 1e-2 or more.
TOLERANCE = 2e-5
EPS = 1e-5
ISAS = _native.isas()
DTYPES = (torch.float32, torch.bfloat16)
LLAMA3 = RopeScaling(factor=2.0, original_max_positions=64, low_freq_factor=1.0, high_freq_factor=32.0)
SIZES = [(1, 1, 1), (3, 17, 5), (16, 64, 96), (33, 96, 40), (64, 100, 130)]  # rows, hidden, out or intermediate


@pytest.fixture(autouse=True, params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs once per instruction set; the best is selected again afterwards."""
    _native.select_isa(request.param)
    yield request.param
    _native.select_isa(ISAS[0])


def reference(row_independent: bool = False) -> ReferenceKernels:
    return ReferenceKernels(EPS, row_independent)


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype is expected.dtype
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def same_bits(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "hidden", "out"), SIZES)
def test_head_equals_the_reference(rows: int, hidden: int, out: int, dtype: torch.dtype) -> None:
    """Norm and product agree for odd and even sizes and both weight dtypes."""
    weights, x = layers.head_weights(out, hidden, dtype), torch.randn(rows, hidden)
    close(NativeKernels(EPS).head(x, weights), reference().head(x, weights))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 32), (7, 52), (19, 224)])
def test_draft_input_equals_the_reference(rows: int, hidden: int, dtype: torch.dtype) -> None:
    """Both norms and the product over their concatenation agree, and a row's bits do not depend on the others."""
    norms = layers.norm(hidden, dtype), layers.norm(hidden, dtype)
    weights = DraftInputWeights(*norms, projection=(torch.randn(hidden, 2 * hidden) * hidden**-0.5).to(dtype))
    embedded, x = torch.randn(rows, hidden), torch.randn(rows, hidden)
    together = NativeKernels(EPS).draft_input(embedded, x, weights)
    close(together, reference().draft_input(embedded, x, weights))
    assert torch.equal(together[:1], NativeKernels(EPS).draft_input(embedded[:1], x[:1], weights))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [0.0, 0.3, 7.0])
@pytest.mark.parametrize(("rows", "hidden", "intermediate"), SIZES)
def test_dense_and_shared_mlp_equal_the_reference(
    rows: int, hidden: int, intermediate: int, limit: float, dtype: torch.dtype
) -> None:
    """Both gated MLPs agree with and without a limit; large inputs reach beyond it."""
    weights, norm = layers.mlp_weights(hidden, intermediate, dtype), layers.norm(hidden, dtype)
    spec, x = layers.layer_spec(shared_limit=limit), torch.randn(rows, hidden)
    native = NativeKernels(EPS)
    close(native.shared_expert(x, weights, spec), reference().shared_expert(x, weights, spec))
    close(native.dense_half(x, norm, weights, spec), reference().dense_half(x, norm, weights, spec))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_pairs", "limit"), [(1, 0.0), (40, 0.4), (300, 0.0)])
def test_expert_mlp_equals_the_reference(num_pairs: int, limit: float, dtype: torch.dtype) -> None:
    """Pairs in any order, with idle slots, repeated rows and more pairs of a slot than one tile holds."""
    weights, hidden = layers.expert_weights(5, 52, 36, dtype), torch.randn(9, 52)
    pair_row = torch.randint(0, 9, (num_pairs,), dtype=torch.int32)
    pair_slot = torch.tensor([0, 3, 3, 3, 4], dtype=torch.int32)[torch.randint(0, 5, (num_pairs,))]
    arguments = (hidden, pair_row, pair_slot, weights, limit)
    close(NativeKernels(EPS).expert_mlp(*arguments), reference().expert_mlp(*arguments))


@pytest.mark.parametrize("num_pairs", [0, 40])
def test_both_families_count_alike(num_pairs: int) -> None:
    """The same pairs, rows and norms enter a tally whichever family computes; time is what passed."""
    weights, hidden = layers.expert_weights(5, 52, 36), torch.randn(9, 52)
    pair_row = torch.randint(0, 9, (num_pairs,), dtype=torch.int32)
    pair_slot = torch.randint(0, 4, (num_pairs,), dtype=torch.int32)
    tallies = NativeTally(2, 5), NativeTally(2, 5)
    for kernels, tally in zip((NativeKernels(EPS), reference()), tallies, strict=True):
        began_at = time.perf_counter()
        kernels.expert_mlp(hidden, pair_row, pair_slot, weights, 0.4, tally.layers[1])
        passed_s = time.perf_counter() - began_at
        kernels.expert_mlp(hidden, pair_row, pair_slot, weights, 0.4)  # which nothing counts
        sample = tally.take()
        assert sample is not None
        assert (sample.num_calls.tolist(), sample.rows.tolist()) == ([0.0, 1.0], [0.0, 9.0])
        assert sample.pairs[1].tolist() == torch.bincount(pair_slot, minlength=5).tolist()
        assert 0.0 < sample.cost[2, 3] <= passed_s
        if num_pairs:
            norms = norms_by_slot(reference().expert_mlp(hidden, pair_row, pair_slot, weights, 0.4), pair_slot)
            torch.testing.assert_close(torch.from_numpy(sample.norm_sums[1]), norms, rtol=1e-4, atol=0.0)


def norms_by_slot(vectors: Tensor, pair_slot: Tensor) -> Tensor:
    """float64 [5]: root mean squares added up by slot."""
    norms = vectors.double().square().mean(dim=1).sqrt()
    return torch.zeros(5, dtype=torch.float64).index_add_(0, pair_slot, norms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_experts", "top_k", "hidden"), [(4, 4, 16), (64, 8, 96), (288, 8, 70)])
def test_gate_equals_the_reference(num_experts: int, top_k: int, hidden: int, dtype: torch.dtype) -> None:
    """The same experts, best first, and the same weights; scores of this seed do not tie."""
    weights, spec = layers.gate_weights(num_experts, hidden, dtype), layers.layer_spec(top_k=top_k)
    x = torch.randn(21, hidden)
    native, expected = NativeKernels(EPS).gate(x, weights, spec), reference().gate(x, weights, spec)
    close(native.normed, expected.normed)
    assert torch.equal(native.topk_ids, expected.topk_ids)
    close(native.topk_weights, expected.topk_weights)
    # Scores differ by a quarter of TOLERANCE, the slope of a sigmoid, so a margin differs by half of it. The entropy
    # moves by the mean of |H + log p| / log E, below one, times twice a score's error: S is about E / 2.
    assert torch.equal(native.confidence.runner_up, expected.confidence.runner_up)
    close(native.confidence.table, expected.confidence.table)


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (7, 3), (8, 8), (64, 8), (288, 8), (300, 20)])
def test_confidence_equals_float64(num_experts: int, top_k: int) -> None:
    """A router of one column makes any logits, from scores of almost 0 to almost 1; the oracle computes in float64.

    A score is within 6 ulp (exp 2, sum 1, quotient 1, and its input's rounding), its log within 2: s log s is off by
    less than 10 * 2^-24 * s * (|log s| + 1), which adds up to less than 1e-6 of the entropy, as does the log of S.
    """
    logits = torch.linspace(-30.0, 12.0, num_experts)[torch.randperm(num_experts)]
    bias = torch.rand(num_experts) * 0.01
    weights = GateWeights(torch.zeros(1), logits.unsqueeze(1), bias)
    out = NativeKernels(EPS).gate(torch.ones(1, 1), weights, layers.layer_spec(top_k=top_k, rms_norm_eps=0.0))
    scores = logits.double().sigmoid()
    best = (scores + bias.double()).sort(descending=True)
    share = scores / scores.sum()
    entropy = -(share * share.log()).sum() / math.log(num_experts) if num_experts > 1 else torch.tensor(0.0)
    margin = best.values[top_k - 1] - best.values[top_k] if num_experts > top_k else torch.tensor(UNCONTESTED_MARGIN)
    expected = torch.tensor([share[best.indices[:top_k]].sum(), entropy, margin])
    torch.testing.assert_close(out.confidence.table[:3, 0], expected.float(), rtol=0, atol=1e-6)
    assert out.confidence.runner_up.tolist() == [int(best.indices[top_k]) if num_experts > top_k else NO_RUNNER_UP]


def test_gate_prefers_the_lowest_id_among_equals() -> None:
    """With a zero router all scores tie but for the bias, so order is by bias, then by id."""
    bias = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0, 0.0])
    weights = GateWeights(torch.zeros(8), torch.zeros(6, 8), bias)
    out = NativeKernels(EPS).gate(torch.randn(2, 8), weights, layers.layer_spec(top_k=4))
    assert out.topk_ids.tolist() == [[1, 3, 0, 2]] * 2
    assert out.topk_weights.tolist() == [[0.75] * 4] * 2
    assert out.confidence.runner_up.tolist() == [4] * 2
    assert out.confidence.margin.tolist() == [0.0] * 2


def test_a_row_of_nan_fails_alone() -> None:
    """A NaN row still gets distinct, legal experts, and the other rows keep their bits."""
    weights, spec, x = layers.gate_weights(16, 32), layers.layer_spec(), torch.randn(5, 32)
    expected = NativeKernels(EPS).gate(x, weights, spec)
    x[2] = float("nan")
    out = NativeKernels(EPS).gate(x, weights, spec)
    others = torch.tensor([0, 1, 3, 4])
    same_bits(out.topk_weights[others], expected.topk_weights[others])
    same_bits(out.confidence.table[:, others], expected.confidence.table[:, others])
    assert out.confidence.table[:2, 2].isnan().all()
    assert sorted(out.topk_ids[2].tolist()) == [0, 1, 2, 3]


ATTENTION_CASES = [
    {},
    {"window": 1},
    {"window": 5},
    {"window": 24, "rotary_dim": 32},
    {"window": 512},
    {"num_heads": 6, "num_kv_heads": 2, "head_dim": 20, "rotary_dim": 10},
    {"num_heads": 3, "num_kv_heads": 3, "head_dim": 128, "rotary_dim": 64, "rope_scaling": LLAMA3, "rope_theta": 5e6},
    {"num_heads": 36, "num_kv_heads": 1, "head_dim": 8, "rotary_dim": 8},
]


def attention_run(
    case: dict[str, object], dtype: torch.dtype, lengths: tuple[int, ...] = (37, 1, 70)
) -> layers.AttentionRun:
    spec = layers.layer_spec(**case)
    weights = layers.attention_weights(spec, 48, dtype)
    return layers.AttentionRun(spec, weights, [torch.randn(length, 48) for length in lengths], kv_dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_attention_equals_the_reference(case: dict[str, object], dtype: torch.dtype) -> None:
    """Windows, head counts and rotary widths agree over a mix of a long prompt chunk, a single token and a resumption.

    A bfloat16 cache now and then rounds values that differ in their last float32 bits to different neighbours, 2^-8
    apart, and a softmax over few keys passes that on: hence the bound 2^-8 there. The largest seen is 1.6e-3.
    """
    run = attention_run(case, dtype)
    steps = [[(0, 0, 30), (2, 0, 1)], [(2, 1, 60), (0, 30, 7), (1, 0, 1)], [(2, 61, 9)]]
    torch.manual_seed(0)
    native = run.outputs(NativeKernels(EPS), steps)
    torch.manual_seed(0)
    expected = run.outputs(reference(), steps)
    bound = TOLERANCE if dtype is torch.float32 else 2**-8
    for actual, wanted in zip(native, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("position", [4095, 131071, 262143])
def test_rope_is_exact_far_out(position: int) -> None:
    """At the end of a long context the angle is thousands of turns; the rotation still agrees with torch's."""
    spec = layers.layer_spec(rotary_dim=32, window=1)
    weights, hidden = layers.attention_weights(spec, 32), torch.randn(1, 32)
    written = []
    for kernels in (NativeKernels(EPS), reference()):
        cache = LayerKV(torch.zeros(1, 1, 2, 32), torch.zeros(1, 1, 2, 32))
        rows = SequenceRows(0, 1, position, torch.zeros(position + 1, dtype=torch.int64))
        inputs = AttentionInputs(torch.tensor([position]), torch.tensor([0]), [rows])
        kernels.attention_half(hidden, weights, spec, inputs, cache)
        written.append(cache.keys)
    torch.testing.assert_close(written[0], written[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ATTENTION_CASES[:6], ids=str)
def test_attention_does_not_depend_on_chunks_or_company(case: dict[str, object], dtype: torch.dtype) -> None:
    """One chunk, uneven chunks, token by token, and alone: the same bits, on fresh block tables each time."""
    run = attention_run(case, dtype)
    kernels = NativeKernels(EPS)
    whole = run.outputs(kernels, [run.whole()])
    chunked = [[(2, 0, 13), (0, 0, 5)], [(0, 5, 31), (1, 0, 1), (2, 13, 1)], [(2, 14, 56), (0, 36, 1)]]
    by_token = [[(s, p, 1) for s, hidden in enumerate(run.hidden) if p < len(hidden)] for p in range(70)]
    alone = [[chunk] for chunk in run.whole()]
    for steps in (chunked, by_token, alone):
        for actual, wanted in zip(run.outputs(kernels, steps), whole, strict=True):
            same_bits(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 7, 13, 70])
def test_every_row_is_what_it_is_alone(rows: int, dtype: torch.dtype) -> None:
    """Head, MLP and gate: a row's bits are those of the row alone, at any place of any batch size."""
    native, hidden, width = NativeKernels(EPS), torch.randn(rows, 72), 72
    head, mlp = layers.head_weights(50, width, dtype), layers.mlp_weights(width, 44, dtype)
    gate, spec = layers.gate_weights(20, width, dtype), layers.layer_spec(shared_limit=0.5)
    logits, mixed, gated = native.head(hidden, head), native.shared_expert(hidden, mlp, spec), None
    gated = native.gate(hidden, gate, spec)
    for r in range(rows):
        alone = hidden[r : r + 1].clone()
        same_bits(native.head(alone, head), logits[r : r + 1])
        same_bits(native.shared_expert(alone, mlp, spec), mixed[r : r + 1])
        single = native.gate(alone, gate, spec)
        assert torch.equal(single.topk_ids, gated.topk_ids[r : r + 1])
        same_bits(single.topk_weights, gated.topk_weights[r : r + 1])
        same_bits(single.confidence.table, gated.confidence.table[:, r : r + 1])


def test_a_pair_is_what_it_is_alone() -> None:
    """An expert's output does not depend on which other pairs share the call, nor on the shared MLP's code path."""
    weights, hidden = layers.expert_weights(4, 64, 30), torch.randn(12, 64)
    pair_row, pair_slot = (torch.randint(0, n, (90,), dtype=torch.int32) for n in (12, 4))
    native = NativeKernels(EPS)
    together = native.expert_mlp(hidden, pair_row, pair_slot, weights, 0.5)
    for p in range(0, 90, 7):
        row, slot = int(pair_row[p]), int(pair_slot[p])
        alone = native.expert_mlp(hidden, pair_row[p : p + 1], pair_slot[p : p + 1], weights, 0.5)
        same_bits(alone, together[p : p + 1])
        expert = MlpWeights(weights.gate[slot], weights.up[slot], weights.down[slot])
        same_bits(native.shared_expert(hidden[row : row + 1], expert, layers.layer_spec(shared_limit=0.5)), alone)


def test_bits_do_not_depend_on_memory_alignment() -> None:
    """Weights and rows that start at odd addresses give the same bits as aligned ones."""
    weights, hidden = layers.head_weights(33, 50), torch.randn(5, 50)
    shifted = [torch.empty(t.numel() + 3)[3:].view(t.shape).copy_(t) for t in (weights.norm, weights.output, hidden)]
    expected = NativeKernels(EPS).head(hidden, weights)
    same_bits(NativeKernels(EPS).head(shifted[2], HeadWeights(*shifted[:2])), expected)


def test_fused_instruction_sets_agree_bit_for_bit(isa: str) -> None:
    """AVX2 and AVX-512 machines compute the same numbers, so a request may move between them."""
    if isa == "baseline":  # no fused multiply-add: compared with the reference only
        return
    run = attention_run({"window": 9}, torch.bfloat16)
    mlp, x = layers.mlp_weights(100, 60), torch.randn(20, 100)
    results = []
    for name in (isa, ISAS[0]):
        _native.select_isa(name)
        outputs = run.outputs(NativeKernels(EPS), [run.whole()])
        results.append([*outputs, NativeKernels(EPS).shared_expert(x, mlp, layers.layer_spec())])
    for actual, wanted in zip(*results, strict=True):
        same_bits(actual, wanted)


def test_empty_inputs_give_empty_outputs() -> None:
    """No rows, no pairs: the right shapes and no crash."""
    native, none = NativeKernels(EPS), torch.empty(0, 16)
    no_pairs = torch.empty(0, dtype=torch.int32)
    assert native.head(none, layers.head_weights(7, 16)).shape == (0, 7)
    assert native.shared_expert(none, layers.mlp_weights(16, 8), layers.layer_spec()).shape == (0, 16)
    assert native.gate(none, layers.gate_weights(9, 16), layers.layer_spec()).topk_ids.shape == (0, 4)
    experts = layers.expert_weights(2, 16, 8)
    assert native.expert_mlp(torch.randn(3, 16), no_pairs, no_pairs, experts, 0.0).shape == (0, 16)
    spec = layers.layer_spec()
    inputs = AttentionInputs(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), [])
    cache = LayerKV(torch.zeros(1, 8, 2, 32), torch.zeros(1, 8, 2, 32))
    assert native.attention_half(none, layers.attention_weights(spec, 16), spec, inputs, cache).shape == (0, 16)


def test_weights_are_read_in_place_and_rewritten_slots_are_seen() -> None:
    """A rebalance writes new weights into a slot; the next call uses them."""
    weights, hidden = layers.expert_weights(2, 16, 8), torch.randn(1, 16)
    pair = torch.zeros(1, dtype=torch.int32)
    native = NativeKernels(EPS)
    before = native.expert_mlp(hidden, pair, pair, weights, 0.0)
    weights.down[0].mul_(2.0)
    same_bits(native.expert_mlp(hidden, pair, pair, weights, 0.0), 2.0 * before)


def test_a_view_dies_with_its_weights() -> None:
    """New weights at a recycled identity never meet the view of the old ones."""
    native, hidden = NativeKernels(EPS), torch.randn(2, 16)
    for _ in range(50):
        weights = layers.head_weights(5, 16)
        close(native.head(hidden, weights), reference().head(hidden, weights))
        del weights
    assert len(native._heads) == 0


def call_with_bfloat16_rows(native: Kernels) -> None:
    native.head(torch.randn(2, 16).bfloat16(), layers.head_weights(5, 16))


def call_with_strided_rows(native: Kernels) -> None:
    native.head(torch.randn(16, 2).T, layers.head_weights(5, 16))


def call_with_wrong_width(native: Kernels) -> None:
    native.head(torch.randn(2, 17), layers.head_weights(5, 16))


def call_with_half_weights(native: Kernels) -> None:
    native.head(torch.randn(2, 16), layers.head_weights(5, 16, torch.float16))


def call_with_reference_tally(native: Kernels) -> None:
    pairs, weights = torch.zeros(1, dtype=torch.int32), layers.expert_weights(2, 16, 8)
    native.expert_mlp(torch.randn(2, 16), pairs, pairs, weights, 0.0, ReferenceTally(1, 2).layers[0])


def call_with_long_pairs(native: Kernels) -> None:
    pairs = torch.zeros(1, dtype=torch.int64)
    native.expert_mlp(torch.randn(2, 16), pairs, pairs, layers.expert_weights(2, 16, 8), 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (call_with_bfloat16_rows, "hidden is torch.bfloat16"),
        (call_with_strided_rows, "not contiguous"),
        (call_with_wrong_width, r"hidden is torch.float32 \[2, 17\]"),
        (call_with_half_weights, "norm is torch.float16"),
        (call_with_long_pairs, "pair_row is torch.int64"),
        (call_with_reference_tally, "count in a native tally"),
    ],
)
def test_what_is_not_served_is_named(call: object, message: str) -> None:
    """A dtype, layout or shape the kernels do not take is a KernelError that says which tensor and why."""
    assert callable(call)
    with pytest.raises(KernelError, match=message):
        call(NativeKernels(EPS))


@pytest.mark.parametrize(("row", "slot"), [(3, 0), (-1, 0), (0, 2), (0, -1)])
def test_pairs_outside_their_tensors_are_refused(row: int, slot: int) -> None:
    """An index that would read foreign memory is a ValueError, not a read."""
    native, weights = NativeKernels(EPS), layers.expert_weights(2, 16, 8)
    pair_row, pair_slot = (torch.tensor([value], dtype=torch.int32) for value in (row, slot))
    with pytest.raises(ValueError, match="outside"):
        native.expert_mlp(torch.randn(3, 16), pair_row, pair_slot, weights, 0.0)


@pytest.mark.parametrize(
    ("slot", "rows", "message"),
    [
        (16, (0, 1, 0, [0]), "slot 16"),
        (-1, (0, 1, 0, [0]), "slot -1"),
        (0, (0, 1, 0, [2]), "block id 2"),
        (0, (0, 1, 8, [0]), "logical block 1"),
        (0, (1, 1, 0, [0]), "outside the batch"),
    ],
)
def test_attention_outside_its_cache_is_refused(slot: int, rows: tuple[int, int, int, list[int]], message: str) -> None:
    """Slots, blocks and rows that lie outside the cache or the batch are a ValueError, not a write."""
    spec = layers.layer_spec()
    cache = LayerKV(torch.zeros(2, 8, 2, 32), torch.zeros(2, 8, 2, 32))
    sequence = SequenceRows(*rows[:3], torch.tensor(rows[3]))
    inputs = AttentionInputs(torch.tensor([0]), torch.tensor([slot]), [sequence])
    with pytest.raises(ValueError, match=message):
        NativeKernels(EPS).attention_half(torch.randn(1, 16), layers.attention_weights(spec, 16), spec, inputs, cache)


def test_the_registry_offers_native_on_cpus_and_the_reference_elsewhere() -> None:
    """One instance serves all operations of a family; a device native does not know goes to the reference."""
    families = ("native", "reference")
    on_cpu = registry.load_kernels("cpu", rms_norm_eps=EPS, row_independent=True, families=families)
    on_cuda = registry.load_kernels("cuda", rms_norm_eps=EPS, row_independent=False, families=families)
    owners = [getattr(call, "__self__", None) for call in (on_cpu.head, on_cpu.gate, on_cuda.head)]
    assert isinstance(owners[0], NativeKernels)
    assert owners[1] is owners[0]
    assert isinstance(owners[2], ReferenceKernels)


@pytest.mark.parametrize("families", [("native", "reference"), ("reference",)])
def test_row_independence_is_refused_where_it_does_not_hold(
    families: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several torch threads cut a tensor anywhere, and nobody has proven it on a GPU."""
    with pytest.raises(KernelError, match="deterministic needs device cpu: .* not proven on cuda"):
        registry.load_kernels("cuda", rms_norm_eps=EPS, row_independent=True, families=families)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    with pytest.raises(KernelError, match=r"one torch thread, not 4: call torch\.set_num_threads\(1\)"):
        registry.load_kernels("cpu", rms_norm_eps=EPS, row_independent=True, families=families)
    registry.load_kernels("cpu", rms_norm_eps=EPS, row_independent=False, families=families)


def test_a_missing_build_says_how_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the compiled module, asking for the native family is a KernelError with the remedy."""
    monkeypatch.delattr(kernels_package, "_native")
    monkeypatch.setitem(sys.modules, "actors.kernels._native", None)
    monkeypatch.delitem(sys.modules, "actors.kernels.native.kernels")
    with pytest.raises(KernelError, match="pip install -e"):
        registry.load_kernels("cpu", rms_norm_eps=EPS, row_independent=True, families=("native",))


def test_an_unknown_instruction_set_is_refused() -> None:
    """The name is checked against what the processor runs."""
    with pytest.raises(ValueError, match="does not run mmx"):
        _native.select_isa("mmx")


def test_threads_that_ask_together_get_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines that start at the same time both miss; a table handed out must be the one that is kept."""
    together = threading.Barrier(2, timeout=10)

    def slow(*key: object) -> Tensor:
        together.wait()
        return torch.ones(4)

    monkeypatch.setattr(views, "_FREQUENCIES", {})
    monkeypatch.setattr(views, "inverse_frequencies", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: views._frequencies(8, 1e4, None), range(2))
    assert first is second is views._FREQUENCIES[(8, 1e4, None)]
