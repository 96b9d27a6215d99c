"""The record of a generation: exact times, on a clock that stands where the test puts it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from actors.messages import FinishReason, GenerateRequest, SamplingSpec, TokenEvent
from cluster.api.choice import Choice, ChoicePlan
from cluster.api.generation_record import GenerationRecord
from cluster.api.metrics import ApiMetrics
from cluster.api.observation import Observation
from cluster.api.text import Tokenizer
from cluster.api.usage import Usage
from ops.telemetry.cells import HistogramValue
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner
from ops.telemetry.tracing import NO_TRACING
from tests.fakes.clock import ManualClock
from tests.fakes.tokenizer import tokenizer_json

TOKENIZER = Tokenizer(json.loads(tokenizer_json(1024)))
USAGE = Usage(3, 0, 0, 0)


class Course:
    """A generation of `n` choices whose events come when the test says."""

    def __init__(self, n: int = 1, *, is_stream: bool = True) -> None:
        self.clock = ManualClock()
        self.meter = RecordingMeter(Owner.GATEWAY)
        observation = Observation(ApiMetrics(self.meter), NO_TRACING, clock=self.clock)
        self.record = GenerationRecord(observation, is_stream=is_stream)
        request = GenerateRequest("r", (1, 2, 3), SamplingSpec(max_tokens=100))
        plans = [ChoicePlan(index, 0, request) for index in range(n)]
        self.choices = [Choice(plan, TOKENIZER) for plan in plans]
        self.record.opened(plans)

    def tell(self, after_s: float, num_tokens: int, *, is_last: bool = False, index: int = 0) -> None:
        """An event of so many visible tokens."""
        self.clock.advance(after_s)
        token_id = TOKENIZER.encode("a")[0]
        reason = FinishReason.STOP if is_last else None
        delta = self.choices[index].feed(TokenEvent("r", (token_id,) * num_tokens, finish_reason=reason))
        self.record.fed(self.choices[index], delta)

    def values(self, name: str) -> tuple[int, float]:
        """How many values a histogram has, and their sum."""
        found = [f.points[0].value for f in self.meter.families() if f.spec.name == f"step35_{name}_seconds"]
        value = found[0] if found else HistogramValue((0,), 0.0)
        assert isinstance(value, HistogramValue)
        return sum(value.counts), value.total


def times(number: int, total: float) -> Any:
    """As `Course.values`, up to rounding."""
    return (number, pytest.approx(total))


def test_times_of_a_stream() -> None:
    """First token, gaps, time per token after the first, and the whole, all by hand."""
    course = Course()
    course.tell(2.0, 1)
    course.tell(0.5, 3)
    course.tell(0.25, 1, is_last=True)
    course.clock.advance(50)  # a slow reader is not the engine's time
    course.record.closed(USAGE)
    assert course.values("time_to_first_token") == times(1, 2.0)
    assert course.values("inter_token_latency") == times(2, 0.75)
    assert course.values("time_per_output_token") == times(1, 0.75 / 4)
    assert course.values("request_latency") == times(1, 2.75)


def test_choices_have_gaps_of_their_own() -> None:
    """Two streams side by side: the gaps are within each, the time per token is that of both together."""
    course = Course(2)
    course.tell(1.0, 1, index=0)
    course.tell(0.1, 1, index=1)
    course.tell(0.9, 1, index=0, is_last=True)
    course.tell(1.1, 1, index=1, is_last=True)
    course.record.closed(USAGE)
    assert course.values("time_to_first_token") == times(1, 1.0)
    assert course.values("inter_token_latency") == times(2, 1.0 + 2.0)
    assert course.values("time_per_output_token") == times(1, (1.0 + 2.0) / 2)
    assert course.values("request_latency") == times(1, 3.1)


def test_one_token_has_no_time_per_token() -> None:
    """Nor has an end without a token a first one."""
    course = Course()
    course.tell(1.0, 1, is_last=True)
    course.record.closed(USAGE)
    assert course.values("time_per_output_token")[0] == 0
    assert course.values("request_latency") == times(1, 1.0)
    empty = Course()
    empty.tell(1.5, 0, is_last=True)
    empty.record.closed(USAGE)
    assert empty.values("time_to_first_token")[0] == 0
    assert empty.values("request_latency") == times(1, 1.5)


def test_a_whole_answer_has_no_gaps() -> None:
    """Its client sees no events."""
    course = Course(is_stream=False)
    course.tell(1.0, 1)
    course.tell(1.0, 1, is_last=True)
    course.record.closed(USAGE)
    assert course.values("inter_token_latency")[0] == 0
    assert course.values("time_per_output_token") == times(1, 1.0)
