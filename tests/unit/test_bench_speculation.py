"""The speculation benchmark counts what it says it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from actors.attention.step import EngineStep
from actors.messages import GenerateRequest, SamplingSpec, TokenEvent
from ops.bench.speculation_tables import Cell, Measured
from ops.bench.streams import Batch, Stream, StreamTimer, decode_in_turns

END = 9


class ScriptedEngine:
    """Emits, step by step, what its script says; an exhausted script is an error."""

    def __init__(self, script: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
        self._script = iter(script)
        self._events: list[TokenEvent] = []
        self.requests: set[str] = set()

    def add(self, request: GenerateRequest, now: float) -> None:
        del now
        self.requests.add(request.request_id)

    def abort(self, request_id: str) -> None:
        self.requests.remove(request_id)

    def run(self) -> None:
        self._events = [TokenEvent(name, token_ids) for name, token_ids in next(self._script).items()]

    def take_events(self) -> list[TokenEvent]:
        return self._events


def _timer(engine: ScriptedEngine, quota: int, *names: str) -> StreamTimer:
    """Started."""
    requests = [GenerateRequest(name, (1,), SamplingSpec(max_tokens=100, ignore_eos=True)) for name in names]
    timer = StreamTimer(cast(EngineStep, engine), requests, frozenset([END]), quota)
    timer.start()
    return timer


def test_streams_count_to_their_end_or_quota_and_fill_the_batch_after_it() -> None:
    """a ends by itself, and a token that follows in the same step is not counted; b overshoots its quota by one."""
    engine = ScriptedEngine(
        [
            {"a": (1,)},
            {"a": (1, 1), "b": (1,)},
            {"a": (1, END, 1), "b": (1, 1)},
            {"a": (1,), "b": (1,)},
            {"a": (1,), "b": (1, 1)},
        ]
    )
    batch = decode_in_turns({"alone": _timer(engine, 4, "a", "b")})["alone"]
    a, b = batch.streams
    assert (a.num_before, a.num_counted, a.num_steps) == (3, 2, 1)
    assert (b.num_before, b.num_counted, b.num_steps) == (1, 5, 3)
    assert (batch.num_tokens, batch.num_steps, len(batch.step_seconds)) == (7, 4, 3)
    assert b.seconds == pytest.approx(sum(batch.step_seconds))
    assert not engine.requests


def test_an_answer_that_ends_before_all_have_begun_counts_nothing() -> None:
    """a ends while b still waits for its first token: no tokens, no steps, no time."""
    engine = ScriptedEngine([{"a": (1, END)}, {"a": (1,), "b": (1,)}, {"a": (1,), "b": (1,)}])
    a, b = decode_in_turns({"alone": _timer(engine, 1, "a", "b")})["alone"].streams
    assert (a.num_counted, a.num_steps, a.seconds) == (0, 0, 0.0)
    assert b.num_counted == 1


def test_engines_keep_abreast_of_each_other() -> None:
    """One emits a token a step, the other three: the quick one waits, and neither steps beyond its end."""
    steps: list[str] = []

    class Noted(ScriptedEngine):
        def __init__(self, name: str, num_steps: int, num_tokens: int) -> None:
            super().__init__([{name: (1,)}, *[{name: (1,) * num_tokens}] * num_steps])
            self._name = name

        def run(self) -> None:
            steps.append(self._name)
            super().run()

    timers = {"slow": _timer(Noted("slow", 6, 1), 6, "slow"), "quick": _timer(Noted("quick", 2, 3), 6, "quick")}
    steps.clear()
    batches = decode_in_turns(timers)
    assert steps == ["slow", "quick", "slow", "slow", "slow", "quick", "slow", "slow"]
    assert {name: batch.num_tokens for name, batch in batches.items()} == {"slow": 6, "quick": 6}


def _measured(seconds: float, token_ids: Sequence[int] = (1, 2), num_rows: int = 4) -> Measured:
    """One stream, four tokens in two steps."""
    stream = Stream(list(token_ids), num_counted=4, num_steps=2, seconds=seconds)
    return Measured([Batch((stream,), (seconds / 2, seconds / 2))], num_dispatches=2, num_rows=num_rows)


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


def test_rows_and_steps_give_drafts_and_acceptance() -> None:
    """Four rows in two dispatches of one stream are one draft each; four tokens in two steps are two a step."""
    cell = _cell({"off": _measured(1.0, num_rows=2), "1": _measured(1.0)})
    assert (cell.mean_drafts("off"), cell.mean_drafts("1")) == (0.0, 1.0)
    assert cell.tokens_per_step("1") == 2.0


@pytest.mark.parametrize(("token_ids", "num_equal"), [((1, 2, 3), 1), ((1,), 1), ((1, 3), 0)])
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
