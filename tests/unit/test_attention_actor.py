"""The attention actor over the loopback transport: life, death of an expert rank, draining, and what a client sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors.attention.actor import AttentionActor
from actors.attention.config import AttentionConfig
from actors.errors import ActorError, ExpertsUnavailable
from actors.expert.actor import ExpertActor
from actors.expert.config import ExpertConfig
from actors.frame_limits import frame_limits
from actors.local_cluster import LocalCluster, tokens_of
from actors.messages import ErrorKind, FinishReason, GenerateRequest, SamplingSpec, TokenEvent
from actors.weights.check import read_model_config
from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, linear_expert_map
from routing.transport.endpoint import Endpoint
from routing.transport.loopback import LoopbackAttentionPort, LoopbackExpertPort, LoopbackNetwork
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config

EP_SIZE, MOE_LAYERS, EXPERTS = 2, 4, 16
MAP = linear_expert_map(MOE_LAYERS, EXPERTS, EP_SIZE, num_redundant_slots=1)
# Experts 0 and 8 change places, by way of the free slots.
SWAPPED = expert_map_from_rows(
    [[EMPTY_SLOT, *range(1, 8), 8, EMPTY_SLOT, *range(9, 16), 0]] * MOE_LAYERS, EXPERTS, EP_SIZE, map_epoch=1
)


class Loopback:
    """Both tiers in this process, as threads."""

    def __init__(self, checkpoint: Path, **changes: object) -> None:
        fields: dict[str, object] = {
            "param_dtype": "float32",
            "deterministic": True,
            "max_running": 4,
            "max_step_tokens": 32,
            "max_model_len": 128,
            "exchange_timeout_s": 5.0,
            "recovery_timeout_s": 5.0,
            **changes,
        }
        self.config = AttentionConfig.model_validate(fields)
        self._checkpoint = checkpoint
        self._network = LoopbackNetwork()
        self._limits = frame_limits(self.config, read_model_config(checkpoint))
        port = LoopbackAttentionPort(self._network, ep_size=EP_SIZE, limits=self._limits)
        self._attention_endpoint = port.endpoint
        self.actor = AttentionActor(self.config, checkpoint, MAP, port)
        self.experts: dict[int, tuple[ExpertActor, Endpoint]] = {}

    def start_expert(self, ep_rank: int) -> None:
        port = LoopbackExpertPort(self._network, ep_rank=ep_rank, limits=self._limits)
        config = ExpertConfig(param_dtype="float32", deterministic=True)
        expert = ExpertActor(config, self._checkpoint, MAP, ep_rank, port)
        self.experts[ep_rank] = (expert, port.endpoint)
        expert.start()

    def reconcile(self) -> None:
        shards = {rank: endpoint for rank, (_, endpoint) in self.experts.items()}
        for expert, _ in self.experts.values():
            expert.reconcile([self._attention_endpoint], shards)
        self.actor.reconcile(shards, MAP)

    def follow(self, expert_map: ExpertMap, *others: ExpertMap, next_map: ExpertMap | None = None) -> None:
        """The view's maps: the current one, those still served, and the one to prepare."""
        shards = {}
        for rank, (expert, endpoint) in self.experts.items():
            expert.follow_maps([expert_map, *others], next_map)
            shards[rank] = endpoint
        self.actor.reconcile(shards, expert_map)

    async def until_served(self, *epochs: int) -> None:
        """Until every rank serves exactly these."""
        async with asyncio.timeout(10):
            await _until(lambda: all(e.slot_progress().served_epochs == epochs for e, _ in self.experts.values()))

    def lose(self, ep_rank: int) -> None:
        self.experts.pop(ep_rank)[0].close()
        self.reconcile()

    async def until_ready(self) -> None:
        async with asyncio.timeout(10):
            await _until(self.actor.is_ready)

    def close(self) -> None:
        self.actor.close()
        for expert, _ in self.experts.values():
            expert.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(moe_num_experts=EXPERTS), seed=2)


@pytest.fixture
async def split(checkpoint: Path) -> AsyncIterator[Loopback]:
    loopback = Loopback(checkpoint)
    loopback.actor.start()
    for ep_rank in range(EP_SIZE):
        loopback.start_expert(ep_rank)
    loopback.reconcile()
    await loopback.until_ready()
    yield loopback
    loopback.close()


def _request(request_id: str = "r", max_tokens: int = 12, **fields: object) -> GenerateRequest:
    spec = SamplingSpec(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return GenerateRequest(request_id, (5, 6, 7), spec, **fields)  # type: ignore[arg-type]


async def _until(condition: Callable[[], bool]) -> None:
    """Looks again and again: the engine thread has no event for what a test wants to know."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def _collect(actor: AttentionActor, request: GenerateRequest) -> list[TokenEvent]:
    return [event async for event in actor.generate(request)]


async def test_answers_as_the_local_cluster(split: Loopback, checkpoint: Path) -> None:
    """Tokens through threads and transport equal those of one process."""
    local = LocalCluster(checkpoint, split.config, ep_size=EP_SIZE)
    expected = tokens_of(local.generate([_request()])["r"])
    events = await _collect(split.actor, _request())
    assert tokens_of(events) == expected
    assert events[-1].finish_reason is FinishReason.LENGTH


async def test_not_ready_without_every_rank(checkpoint: Path) -> None:
    """With a rank missing the actor is healthy but not ready; with the last one it becomes ready by itself."""
    loopback = Loopback(checkpoint)
    try:
        loopback.actor.start()
        loopback.start_expert(0)
        loopback.reconcile()
        loopback.actor.check_health()
        assert not loopback.actor.is_ready()
        loopback.start_expert(1)
        loopback.reconcile()
        await loopback.until_ready()
        loopback.lose(1)
        assert not loopback.actor.is_ready()
    finally:
        loopback.close()


async def test_a_lost_rank_is_a_pause_not_an_error(split: Loopback, checkpoint: Path) -> None:
    """A rank dies while a request runs; with its replacement the request ends as if nothing had happened."""
    local = LocalCluster(checkpoint, split.config, ep_size=EP_SIZE)
    expected = tokens_of(local.generate([_request(max_tokens=60)])["r"])
    stream = split.actor.generate(_request(max_tokens=60))
    events = [await anext(stream)]
    split.lose(1)
    split.start_expert(1)
    split.reconcile()
    events += [event async for event in stream]
    assert tokens_of(events) == expected


async def test_experts_that_stay_away_end_requests_with_unavailable(checkpoint: Path) -> None:
    """After the recovery time-out what runs fails as UNAVAILABLE and what comes is refused; nothing hangs."""
    loopback = Loopback(checkpoint, exchange_timeout_s=0.2, recovery_timeout_s=0.3)
    try:
        loopback.actor.start()
        for ep_rank in range(EP_SIZE):
            loopback.start_expert(ep_rank)
        loopback.reconcile()
        await loopback.until_ready()
        stream = loopback.actor.generate(_request(max_tokens=100))
        await anext(stream)
        loopback.lose(0)
        events = [event async for event in stream]
        error = events[-1].error
        assert error is not None
        assert error.kind is ErrorKind.UNAVAILABLE
        with pytest.raises(ExpertsUnavailable):
            await _collect(loopback.actor, _request("late"))
    finally:
        loopback.close()


async def test_requests_before_the_warm_up_lose_nothing(checkpoint: Path) -> None:
    """Requests that arrive while ranks still join wait in the inbox and get every token."""
    loopback = Loopback(checkpoint)
    try:
        expected = tokens_of(LocalCluster(checkpoint, loopback.config, ep_size=EP_SIZE).generate([_request()])["r"])
        loopback.actor.start()
        early = [asyncio.create_task(_collect(loopback.actor, _request(f"r{idx}"))) for idx in range(3)]
        await asyncio.sleep(0)
        for ep_rank in range(EP_SIZE):
            loopback.start_expert(ep_rank)
        loopback.reconcile()
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*early)
        assert [tokens_of(events) for events in answers] == [expected] * 3
    finally:
        loopback.close()


async def test_requests_are_refused_when_experts_never_come(checkpoint: Path) -> None:
    """A fresh actor without experts ends what waits with UNAVAILABLE after the recovery time-out."""
    loopback = Loopback(checkpoint, exchange_timeout_s=0.1, recovery_timeout_s=0.2)
    try:
        loopback.actor.start()
        async with asyncio.timeout(10):
            events = await _collect(loopback.actor, _request())
        assert events[-1].error is not None
        assert events[-1].error.kind is ErrorKind.UNAVAILABLE
    finally:
        loopback.close()


async def test_a_deadline_passes_during_an_outage(split: Loopback) -> None:
    """While experts are away a request whose deadline passes is told so; it does not wait for their return."""
    stream = split.actor.generate(_request(max_tokens=100, deadline_s=0.4))
    await anext(stream)
    split.lose(1)
    async with asyncio.timeout(4):
        events = [event async for event in stream]
    error = events[-1].error
    assert error is not None
    assert error.kind is ErrorKind.DEADLINE


async def test_an_old_outage_is_forgotten_once_experts_are_back(split: Loopback) -> None:
    """The recovery clock does not run on while nothing runs: a later, short outage is a pause again."""
    stream = split.actor.generate(_request(max_tokens=100))
    await anext(stream)
    split.lose(1)
    await _until(lambda: split.actor._recovery.is_failing)
    await stream.aclose()
    split.start_expert(1)
    split.reconcile()
    async with asyncio.timeout(5):
        await _until(lambda: not split.actor._recovery.is_failing)


async def test_an_id_can_be_used_again_after_its_abort(split: Loopback) -> None:
    """A new request under an aborted id gets its own tokens, or is refused while the old one is being forgotten."""
    first = split.actor.generate(_request(max_tokens=100))
    await anext(first)
    await first.aclose()
    async with asyncio.timeout(5):
        await _until(lambda: not split.actor._streams._aborting)
    events = await _collect(split.actor, _request(max_tokens=7))
    assert len(tokens_of(events)) == 7


async def test_an_engine_that_fails_everything_is_not_healthy(split: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """When not even a token of our own can be computed the engine ends, so that the actor is replaced."""

    def broken(*_: object) -> None:
        raise RuntimeError("sticky device error")

    monkeypatch.setattr(split.actor._engine._decoder, "logits", broken)
    events = await _collect(split.actor, _request())
    assert events[-1].error is not None
    assert events[-1].error.kind is ErrorKind.INTERNAL
    async with asyncio.timeout(5):
        await _until(lambda: split.actor._failure is not None)
    with pytest.raises(ActorError):
        split.actor.check_health()


async def test_closing_the_stream_aborts_the_sequence(split: Loopback) -> None:
    """A client that leaves frees its sequence within a step."""
    stream = split.actor.generate(_request(max_tokens=100))
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(5):
        await _until(lambda: not split.actor.load_report().num_running)


async def test_drain_lets_the_running_finish_and_refuses_the_new(split: Loopback) -> None:
    """Draining waits for open streams; what comes later is told to go elsewhere."""
    running = asyncio.create_task(_collect(split.actor, _request(max_tokens=30)))
    async with asyncio.timeout(5):
        await _until(lambda: bool(split.actor.load_report().num_running))
    await asyncio.to_thread(split.actor.drain, 10.0)
    assert running.done()
    assert len(tokens_of(running.result())) == 30
    with pytest.raises(ExpertsUnavailable):
        await _collect(split.actor, _request("late"))


async def test_a_request_that_cannot_work_is_told_so(split: Loopback) -> None:
    """Checks of the engine come back as the request's own error event."""
    too_long = GenerateRequest("long", tuple(range(200)), SamplingSpec(max_tokens=1))
    events = await _collect(split.actor, too_long)
    assert events[-1].error is not None
    assert (events[-1].error.kind, events[-1].error.param) == (ErrorKind.REJECTED, "prompt")


async def test_one_id_is_served_once(split: Loopback) -> None:
    """A second request under an id in use is refused and harms neither the first nor its stream."""
    first = split.actor.generate(_request(max_tokens=40))
    events = [await anext(first)]
    with pytest.raises(ActorError, match="already"):
        await _collect(split.actor, _request())
    events += [event async for event in first]
    assert len(tokens_of(events)) == 40


async def test_a_dead_engine_is_noticed(split: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the engine thread dies open streams end with an error, health fails and readiness is false."""
    engine = split.actor._engine

    def explode() -> None:
        raise AssertionError("broken invariant")

    monkeypatch.setattr(engine, "run", explode)
    events = await _collect(split.actor, _request())
    assert events[-1].error is not None
    assert not split.actor.is_ready()
    with pytest.raises(ActorError):
        split.actor.check_health()


async def test_a_map_changes_under_running_requests(split: Loopback, checkpoint: Path) -> None:
    """Prepared, adopted and retired while sequences run: nobody fails, and the tokens stay those of one process."""
    requests = [_request(f"r{idx}", max_tokens=60) for idx in range(3)]
    local = LocalCluster(checkpoint, split.config, ep_size=EP_SIZE)
    expected = tokens_of(local.generate([_request(max_tokens=60)])["r"])
    running = [asyncio.create_task(_collect(split.actor, request)) for request in requests]
    split.follow(MAP, next_map=SWAPPED)
    await split.until_served(0, 1)
    split.follow(SWAPPED, MAP)
    async with asyncio.timeout(10):
        await _until(lambda: split.actor.adopted_epoch == 1)
    split.follow(SWAPPED)
    await split.until_served(1)
    assert [tokens_of(events) for events in await asyncio.gather(*running)] == [expected] * 3
    assert tokens_of(await _collect(split.actor, _request("last", max_tokens=60))) == expected


async def test_rows_of_a_map_that_is_not_served_wait_for_the_newer_one(split: Loopback) -> None:
    """The ranks went on without the attention actor: its request pauses, and goes on once it hears of the new map."""
    split.follow(SWAPPED)
    await split.until_served(1)
    split.actor.reconcile({rank: endpoint for rank, (_, endpoint) in split.experts.items()}, MAP)
    # A later map with the same places, of which only the ranks have heard.
    later = replace(SWAPPED, map_epoch=2)
    for expert, _ in split.experts.values():
        expert.follow_maps([later], None)
    await split.until_served(2)
    running = asyncio.create_task(_collect(split.actor, _request(max_tokens=5)))
    await asyncio.sleep(0.05)
    assert not running.done()
    split.follow(later)
    events = await running
    assert (events[-1].finish_reason, len(tokens_of(events))) == (FinishReason.LENGTH, 5)


async def test_what_was_chosen_and_computed_is_counted(split: Loopback) -> None:
    """Both tiers count the same pairs: every token of a step has its experts in each layer."""
    await _collect(split.actor, _request(max_tokens=8))
    sample = split.actor.take_sample()
    assert sample is not None
    computed = [expert.take_sample() for expert, _ in split.experts.values()]
    counted = sum(rank.pairs.sum() for rank in computed if rank is not None)
    assert sample.tokens.sum() == counted > 0
    # The warm-up's steps were counted by the gates, and timed by nobody.
    assert sample.num_steps > len(split.actor.take_steps()) > 0
    assert split.actor.take_sample() is None
