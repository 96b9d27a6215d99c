"""What clients send as messages, tools and earlier calls, and what a chat template is shown of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cluster.api.messages import plain_messages
from cluster.api.prepare import plan_chat
from cluster.api.schema import ChatBody, parse_body
from cluster.api.served_model import ServedModel, load_served_model
from cluster.api.settings import ApiLimits
from tests.fakes.api import HI, WEATHER_TOOL, chat, write_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return load_served_model(write_model_folder(tmp_path_factory.mktemp("model"), context_tokens=2048))


def parsed(**fields: Any) -> ChatBody:
    return parse_body(ChatBody, json.dumps(chat(**fields)).encode())


def calling(arguments: Any, **call: Any) -> dict[str, Any]:
    """An assistant's turn of one call."""
    return {"role": "assistant", "tool_calls": [{**call, "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"a": [1, "é"]}', {"a": [1, "é"]}),
        ({"a": 1.5}, {"a": 1.5}),
        ("{}", {}),
        ("", {}),
        (" \n", {}),
        ("null", {}),
    ],
)
def test_arguments_of_earlier_calls(arguments: Any, shown: dict[str, Any]) -> None:
    """JSON text and objects mean the same; where a client writes nothing, or null, there are none."""
    (message,) = plain_messages(parsed(messages=[calling(arguments)]).messages)
    assert message["tool_calls"][0]["function"]["arguments"] == shown


@pytest.mark.parametrize("extra", [{"type": "function"}, {"type": None}, {}, {"type": "function", "index": 0}])
def test_forms_of_an_earlier_call(extra: dict[str, Any]) -> None:
    """A call is one of a function whether it says so or not, and reaches the template in one form."""
    (message,) = plain_messages(parsed(messages=[calling("{}", id="a", **extra)]).messages)
    assert message["tool_calls"] == [{"id": "a", "type": "function", "function": {"name": "f", "arguments": {}}}]


def test_absent_fields_do_no_harm() -> None:
    """What clients' own objects write for nothing is nothing, on every role."""
    nothing: dict[str, Any] = {"tool_calls": [], "function_call": None, "refusal": None, "audio": None, "name": None}
    roles = ("system", "developer", "user", "assistant", "tool")
    plain = plain_messages(parsed(messages=[{"role": role, "content": "x", **nothing} for role in roles]).messages)
    assert [set(message) for message in plain] == [{"role", "content"}] * len(roles)


def test_a_refusal_is_text_of_the_assistant() -> None:
    """A part in which the assistant refused is shown as what it said."""
    parts = [{"type": "text", "text": "So: "}, {"type": "refusal", "refusal": "no."}]
    (message,) = plain_messages(parsed(messages=[{"role": "assistant", "content": parts}]).messages)
    assert message["content"] == "So: no."


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": None},
        {"type": None},
        {"$ref": "#/$defs/x", "$defs": {"x": {"type": "object"}}},
        None,
    ],
)
def test_forms_of_a_schema(parameters: Any, model: ServedModel) -> None:
    """Schemas that leave out what they could say, as generators of schemas do, are taken."""
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    (plan,) = plan_chat(parsed(tools=[tool]), model, ApiLimits(), "r")
    assert plan.tools is not None
    assert plan.tools.types("f", "x") == {"string"}


def test_choices_share_what_is_known_of_tools(model: ServedModel) -> None:
    """A schema is looked into once for all choices of a request."""
    plans = plan_chat(parsed(tools=[WEATHER_TOOL], n=3, messages=HI), model, ApiLimits(), "r")
    assert len({id(plan.tools) for plan in plans}) == 1
