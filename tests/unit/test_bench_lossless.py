"""The benchmark that compares answers with and without drafts sees a difference where there is one."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from actors.messages import NO_DRAFTS, DraftCounts, FinishReason
from ops.bench.answers import Run
from ops.bench.lossless import FIXED_3, SCARCE, Compared, Configuration, problems_of
from ops.bench.token_frequencies import (
    SIGNIFICANT,
    Frequencies,
    compare_frequencies,
    num_significant,
    p_value,
    two_sample_statistic,
)

SOME_RIGHT = DraftCounts(num_steps=4, drafted=(4, 4, 4), accepted=(3, 2, 1))
RUN = Run({"a": ((1, 2), FinishReason.STOP)}, SOME_RIGHT, num_preemptions=0)
PLAIN = Configuration("plain", FIXED_3)


@pytest.mark.parametrize(
    ("statistic", "degrees", "expected"),
    [(3.841459, 1, 0.05), (5.991465, 2, 0.05), (18.307038, 10, 0.05), (10.827566, 1, 0.001), (0.0, 3, 1.0)],
)
def test_p_values_are_those_of_the_printed_tables(statistic: float, degrees: int, expected: float) -> None:
    """Quantiles of the chi-square distribution, as every table has them."""
    assert p_value(statistic, degrees) == pytest.approx(expected, rel=1e-4)


def test_one_outcome_is_no_evidence() -> None:
    """Without degrees of freedom nothing can differ."""
    assert p_value(*two_sample_statistic(Counter({(1,): 50}), Counter({(1,): 40}))) == 1.0


def test_the_statistic_of_a_small_table() -> None:
    """30 : 20 against 20 : 30. Every expected count is 25, so the statistic is 4 * 5 * 5 / 25."""
    first, second = Counter({(1,): 30, (2,): 20}), Counter({(1,): 20, (2,): 30})
    assert two_sample_statistic(first, second) == (pytest.approx(4.0), 1)


def test_samples_of_unequal_size_are_compared_by_their_shares() -> None:
    """Three times as many of everything is no difference."""
    first, second = Counter({(1,): 30, (2,): 20}), Counter({(1,): 90, (2,): 60})
    assert two_sample_statistic(first, second) == (pytest.approx(0.0), 1)


def test_rare_outcomes_count_as_one() -> None:
    """Forty outcomes seen once in one sample and as many others in the other: two cells, and no difference."""
    first = Counter({(1,): 50, **{(idx,): 1 for idx in range(100, 140)}})
    second = Counter({(1,): 50, **{(idx,): 1 for idx in range(200, 240)}})
    assert two_sample_statistic(first, second) == (pytest.approx(0.0), 1)


def _sample(seed: int, weights: tuple[float, ...], num: int = 2000) -> list[tuple[int, ...]]:
    """Answers of four tokens, the last of which has other weights than the others."""
    rng = random.Random(seed)
    ids = range(len(weights))
    return [(*rng.choices(ids, k=3), *rng.choices(ids, weights, k=1)) for _ in range(num)]


def test_equal_distributions_pass_and_a_shifted_last_token_does_not() -> None:
    """Only the token at the fourth position differs: its test says so, and that of the beginning does not."""
    same = compare_frequencies("same", _sample(0, (1, 1, 1)), _sample(1, (1, 1, 1)))
    other = compare_frequencies("other", _sample(0, (1, 1, 1)), _sample(1, (1.4, 1, 1)))
    assert num_significant([same]) == 0
    assert num_significant([same, other]) == 1
    assert other.p_values["token 4"] < 1e-5
    assert other.p_values["first 3"] > SIGNIFICANT


def test_an_answer_that_ends_early_differs_from_one_that_goes_on() -> None:
    """Half of one sample ends after a token, none of the other."""
    frequencies = compare_frequencies("ends", [(1, 2)] * 100, [(1, 2)] * 50 + [(1,)] * 50)
    assert frequencies.p_values["token 1"] == 1.0
    assert frequencies.p_values["token 2"] < 1e-9


def test_the_level_is_for_all_tests_together() -> None:
    """What would be significant alone is not among ten."""
    alone = Frequencies("a", 100, 2, {"token 1": SIGNIFICANT / 2})
    others = Frequencies("b", 100, 2, {f"token {idx}": 0.5 for idx in range(9)})
    assert (num_significant([alone]), num_significant([alone, others])) == (1, 0)


@pytest.mark.parametrize(
    ("change", "run", "differing", "problem"),
    [
        ({}, RUN, (), None),
        ({}, RUN, ("a",), "other answers than without drafts: a"),
        ({}, replace(RUN, counts=NO_DRAFTS), (), "0 of 0 drafts"),
        ({}, replace(RUN, counts=replace(SOME_RIGHT, accepted=(4, 4, 4))), (), "12 of 12 drafts"),
        (SCARCE, RUN, (), "nothing was preempted"),
        (SCARCE, replace(RUN, num_preemptions=1), (), None),
    ],
    ids=["fine", "differs", "nothing drafted", "nothing rejected", "nothing preempted", "preempted"],
)
def test_a_line_that_differs_or_says_nothing_is_a_problem(
    change: dict[str, int], run: Run, differing: tuple[str, ...], problem: str | None
) -> None:
    """Each reason for which the benchmark fails, and what is none."""
    compared = Compared(replace(PLAIN, change=change), run, seconds=1.0, differing=differing)
    problems = problems_of([compared], [])
    assert len(problems) == (problem is not None)
    assert problem is None or problem in problems[0]


def test_runs_of_two_engines_add_up() -> None:
    """Answers of both, drafts and preemptions of both together."""
    both = RUN + Run({"b": ((3,), FinishReason.LENGTH)}, SOME_RIGHT, num_preemptions=2)
    assert set(both.by_request) == {"a", "b"}
    assert (both.num_tokens, both.num_preemptions, both.counts.num_steps) == (3, 2, 8)
