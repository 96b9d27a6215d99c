"""PenaltyCounts: incremental counts equal a recount, and the three penalties follow their formulas."""

import random
from collections import Counter

import pytest
import torch

from actors.messages import SamplingSpec
from actors.sampling.penalties import PenaltyCounts, has_penalties


def test_incremental_counts_equal_a_recount() -> None:
    """After every one of 500 tokens, distinct tokens and their counts are those of the whole list."""
    rng = random.Random(3)
    prompt = [rng.randrange(200) for _ in range(40)]
    counts, completion = PenaltyCounts(prompt), []
    for _ in range(500):
        completion.append(rng.randrange(200))
        counts.add(completion[-1])
        expected = dict.fromkeys(prompt, 0) | Counter(completion)
        assert dict(zip(counts.token_ids.tolist(), counts.counts.tolist(), strict=True)) == expected
        assert len(counts.token_ids) == len(expected)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SamplingSpec(max_tokens=1, repetition_penalty=2.0), [1.0, -4.0, 1.5, 4.0]),
        (SamplingSpec(max_tokens=1, frequency_penalty=0.5), [2.0, -3.0, 3.0, 4.0]),
        (SamplingSpec(max_tokens=1, presence_penalty=0.25), [2.0, -2.25, 3.0, 4.0]),
        (SamplingSpec(max_tokens=1, repetition_penalty=0.5, presence_penalty=-1.0), [4.0, 0.0, 6.0, 4.0]),
    ],
)
def test_penalties_by_hand(spec: SamplingSpec, expected: list[float]) -> None:
    """Prompt holds 0 and 2, the completion 1 twice; token 3 is unseen. Repetition goes first."""
    counts = PenaltyCounts([0, 2, 2])
    counts.add(1)
    counts.add(1)
    logits = torch.tensor([2.0, -2.0, 3.0, 4.0], dtype=torch.float64)
    counts.apply(logits, spec)
    assert logits.tolist() == expected


def test_neutral_values_are_no_penalties() -> None:
    """The defaults need no counts."""
    assert not has_penalties(SamplingSpec(max_tokens=1))
    assert has_penalties(SamplingSpec(max_tokens=1, repetition_penalty=1.1))
