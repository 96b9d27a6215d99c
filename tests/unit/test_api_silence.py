"""What keeps a connection alive while the client has nothing to read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from actors.messages import FinishReason, GenerateRequest, TokenEvent
from cluster.api.app import create_app
from cluster.api.scripted import ScriptedEngine, Step
from cluster.api.served_model import ServedModel, load_served_model
from cluster.api.settings import ApiLimits, ApiSettings
from tests.fakes.api import (
    CHAT,
    COMPLETIONS,
    MODEL_NAME,
    api_client,
    chat,
    completion,
    drive,
    sse_payloads,
    tell,
    write_model_folder,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ServedModel:
    return load_served_model(folder)


async def test_silence_is_bridged_by_comments(folder: Path, model: ServedModel) -> None:
    """A stream that waits for its first token is kept alive with comments, then goes on as usual."""
    release, tokens = asyncio.Event(), tell(model.tokenizer.encode("x"))

    def script(request: GenerateRequest) -> list[Step]:
        asyncio.get_running_loop().call_later(0.1, release.set)
        return [release, *tokens]

    engine = ScriptedEngine(script)
    async with api_client(folder, engine, limits={"keep_alive_s": 0.01}) as client:
        text = (await client.post(COMPLETIONS, json=completion(stream=True))).text
    assert text.startswith(": keep-alive\n\n")
    assert text.endswith("data: [DONE]\n\n")
    assert sse_payloads(text)[0]["choices"][0]["text"] == "x"


async def test_hidden_reasoning_is_silence(folder: Path, model: ServedModel) -> None:
    """The client hears nothing while the model thinks without a pause, so comments keep the connection alive."""
    heard, thought = asyncio.Event(), model.tokenizer.encode("hm")[0]

    class Thinker(ScriptedEngine):
        async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
            while not heard.is_set():
                yield TokenEvent(request.request_id, (thought,))
                await asyncio.sleep(0)
            yield TokenEvent(request.request_id, (), finish_reason=FinishReason.LENGTH)

    limits = ApiLimits(keep_alive_s=0.01)
    app = create_app(ApiSettings(checkpoint=folder, model_name=MODEL_NAME, limits=limits), Thinker(lambda _: []))

    async def listened(scope: Any, receive: Any, send: Any) -> None:
        async def send_listened(message: Any) -> None:
            if b"keep-alive" in message.get("body", b""):
                heard.set()
            await send(message)

        await app(scope, receive, send_listened)

    body = json.dumps(chat(stream=True, include_reasoning=False)).encode()
    async with asyncio.timeout(5):
        sent = await drive(listened, body, CHAT, asyncio.Event())
    text = b"".join(message.get("body", b"") for message in sent)
    assert b"hm" not in text
    assert text.endswith(b"data: [DONE]\n\n")
