"""What sequences remember of their steps, through the engine: retries, batches, epochs, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.attention.config import AttentionConfig
from actors.attention.history import History, StepFacts
from actors.attention.sequence import Sequence
from actors.local_cluster import LocalCluster
from actors.messages import FinishReason, GenerateRequest, SamplingSpec
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.clock import ManualClock
from tests.fakes.configs import tiny_config

CONFIG = AttentionConfig(
    param_dtype="float32", max_running=4, max_step_tokens=32, max_model_len=128, mtp={"mode": "off"}
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=2)


def step(step_id: int, began_at: float, *, is_failed: bool = False, size: tuple[int, int] = (1, 1)) -> StepFacts:
    return StepFacts(step_id, began_at, began_at + 1, *size, map_epoch=step_id, is_failed=is_failed)


def test_failed_steps_are_retries_and_nothing_else() -> None:
    """The first step may be one that fails: the queue ends there all the same."""
    history = History(10.0)
    history.add(step(4, 12.0, is_failed=True, size=(9, 9)), 0)
    history.add(step(5, 14.0, size=(2, 30)), 0)
    history.add(step(6, 16.0, size=(3, 3)), 1)
    history.add(step(7, 18.0, is_failed=True), 1)
    history.add(step(8, 20.0), 3)
    assert (history.queue_s, history.first_step_id, history.last_step_id) == (2.0, 4, 8)
    assert (history.num_steps, history.num_retries) == (3, 2)
    assert (history.first_token_at, history.last_token_at) == (17.0, 21.0)
    assert (history.max_batch_sequences, history.max_batch_rows) == (3, 30)
    assert (history.first_map_epoch, history.last_map_epoch) == (4, 8)


def test_the_engine_tells_each_end_once(checkpoint: Path) -> None:
    """Finished, aborted and late sequences, with what each went through; queue times are told once too."""
    cluster = LocalCluster(checkpoint, CONFIG, ep_size=2)
    engine, clock = cluster.engine, ManualClock(0.0)
    engine._clock = clock
    ended: list[Sequence] = []
    engine.on_end = ended.append
    engine.map_epoch = 3
    for name, deadline_s in (("whole", 900.0), ("left", 900.0), ("late", 50.0)):
        spec = SamplingSpec(max_tokens=4, temperature=0.0, ignore_eos=True)
        engine.add(GenerateRequest(name, (5, 6, 7), spec, deadline_s=deadline_s), now=0.0)
    clock.advance(2.0)
    engine.run()
    engine.take_events()
    engine.abort("left")
    engine.abort("left")
    engine.expire(60.0)
    engine.take_events()
    while engine.scheduler.has_work:
        clock.advance(1.0)
        engine.run()
        engine.take_events()
    engine.take_events()
    found = {sequence.request_id: sequence for sequence in ended}
    assert [sequence.request_id for sequence in ended] == ["left", "late", "whole"]
    assert found["left"].finish_reason is found["late"].finish_reason is FinishReason.ABORT
    history = found["whole"].history
    assert (history.num_steps, history.max_batch_sequences, history.max_batch_rows) == (4, 3, 9)
    assert (history.first_step_at, history.last_token_at, history.last_map_epoch) == (2.0, 5.0, 3)
    assert engine.take_queue_seconds() == (2.0, 2.0, 2.0)
    assert engine.take_queue_seconds() == ()
