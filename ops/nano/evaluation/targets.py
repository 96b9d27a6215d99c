"""What the nano model should reach, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ops.nano.evaluation.drafts import SKILLS_TOGETHER
from ops.nano.evaluation.measurements import Measurements
from ops.nano.evaluation.results import Rate

WELL_FORMED, VALID_CALLS = 0.98, 0.90
DRAFTS = (0.8, 0.6, 0.45)


@dataclass(frozen=True)
class Target:
    """Shares, 0 to 1."""

    measure: str
    aim: float
    measured: float

    @property
    def is_reached(self) -> bool:
        return self.measured >= self.aim


def targets(measurements: Measurements) -> Iterator[Target]:
    """Those whose parts were measured."""
    if measurements.answers is not None:
        skills = measurements.answers
        yield Target("well-formed answers", WELL_FORMED, Rate.pooled(skill.well_formed for skill in skills).value)
        calls = [skill.calls.valid for skill in skills if skill.calls is not None]
        if calls:
            yield Target("calls with the right tool and arguments", VALID_CALLS, Rate.pooled(calls).value)
    if measurements.drafts is not None and SKILLS_TOGETHER in measurements.drafts.greedy:
        measured = measurements.drafts.greedy[SKILLS_TOGETHER].by_position
        for position, (aim, share) in enumerate(zip(DRAFTS, measured, strict=False), start=1):
            yield Target(f"draft {position} accepted, greedy, {SKILLS_TOGETHER}", aim, share)
    if measurements.parity is not None:
        parity = measurements.parity
        yield Target("prompts with transformers' greedy tokens", 1.0, Rate(parity.num_equal, parity.num_prompts).value)
