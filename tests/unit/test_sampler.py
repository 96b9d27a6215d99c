"""Sampler: each filter by hand, distributions by chi-square, and rows that neither help nor harm each other."""

import logging
import math
from dataclasses import replace

import pytest
import torch

from actors.messages import SamplingSpec
from actors.sampling.penalties import PenaltyCounts
from actors.sampling.sampler import (
    ALL_MASKED,
    FAILED,
    NOT_FINITE,
    RowFailure,
    SampledToken,
    Sampler,
    SamplingRow,
    draw,
    probabilities,
)

VOCAB_SIZE = 8


def _row(position: int = 10, **fields: object) -> SamplingRow:
    stops = fields.pop("stops", ())
    spec = SamplingSpec(max_tokens=10, **fields)  # type: ignore[arg-type]
    return SamplingRow(spec, seed=1, position=position, num_completion_tokens=0, stop_token_ids=stops)  # type: ignore[arg-type]


def _logits(*probs: float) -> torch.Tensor:
    return torch.tensor(probs).log()


PROBS = (0.4, 0.3, 0.2, 0.06, 0.04)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, PROBS),
        ({"temperature": 0.0}, (1, 0, 0, 0, 0)),
        ({"temperature": 0.5}, tuple(p * p / sum(q * q for q in PROBS) for p in PROBS)),
        ({"temperature": 1e-300}, (1, 0, 0, 0, 0)),
        ({"top_k": 1}, (1, 0, 0, 0, 0)),
        ({"top_k": 2}, (4 / 7, 3 / 7, 0, 0, 0)),
        ({"top_k": 99}, PROBS),
        ({"top_p": 0.39}, (1, 0, 0, 0, 0)),
        ({"top_p": 0.41}, (4 / 7, 3 / 7, 0, 0, 0)),
        ({"top_p": 0.8}, (4 / 9, 3 / 9, 2 / 9, 0, 0)),
        ({"top_p": 1e-9}, (1, 0, 0, 0, 0)),
        ({"min_p": 0.45}, (4 / 9, 3 / 9, 2 / 9, 0, 0)),
        ({"min_p": 1.0}, (1, 0, 0, 0, 0)),
        # top-p counts the mass that top-k left: 4/9 + 3/9 = 0.78 reaches 0.75.
        ({"top_k": 3, "top_p": 0.75}, (4 / 7, 3 / 7, 0, 0, 0)),
        ({"logit_bias": ((0, -100.0),)}, (0, 0.5, 1 / 3, 0.1, 1 / 15)),
        ({"min_tokens": 1, "stops": (0, 2)}, (0, 0.75, 0, 0.15, 0.1)),
    ],
)
def test_each_parameter_shapes_the_distribution_as_worked_by_hand(
    fields: dict[str, object], expected: tuple[float, ...]
) -> None:
    """Probabilities after all filters, renormalised."""
    probs = probabilities(_logits(*PROBS), _row(**fields), len(PROBS))
    assert probs.dtype == torch.float64
    torch.testing.assert_close(probs, torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=1e-6)


def test_ids_beyond_the_tokenizer_are_never_likely() -> None:
    """Padding rows of the head may hold anything, NaN included."""
    logits = torch.cat([_logits(0.5, 0.5), torch.tensor([50.0, math.nan])])
    assert probabilities(logits, _row(), 2).tolist() == [0.5, 0.5, 0.0, 0.0]
    sampler = Sampler(valid_vocab_size=2)
    results = sampler.sample(logits.repeat(2, 1), [_row(temperature=0.0), _row(temperature=0.0, logprobs=4)])
    assert [result.token_id for result in results if isinstance(result, SampledToken)] == [0, 0]
    assert isinstance(results[1], SampledToken)
    assert results[1].logprob is not None
    assert [token_id for token_id, _ in results[1].logprob.top] == [0, 1]


def test_ties_go_to_the_lowest_id() -> None:
    """Greedy, with and without the fast path, and the nucleus' edge."""
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, 3] = logits[:, 5] = 1.0
    sampler = Sampler(VOCAB_SIZE)
    results = sampler.sample(logits, [_row(temperature=0.0), _row(temperature=0.0, logprobs=3)])
    assert [result.token_id for result in results if isinstance(result, SampledToken)] == [3, 3]
    assert isinstance(results[1], SampledToken)
    assert results[1].logprob is not None
    assert [token_id for token_id, _ in results[1].logprob.top] == [3, 5, 0]
    assert probabilities(torch.zeros(4), _row(top_p=0.5), 4).tolist() == [0.5, 0.5, 0.0, 0.0]
    equals = torch.cat([torch.full((1000,), -1.0), torch.zeros(1000)])
    kept = probabilities(equals, _row(top_p=0.2), 2000).nonzero().flatten()
    assert kept.tolist() == list(range(1000, 1000 + len(kept)))


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("scale", [0.1, 3.0, 6.0])
@pytest.mark.parametrize("decimals", [1, 6])
def test_the_nucleus_equals_that_of_a_full_sort(top_p: float, scale: float, decimals: int) -> None:
    """Looking only at tokens that can matter keeps what sorting everything keeps, with many ties and without."""
    logits = (torch.randn(3000, generator=torch.Generator().manual_seed(0)) * scale).round(decimals=decimals)
    weights = (logits.double() - logits.max()).exp()
    ordered, order = torch.sort(weights, descending=True, stable=True)
    kept = order[(torch.cumsum(ordered, 0) - ordered) < top_p * weights.sum()]
    found = probabilities(logits, _row(top_p=top_p), 3000).nonzero().flatten()
    assert found.tolist() == sorted(kept.tolist())


def test_logprobs_are_of_the_unmodified_logits() -> None:
    """Temperature, bias and filters move the choice, not the reported log-probabilities."""
    logits = _logits(*PROBS)[None]
    row = _row(temperature=0.3, top_k=1, logit_bias=((4, 50.0),), logprobs=2)
    (result,) = Sampler(len(PROBS)).sample(logits, [row])
    assert isinstance(result, SampledToken)
    assert result.logprob is not None
    assert result.token_id == result.logprob.token_id == 4
    assert result.logprob.logprob == pytest.approx(math.log(0.04))
    assert [token_id for token_id, _ in result.logprob.top] == [0, 1]
    assert [value for _, value in result.logprob.top] == pytest.approx([math.log(0.4), math.log(0.3)])


def test_without_logprobs_none_are_made() -> None:
    """logprobs None gives none, 0 gives the chosen token's alone."""
    none, chosen = Sampler(VOCAB_SIZE).sample(torch.zeros(2, VOCAB_SIZE), [_row(), _row(logprobs=0)])
    assert isinstance(none, SampledToken)
    assert none.logprob is None
    assert isinstance(chosen, SampledToken)
    assert chosen.logprob is not None
    assert chosen.logprob.top == ()


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 1.7}, {"top_p": 0.85}, {"top_k": 3, "temperature": 0.8}, {"min_p": 0.12}],
)
def test_samples_follow_the_distribution(fields: dict[str, object]) -> None:
    """Chi-square of 2,000 positions against `probabilities`; 18.5 is the 99.9th percentile for 4 degrees of freedom."""
    num_draws, sampler, logits = 2000, Sampler(len(PROBS)), _logits(*PROBS)
    rows = [_row(position, **fields) for position in range(num_draws)]
    results = sampler.sample(logits.repeat(num_draws, 1), rows)
    drawn = torch.tensor([result.token_id for result in results if isinstance(result, SampledToken)])
    counts = torch.bincount(drawn, minlength=len(PROBS)).double()
    expected = probabilities(logits, rows[0], len(PROBS)) * num_draws
    possible = expected > 0
    assert int(counts.sum()) == num_draws
    assert not counts[~possible].any()
    assert float(((counts - expected)[possible] ** 2 / expected[possible]).sum()) < 18.5


def test_draw_inverts_the_cumulative_sum_at_its_edges() -> None:
    """u picks the first token whose cumulative sum exceeds it; impossible tokens are skipped even at the ends."""
    probs = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0], dtype=torch.float64)
    assert [draw(probs, u) for u in (0.0, 0.2499, 0.25, 0.9999, 1.0 - 2.0**-53, 1.0)] == [1, 1, 3, 3, 3, 3]


def _mixed_rows() -> list[SamplingRow]:
    counts = PenaltyCounts([1, 2, 3])
    counts.add(3)
    return [
        _row(temperature=0.0),
        _row(temperature=0.0, logprobs=5),
        _row(temperature=0.9),
        _row(top_p=0.9, logprobs=2),
        _row(top_k=20, min_p=0.05),
        replace(_row(repetition_penalty=1.2, frequency_penalty=0.3, top_p=0.5, logprobs=1), counts=counts),
        _row(logit_bias=((5, 3.0), (6, -100.0)), min_tokens=4, stops=(0, 1)),
    ]


@pytest.mark.parametrize("vocab_size", [1003, 4096])
def test_a_row_s_bits_do_not_depend_on_the_batch(vocab_size: int) -> None:
    """Alone, in any order, among others or beside a bad row: the same token and the same logprob bits."""
    rows = _mixed_rows()
    logits = torch.randn(len(rows), vocab_size, generator=torch.Generator().manual_seed(1)) * 4
    sampler = Sampler(vocab_size - 3)
    together = sampler.sample(logits, rows)
    alone = [sampler.sample(logits[i : i + 1].clone(), [row])[0] for i, row in enumerate(rows)]
    reverse = sampler.sample(logits.flip(0), rows[::-1])[::-1]
    bad = torch.full((1, vocab_size), math.nan)
    beside = sampler.sample(torch.cat([bad, logits, bad]), [_row(), *rows, _row()])[1:-1]
    assert all(isinstance(result, SampledToken) for result in together)
    assert together == alone == reverse == beside


def test_logits_are_left_as_they_were() -> None:
    """Penalties and masks work on a copy: speculation reads the same logits again."""
    rows = _mixed_rows()
    logits = torch.randn(len(rows), 64, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    Sampler(60).sample(logits, rows)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("fields", [{}, {"temperature": 0.0}])
def test_a_row_that_is_not_finite_fails_alone(value: float, fields: dict[str, object]) -> None:
    """One bad number fails its row with a sentence; its neighbours are sampled."""
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[1, 4] = value
    results = Sampler(VOCAB_SIZE).sample(logits, [_row(**fields)] * 3)
    assert results[1] == RowFailure(NOT_FINITE)
    assert all(isinstance(results[i], SampledToken) for i in (0, 2))


def test_a_row_whose_parameters_break_sampling_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A bias beyond the vocabulary gets past no front end; if one did, only its request would fail, and be logged."""
    rows = [_row(), _row(logit_bias=((VOCAB_SIZE + 5, 1.0),)), _row()]
    with caplog.at_level(logging.ERROR):
        results = Sampler(VOCAB_SIZE).sample(torch.zeros(3, VOCAB_SIZE), rows)
    assert results[1] == RowFailure(FAILED)
    assert all(isinstance(results[i], SampledToken) for i in (0, 2))
    assert "sampling a row failed" in caplog.text


def test_masking_every_token_is_a_failure_of_that_row() -> None:
    """Stop ids that cover the whole vocabulary leave nothing to choose while min_tokens holds."""
    row = _row(min_tokens=1, stops=(0, 1))
    assert Sampler(2).sample(torch.zeros(1, 2), [row]) == [RowFailure(ALL_MASKED)]
    with pytest.raises(ValueError, match="every one is masked"):
        probabilities(torch.zeros(2), row, 2)


def test_stop_ids_are_masked_only_until_min_tokens() -> None:
    """At min_tokens completion tokens the mask is gone."""
    row = _row(temperature=0.0, min_tokens=2, stops=(0,))
    logits = torch.tensor([[5.0, 1.0]])
    chosen = [Sampler(2).sample(logits, [replace(row, num_completion_tokens=num)])[0] for num in (0, 1, 2)]
    assert chosen == [SampledToken(1), SampledToken(1), SampledToken(0)]


def test_no_rows_no_results() -> None:
    """A step of prefill chunks alone samples nothing."""
    assert Sampler(VOCAB_SIZE).sample(torch.zeros(0, VOCAB_SIZE), []) == []
