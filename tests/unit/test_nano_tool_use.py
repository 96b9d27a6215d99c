"""Generated tool conversations: calls fit the offered schemas, and nothing is said that was not given."""

import json
import random
from collections import Counter
from typing import Any

import pytest

from ops.nano.data.conversation import Conversation, Message, Tool
from ops.nano.data.tool_catalogue import CATALOGUE
from ops.nano.data.tool_use import SKILL, generate
from ops.nano.data.tool_values import SPOKEN_BOOLEANS, calculate, fields_of, spoken

MAX_PARAMETERS_CHARACTERS = 220
MAX_SCHEMA_CHARACTERS = 340
CONVERSATIONS = [generate(random.Random(seed)) for seed in range(3000)]
BY_NAME = {entry.name: entry for entry in CATALOGUE}
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
}


def _asked(conversation: Conversation) -> str:
    return str(next(message["content"] for message in conversation.messages if message["role"] == "user"))


def _called(conversation: Conversation) -> list[tuple[str, dict[str, Any]]]:
    calls = [call for message in conversation.messages for call in message.get("tool_calls", [])]
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


def _results(conversation: Conversation) -> list[str]:
    return [message["content"] for message in conversation.messages if message["role"] == "tool"]


def _answer(conversation: Conversation) -> str:
    return str(conversation.messages[-1]["content"])


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether the value has the JSON type, is in the enum, and its items fit likewise."""
    if isinstance(value, bool) and schema["type"] != "boolean":
        return False
    items = schema.get("items")
    return (
        isinstance(value, JSON_TYPES[schema["type"]])
        and value in schema.get("enum", [value])
        and (items is None or all(_fits(item, items) for item in value))
    )


def _offered(conversation: Conversation) -> dict[str, Tool]:
    return {tool["function"]["name"]: tool["function"] for tool in conversation.tools}


def _is_invented(conversation: Conversation) -> bool:
    return any(name not in BY_NAME for name, _ in _called(conversation))


def test_calls_fit_the_offered_schema() -> None:
    """Every call names an offered tool, has what is required and nothing undeclared, of the right types."""
    for conversation in CONVERSATIONS:
        offered = _offered(conversation)
        for name, arguments in _called(conversation):
            schema = offered[name]["parameters"]
            assert set(schema["required"]) <= set(arguments)
            assert list(arguments) == [key for key in schema["properties"] if key in arguments]
            for key, value in arguments.items():
                assert _fits(value, schema["properties"][key]), (name, key, value)


def test_a_wrong_type_does_not_fit() -> None:
    """The check of types that the other tests lean on refuses what is near but wrong."""
    assert not _fits(True, {"type": "integer"})
    assert not _fits("4", {"type": "integer"})
    assert not _fits("run", {"type": "string", "enum": ["walk"]})
    assert not _fits(["a", 1], {"type": "array", "items": {"type": "string"}})


def test_the_request_holds_every_argument() -> None:
    """Strings and numbers are in the user's text as they are in the call; booleans in their spoken form."""
    for conversation in CONVERSATIONS:
        asked = _asked(conversation)
        for _, arguments in _called(conversation):
            for key, value in arguments.items():
                if isinstance(value, bool):
                    expected = str(value).lower() if _is_invented(conversation) else SPOKEN_BOOLEANS[key][value]
                else:
                    expected = spoken(value)
                assert expected in asked, (asked, key, value)


def test_optional_parameters_are_given_only_when_the_request_names_them() -> None:
    """The unit, the mode and so on are in the call exactly when a phrase for one of their values is in the request."""
    seen = Counter[tuple[str, bool]]()
    words = {"unit": ("celsius", "fahrenheit"), "mode": ("walk", "drive", "bike"), **SPOKEN_BOOLEANS}
    for conversation in CONVERSATIONS:
        asked = _asked(conversation).lower()
        for name, arguments in _called(conversation):
            if name not in BY_NAME:
                continue
            for key in set(words) & set(BY_NAME[name].parameters):
                assert (key in arguments) == any(word in asked for word in words[key]), asked
                seen[key, key in arguments] += 1
    assert set(seen) == {(key, is_given) for key in words for is_given in (True, False)}


def _result_values(result: str) -> list[str]:
    """The values of a JSON object; of other text its numbers and capitalised words."""
    if result.startswith("{"):
        return [spoken(value) for value in json.loads(result).values()]
    words = [word.strip(",.") for word in result.split()]
    return [word for word in words if any(letter.isdigit() or letter.isupper() for letter in word)]


def test_answers_hold_what_the_tools_said() -> None:
    """After a result the answer repeats its values, whether the result is JSON or text."""
    num_forms = Counter[bool]()
    for conversation in CONVERSATIONS:
        for result in _results(conversation):
            num_forms[result.startswith("{")] += 1
            if result.startswith("error: "):
                assert _answer(conversation) == f"The tool failed: {result.removeprefix('error: ')}."
                continue
            for value in _result_values(result):
                assert value in _answer(conversation), (result, _answer(conversation))
    assert min(num_forms[True], num_forms[False]) > 300


def test_calculations_are_right() -> None:
    """The calculator's result is the value of the expression."""
    num_checked = 0
    for conversation in CONVERSATIONS:
        for (name, arguments), result in zip(_called(conversation), _results(conversation), strict=False):
            if name != "calculate" or result.startswith("error"):
                continue
            value = json.loads(result)["result"] if result.startswith("{") else int(result)
            assert value == eval(arguments["expression"])
            num_checked += 1
    assert num_checked > 10
    assert [calculate(text) for text in ("12 + 7", "12 - 17", "12 * 3")] == [19, -5, 36]


def test_one_result_for_every_call() -> None:
    """Either a conversation ends with its calls, or each call has a result and then comes an answer without a call."""
    for conversation in CONVERSATIONS:
        roles = [message["role"] for message in conversation.messages if message["role"] != "system"]
        num_calls = len(_called(conversation))
        if roles == ["user", "assistant"]:
            assert bool(_answer(conversation)) == (num_calls == 0)
        else:
            assert roles == ["user", "assistant", *["tool"] * num_calls, "assistant"]
            assert _answer(conversation)


def test_two_calls_differ_in_their_value() -> None:
    """Two calls in a turn are of one tool with different arguments, and the request has them in the calls' order."""
    pairs = [conversation for conversation in CONVERSATIONS if len(_called(conversation)) > 1]
    assert len(pairs) > 100
    for conversation in pairs:
        (name, first), (other_name, second) = _called(conversation)
        (value,), (other_value,) = first.values(), second.values()
        assert name == other_name
        assert value != other_value
        assert f"{value} and " in _asked(conversation)
        assert _asked(conversation).rindex(other_value) > _asked(conversation).index(value)


def test_tools_are_refused_or_needless_only_when_none_fits() -> None:
    """Without a call the answer is the sum, a greeting, or that there is no tool; sums are right."""
    kinds = Counter[str]()
    for conversation in CONVERSATIONS:
        if _called(conversation):
            continue
        answer, reasoning = _answer(conversation), conversation.messages[-1]["reasoning_content"]
        assert not {"calculate", "search_web"} & set(_offered(conversation))
        if answer == "I have no tool for that.":
            assert reasoning.startswith("The user wants ")
            assert reasoning.endswith(". No tool fits.")
            kinds["refused"] += 1
        elif " = " in answer:
            expression, _, value = answer.partition(" = ")
            assert expression in _asked(conversation)
            assert eval(expression) == int(value)
            kinds["sum"] += 1
        else:
            assert reasoning == "No tool is needed."
            kinds["greeting"] += 1
    assert min(kinds[kind] for kind in ("refused", "sum", "greeting")) > 30


def test_the_reasoning_names_the_tool() -> None:
    """The reasoning before a call ends with the name of the tool that is called."""
    for conversation in CONVERSATIONS:
        for name, _ in _called(conversation)[:1]:
            first = next(message for message in conversation.messages if message["role"] == "assistant")
            assert f"I call {name}" in first["reasoning_content"]
            assert first["content"] == ""


def test_every_tool_is_reached() -> None:
    """Each tool of the catalogue is called, offered in vain and given a result; invented tools are called, too."""
    called = Counter(name for conversation in CONVERSATIONS for name, _ in _called(conversation))
    offered = Counter(name for conversation in CONVERSATIONS for name in _offered(conversation))
    answered = {_called(conversation)[0][0] for conversation in CONVERSATIONS if _results(conversation)}
    assert set(BY_NAME) <= answered
    for name in BY_NAME:
        assert offered[name] > called[name] > 20
    invented = {name for name in called if name not in BY_NAME}
    assert len(invented) > 100


def test_the_place_of_the_right_tool_varies() -> None:
    """Among three offered tools the called one is at each place about equally often, and names do not repeat."""
    places = Counter[int]()
    for conversation in CONVERSATIONS:
        names = [tool["function"]["name"] for tool in conversation.tools]
        assert 1 <= len(names) <= 3
        assert len(set(names)) == len(names)
        if len(names) == 3 and _called(conversation):
            places[names.index(_called(conversation)[0][0])] += 1
    assert min(places[place] for place in range(3)) > 0.25 * places.total()


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_catalogue_entries_are_compact_and_whole(entry: Any) -> None:
    """A schema is short; each request names all required parameters and no unknown one; there are several requests."""
    parameters = entry.schema["function"]["parameters"]
    assert len(json.dumps(parameters)) <= MAX_PARAMETERS_CHARACTERS
    assert len(json.dumps(entry.schema)) <= MAX_SCHEMA_CHARACTERS
    assert len(entry.requests) >= 4
    for request in entry.requests:
        named = fields_of(request)
        assert set(parameters["required"]) <= set(named) <= set(parameters["properties"])
    assert all(fields_of(request) == ["0", "1"] for request in entry.pair_requests)


def test_messages_are_short_and_clean() -> None:
    """No text starts or ends with whitespace or has a line end, and none is long."""

    def texts(message: Message) -> list[str]:
        return [message["content"], message.get("reasoning_content", "")]

    for conversation in CONVERSATIONS:
        assert conversation.skill == SKILL
        for text in (text for message in conversation.messages for text in texts(message)):
            assert text == text.strip()
            assert "\n" not in text
            assert len(text) <= 220, text


def test_the_same_seed_gives_the_same_conversation() -> None:
    """A conversation depends on its seed alone, and seldom equals that of another seed."""
    assert [generate(random.Random(seed)) for seed in range(200)] == CONVERSATIONS[:200]
    assert len({_asked(conversation) for conversation in CONVERSATIONS}) > 2800
