"""The gateway's metrics: what each way in which a request can end leaves in them, and nothing twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from actors.errors import EngineOverloaded, ExpertsUnavailable, RequestRejected
from actors.messages import ErrorKind, FinishReason, GenerateRequest, RequestError, TokenEvent
from cluster.api.app import create_app
from cluster.api.metrics import ApiMetrics
from cluster.api.scripted import ScriptedEngine, Step
from cluster.api.served_model import ServedModel, load_served_model
from cluster.api.settings import ApiSettings
from cluster.errors import NotReady
from ops.telemetry.metrics import CONTINUATIONS, METRICS
from ops.telemetry.plain import plain_metrics
from ops.telemetry.recording import RecordingMeter
from ops.telemetry.spec import Owner
from tests.fakes.api import (
    CHAT,
    COMPLETIONS,
    CONTEXT_TOKENS,
    MODEL_NAME,
    api_client,
    chat,
    completion,
    drive,
    tell,
    write_model_folder,
)

TEXT = "one two three"
FAILED = TokenEvent("", finish_reason=FinishReason.ERROR, error=RequestError(ErrorKind.INTERNAL, "No."))
LATE = TokenEvent("", finish_reason=FinishReason.ABORT, error=RequestError(ErrorKind.DEADLINE, "Late."))
ONLY_ONE: dict[str, Any] = {"limits": {"max_concurrent_requests": 1}}


class Reached(asyncio.Event):
    """Never set. reached: released whenever somebody begins to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = asyncio.Semaphore(0)

    async def wait(self) -> Literal[True]:
        self.reached.release()
        return await super().wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return load_served_model(folder)


@pytest.fixture
def tokens(model: ServedModel) -> list[int]:
    return model.tokenizer.encode(TEXT)


@pytest.fixture
def meter() -> RecordingMeter:
    return RecordingMeter(Owner.GATEWAY)


def recorded(meter: RecordingMeter) -> dict[str, float]:
    """What is not zero, by short name and label: counters and gauges by value, histograms by number of values."""
    found: dict[str, float] = {}
    for name, points in plain_metrics(meter.families()).items():
        for labels, value in points:
            number = sum(value["counts"]) if isinstance(value, dict) else value
            if number:
                short = name.removeprefix("step35_").removesuffix("_total").removesuffix("_seconds")
                found[" ".join([short, *labels])] = number
    return found


def total(meter: RecordingMeter, name: str) -> float:
    """The values of a histogram, added up."""
    [[_, value]] = plain_metrics(meter.families())[name]
    return float(value["total"])


def test_every_metric_of_the_gateway_is_recorded(meter: RecordingMeter) -> None:
    """Nothing is declared that nobody counts; continuations are another part's."""
    ApiMetrics(meter)
    declared = {name for name, spec in METRICS.items() if spec.owner is Owner.GATEWAY}
    assert {family.spec.name for family in meter.families()} >= {
        name for name in declared - {spec.name for spec in CONTINUATIONS} if METRICS[name].kind != "histogram"
    }
    assert {name for name in meter._cells if METRICS[name].owner is Owner.GATEWAY} == declared - {
        spec.name for spec in CONTINUATIONS
    }


async def test_a_whole_answer(folder: Path, tokens: list[int], meter: RecordingMeter) -> None:
    """No stream, so no gaps between its events."""
    engine = ScriptedEngine(lambda request: tell(tokens))
    async with api_client(folder, engine, meter=meter) as client:
        usage = (await client.post(COMPLETIONS, json=completion())).json()["usage"]
    assert recorded(meter) == {
        "requests_finished stop": 1,
        "http_responses 2xx": 1,
        "time_to_first_token": 1,
        "time_per_output_token": 1,
        "request_latency": 1,
        "request_prompt_tokens": 1,
        "request_completion_tokens": 1,
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": len(tokens),
    }
    assert total(meter, "step35_request_prompt_tokens") == usage["prompt_tokens"]
    assert total(meter, "step35_request_completion_tokens") == usage["completion_tokens"] == len(tokens)


async def test_a_stream_of_two_choices(folder: Path, tokens: list[int], meter: RecordingMeter) -> None:
    """Sequences count apart, the request and its prompt once."""
    engine = ScriptedEngine(lambda request: tell(tokens, FinishReason.LENGTH))
    async with api_client(folder, engine, meter=meter) as client:
        await client.post(CHAT, json=chat(stream=True, n=2))
    found = recorded(meter)
    num_prompt = len(engine.requests[0].prompt_token_ids)
    assert found == {
        "requests_finished length": 2,
        "http_responses 2xx": 1,
        "time_to_first_token": 1,
        "inter_token_latency": found["inter_token_latency"],
        "time_per_output_token": 1,
        "request_latency": 1,
        "request_prompt_tokens": 1,
        "request_completion_tokens": 1,
        "prompt_tokens": num_prompt,
        "completion_tokens": 2 * len(tokens),
    }
    assert found["inter_token_latency"] == 2 * (len(tokens) - 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_two_prompts_are_both_counted(
    stream: bool, folder: Path, tokens: list[int], meter: RecordingMeter
) -> None:
    """A prompt counts once however many choices it has; the size is that of the request."""
    engine = ScriptedEngine(lambda request: tell(tokens))
    async with api_client(folder, engine, meter=meter) as client:
        await client.post(COMPLETIONS, json=completion(prompt=["Hi", "Hi you"], n=2, stream=stream))
    prompts = {request.prompt_token_ids for request in engine.requests}
    assert len(engine.requests) == 4
    assert recorded(meter)["prompt_tokens"] == sum(map(len, prompts)) == total(meter, "step35_request_prompt_tokens")
    assert recorded(meter)["requests_finished stop"] == 4


SENT_AWAY: list[tuple[Step, str]] = [
    (RequestRejected("x"), "requests_rejected invalid"),
    (EngineOverloaded("x"), "requests_shed overloaded"),
    (ExpertsUnavailable("x"), "requests_shed unavailable"),
    (NotReady("x"), "requests_shed not_ready"),
    (LATE, "requests_shed deadline"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("failure", "place"), SENT_AWAY)
async def test_sent_away_before_a_token(
    failure: Step, place: str, n: int, stream: bool, folder: Path, meter: RecordingMeter
) -> None:
    """One request rejected or shed, whatever its choices; none of its sequences has ended, none has times."""
    engine = ScriptedEngine(lambda request: [failure])
    async with api_client(folder, engine, meter=meter) as client:
        answer = await client.post(CHAT, json=chat(n=n, stream=stream))
    assert recorded(meter) == {place: 1, f"http_responses {answer.status_code // 100}xx": 1}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (FAILED, "error"),
        (RuntimeError("bug"), "error"),
        (ExpertsUnavailable("x"), "error"),
        (TokenEvent("", finish_reason=FinishReason.ERROR), "error"),
        (LATE, "abort"),
    ],
)
async def test_failed_after_a_token(
    failure: Step, reason: str, stream: bool, folder: Path, tokens: list[int], meter: RecordingMeter
) -> None:
    """Its tokens were produced and its sequence ended; times of a whole request there are none."""
    engine = ScriptedEngine(lambda request: [*tell(tokens)[:1], failure])
    async with api_client(folder, engine, meter=meter) as client:
        answer = await client.post(COMPLETIONS, json=completion(stream=stream))
    assert recorded(meter) == {
        f"requests_finished {reason}": 1,
        f"http_responses {answer.status_code // 100}xx": 1,
        "time_to_first_token": 1,
        "request_prompt_tokens": 1,
        "prompt_tokens": len(engine.requests[0].prompt_token_ids),
        "completion_tokens": 1,
    }


async def test_a_bug_before_a_token(folder: Path, meter: RecordingMeter) -> None:
    """That is nobody's fault but ours: the sequence ended with an error."""
    engine = ScriptedEngine(lambda request: [FAILED])
    async with api_client(folder, engine, meter=meter) as client:
        await client.post(CHAT, json=chat())
    assert recorded(meter) == {"requests_finished error": 1, "http_responses 5xx": 1}


async def test_one_failed_choice_aborts_the_others(folder: Path, tokens: list[int], meter: RecordingMeter) -> None:
    """The first has ended by itself, the second fails, the third is aborted while it runs."""
    never, has_ended = asyncio.Event(), asyncio.Event()

    class Engine(ScriptedEngine):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
            try:
                async for event in super().generate(request):
                    yield event
            finally:
                if request.request_id.endswith("-0"):
                    has_ended.set()

    def script(request: GenerateRequest) -> list[Step]:
        scripts: dict[str, list[Step]] = {
            "0": [*tell(tokens[:1])],
            "1": [has_ended, *tell(tokens)[:1], FAILED],
            "2": [*tell(tokens)[:1], never],
        }
        return scripts[request.request_id[-1]]

    async with api_client(folder, Engine(script), meter=meter) as client:
        await client.post(COMPLETIONS, json=completion(n=3))
    found = recorded(meter)
    ended = {name: value for name, value in found.items() if name.startswith("requests_finished")}
    assert ended == {"requests_finished stop": 1, "requests_finished error": 1, "requests_finished abort": 1}
    assert "request_latency" not in found


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_told", [0, 1])
async def test_a_silent_engine(
    num_told: int,
    stream: bool,
    folder: Path,
    tokens: list[int],
    meter: RecordingMeter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The API notices the deadline itself: shed if there was no token, aborted if there was."""
    monkeypatch.setattr("cluster.api.generation.DEADLINE_GRACE_S", 0.0)
    never = asyncio.Event()
    engine = ScriptedEngine(lambda request: [*tell(tokens)[:num_told], never])
    async with api_client(folder, engine, meter=meter, limits={"request_timeout_s": 0.1}) as client:
        await client.post(COMPLETIONS, json=completion(stream=stream, n=2))
    found = recorded(meter)
    expected = {"requests_finished abort": 2} if num_told else {"requests_shed deadline": 1}
    assert {k: v for k, v in found.items() if k.startswith(("requests_finished", "requests_shed"))} == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_told", [0, 2])
@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_clients_that_leave(
    is_cancelled: bool, num_told: int, stream: bool, folder: Path, tokens: list[int], meter: RecordingMeter
) -> None:
    """One client left, each sequence was aborted, what was told stays counted; also where the server cancels."""
    never, leave = Reached(), asyncio.Event()
    engine = ScriptedEngine(lambda request: [*tell(tokens)[:num_told], never])
    app = create_app(ApiSettings(checkpoint=folder, model_name=MODEL_NAME), engine, meter=meter)
    body = json.dumps(completion(n=2, stream=stream)).encode()
    request = asyncio.create_task(drive(app, body, COMPLETIONS, leave))
    async with asyncio.timeout(5):
        for _ in range(2):
            await never.reached.acquire()
        assert recorded(meter)["requests_open"] == 1
        if is_cancelled:
            request.cancel()
        leave.set()
        await asyncio.gather(request, return_exceptions=True)
    found = recorded(meter)
    assert "requests_open" not in found
    assert "request_latency" not in found
    assert (found["client_disconnects"], found["requests_finished abort"]) == (1, 2)
    assert found.get("completion_tokens", 0) == 2 * num_told
    assert not any(name.startswith("requests_shed") for name in found)


async def test_a_client_that_leaves_within_its_body(folder: Path, meter: RecordingMeter) -> None:
    """It left too, though nothing had begun."""
    app = create_app(ApiSettings(checkpoint=folder, model_name=MODEL_NAME), ScriptedEngine(lambda _: []), meter=meter)
    parts: list[dict[str, Any]] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    messages = iter(parts)

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b"", "root_path": "",
        "http_version": "1.1",
    }  # fmt: skip
    await app(scope, receive, send)
    assert recorded(meter) == {"client_disconnects": 1, "http_responses 4xx": 1}


REFUSALS: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: {"json": chat(temperature=9)}, "requests_rejected invalid"),
    (lambda: {"content": b"{"}, "requests_rejected invalid"),
    (lambda: {"json": chat(model="other")}, "requests_rejected unknown_model"),
    (lambda: {"json": chat(max_tokens=CONTEXT_TOKENS)}, "requests_rejected too_long"),
    (lambda: {"content": b"x" * 5000}, "bodies_refused too_large"),
    (lambda: {"content": _in_parts(b"x" * 5000)}, "bodies_refused too_large"),
    (lambda: {"content": _never()}, "bodies_refused too_slow"),
]


@pytest.mark.parametrize(("request_of", "place"), REFUSALS)
async def test_refused_before_the_engine(
    request_of: Callable[[], dict[str, Any]], place: str, folder: Path, meter: RecordingMeter
) -> None:
    """Each for its own reason, once."""
    limits = {"max_body_bytes": 4096, "body_timeout_s": 0.05}
    async with api_client(folder, ScriptedEngine(lambda _: []), meter=meter, limits=limits) as client:
        await client.post(CHAT, **request_of())
    assert recorded(meter) == {place: 1, "http_responses 4xx": 1}


async def test_keys(folder: Path, tmp_path: Path, meter: RecordingMeter) -> None:
    """No key and a wrong key are told apart; machines that ask for health count as nothing."""
    (tmp_path / "keys").write_text("sk-good")
    engine = ScriptedEngine(lambda _: [])
    async with api_client(folder, engine, meter=meter, api_keys_file=tmp_path / "keys") as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "sk-good"}):
            await client.get("/version", headers=headers)
        await client.get("/version", headers={"authorization": "Bearer sk-good"})
        await client.get("/health")
        await client.get("/ready")
        await client.get("/nothing", headers={"authorization": "Bearer sk-good"})
    assert recorded(meter) == {
        "auth_failures missing": 1,
        "auth_failures unknown": 2,
        "http_responses 4xx": 4,
        "http_responses 2xx": 1,
    }


async def test_no_place_is_free(folder: Path, tokens: list[int], meter: RecordingMeter) -> None:
    """Beyond the limit requests are shed, and are not open."""
    release, asked = asyncio.Event(), asyncio.Event()

    def script(request: GenerateRequest) -> list[Step]:
        asked.set()
        return [release, *tell(tokens)]

    async with api_client(folder, ScriptedEngine(script), meter=meter, **ONLY_ONE) as client:
        running = asyncio.create_task(client.post(COMPLETIONS, json=completion()))
        await asked.wait()
        refused: httpx.Response = await client.post(COMPLETIONS, json=completion())
        assert recorded(meter) == {"requests_open": 1, "requests_shed concurrency": 1, "http_responses 4xx": 1}
        release.set()
        await running
    assert refused.status_code == 429
    assert recorded(meter)["requests_finished stop"] == 1


def _in_parts(data: bytes) -> AsyncIterator[bytes]:
    async def parts() -> AsyncIterator[bytes]:
        yield data[:100]
        yield data[100:]

    return parts()


def _never() -> AsyncIterator[bytes]:
    async def parts() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    return parts()
