"""One completion's text taken apart, strictly by the grammar that the model learns (specification, 5.4).

    REASONING \n</think>\n CONTENT CALLS <|im_end|>

The server's parser forgives missing tags and text behind calls; this one measures how often it has to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.nano.data.conversation import Tool
from ops.nano.tokenizer import ADDED_TOKENS, BOS, EOS, PAD, TURN_END

REASONING_END = "\n</think>\n"
CALL_START = "<tool_call>"

_MARKS = (BOS, EOS, PAD, *ADDED_TOKENS)
_NAME = r"[^\s<>=]+"
_VALUE = r"(?:(?!</?(?:tool_call|function|parameter)\b).)*"
_PARAMETER = re.compile(rf"<parameter=({_NAME})>\n({_VALUE})\n</parameter>\n", re.DOTALL)
_CALL = re.compile(
    rf"<tool_call>\n<function=({_NAME})>\n((?:<parameter={_NAME}>\n{_VALUE}\n</parameter>\n)*)</function>\n</tool_call>",
    re.DOTALL,
)
_TAG = re.compile(r"</?(?:function|parameter)\b")
_INTEGER = re.compile(r"-?[0-9]+")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


class MalformedAnswer(ValueError):
    """A text that breaks the grammar; the message says where, in a few words."""


@dataclass(frozen=True)
class Call:
    """A function's name, and the text of each parameter."""

    name: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """The parts of a well-formed answer. content: "" where there are calls alone."""

    reasoning: str
    content: str
    calls: tuple[Call, ...]


def parse_answer(text: str) -> Answer:
    """text: from behind the prompt's `<think>\\n` to the end token, with every special token in it.

    Raises MalformedAnswer.
    """
    body = text.removesuffix(TURN_END)
    if body == text:
        raise MalformedAnswer("it does not end with <|im_end|>")
    reasoning, end, rest = body.partition(REASONING_END)
    if not end:
        raise MalformedAnswer("the reasoning is not closed")
    content, start, calls = rest.partition(CALL_START)
    _check_plain(reasoning, "reasoning")
    _check_plain(content, "content")
    answer = Answer(reasoning, content.strip(), _parse_calls(start + calls))
    if not answer.content and not answer.calls:
        raise MalformedAnswer("neither content nor a call")
    return answer


def typed_values(call: Call, tools: Sequence[Tool]) -> dict[str, Any]:
    """Each parameter as a value of the type that the tool's schema gives it. A text that does not fit its type, or
    belongs to no parameter of any tool, stays text."""
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    properties = functions.get(call.name, {}).get("parameters", {}).get("properties", {})
    return {key: _typed(text, properties.get(key, {}).get("type", "string")) for key, text in call.values.items()}


def _check_plain(text: str, part: str) -> None:
    mark = next((mark for mark in _MARKS if mark in text), None)
    if mark is None and (tag := _TAG.search(text)):
        mark = tag[0]
    if mark is not None:
        raise MalformedAnswer(f"{mark} in the {part}")


def _parse_calls(text: str) -> tuple[Call, ...]:
    """Calls one behind the other, with nothing between or after them."""
    calls, end = [], 0
    while end < len(text):
        match = _CALL.match(text, end)
        if match is None:
            raise MalformedAnswer(
                "a call is not as it should be" if text.startswith(CALL_START, end) else "text behind a call"
            )
        calls.append(_call(match[1], match[2]))
        end = match.end()
    return tuple(calls)


def _call(name: str, parameters: str) -> Call:
    pairs = _PARAMETER.findall(parameters)
    values = dict(pairs)
    if len(values) < len(pairs):
        raise MalformedAnswer("a parameter comes twice")
    for value in values.values():
        if any(mark in value for mark in _MARKS):
            raise MalformedAnswer("a special token in a parameter")
    return Call(name, values)


def _typed(text: str, kind: str) -> Any:
    if kind == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "number" and _NUMBER.fullmatch(text):
        return float(text)
    if kind == "boolean" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in ("array", "object"):
        return _from_json(text, list if kind == "array" else dict)
    return text


def _from_json(text: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, kind) else text
