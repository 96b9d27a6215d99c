"""Everything a client can get wrong in a generation request: a 400 that names it, and the engine is not called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.api.scripted import ScriptedEngine
from tests.fakes.api import (
    CHAT,
    COMPLETIONS,
    CONTEXT_TOKENS,
    HI,
    MODEL_NAME,
    VOCAB_SIZE,
    WEATHER_TOOL,
    api_client,
    chat,
    completion,
    tell,
    write_model_folder,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"))


BAD_FIELDS: list[tuple[dict[str, Any], str | None]] = [
    ({"temperature": "0.5"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": CONTEXT_TOKENS}, "max_tokens"),
    ({"min_tokens": 10**6}, "min_tokens"),
    ({"n": 0}, "n"),
    ({"n": 9}, "n"),
    ({"n": 10**9}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": [""]}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": list(range(65))}, "stop_token_ids"),
    ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"stream": "yes"}, "stream"),
    ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"echo": True}, "echo"),
    ({"best_of": 2}, "best_of"),
    ({"best_of": True}, "best_of"),
    ({"echo": 0}, "echo"),
    ({"reasoning_effort": "none"}, "reasoning_effort"),
    ({"reasoning_effort": "minimal"}, "reasoning_effort"),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": True}},
        "stream_options.continuous_usage_stats",
    ),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"chat_template": "{{ 7 * 7 }}"}, "chat_template"),
    ({"model": 5}, "model"),
    ({"model": None}, "model"),
]

CALL_ARGUMENTS, MISPLACED = "messages[1].tool_calls[1].function.arguments", "messages[0].tool_calls"


def with_calls(*functions: dict[str, Any]) -> dict[str, Any]:
    """Messages with a turn of calls."""
    calls = [{"id": str(index), "function": function} for index, function in enumerate(functions)]
    return {"messages": [*HI, {"role": "assistant", "tool_calls": calls}]}


BAD_CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [*HI, {"role": "user", "content": [{"type": "image_url"}]}]}, "messages[1].content"),
    ({"messages": [{"role": "user", "content": "word " * 400}]}, None),
    ({"messages": [{"role": "user", "content": "x" * 1_000_000}]}, "messages"),
    *[
        (with_calls({"name": "f", "arguments": "{}"}, {"name": "f", "arguments": arguments}), CALL_ARGUMENTS)
        for arguments in ("[", "[]", "5", '"\\ud800"', '{"a": NaN}', '{"a": [1e400]}', '{"a": "Ro', "{", "{" * 9999)
    ],
    (with_calls({"name": "f"}), "messages[1].tool_calls[0].function.arguments"),
    (with_calls({"name": "f", "arguments": 5}), "messages[1].tool_calls[0].function.arguments"),
    (
        {"messages": [*HI, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
        "messages[1].function_call",
    ),
    *[
        ({"messages": [{**with_calls({"name": "f", "arguments": "{}"})["messages"][1], "role": role}]}, MISPLACED)
        for role in ("user", "tool", "system", "developer")
    ],
    ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant", "content": [{"type": "refusal"}]}]}, "messages[0].content"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "x" * 257, "function": {"name": "f"}}]}]},
        "messages[0].tool_calls[0].id",
    ),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
]

BAD_COMPLETIONS: list[tuple[dict[str, Any], str | None]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [1.0]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [VOCAB_SIZE - 1]}, "prompt"),
    ({"prompt": [VOCAB_SIZE]}, "prompt"),
    ({"prompt": [2**40]}, "prompt"),
    ({"prompt": [5] * CONTEXT_TOKENS}, None),
    ({"prompt": "word " * 400}, None),
    ({"prompt": "x" * 1_000_000}, "prompt"),
    ({"prompt": ["x"] * 33}, "prompt"),
    ({"prompt": ["x"] * 300}, "prompt"),
    ({"prompt": ["x"] * 5, "n": 8}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"suffix": "x"}, "suffix"),
    ({"tools": [WEATHER_TOOL]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
]


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


def schema(**fields: Any) -> dict[str, Any]:
    return tool(parameters=fields)


BAD_TOOLS: list[tuple[dict[str, Any], str | None]] = [
    ({"tools": {}}, "tools"),
    ({"tools": "f"}, "tools"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [WEATHER_TOOL, {"type": "custom", "custom": {"name": "f"}}]}, "tools[1].type"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [WEATHER_TOOL, WEATHER_TOOL]}, "tools[1].function.name"),
    ({"tools": [WEATHER_TOOL] * 129}, "tools"),
    *[(tool(name=name), "tools[0].function.name") for name in ("", "a b", "f\n", "é", "a.b", "<f>", "x" * 65, 5, None)],
    (tool(description=5), "tools[0].function.description"),
    (tool(description="x" * 65_536), "tools[0]"),
    (tool(strict=True), "tools[0].function.strict"),
    (tool(strict="no"), "tools[0].function.strict"),
    (tool(parameters=[]), "tools[0].function.parameters"),
    (schema(type="string"), "tools[0].function.parameters"),
    (schema(type=["object"]), "tools[0].function.parameters"),
    (schema(properties=[]), "tools[0].function.parameters"),
    (schema(properties={"a": "string"}), "tools[0].function.parameters"),
    *[
        (schema(properties={name: {}}), "tools[0].function.parameters")
        for name in ("", "a>b", "<a", "a\nb", " a", "a ")
    ],
    ({"tool_choice": "required", "tools": [WEATHER_TOOL]}, "tool_choice"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "get_weather"}}, "tools": [WEATHER_TOOL]},
        "tool_choice",
    ),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tool_choice": ["auto"]}, "tool_choice"),
    ({"tool_choice": True}, "tool_choice"),
    ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    # Tools count towards the length of the prompt.
    (tool(description="x" * 60_000), "tools"),
    ({"tools": [tool(name=f"f{n}", description="x" * 900)["tools"][0] for n in range(20)]}, "tools"),
    (tool(description="word " * 400), None),
]

BAD_INPUTS = [
    *[(CHAT, chat(**fields), param) for fields, param in BAD_FIELDS + BAD_CHATS + BAD_TOOLS],
    *[(COMPLETIONS, completion(**fields), param) for fields, param in BAD_FIELDS + BAD_COMPLETIONS],
]


async def test_bad_input_never_reaches_the_engine(folder: Path) -> None:
    """Every wrong field is a 400 in OpenAI's form that names it, and the engine is not called."""
    engine = ScriptedEngine(lambda request: tell([5]))
    wrong = []
    async with api_client(folder, engine) as client:
        for path, body, param in BAD_INPUTS:
            for stream in (False, True):
                answer = await client.post(path, json={"stream": stream, **body})
                error = answer.json().get("error", {})
                seen = (answer.status_code, error.get("type"), error.get("param"), set(error))
                if seen != (400, "invalid_request_error", param, {"message", "type", "param", "code"}):
                    wrong.append((path, str(body)[:150], answer.status_code, answer.text[:300]))
    assert wrong == []
    assert engine.requests == []


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model":"\\ud800"}',
        b'{"model":"' + MODEL_NAME.encode() + b'"}',
    ],
)
async def test_bodies_that_are_no_request(raw: bytes, path: str, folder: Path) -> None:
    """Broken JSON, other JSON and absent fields are a 400, never a 422 or 500."""
    engine = ScriptedEngine(lambda request: tell([5]))
    async with api_client(folder, engine) as client:
        answer = await client.post(path, content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert engine.requests == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["temperature", "top_p", "min_p", "frequency_penalty", "repetition_penalty"])
async def test_numbers_that_are_none(number: str, field: str, folder: Path) -> None:
    """NaN and infinities, which Python's JSON would let through, are a 400 for that field."""
    engine = ScriptedEngine(lambda request: tell([5]))
    raw = f'{{"model":"{MODEL_NAME}","prompt":"x","{field}":{number}}}'
    async with api_client(folder, engine) as client:
        answer = await client.post(COMPLETIONS, content=raw)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert engine.requests == []


@pytest.mark.parametrize("number", ["NaN", "1e400"])
async def test_numbers_that_are_none_in_calls(number: str, folder: Path) -> None:
    """Arguments that come as an object hold no other numbers than those that come as its text."""
    engine = ScriptedEngine(lambda request: tell([5]))
    body = json.dumps(chat(**with_calls({"name": "f", "arguments": {"a": ["N"]}}))).replace('"N"', number)
    async with api_client(folder, engine) as client:
        answer = await client.post(CHAT, content=body)
    assert answer.status_code == 400
    assert engine.requests == []


async def test_a_cut_call_cannot_be_sent_back(folder: Path) -> None:
    """The message says why the arguments of an answer that ended within them are refused."""
    async with api_client(folder, ScriptedEngine(lambda request: tell([5]))) as client:
        answer = await client.post(CHAT, json=chat(**with_calls({"name": "f", "arguments": '{"city": "Ro'})))
    assert "messages[1].tool_calls[0]: " in answer.json()["error"]["message"]
    assert "cut short" in answer.json()["error"]["message"]
