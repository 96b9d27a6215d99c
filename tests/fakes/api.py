"""What tests of the HTTP API share: a checkpoint folder without weights, a client without sockets, event scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from actors.messages import FinishReason, TokenEvent, TokenLogprob
from cluster.api.app import create_app
from cluster.api.engine import Engine
from cluster.api.settings import ApiSettings
from ops.telemetry.meter import Meter
from ops.telemetry.tracing import NO_TRACING, Tracing
from tests.fakes.configs import tiny_config
from tests.fakes.tokenizer import eos_token_ids, write_tokenizer

MODEL_NAME = "step-3.5-test"
VOCAB_SIZE = 1024
CONTEXT_TOKENS = 256
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"type": "integer"}}},
            "required": ["city"],
        },
    },
}


def write_model_folder(folder: Path, context_tokens: int = CONTEXT_TOKENS) -> Path:
    """config.json, generation_config.json, tokenizer and template: all that the API reads of a checkpoint."""
    positions = {"max_position_embeddings": context_tokens, "max_seq_len": context_tokens}
    config = {**tiny_config(vocab_size=VOCAB_SIZE), **positions}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos_token_ids(VOCAB_SIZE)}))
    write_tokenizer(folder, VOCAB_SIZE, context_tokens)
    return folder


@asynccontextmanager
async def api_client(
    folder: Path, engine: Engine, *, meter: Meter | None = None, tracing: Tracing = NO_TRACING, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app, in this process. An exception that leaves the app fails the test."""
    app = create_app(
        ApiSettings(checkpoint=folder, model_name=MODEL_NAME, **settings), engine, meter=meter, tracing=tracing
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        yield client


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": MODEL_NAME, "messages": HI, **fields}


def completion(**fields: Any) -> dict[str, Any]:
    """The body of a completion request."""
    return {"model": MODEL_NAME, "prompt": "Hi", **fields}


def call_markup(name: str = "get_weather", **values: str) -> str:
    """A tool call in the model's own words."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def tell(
    token_ids: Sequence[int],
    finish_reason: FinishReason = FinishReason.STOP,
    *,
    tokens_per_event: int = 1,
    logprobs: bool = False,
) -> list[TokenEvent]:
    """The events of a sequence that says these tokens."""
    starts = range(0, len(token_ids), tokens_per_event) or [0]
    groups = [tuple(token_ids[start : start + tokens_per_event]) for start in starts]
    return [
        TokenEvent(
            request_id="",
            token_ids=group,
            logprobs=tuple(TokenLogprob(i, -0.5, ((i, -0.5), (7, -1.5))) for i in group) if logprobs else (),
            finish_reason=finish_reason if group_idx == len(groups) - 1 else None,
            num_cached_tokens=2 if group_idx == 0 else 0,
        )
        for group_idx, group in enumerate(groups)
    ]


def sse_payloads(text: str) -> list[Any]:
    """The JSON values of an event stream; the closing mark stays a string."""
    events = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [entry if entry == "[DONE]" else json.loads(entry) for entry in events]


async def drive(app: Any, body: bytes, path: str, leave: asyncio.Event) -> list[dict[str, Any]]:
    """One request by bare ASGI, whose client leaves when `leave` is set. Returns what was sent until then."""
    sent: list[dict[str, Any]] = []
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        message = next(messages, None)
        if message is None:
            await leave.wait()
            return {"type": "http.disconnect"}
        return message

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"api"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    return sent
