"""The chat template of random checkpoints against the literal texts of the specification, section 5.3."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.fakes.tokenizer import BOS, CHAT_TEMPLATE, EOS

Messages = Sequence[dict[str, Any]]


def render(messages: Messages, tools: Messages = (), *, add_generation_prompt: bool = True) -> str:
    """The template as chat servers run it: sandboxed, blocks trimmed, JSON that keeps order and non-ASCII text."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(CHAT_TEMPLATE.read_text())
    return template.render(
        messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, bos_token=BOS, eos_token=EOS
    )


def call(name: str, **arguments: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TOOLS_TEXT = """# Tools

You have access to the following functions in JSONSchema format:

<tools>
{"type": "function", "function": {"name": "get_weather", "description": "d", "parameters": {"type": "object", \
"properties": {"city": {"type": "string"}}, "required": ["city"]}}}
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...>
...
</function> block must be nested within <tool_call>
...
</tool_call> XML tags
- Required parameters MUST be specified
</IMPORTANT><|im_end|>
"""
TWO_CALLS: Messages = [
    {"role": "user", "content": "Weather in Paris and Rome?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "call it",
        "tool_calls": [call("get_weather", city="Paris"), call("get_weather", city="Rome", days=[1, 2])],
    },
    {"role": "tool", "content": "18C"},
    {"role": "tool", "content": "22C"},
]
TWO_CALLS_TEXT = """<|im_start|>user
Weather in Paris and Rome?<|im_end|>
<|im_start|>assistant
<think>
call it
</think>
<tool_call>
<function=get_weather>
<parameter=city>
Paris
</parameter>
</function>
</tool_call><tool_call>
<function=get_weather>
<parameter=city>
Rome
</parameter>
<parameter=days>
[1, 2]
</parameter>
</function>
</tool_call><|im_end|>
<|im_start|>tool_response
<tool_response>18C</tool_response><tool_response>22C</tool_response><|im_end|>
<|im_start|>assistant
<think>
"""


def test_template_plain() -> None:
    """The published text of one user message."""
    assert render([{"role": "user", "content": "Hi"}]) == (
        "<｜begin▁of▁sentence｜><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


@pytest.mark.parametrize(
    "answer",
    [
        {"role": "assistant", "content": "Hello", "reasoning_content": "greet"},
        {"role": "assistant", "content": "<think>\ngreet\n</think>\n\nHello"},
        {"role": "assistant", "content": "Hello"},
    ],
)
def test_template_system_and_history(answer: dict[str, str]) -> None:
    """Reasoning before the latest question is dropped, wherever it was kept."""
    system, question = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}
    assert render([system, {"role": "user", "content": "Hi"}, answer, question]) == (
        "<｜begin▁of▁sentence｜><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


def test_template_tools() -> None:
    """The published tools turn, alone and behind a system text."""
    question = {"role": "user", "content": "Hi"}
    turns = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert render([question], [WEATHER_TOOL]) == f"{BOS}<|im_start|>system\n{TOOLS_TEXT}{turns}"
    system = {"role": "system", "content": "Be brief."}
    assert render([system, question], [WEATHER_TOOL]) == f"{BOS}<|im_start|>system\nBe brief.\n\n{TOOLS_TEXT}{turns}"


def test_template_two_calls_and_results() -> None:
    """The published text of two calls and their results, without separators between them."""
    assert render(TWO_CALLS) == BOS + TWO_CALLS_TEXT


def test_template_reasoning_after_the_latest_question_is_kept() -> None:
    """A tool result that arrives as a wrapped user message is no new question, so reasoning before it stays."""
    result = {"role": "user", "content": "<tool_response>18C</tool_response>"}
    assert "call it" in render([*TWO_CALLS[:2], result])
    assert "call it" not in render([*TWO_CALLS[:2], {"role": "user", "content": "18C"}])


def test_template_empty_reasoning_is_written() -> None:
    """The think block of a current answer is there even when it is empty."""
    messages: Messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert render(messages, add_generation_prompt=False).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\nHello<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [("é", "é"), (True, "True"), (None, "None"), (2.5, "2.5"), ({"k": "é", "a": 1}, '{"k": "é", "a": 1}'), ([], "[]")],
)
def test_template_argument_values(value: object, text: str) -> None:
    """Mappings and lists are JSON with non-ASCII text kept; everything else is the engine's string form."""
    messages: Messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call("f", x=value)]}]
    assert f"<parameter=x>\n{text}\n</parameter>\n" in render(messages)


def test_template_later_system_messages_and_parts() -> None:
    """Later system messages keep their place, `observation` its name; text parts join and an image is one mark."""
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, {"type": "text", "text": "b"}]
    messages: Messages = [
        {"role": "user", "content": parts},
        {"role": "system", "content": "s"},
        {"role": "system", "name": "observation", "content": "o"},
    ]
    assert render(messages, add_generation_prompt=False) == (
        f"{BOS}<|im_start|>user\na<im_patch>b<|im_end|>\n<|im_start|>system\ns<|im_end|>\n"
        "<|im_start|>observation\no<|im_end|>\n"
    )
