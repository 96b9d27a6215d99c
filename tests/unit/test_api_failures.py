"""Failures of the engine: their status before the first byte, their event after it, and one table for all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.errors import EngineOverloaded, ExpertsUnavailable, RequestRejected
from actors.messages import ErrorKind, FinishReason, GenerateRequest, RequestError, TokenEvent
from cluster import errors
from cluster.api.errors import ANSWERS
from cluster.api.scripted import ScriptedEngine, Step
from cluster.api.served_model import ServedModel, load_served_model
from tests.fakes.api import CHAT, COMPLETIONS, api_client, chat, completion, sse_payloads, tell, write_model_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return load_served_model(folder)


ENGINE_FAILURES: list[tuple[Step, int, bool]] = [
    (RequestRejected("engine's words"), 400, False),
    (EngineOverloaded("engine's words"), 429, True),
    (ExpertsUnavailable("engine's words"), 503, True),
    (RuntimeError("engine's words"), 500, False),
    (TokenEvent("", finish_reason=FinishReason.ABORT), 504, True),
    (
        TokenEvent("", finish_reason=FinishReason.ERROR, error=RequestError(ErrorKind.UNAVAILABLE, "Try again.")),
        503,
        True,
    ),
    (TokenEvent("", finish_reason=FinishReason.ERROR, error=RequestError(ErrorKind.REJECTED, "No.")), 400, False),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("failure", "status", "can_retry"), ENGINE_FAILURES)
async def test_failures_before_the_first_token(
    failure: Step, status: int, can_retry: bool, stream: bool, folder: Path
) -> None:
    """A failure before anything was sent gets its status, streaming or not; exception text is never shown."""
    engine = ScriptedEngine(lambda request: [failure])
    async with api_client(folder, engine) as client:
        answer = await client.post(CHAT, json=chat(stream=stream))
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) == can_retry
    assert "engine's words" not in answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("failure", "status", "can_retry"), ENGINE_FAILURES)
async def test_failures_within_a_stream(
    failure: Step, status: int, can_retry: bool, folder: Path, model: ServedModel
) -> None:
    """After the first byte a failure is the stream's last event: no finish reason, no closing mark."""
    script = [*tell(model.tokenizer.encode("a b"))[:1], failure]
    engine = ScriptedEngine(lambda request: script)
    async with api_client(folder, engine) as client:
        answer = await client.post(COMPLETIONS, json=completion(stream=True))
        whole = await client.post(COMPLETIONS, json=completion())
    first, last = sse_payloads(answer.text)
    assert first["choices"][0]["text"] == "a"
    assert set(last) == {"error"}
    assert "engine's words" not in answer.text
    assert whole.status_code == status


async def test_an_engine_that_just_ends_is_a_failure(folder: Path, model: ServedModel) -> None:
    """A stream of events without a finish reason, as a lost actor leaves it, is a 503 and not an answer."""
    engine = ScriptedEngine(lambda request: tell(model.tokenizer.encode("a b"))[:1])
    async with api_client(folder, engine) as client:
        answer = await client.post(CHAT, json=chat())
    assert answer.status_code == 503


async def test_one_failed_choice_fails_the_request(folder: Path, model: ServedModel) -> None:
    """When one of n sequences fails the others are aborted and the request gets the failure."""
    never = asyncio.Event()

    def script(request: GenerateRequest) -> list[Step]:
        return [ExpertsUnavailable()] if request.request_id.endswith("-1") else [never]

    engine = ScriptedEngine(script)
    async with api_client(folder, engine) as client:
        answer = await client.post(CHAT, json=chat(n=3))
    assert answer.status_code == 503
    assert [request_id[-2:] for request_id in sorted(engine.aborted)] == ["-0", "-2"]


async def test_a_silent_engine_meets_the_deadline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that never says anything costs the client its deadline, not forever, and is aborted."""
    monkeypatch.setattr("cluster.api.generation.DEADLINE_GRACE_S", 0.0)
    never = asyncio.Event()
    engine = ScriptedEngine(lambda request: [never])
    async with api_client(folder, engine, limits={"request_timeout_s": 0.05}) as client:
        whole = await client.post(CHAT, json=chat())
        streamed = await client.post(CHAT, json=chat(stream=True))
    assert (whole.status_code, streamed.status_code) == (504, 504)
    assert {"retry-after"} <= set(whole.headers) & set(streamed.headers)
    assert len(engine.aborted) == 2


def test_the_table_is_complete() -> None:
    """Every failure that a client is told of, and every kind the engine reports, has its own line in the table."""
    failures = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ApiError)]
    assert set(failures) - {errors.ApiError, errors.GenerationFailed} <= set(ANSWERS)
    assert set(ErrorKind) <= set(ANSWERS)
    assert all(answer.can_retry == (answer.status in (429, 503, 504)) for answer in ANSWERS.values())
