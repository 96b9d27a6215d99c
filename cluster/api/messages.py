"""The messages of a chat request, and what a chat template is shown of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from cluster.errors import InvalidRequest

MAX_ID_CHARS = 256

_CONFIG = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class TextPart(BaseModel):
    """A part of a content list. Only text is served."""

    model_config = _CONFIG

    type: Literal["text"]
    text: str


class RefusalPart(BaseModel):
    """A part of an assistant's content list: text in which it refused to answer."""

    model_config = _CONFIG

    type: Literal["refusal"]
    refusal: str


class FunctionCall(BaseModel):
    """A call the assistant made earlier. `arguments` is the JSON text of an object."""

    model_config = _CONFIG

    name: str = Field(min_length=1, max_length=256)
    arguments: str | dict[str, Any]


class ToolCall(BaseModel):
    """One entry of an assistant message's tool_calls."""

    model_config = _CONFIG

    id: str | None = Field(None, max_length=MAX_ID_CHARS)
    type: Literal["function"] | None = None
    function: FunctionCall

    def as_plain(self, where: str) -> dict[str, Any]:
        """The call as chat templates expect it. where: how errors name it. Raises InvalidRequest."""
        arguments = _read_arguments(self.function.arguments)
        if arguments is None:
            rule = "the arguments of a call must be a JSON object, and its numbers finite"
            sentence = f"{where}: {rule}; a call that was cut short cannot be sent back."
            raise InvalidRequest(sentence, f"{where}.function.arguments")
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class ChatMessage(BaseModel):
    """One turn of the conversation. `reasoning` is the newer name of `reasoning_content`."""

    model_config = _CONFIG

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart | RefusalPart] | None = None
    name: str | None = Field(None, max_length=256)
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = Field(None, max_length=MAX_ID_CHARS)

    def as_plain(self, where: str) -> dict[str, Any]:
        """The message as chat templates expect it: text content, argument objects, no absent fields.

        where: how errors name it. Raises InvalidRequest for what templates would drop without a word, and where a
        call's arguments are not a JSON object.
        """
        self._refuse_misplaced(where)
        calls = [call.as_plain(f"{where}.tool_calls[{index}]") for index, call in enumerate(self.tool_calls or ())]
        fields: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self._text(),
            "name": self.name,
            "reasoning_content": self.reasoning_content if self.reasoning_content is not None else self.reasoning,
            "tool_calls": calls or None,
            "tool_call_id": self.tool_call_id,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _refuse_misplaced(self, where: str) -> None:
        if (self.model_extra or {}).get("function_call") is not None:
            raise InvalidRequest(f"{where}.function_call is not supported; use tool_calls.", f"{where}.function_call")
        if self.role == "assistant":
            return
        if self.tool_calls:
            raise InvalidRequest(f"{where}: only an assistant makes calls.", f"{where}.tool_calls")
        if isinstance(self.content, list) and any(part.type == "refusal" for part in self.content):
            raise InvalidRequest(f"{where}: only an assistant refuses.", f"{where}.content")

    def _text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in self.content)
        return self.content or ""


def plain_messages(messages: Sequence[ChatMessage]) -> list[Mapping[str, Any]]:
    """The messages as a chat template is shown them. Raises InvalidRequest that names the wrong one."""
    return _results_in_call_order([message.as_plain(f"messages[{i}]") for i, message in enumerate(messages)])


def _results_in_call_order(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages with each run of tool results in the order of the calls that they answer.

    The template writes results without ids, so their order alone tells the model which is which. A run that does not
    answer the calls just before it, by their ids, stays as it is.
    """
    ordered: list[Mapping[str, Any]] = []
    for is_result, group in groupby(messages, key=lambda message: message["role"] == "tool"):
        run = list(group)
        if is_result and ordered:
            ranks = {call["id"]: rank for rank, call in enumerate(ordered[-1].get("tool_calls", ()))}
            if all(message.get("tool_call_id") in ranks for message in run):
                run.sort(key=lambda message: ranks[message.get("tool_call_id")])
        ordered += run
    return ordered


def _read_arguments(given: str | dict[str, Any]) -> dict[str, Any] | None:
    """None where they are no JSON object of finite numbers. No text, or null, means none: clients write that too."""
    try:
        # Not the json module: this parser bounds depth and refuses text that is no Unicode.
        value = from_json(given if given.strip() else "{}") if isinstance(given, str) else given
        json.dumps(value, allow_nan=False)
    except ValueError:
        return None
    if value is None:
        return {}
    return value if isinstance(value, dict) else None
