"""The engine against itself: what a request gets must not depend on its company, on failures or on memory pressure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.attention.config import AttentionConfig
from actors.attention.step import EngineStep
from actors.local_cluster import LocalCluster, tokens_of
from actors.messages import ErrorKind, FinishReason, GenerateRequest, SamplingSpec, TokenEvent
from routing.errors import RankLost
from routing.experts import expert_map_from_rows
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config

EXACT = AttentionConfig(
    param_dtype="float32", deterministic=True, block_size=4, max_running=6, max_step_tokens=24, max_model_len=96
)


@pytest.fixture(scope="module", params=["native", "reference"])
def exact(request: pytest.FixtureRequest) -> AttentionConfig:
    return EXACT.model_copy(update={"kernels": (request.param, "reference")})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5)


def _requests(num: int) -> list[GenerateRequest]:
    """A mix: greedy and sampled, short and long, with penalties and logprobs."""
    requests = []
    for idx in range(num):
        spec = SamplingSpec(
            max_tokens=5 + 3 * (idx % 4),
            temperature=0.0 if idx % 3 == 0 else 0.9,
            top_p=0.9 if idx % 2 else 1.0,
            frequency_penalty=0.5 if idx % 5 == 0 else 0.0,
            seed=idx,
            logprobs=2,
        )
        prompt = tuple((11 * idx + 7 * position) % 500 for position in range(3 + 9 * (idx % 5)))
        requests.append(GenerateRequest(f"r{idx}", prompt, spec))
    return requests


def _answers(events: dict[str, list[TokenEvent]]) -> dict[str, tuple[list[int], list[float]]]:
    """Tokens and the exact bits of their logprobs."""
    return {
        request_id: (tokens_of(news), [entry.logprob for event in news for entry in event.logprobs])
        for request_id, news in events.items()
    }


@pytest.fixture(scope="module")
def alone(checkpoint: Path, exact: AttentionConfig) -> dict[str, tuple[list[int], list[float]]]:
    """Each request run by itself: what every other form must reproduce."""
    cluster = LocalCluster(checkpoint, exact, ep_size=4)
    return {request.request_id: _answers(cluster.generate([request]))[request.request_id] for request in _requests(8)}


Alone = dict[str, tuple[list[int], list[float]]]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_microbatches": 2},
        {"enable_prefix_cache": False, "max_step_tokens": 7, "max_running": 5},
    ],
    ids=["batched", "two micro-batches", "small chunks"],
)
def test_company_changes_no_bit(
    checkpoint: Path, exact: AttentionConfig, alone: Alone, change: dict[str, object]
) -> None:
    """In deterministic mode tokens and logprobs are those of the request alone, bit for bit."""
    cluster = LocalCluster(checkpoint, exact.model_copy(update=change), ep_size=4)
    assert _answers(cluster.generate(_requests(8))) == alone


def test_preemption_changes_no_bit(checkpoint: Path) -> None:
    """Sequences that outgrow the memory are computed again and end as if there had been room for all."""
    spec = SamplingSpec(max_tokens=40, temperature=0.8, ignore_eos=True, logprobs=0)
    requests = [
        GenerateRequest(f"r{idx}", (idx, idx + 1, idx + 2), replace(spec, seed=idx), priority=idx % 2)
        for idx in range(5)
    ]
    roomy = LocalCluster(checkpoint, EXACT.model_copy(update={"kv_cache_tokens": 480}), ep_size=4)
    tight = LocalCluster(checkpoint, EXACT.model_copy(update={"kv_cache_tokens": 96}), ep_size=4)
    assert _answers(tight.generate(requests)) == _answers(roomy.generate(requests))
    assert roomy.engine.scheduler.num_preemptions_total == 0
    assert tight.engine.scheduler.num_preemptions_total > 0, "the case was meant to preempt"


def test_placement_changes_no_bit(checkpoint: Path, exact: AttentionConfig, alone: Alone) -> None:
    """A map with redundant experts in odd places gives the same bits as the linear one."""
    layers, experts = 4, 16
    row = [15, 0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 9, 1, 10, 11, 12, 13, 14, 2, -1]
    expert_map = expert_map_from_rows([row] * layers, experts, ep_size=4)
    cluster = LocalCluster(checkpoint, exact, expert_map=expert_map)
    assert _answers(cluster.generate(_requests(8))) == alone


@contextmanager
def _failing_head(engine: EngineStep, *, at_call: int, error: Exception) -> Iterator[None]:
    """The decoder's head raises at one call."""
    decoder, calls = engine._decoder, iter(range(10**6))
    original = decoder.logits

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        if next(calls) == at_call:
            raise error
        return original(hidden)

    decoder.logits = logits  # type: ignore[method-assign]
    try:
        yield
    finally:
        decoder.logits = original  # type: ignore[method-assign]


def test_a_step_that_lost_a_rank_is_repeated_exactly(checkpoint: Path, exact: AttentionConfig, alone: Alone) -> None:
    """TransportError leaves the engine as it was: running again gives the same answer, no token lost or doubled."""
    cluster = LocalCluster(checkpoint, exact, ep_size=4)
    engine = cluster.engine
    for request in _requests(8):
        engine.add(request, now=0.0)
    events: dict[str, list[TokenEvent]] = {request.request_id: [] for request in _requests(8)}
    failures = 0
    with _failing_head(engine, at_call=3, error=RankLost("gone", [1])):
        while engine.scheduler.has_work:
            try:
                engine.run()
            except RankLost:
                failures += 1
            for event in engine.take_events():
                events[event.request_id].append(event)
    assert failures == 1
    assert _answers(events) == alone


def test_a_fault_of_one_batch_fails_nobody_else(checkpoint: Path, exact: AttentionConfig, alone: Alone) -> None:
    """A batch that raises is computed again sequence by sequence; all of them end as they would have alone."""
    cluster = LocalCluster(checkpoint, exact, ep_size=4)
    with _failing_head(cluster.engine, at_call=4, error=RuntimeError("kernel")):
        answers = _answers(cluster.generate(_requests(8)))
    assert answers == alone


def test_a_row_of_nan_fails_alone(checkpoint: Path, exact: AttentionConfig, alone: Alone) -> None:
    """Logits that are not finite end their own request with an error; the neighbours are untouched."""
    cluster = LocalCluster(checkpoint, exact, ep_size=4)
    decoder = cluster.engine._decoder
    original, poisoned = decoder.logits, []

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        rows = original(hidden).clone()
        if not poisoned:
            rows[0] = torch.nan
            poisoned.append(True)
        return rows

    decoder.logits = logits  # type: ignore[method-assign]
    events = cluster.generate(_requests(8))
    failed = [request_id for request_id, news in events.items() if news[-1].finish_reason is FinishReason.ERROR]
    assert len(failed) == 1
    error = events[failed[0]][-1].error
    assert error is not None
    assert error.kind is ErrorKind.INTERNAL
    survivors = {request_id: answer for request_id, answer in _answers(events).items() if request_id not in failed}
    assert survivors == {request_id: alone[request_id] for request_id in survivors}


def test_abort_and_deadline_free_everything(checkpoint: Path) -> None:
    """After aborts and an expired deadline no sequence and no block is left, and the late one is told why."""
    cluster = LocalCluster(checkpoint, EXACT, ep_size=4)
    engine = cluster.engine
    for request in _requests(6):
        engine.add(request, now=0.0)
    late = GenerateRequest("late", (1, 2, 3), SamplingSpec(max_tokens=50), deadline_s=5.0)
    engine.add(late, now=0.0)
    engine.run()
    for idx in range(6):
        engine.abort(f"r{idx}")
    engine.expire(now=6.0)
    events = engine.take_events()
    assert [event.request_id for event in events] == ["late"]
    assert events[0].error is not None
    assert events[0].error.kind is ErrorKind.DEADLINE
    engine.scheduler.check()
    assert not engine.scheduler.has_work
    assert engine.scheduler.kv_usage == 0.0
