"""The reference kernels against oracles worked by hand; where the operation is whole, the native twin as well."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from actors.kernels.contract import (
    NO_RUNNER_UP,
    UNCONTESTED_MARGIN,
    AttentionWeights,
    ExpertWeights,
    GateWeights,
    Kernels,
    MlpWeights,
)
from actors.kernels.native.kernels import NativeKernels
from actors.kernels.reference.kernels import ReferenceKernels
from actors.kernels.reference.linear import linear
from actors.kernels.reference.mlp import activation
from actors.kernels.reference.norm import rms_norm
from actors.kernels.reference.rope import apply_rope, inverse_frequencies, rope_rotation
from actors.model.config import RopeScaling
from tests.fakes import layers

EPS = 1e-5
EXACT = ReferenceKernels(EPS, row_independent=True)
KERNELS = [ReferenceKernels(EPS), EXACT, NativeKernels(EPS)]
KERNEL_IDS = ["reference", "reference-row-independent", "native"]
every_kernel = pytest.mark.parametrize("kernels", KERNELS, ids=KERNEL_IDS)

# Scaled inverse frequencies of Step-3.5-Flash's full-attention layers, specification 2.4.
FULL_LAYER_SCALING = RopeScaling(2.0, 131072, 1.0, 32.0)
FULL_LAYER_FREQUENCIES = {
    0: 1.0,
    1: 6.175287581e-1,
    13: 1.899080768e-3,
    14: 1.030196122e-3,
    15: 5.268819165e-4,
    16: 2.836864388e-4,
    17: 1.592908589e-4,
    18: 9.230576404e-5,
    19: 5.469018104e-5,
    20: 3.289137091e-5,
    21: 2.008033431e-5,
    31: 1.619357782e-7,
}


def test_norm_multiplies_by_one_plus_the_weight() -> None:
    """[3, 4] has mean square 12.5; a zero weight leaves the normalised value, a weight of 1 doubles it."""
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 1.0]), 0.0)
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))


def test_norm_rounds_once() -> None:
    """In bfloat16 the result is the float32 one, rounded at the end."""
    x, weight = torch.randn(4, 32).bfloat16(), torch.randn(32).bfloat16()
    assert torch.equal(rms_norm(x, weight, EPS), rms_norm(x.float(), weight.float(), EPS).bfloat16())


@pytest.mark.parametrize(
    ("gate", "up", "limit", "expected"),
    [
        (20.0, 3.0, 7.0, 7.0 * 3.0),  # silu(20) is 20: cut to 7
        (2.0, 9.0, 7.0, 2.0 / (1 + math.exp(-2.0)) * 7.0),
        (2.0, -9.0, 7.0, 2.0 / (1 + math.exp(-2.0)) * -7.0),
        (-9.0, 3.0, 7.0, -9.0 / (1 + math.exp(9.0)) * 3.0),  # no lower bound on the silu side
        (7.004, 1.0, 7.0, 7.004 / (1 + math.exp(-7.004))),  # above 7, but silu of it is not: not cut
        (20.0, 9.0, 0.0, 20.0 * 9.0),  # no limit
    ],
)
def test_the_clamp_comes_after_silu(gate: float, up: float, limit: float, expected: float) -> None:
    """Inputs beyond the limit on either side; a clamp before silu would give other numbers."""
    out = activation(torch.tensor([gate]), torch.tensor([up]), limit)
    torch.testing.assert_close(out, torch.tensor([expected]), rtol=1e-6, atol=1e-6)


@every_kernel
def test_the_mlp_clamps_its_activation(kernels: Kernels) -> None:
    """Identity projections show the activation itself: gate 20 and up -9 under a limit of 7 make -49."""
    one = torch.ones(1, 1)
    weights = MlpWeights(20.0 * one, -9.0 * one, one)
    assert kernels.shared_expert(one, weights, layers.layer_spec(shared_limit=7.0)).item() == pytest.approx(-49.0)
    assert kernels.shared_expert(one, weights, layers.layer_spec()).item() == pytest.approx(-180.0)


@pytest.mark.parametrize(("index", "expected"), FULL_LAYER_FREQUENCIES.items())
def test_scaled_frequencies_are_those_of_the_specification(index: int, expected: float) -> None:
    """Kept, blended and halved frequencies of a full-attention layer, to float32."""
    frequencies = inverse_frequencies(64, 5e6, FULL_LAYER_SCALING)
    assert frequencies.shape == (32,)
    assert frequencies[index].item() == pytest.approx(expected, rel=1e-7)


def test_unscaled_frequencies_run_over_the_rotated_width() -> None:
    """The exponent is 2j over the rotated width."""
    torch.testing.assert_close(inverse_frequencies(4, 100.0, None), torch.tensor([1.0, 0.1]))


def test_rope_pairs_halves_and_leaves_the_rest() -> None:
    """Rotary width 4 of 6: dim 0 turns with dim 2 by the angle, dim 1 with dim 3; dims 4 and 5 pass through."""
    spec = layers.layer_spec(head_dim=6, rotary_dim=4, rope_theta=100.0)
    head = torch.tensor([1.0, 0.0, 0.0, 2.0, 5.0, 6.0]).view(1, 1, 6)
    out = apply_rope(head, rope_rotation(torch.tensor([3]), spec, is_padded=False)).flatten()
    expected = [math.cos(3.0), -2.0 * math.sin(0.3), math.sin(3.0), 2.0 * math.cos(0.3), 5.0, 6.0]
    torch.testing.assert_close(out, torch.tensor(expected))


def uniform_attention(window: int) -> layers.AttentionRun:
    """Sixteen positions in one head that weighs all it sees alike and adds the mean of their unit vectors."""
    spec = layers.layer_spec(window=window, num_heads=1, num_kv_heads=1, head_dim=16, rotary_dim=8, rms_norm_eps=1e-12)
    # The norm makes 4 of a one; q = 0 makes all scores equal; the head gate is sigmoid(0) = 1/2, undone by o.
    identity, zero = torch.eye(16), torch.zeros(16)
    none = torch.zeros(16, 16)
    weights = AttentionWeights(zero, none, identity, identity / 4, 2.0 * identity, none[:1], zero, zero)
    return layers.AttentionRun(spec, weights, [torch.eye(16)], block_size=4)


@every_kernel
@pytest.mark.parametrize("window", [0, 1, 2, 5, 8, 15, 16, 40])
def test_a_query_sees_exactly_its_window(kernels: Kernels, window: int) -> None:
    """Query i sees keys i - W + 1 to i, itself included, whether it comes in one chunk or alone."""
    run = uniform_attention(window)
    expected = torch.eye(16)
    for i in range(16):
        first = max(0, i - window + 1) if window else 0
        expected[i, first : i + 1] += 1.0 / (i + 1 - first)
    for steps in ([run.whole()], [[(0, i, 1)] for i in range(16)]):
        torch.testing.assert_close(run.outputs(kernels, steps)[0], expected, rtol=0, atol=1e-6)


@every_kernel
@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_row_touches_no_row_that_does_not_see_it(kernels: Kernels, window: int, broken: float) -> None:
    """NaN at position 9 of a chunk: rows before it, and rows whose window has passed it, keep their bits."""
    spec = layers.layer_spec(window=window)
    hidden = torch.randn(20, 48)
    run = layers.AttentionRun(spec, layers.attention_weights(spec, 48), [hidden])
    expected = run.outputs(kernels, [run.whole()])[0]
    poisoned = hidden.clone()
    poisoned[9] = broken
    actual = replace(run, hidden=[poisoned]).outputs(kernels, [run.whole()])[0]
    sees = torch.tensor([i >= 9 and (not window or i - window < 9) for i in range(20)])
    same_bits(actual[~sees], expected[~sees])
    assert not actual[sees].isfinite().any()


@every_kernel
def test_query_heads_share_key_value_heads_in_order(kernels: Kernels) -> None:
    """Six query heads on two groups: heads 0..2 read group 0, heads 3..5 group 1."""
    spec = layers.layer_spec(num_heads=6, num_kv_heads=2, head_dim=4, rotary_dim=4, rms_norm_eps=1e-12)
    value = torch.cat((torch.full((4, 24), 1.0 / 24), torch.full((4, 24), 2.0 / 24)))  # 1 in group 0, 2 in group 1
    none, zero = torch.zeros(24, 24), torch.zeros(24)
    weights = AttentionWeights(zero, none, none[:8], value, 2.0 * torch.eye(24), none[:6], zero[:4], zero[:4])
    run = layers.AttentionRun(spec, weights, [torch.ones(3, 24)])
    expected = (1.0 + torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0]).repeat_interleave(4)).expand(3, 24)
    torch.testing.assert_close(run.outputs(kernels, [run.whole()])[0], expected)


@every_kernel
def test_the_bias_chooses_but_does_not_weigh(kernels: Kernels) -> None:
    """Expert 3 has the lowest score and enters by bias; its weight is its unbiased share of the scale."""
    logits = torch.tensor([2.0, 1.0, 0.0, -2.0])
    router = logits.unsqueeze(1).expand(4, 8) / 8
    weights = GateWeights(torch.zeros(8), router.contiguous(), torch.tensor([0.0, 0.0, 0.0, 5.0]))
    out = kernels.gate(torch.ones(1, 8), weights, layers.layer_spec(top_k=2, routed_scale=3.0, rms_norm_eps=0.0))
    scores = logits.sigmoid()
    assert out.topk_ids.tolist() == [[3, 0]]
    expected = 3.0 * scores[[3, 0]] / (scores[3] + scores[0])
    torch.testing.assert_close(out.topk_weights, expected.unsqueeze(0))


@every_kernel
def test_confidence_by_hand(kernels: Kernels) -> None:
    """Unbiased scores 1/2, 1/2, 1/4, 3/4: the bias puts the third first and leaves the first behind the second."""
    logits = torch.tensor([0.0, 0.0, -math.log(3.0), math.log(3.0)])
    weights = GateWeights(torch.zeros(8), (logits.unsqueeze(1) / 8).repeat(1, 8), torch.tensor([0.1, 0.2, 1.0, -0.5]))
    out = kernels.gate(torch.ones(1, 8), weights, layers.layer_spec(top_k=2, rms_norm_eps=0.0))
    assert out.topk_ids.tolist() == [[2, 1]]
    assert out.confidence.runner_up.tolist() == [0]
    assert out.confidence.mass.item() == pytest.approx((0.25 + 0.5) / 2.0, abs=1e-6)
    entropy = -(2 * 0.25 * math.log(0.25) + 0.125 * math.log(0.125) + 0.375 * math.log(0.375)) / math.log(4.0)
    assert out.confidence.entropy.item() == pytest.approx(entropy, abs=1e-6)
    assert out.confidence.margin.item() == pytest.approx(0.7 - 0.6, abs=1e-6)


@every_kernel
def test_a_gate_without_preference(kernels: Kernels) -> None:
    """Equal scores: mass K / E, entropy 1. Where every expert is chosen, mass is 1 and nothing is contested."""
    weights = GateWeights(torch.zeros(8), torch.zeros(6, 8), torch.zeros(6))
    some, every = (kernels.gate(torch.ones(1, 8), weights, layers.layer_spec(top_k=k)).confidence for k in (2, 6))
    torch.testing.assert_close(some.table[:3], torch.tensor([[2 / 6], [1.0], [0.0]]))
    torch.testing.assert_close(every.table, torch.tensor([[1.0], [1.0], [UNCONTESTED_MARGIN], [float(NO_RUNNER_UP)]]))


@every_kernel
@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_confidence_of_saturated_scores_is_finite(kernels: Kernels, logit: float) -> None:
    """Scores that are all 0 or all 1 in float32."""
    weights = GateWeights(torch.zeros(8), torch.full((6, 8), logit / 8), torch.zeros(6))
    out = kernels.gate(torch.ones(1, 8), weights, layers.layer_spec(top_k=2, rms_norm_eps=0.0))
    assert out.confidence.table.isfinite().all()
    assert (out.confidence.table[:3] >= 0.0).all()


@pytest.mark.parametrize("num_experts", [5, 64, 288])
def test_exact_gate_does_not_depend_on_other_rows(num_experts: int) -> None:
    """Choice, weights and confidence of a row have the same bits alone, anywhere in a batch, and beside other rows."""
    weights, x = layers.gate_weights(num_experts, 96), torch.randn(19, 96)
    spec = layers.layer_spec()
    whole = EXACT.gate(x, weights, spec)
    for row in (0, 7, 18):
        alone = EXACT.gate(x[row : row + 1], weights, spec)
        assert torch.equal(alone.topk_ids, whole.topk_ids[row : row + 1])
        same_bits(alone.topk_weights, whole.topk_weights[row : row + 1])
        same_bits(alone.confidence.table, whole.confidence.table[:, row : row + 1])


@every_kernel
def test_experts_answer_in_the_order_of_the_pairs(kernels: Kernels) -> None:
    """Expert s multiplies by s + 1 (an up projection of s + 1, a saturated gate): each pair shows row and slot."""
    one = torch.ones(3, 1, 1)
    scale = torch.arange(1.0, 4.0).view(3, 1, 1)
    weights = ExpertWeights(100.0 * one, scale / 100.0, one)
    hidden = torch.tensor([[1.0], [10.0]])
    pair_row, pair_slot = (torch.tensor(ids, dtype=torch.int32) for ids in ([1, 0, 1, 0], [2, 0, 0, 2]))
    out = kernels.expert_mlp(hidden, pair_row, pair_slot, weights, 0.0)
    # silu(100 h) = 100 h, times h (s + 1) / 100
    torch.testing.assert_close(out.flatten(), torch.tensor([300.0, 1.0, 100.0, 3.0]))


def same_bits(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("width", [32, 96, 100, 256, 512])
@pytest.mark.parametrize("out", [4, 6, 64, 100, 288])
def test_tiled_product_is_row_independent(width: int, out: int) -> None:
    """With fixed tiles a row has the same bits alone, anywhere in a batch, and beside other rows."""
    weight, x = layers.matrix(out, width), torch.randn(19, width)
    whole = linear(x, weight, 8)
    order = torch.randperm(19)
    same_bits(linear(x[order], weight, 8), whole[order])
    for row in (0, 7, 18):
        same_bits(linear(x[row : row + 1], weight, 8), whole[row : row + 1])


@pytest.mark.parametrize("window", [0, 5, 40])
def test_exact_attention_does_not_depend_on_chunks_or_company(window: int) -> None:
    """One chunk, uneven chunks, token by token and alone: the same bits."""
    spec = layers.layer_spec(window=window)
    run = layers.AttentionRun(spec, layers.attention_weights(spec, 48), [torch.randn(n, 48) for n in (23, 1, 30)])
    whole = run.outputs(EXACT, [run.whole()])
    chunked = [[(2, 0, 13), (0, 0, 5)], [(0, 5, 17), (1, 0, 1), (2, 13, 1)], [(2, 14, 16), (0, 22, 1)]]
    by_token = [[(s, p, 1) for s, hidden in enumerate(run.hidden) if p < len(hidden)] for p in range(30)]
    for steps in (chunked, by_token, [[chunk] for chunk in run.whole()]):
        for actual, wanted in zip(run.outputs(EXACT, steps), whole, strict=True):
            same_bits(actual, wanted)


def test_exact_experts_do_not_depend_on_other_pairs() -> None:
    """A pair alone has the bits it has among many."""
    weights, hidden = layers.expert_weights(4, 64, 32), torch.randn(12, 64)
    pair_row, pair_slot = (torch.randint(0, n, (60,), dtype=torch.int32) for n in (12, 4))
    together = EXACT.expert_mlp(hidden, pair_row, pair_slot, weights, 0.5)
    for p in range(0, 60, 7):
        alone = EXACT.expert_mlp(hidden, pair_row[p : p + 1], pair_slot[p : p + 1], weights, 0.5)
        same_bits(alone, together[p : p + 1])
