"""Who gets in and what the others are told: seats counted in sequences, and when to come back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.errors import EngineOverloaded
from actors.messages import GenerateRequest
from cluster.api.admission import Admission
from cluster.api.retry_after import LEAST_S, MOST_S, RetryLine, expected_wait_s, told_s
from cluster.api.scripted import ScriptedEngine, Step
from cluster.api.served_model import ServedModel, load_served_model
from cluster.errors import TooManyRequests
from tests.fakes.api import CHAT, COMPLETIONS, api_client, chat, completion, tell, write_model_folder

NO_CHANCE, MOST_CHANCE = 0.0, 0.999


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return load_served_model(folder)


def line(clock: Clock, draw: float = NO_CHANCE, unknown_s: float = 2.0) -> RetryLine:
    return RetryLine(unknown_s, clock=clock, draw=lambda: draw)


def test_the_line_moves_as_fast_as_sequences_end() -> None:
    """By hand: 4 sequences of 8 s each end one every 2 s, so the third in the line waits for 6 s."""
    assert expected_wait_s(0, 4, 8.0) == 2.0
    assert expected_wait_s(2, 4, 8.0) == 6.0


@pytest.mark.parametrize(
    ("expected_s", "draw", "seconds"),
    [
        (0.01, NO_CHANCE, 1),
        (0.01, MOST_CHANCE, 2),
        (2.0, NO_CHANCE, 2),
        (2.0, MOST_CHANCE, 3),
        (10.0, NO_CHANCE, 10),
        (10.0, MOST_CHANCE, 14),
        (3600.0, NO_CHANCE, 20),
        (3600.0, MOST_CHANCE, 29),
    ],
)
def test_what_is_told(expected_s: float, draw: float, seconds: int) -> None:
    """Between the bounds, and chance has room at both ends of them."""
    assert told_s(expected_s, draw) == seconds
    assert LEAST_S <= seconds <= MOST_S


def test_who_is_sent_away_together_does_not_come_back_together(clock: Clock) -> None:
    """A hundred clients at one moment are told ever later times: the line is as long as what was told."""
    waiting = line(clock)
    waiting.answered(4.0)
    told = [waiting.join(num_running=16) for _ in range(100)]
    assert told == sorted(told)
    assert told[0] == 1
    assert told[39] == 10  # 40 clients at 4 seats a second
    assert told[-1] == 20


def test_who_has_come_back_is_no_longer_ahead(clock: Clock) -> None:
    """When their times are over the line is empty again."""
    waiting = line(clock)
    waiting.answered(4.0)
    before = [waiting.join(num_running=4) for _ in range(8)]
    clock.now += MOST_S
    assert (before[-1], waiting.join(num_running=4)) == (8, 1)


def test_without_a_measurement_the_setting_holds(clock: Clock) -> None:
    """Nothing answered yet, or nothing running here; and an outage is no queue, however long the line is."""
    waiting = line(clock, unknown_s=5.0)
    assert [waiting.join(num_running=8) for _ in range(20)] == [5] * 20
    waiting.answered(60.0)
    assert waiting.join(num_running=0) == 5
    assert waiting.outage_s() == 5


def test_an_average_follows_slowly(clock: Clock) -> None:
    """One answer in an instant does not make the others quick."""
    waiting = line(clock)
    waiting.answered(8.0)
    waiting.answered(0.0)
    assert waiting.join(num_running=1) == 7


def test_seats_are_sequences(clock: Clock) -> None:
    """Eight seats: one request of five and one of three; then nobody, and after the five have left, five."""
    admission = Admission(8, line(clock), clock)
    five, three = admission.enter(), admission.enter()
    five.grow(5)
    three.grow(3)
    with pytest.raises(TooManyRequests):
        admission.enter()
    five.leave(is_answered=True)
    assert admission.num_taken == 3
    last = admission.enter()
    with pytest.raises(TooManyRequests):
        last.grow(6)
    last.grow(5)
    assert admission.num_taken == 8


def test_a_request_larger_than_everything_takes_everything(clock: Clock) -> None:
    """It could never come in otherwise; it must be alone."""
    admission = Admission(4, line(clock), clock)
    large = admission.enter()
    large.grow(32)
    assert admission.num_taken == 4
    large.leave(is_answered=True)
    assert admission.num_taken == 0
    small, large = admission.enter(), admission.enter()
    with pytest.raises(TooManyRequests):
        large.grow(32)
    large.leave(is_answered=False)
    small.leave(is_answered=False)
    assert admission.num_taken == 0


def test_only_answered_generations_are_measured(clock: Clock) -> None:
    """Neither a refusal nor a list of models says how long a sequence takes."""
    admission = Admission(4, line(clock, unknown_s=5.0), clock)
    running, models, refused = admission.enter(), admission.enter(), admission.enter()
    running.grow(1)
    refused.grow(1)
    clock.now += 3.0
    models.leave(is_answered=True)
    refused.leave(is_answered=False)
    assert admission.retry_after_s(429) == 5
    running.leave(is_answered=True)
    admission.enter()
    assert admission.retry_after_s(429) == 6  # one seat every 3 s, and one client ahead
    assert admission.retry_after_s(503) == 5


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(n=3)),
        (COMPLETIONS, completion(n=3)),
        (COMPLETIONS, completion(prompt=["a", "b", "c"])),
    ],
)
async def test_the_bound_counts_sequences(path: str, body: dict[str, Any], folder: Path, model: ServedModel) -> None:
    """With four seats a request of three leaves one: another of three gets 429, one of one is answered."""
    release, asked = asyncio.Event(), asyncio.Semaphore(0)
    tokens = tell(model.tokenizer.encode("x"))

    def script(request: GenerateRequest) -> list[Step]:
        asked.release()
        return [release, *tokens]

    engine = ScriptedEngine(script)
    async with api_client(folder, engine, limits={"max_concurrent_requests": 4}) as client:
        running = asyncio.create_task(client.post(path, json=body))
        for _ in range(3):
            await asked.acquire()
        refused = await client.post(path, json=body)
        one = asyncio.create_task(client.post(COMPLETIONS, json=completion()))
        await asked.acquire()
        release.set()
        answered = [(await running).status_code, (await one).status_code]
        again = await client.post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert LEAST_S <= int(refused.headers["retry-after"]) <= MOST_S
    assert (answered, again.status_code) == ([200, 200], 200)
    assert len(engine.requests) == 3 + 1 + 3


async def test_refusals_of_the_engine_stand_in_the_same_line(folder: Path) -> None:
    """Its queue is full. Nothing has been measured, so the setting holds, and chance spreads it."""
    engine = ScriptedEngine(lambda request: [EngineOverloaded()])
    async with api_client(folder, engine, limits={"retry_after_s": 10}) as client:
        told = [int((await client.post(CHAT, json=chat())).headers["retry-after"]) for _ in range(12)]
    assert all(10 <= seconds < 15 for seconds in told)
    assert len(set(told)) > 1
