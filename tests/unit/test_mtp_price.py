"""What drafts are priced by: the time of whole steps that decode, and that of draft passes, each by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.attention.config import AttentionConfig, MtpConfig
from actors.attention.speculation import Speculation
from actors.attention.step import EngineStep
from actors.local_cluster import LocalCluster
from actors.messages import FinishReason, GenerateRequest, SamplingSpec
from actors.speculative.cost import StepCost
from routing.errors import RankLost
from tests.fakes.clock import ManualClock
from tests.fakes.configs import tiny_config
from tests.fakes.drafting import write_drafting_checkpoint

MAX_DRAFTS = 3
SCHEDULE_S, FORWARD_S, EXPERTS_S, SAMPLE_S, CHOICE_S, PASS_S = 1.0, 10.0, 4.0, 0.1, 30.0, 100.0
REQUEST = GenerateRequest("one", (5, 9, 13, 17, 21), SamplingSpec(24, temperature=0.0, ignore_eos=True))
STEP_S = SCHEDULE_S + FORWARD_S + SAMPLE_S


class Seen(StepCost):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(num_experts=16, top_k=4)
        self.steps: list[tuple[int, float, float]] = []  # rows, seconds, and how many of these experts took
        self.passes: list[float] = []

    def observe_step(self, num_sequences: int, num_rows: int, seconds: float, expert_s: float = 0.0) -> None:
        assert num_sequences == 1
        self.steps.append((num_rows, seconds, expert_s))

    def observe_drafting(self, num_modules: int, num_module_rows: int, num_drafts: int, seconds: float) -> None:
        self.passes.append(seconds)


@pytest.fixture
def cluster(tmp_path: Path) -> LocalCluster:
    """With fixed drafts, and prompts in chunks of four."""
    folder = write_drafting_checkpoint(tmp_path, tiny_config(vocab_size=48, num_hidden_layers=4), seed=3)
    mtp = MtpConfig(mode="fixed", max_drafts=MAX_DRAFTS)
    config = AttentionConfig(
        param_dtype="float32", block_size=4, max_running=2, max_step_tokens=4, max_model_len=64, mtp=mtp
    )
    return LocalCluster(folder, config, ep_size=2)


def _slowed(clock: ManualClock, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: object) -> object:
        clock.advance(seconds)
        return function(*args)

    return slow


def _observed(cluster: LocalCluster) -> Seen:
    """From now on every part of a step takes its time, by a clock that stands still beside."""
    engine, clock, seen = cluster.engine, ManualClock(), Seen()
    speculation = engine._speculation
    assert isinstance(speculation, Speculation)
    speculation._clock, speculation._lengths.cost = clock, seen
    speculation._expert_clock = lambda: EXPERTS_S * engine.step_id
    for owner, name, seconds in (
        (engine.scheduler, "schedule", SCHEDULE_S),
        (engine, "_forward", FORWARD_S),
        (engine._sampler, "open", SAMPLE_S),
        (speculation, "_choose", CHOICE_S),
        (speculation._drafter, "run", PASS_S),
    ):
        setattr(owner, name, _slowed(clock, seconds, getattr(owner, name)))
    return seen


def _run_to_first_price(engine: EngineStep, seen: Seen) -> None:
    engine.add(REQUEST, now=0.0)
    while not seen.steps:
        engine.run()
        engine.take_events()


def test_a_step_is_priced_as_a_whole_but_for_its_drafts(cluster: LocalCluster) -> None:
    """Scheduling and sampling cost as much for any number of drafts, and count: what is compared are tokens for all the
    time that passes. To decide takes long, but now and then only. Rows of a prompt say nothing of decoding."""
    seen = _observed(cluster)
    cluster.generate([REQUEST])
    assert len(seen.steps) > 2
    assert [seconds for _, seconds, _ in seen.steps] == pytest.approx([STEP_S] * len(seen.steps))
    assert [expert_s for _, _, expert_s in seen.steps] == [EXPERTS_S] * len(seen.steps)
    assert seen.steps[0][0] == 1 + MAX_DRAFTS
    assert seen.passes == pytest.approx([PASS_S] * len(seen.passes))


def test_the_wait_for_experts_is_a_part_of_the_step(cluster: LocalCluster) -> None:
    """By the clocks that serve: the engine asks its dispatcher, whose wait is neither nothing nor all."""
    seen, speculation = Seen(), cluster.engine._speculation
    assert isinstance(speculation, Speculation)
    speculation._lengths.cost = seen
    cluster.generate([REQUEST])
    assert len(seen.steps) > 2
    assert all(0.0 < expert_s < seconds for _, seconds, expert_s in seen.steps)


def test_a_step_that_failed_has_no_price(cluster: LocalCluster) -> None:
    """It is repeated; what the repeated one takes counts."""
    seen, engine = _observed(cluster), cluster.engine
    _run_to_first_price(engine, seen)
    dispatcher = engine._dispatcher
    combine = dispatcher.combine

    def lost(*_: object) -> None:
        dispatcher.combine = combine  # type: ignore[method-assign]
        raise RankLost("gone", [1])

    dispatcher.combine = lost  # type: ignore[method-assign,assignment]
    with pytest.raises(RankLost):
        engine.run()
    engine.take_events()
    assert len(seen.steps) == 1
    engine.run()
    engine.take_events()
    assert seen.steps[1][1] == pytest.approx(STEP_S)


def test_a_step_in_which_every_sequence_failed_has_no_price(cluster: LocalCluster) -> None:
    """Nothing was computed."""
    seen, engine = _observed(cluster), cluster.engine
    _run_to_first_price(engine, seen)

    def broken(*_: object) -> None:
        raise ValueError("no luck")

    engine._forward_items = broken  # type: ignore[method-assign,assignment]
    engine.run()
    (event,) = engine.take_events()
    assert event.finish_reason is FinishReason.ERROR
    assert len(seen.steps) == 1
