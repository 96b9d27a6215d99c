"""Where drafts are drawn by chance, tokens come as often as without drafts: a chi-square test for two samples.

Knows no engine: it is given answers. With a seed for every request the test is the same whenever it runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

TOGETHER = 3  # tokens at the beginning that are also looked at as one outcome
MIN_SEEN = 10  # in both samples together; rarer outcomes count as one, so that the statistic follows its distribution
SIGNIFICANT = 1e-3  # for all the tests of a run together

Outcome = tuple[int, ...]


@dataclass(frozen=True)
class Frequencies:
    """Two samples of one prompt's answers. p_values: by what was counted; the chance of a difference as large as the
    one seen if both come from one distribution. num_outcomes: beginnings that were told apart."""

    prompt: str
    num_samples: int
    num_outcomes: int
    p_values: Mapping[str, float]


def compare_frequencies(prompt: str, without: Sequence[Sequence[int]], drafted: Sequence[Sequence[int]]) -> Frequencies:
    """Test the beginning as one outcome and the token at each position. An answer that has ended counts there too."""
    length = max(map(len, [*without, *drafted]))
    counted = {f"first {TOGETHER}": slice(0, TOGETHER)}
    counted |= {f"token {idx + 1}": slice(idx, idx + 1) for idx in range(length)}
    p_values = {}
    for name, part in counted.items():
        outcomes = [Counter(tuple(ids[part]) for ids in sample) for sample in (without, drafted)]
        p_values[name] = p_value(*two_sample_statistic(*outcomes))
    num_outcomes = _num_told_apart(Counter(tuple(ids[:TOGETHER]) for ids in (*without, *drafted)))
    return Frequencies(prompt, len(without), num_outcomes, p_values)


def two_sample_statistic(first: Counter[Outcome], second: Counter[Outcome]) -> tuple[float, int]:
    """Pearson's chi-square statistic that both counts come from one distribution, and its degrees of freedom."""
    seen = first + second
    cells = [(first[outcome], second[outcome]) for outcome, count in seen.items() if count >= MIN_SEEN]
    rare = [(first[outcome], second[outcome]) for outcome, count in seen.items() if count < MIN_SEEN]
    if rare:
        cells.append((sum(a for a, _ in rare), sum(b for _, b in rare)))
    share = first.total() / seen.total()
    assert 0.0 < share < 1.0, "one of the samples is empty"
    statistic = sum((a - share * (a + b)) ** 2 / (share * (1.0 - share) * (a + b)) for a, b in cells)
    return statistic, len(cells) - 1


def p_value(statistic: float, degrees: int) -> float:
    """Chance that a chi-square variable is at least as large; 1 where there was only one outcome."""
    if degrees == 0:
        return 1.0
    half = torch.tensor([degrees, statistic], dtype=torch.float64) / 2.0
    return float(torch.special.gammaincc(half[0], half[1]))


def num_significant(compared: Sequence[Frequencies]) -> int:
    """Tests that speak against equal distributions, with Bonferroni's correction for their number."""
    p_values = [p for frequencies in compared for p in frequencies.p_values.values()]
    return sum(p < SIGNIFICANT / len(p_values) for p in p_values)


def print_frequencies(compared: Sequence[Frequencies]) -> None:
    """One line for each prompt."""
    names = list(dict.fromkeys(name for frequencies in compared for name in frequencies.p_values))
    print("| prompt | samples each | beginnings | " + " | ".join(f"p, {name}" for name in names) + " |")
    print("|" + "---|" * (3 + len(names)))
    for each in compared:
        values = " | ".join(f"{each.p_values[name]:.3f}" if name in each.p_values else "" for name in names)
        print(f"| {each.prompt} | {each.num_samples} | {each.num_outcomes} | {values} |")


def _num_told_apart(seen: Counter[Outcome]) -> int:
    return sum(count >= MIN_SEEN for count in seen.values()) + any(count < MIN_SEEN for count in seen.values())
