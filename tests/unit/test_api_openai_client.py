"""The official openai client against the app behind uvicorn on this machine."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from actors.errors import EngineOverloaded, ExpertsUnavailable
from actors.messages import FinishReason
from cluster.api.app import create_app
from cluster.api.scripted import ScriptedEngine, Step
from cluster.api.served_model import ServedModel, load_served_model
from cluster.api.settings import ApiSettings
from tests.fakes.api import MODEL_NAME, WEATHER_TOOL, call_markup, tell, write_model_folder

KEY = "sk-test"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model_folder(tmp_path_factory.mktemp("model"), context_tokens=2048)
    (folder / "keys").write_text(KEY)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return load_served_model(folder)


@asynccontextmanager
async def openai_client(folder: Path, engine: ScriptedEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    """A client of a real server on a port of its own."""
    settings = ApiSettings(checkpoint=folder, model_name=MODEL_NAME, api_keys_file=folder / "keys")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(settings, engine), log_level="critical", lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        try:
            async with openai.AsyncOpenAI(api_key=KEY, base_url=base_url, max_retries=0, timeout=10) as client:
                yield client
        finally:
            server.should_exit = True
            await serving


async def test_chat_whole_and_streamed(folder: Path, model: ServedModel) -> None:
    """The client reads the same message, reasoning and usage either way."""
    engine = ScriptedEngine(lambda request: tell(model.tokenizer.encode("hm\n</think>\nHello 🙂")))
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    async with openai_client(folder, engine) as client:
        whole = await client.chat.completions.create(model=MODEL_NAME, messages=messages)
        stream = await client.chat.completions.create(
            model=MODEL_NAME, messages=messages, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert whole.choices[0].message.content == "Hello 🙂"
    assert whole.choices[0].message.model_dump()["reasoning_content"] == "hm"
    assert whole.choices[0].finish_reason == "stop"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello 🙂"
    assert chunks[-1].usage == whole.usage
    assert whole.model_dump()["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
    assert len({chunk.id for chunk in chunks}) == 1


async def test_tool_calls_whole_and_streamed(folder: Path, model: ServedModel) -> None:
    """The client's own objects hold the same two calls either way, also by its helper that joins a stream."""
    said = f"hm\n</think>\nI look.\n{call_markup(city='Paris')}{call_markup(city='Rome', days='[1, 2]')}"
    engine = ScriptedEngine(lambda request: tell(model.tokenizer.encode(said)))
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    asked: dict[str, Any] = {"model": MODEL_NAME, "messages": messages, "tools": [WEATHER_TOOL], "tool_choice": "auto"}
    async with openai_client(folder, engine) as client:
        whole = (await client.chat.completions.create(**asked)).choices[0]
        async with client.chat.completions.stream(**asked, parallel_tool_calls=True) as stream:
            async for _ in stream:
                pass
            joined = (await stream.get_final_completion()).choices[0]
        for choice in (whole, joined):
            messages += [choice.message.model_dump(), *results_of(choice.message.tool_calls)]
        await client.chat.completions.create(**asked)
    for choice in (whole, joined):
        calls = [call.function for call in choice.message.tool_calls or []]
        assert [(call.name, json.loads(call.arguments)) for call in calls] == [
            ("get_weather", {"city": "Paris"}),
            ("get_weather", {"city": "Rome", "days": [1, 2]}),
        ]
        assert (choice.message.content, choice.finish_reason) == ("I look.", "tool_calls")
    assert len(engine.requests[2].prompt_token_ids) > len(engine.requests[0].prompt_token_ids)


def results_of(calls: Any) -> list[dict[str, Any]]:
    """A result for each call, in the opposite order."""
    return [{"role": "tool", "tool_call_id": call.id, "content": "18C"} for call in reversed(calls)]


async def test_tool_mistakes_become_openai_exceptions(folder: Path, model: ServedModel) -> None:
    """A forced call and a strict schema, which the client's helpers ask for, are named as what is not served."""
    engine = ScriptedEngine(lambda request: tell(model.tokenizer.encode("x")))
    strict: Any = {"type": "function", "function": {**WEATHER_TOOL["function"], "strict": True}}
    async with openai_client(folder, engine) as client:
        for fields, param in (
            ({"tools": [WEATHER_TOOL], "tool_choice": "required"}, "tool_choice"),
            ({"tools": [strict]}, "tools[0].function.strict"),
        ):
            asked: dict[str, Any] = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hi"}], **fields}
            with pytest.raises(openai.BadRequestError, match="constrained decoding") as wrong:
                await client.chat.completions.create(**asked)
            assert wrong.value.param == param
    assert engine.requests == []


async def test_completions_and_models(folder: Path, model: ServedModel) -> None:
    """Plain completions with several prompts, streamed too, and the list of models."""
    engine = ScriptedEngine(lambda request: tell(model.tokenizer.encode("a b"), FinishReason.LENGTH, logprobs=True))
    async with openai_client(folder, engine) as client:
        whole = await client.completions.create(model=MODEL_NAME, prompt=["x", "y"], max_tokens=2, logprobs=1)
        stream = await client.completions.create(model=MODEL_NAME, prompt=[5, 6], max_tokens=2, stream=True)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
        names = [card.id async for card in await client.models.list()]
    assert [choice.text for choice in whole.choices] == ["a b", "a b"]
    assert whole.choices[1].logprobs is not None
    assert whole.choices[1].logprobs.tokens == ["a", " b"]
    assert (streamed, names) == ("a b", [MODEL_NAME])


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (EngineOverloaded(), openai.RateLimitError),
        (ExpertsUnavailable(), openai.InternalServerError),
    ],
)
async def test_engine_failures_become_openai_exceptions(
    failure: Exception, kind: type[openai.APIStatusError], folder: Path
) -> None:
    """Backpressure and absence arrive as the exceptions on which clients retry."""
    async with openai_client(folder, ScriptedEngine(lambda request: [failure])) as client:
        with pytest.raises(kind) as caught:
            await client.completions.create(model=MODEL_NAME, prompt="x")
    assert caught.value.response.headers["retry-after"]


async def test_client_mistakes_become_openai_exceptions(folder: Path, model: ServedModel) -> None:
    """Wrong field, unknown model and wrong key each raise their own exception, with param and code."""
    engine = ScriptedEngine(lambda request: tell(model.tokenizer.encode("x")))
    async with openai_client(folder, engine) as client:
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.completions.create(model=MODEL_NAME, prompt="x", temperature=9)
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.completions.create(model="other", prompt="x")
        with pytest.raises(openai.AuthenticationError):
            await client.with_options(api_key="wrong").models.list()
    assert (wrong.value.param, unknown.value.code) == ("temperature", "model_not_found")
    assert engine.requests == []


async def test_failure_within_a_stream_raises(folder: Path, model: ServedModel) -> None:
    """What was told before the failure is read, then the client raises instead of ending quietly."""
    script: list[Step] = [*tell(model.tokenizer.encode("a b"))[:1], ExpertsUnavailable()]
    async with openai_client(folder, ScriptedEngine(lambda request: script)) as client:
        stream = await client.completions.create(model=MODEL_NAME, prompt="x", stream=True)
        chunks = aiter(stream)
        assert (await anext(chunks)).choices[0].text == "a"
        with pytest.raises(openai.APIError):
            await anext(chunks)


async def test_closing_a_stream_aborts(folder: Path, model: ServedModel) -> None:
    """A client that stops reading and closes its connection ends the sequence in the engine."""
    never = asyncio.Event()
    engine = ScriptedEngine(lambda request: [*tell(model.tokenizer.encode("a b"))[:1], never])
    async with openai_client(folder, engine) as client:
        stream = await client.completions.create(model=MODEL_NAME, prompt="x", stream=True)
        assert (await anext(aiter(stream))).choices[0].text == "a"
        await stream.close()
        async with asyncio.timeout(5):
            await engine.abort_seen.wait()
    assert engine.aborted == [engine.requests[0].request_id]
