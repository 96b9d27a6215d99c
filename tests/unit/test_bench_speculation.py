"""The speculation benchmark counts what it says it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from actors.attention.step import EngineStep, StepSize
from actors.messages import (
    DraftCounts,
    ErrorKind,
    FinishReason,
    GenerateRequest,
    RequestError,
    SamplingSpec,
    TokenEvent,
)
from ops.bench.speculation_tables import Cell, Measured, full_rows
from ops.bench.streams import Batch, Stream, StreamTimer, TimedStep, decode_in_turns

QUOTA = 100


class ScriptedEngine:
    """Emits, step by step, what its script says: tokens of each request, and whether they are its last. An exhausted
    script is an error."""

    def __init__(self, script: Sequence[Mapping[str, tuple[int, ...]]], ends: Mapping[str, int] | None = None) -> None:
        """ends: tokens after which a request ends."""
        self._script = iter(script)
        self._left = dict(ends or {})
        self._events: list[TokenEvent] = []
        self.last_size = StepSize(0, 1)
        self.requests: set[str] = set()

    def add(self, request: GenerateRequest, now: float) -> None:
        del now
        self.requests.add(request.request_id)

    def abort(self, request_id: str) -> None:
        self.requests.discard(request_id)

    def run(self) -> None:
        self._events = [self._event(name, token_ids) for name, token_ids in next(self._script).items()]
        self.last_size = StepSize(len(self._events), 1)

    def take_events(self) -> list[TokenEvent]:
        return self._events

    def _event(self, name: str, token_ids: tuple[int, ...]) -> TokenEvent:
        self._left[name] = self._left.get(name, QUOTA) - len(token_ids)
        reason = None if self._left[name] > 0 else FinishReason.STOP
        if reason is not None:
            self.requests.remove(name)
        drafted = (1,) * (len(token_ids) - 1)
        return TokenEvent(name, token_ids, finish_reason=reason, draft_counts=DraftCounts(1, drafted, drafted))


def _timer(engine: ScriptedEngine, *names: str) -> StreamTimer:
    """Started."""
    requests = [GenerateRequest(name, (1,), SamplingSpec(max_tokens=QUOTA)) for name in names]
    timer = StreamTimer(cast(EngineStep, engine), requests)
    timer.start()
    return timer


def test_streams_count_from_when_all_decode_until_one_ends() -> None:
    """a begins first and ends first; b has two drafts that count. Nothing stays with the engine."""
    script: list[dict[str, tuple[int, ...]]] = [
        {"a": (1,)},
        {"a": (1, 1), "b": (1,)},
        {"a": (1,), "b": (1, 1)},
        {"a": (1, 1), "b": (1, 1)},
    ]
    engine = ScriptedEngine(script, ends={"a": 6})
    batch = decode_in_turns({"alone": _timer(engine, "a", "b")})["alone"]
    a, b = batch.streams
    assert (a.num_before, a.num_counted, a.num_drafts) == (3, 3, 1)
    assert (b.num_before, b.num_counted, b.num_drafts) == (1, 4, 2)
    assert (batch.num_tokens, batch.num_steps, batch.num_drafts) == (7, 4, 3)
    assert [step.num_rows for step in batch.steps] == [2, 2]
    assert not engine.requests


def test_an_answer_that_ends_before_all_have_begun_is_an_error() -> None:
    """There would be nothing to measure."""
    with pytest.raises(RuntimeError, match="allow more tokens"):
        _timer(ScriptedEngine([{"a": (1, 1)}, {"b": (1,)}], ends={"a": 2}), "a", "b")


def test_a_stream_that_is_slow_counts_as_much_as_one_that_is_fast() -> None:
    """Two seconds: one of them would take two minutes for sixty tokens, the other half a minute."""
    streams = Stream([1], True), Stream([1, 2, 3, 4], True)
    assert Batch(streams, (TimedStep(2, 1.5), TimedStep(2, 0.5))).seconds_per_token == (2.0 + 0.5) / 2


def test_engines_keep_abreast_of_each_other() -> None:
    """One emits a token a step, the other three: the quick one waits, and neither steps beyond its end."""
    steps: list[str] = []

    class Noted(ScriptedEngine):
        def __init__(self, name: str, num_steps: int, num_tokens: int) -> None:
            super().__init__([{name: (1,)}, *[{name: (1,) * num_tokens}] * num_steps], ends={name: 7})
            self._name = name

        def run(self) -> None:
            steps.append(self._name)
            super().run()

    timers = {"slow": _timer(Noted("slow", 6, 1), "slow"), "quick": _timer(Noted("quick", 2, 3), "quick")}
    steps.clear()
    batches = decode_in_turns(timers)
    assert steps == ["slow", "quick", "slow", "slow", "slow", "quick", "slow", "slow"]
    assert {name: batch.num_tokens for name, batch in batches.items()} == {"slow": 6, "quick": 6}


def test_a_request_that_fails_ends_the_benchmark() -> None:
    """With the engine's message."""
    error = RequestError(ErrorKind.INTERNAL, "no luck")
    with pytest.raises(RuntimeError, match="request a failed: no luck"):
        Stream().observe(TokenEvent("a", finish_reason=FinishReason.ERROR, error=error))


def _measured(seconds: float, token_ids: Sequence[int] = (1, 2, 3, 4), num_drafts: int = 2) -> Measured:
    """One stream, its tokens in two steps with two rows each."""
    stream = Stream(list(token_ids), has_ended=True, num_drafts=num_drafts)
    return Measured([Batch((stream,), (TimedStep(2, seconds / 2), TimedStep(2, seconds / 2)))])


def _cell(*rounds: Mapping[str, Measured]) -> Cell:
    return Cell("arithmetic", 1, warm_up=rounds[0], rounds=rounds)


def test_ratios_compare_within_a_round() -> None:
    """The machine is ten times slower in the last round: times follow the middle round, ratios do not care."""
    cell = _cell(
        {"off": _measured(4.0), "1": _measured(2.0), "adaptive": _measured(2.0)},
        {"off": _measured(4.0), "1": _measured(5.0), "adaptive": _measured(2.0)},
        {"off": _measured(40.0), "1": _measured(20.0), "adaptive": _measured(25.0)},
    )
    assert cell.speedups("1", "off") == [2.0, 0.8, 2.0]
    assert cell.speedups("adaptive", "1") == [1.0, 2.5, 0.8]
    assert cell.seconds_per_token("adaptive") == 0.5
    assert cell.tokens_per_second("off") == 1.0
    assert cell.best_fixed == "1"


def test_drafts_and_acceptance_are_of_a_step() -> None:
    """Two drafts in two steps are one each; four tokens in two steps are two a step."""
    cell = _cell({"off": _measured(1.0, num_drafts=0), "1": _measured(1.0)})
    assert (cell.mean_drafts("off"), cell.mean_drafts("1")) == (0.0, 1.0)
    assert cell.tokens_per_step("1") == 2.0


def test_only_steps_with_all_drafts_tell_what_rows_cost() -> None:
    """Those with prompts or fewer drafts are left out."""
    measured = Measured([Batch((), (TimedStep(2, 0.1), TimedStep(9, 5.0), TimedStep(1, 0.01)))])
    assert measured.step_seconds(full_rows("1", 1)) == [0.1]
    assert [full_rows(name, 8) for name in ("off", "1", "3", "adaptive")] == [8, 16, 32, 8]


@pytest.mark.parametrize(("token_ids", "num_equal"), [((1, 2, 3, 4, 5), 1), ((1,), 1), ((1, 3, 3, 4), 0)])
def test_texts_are_equal_as_far_as_both_went(token_ids: tuple[int, ...], num_equal: int) -> None:
    """A longer or shorter text is equal, another token is not."""
    cell = _cell({"off": _measured(1.0), "1": _measured(1.0, token_ids)})
    assert cell.num_equal_streams("1") == (num_equal, 1)


def test_the_record_is_plain_json_values() -> None:
    """What goes into the line of JSON, for one round."""
    cell = _cell({"off": _measured(4.0), "1": _measured(2.0), "adaptive": _measured(2.5)})
    record: dict[str, Any] = cell.to_dict()
    assert record["tokens_per_s"] == {"off": 1.0, "1": 2.0, "adaptive": 1.6}
    assert record["against_best_fixed"] == [0.8]
