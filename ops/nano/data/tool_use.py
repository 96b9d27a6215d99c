"""Conversations in which the assistant chooses among the offered tools, calls one, and uses its result."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ops.nano.data.conversation import Conversation, Message, Tool, assistant, system, tool_response, user
from ops.nano.data.tool_catalogue import CATALOGUE, CatalogueTool, function_schema
from ops.nano.data.tool_values import (
    ADJECTIVES,
    FIRST_NAMES,
    NOUNS,
    SPOKEN_BOOLEANS,
    Values,
    coined,
    fields_of,
    spoken,
    words_of,
)

SKILL = "tools"

_OPENERS = ("", "", "", "", "", "", "Hi! ", "Hello. ", "Good morning. ", "Hey, ")
_ERRORS = ("not found", "timeout", "no access", "service busy", "no connection", "not allowed")
_AFTER_RESULT = "The tool answered. I tell the user."
_ACTIONS = words_of(
    """archive assign attach cancel check clean close combine copy count create drop export fetch fill filter
    freeze import inspect label launch load lock mark measure merge mount order pause print publish queue rank
    record remove rename repair reset resize restore rotate scan score share sort split start stop store submit
    sync update upload weigh"""
)
_OBJECTS = words_of(
    """account album badge batch box branch bucket camera card cell channel chart circuit client cluster column
    crate cube device disk door drawer engine entry field form frame grid group image invoice job key kit
    layer lens machine magnet map meter mix model motor page panel parcel pump report robot route row
    sample sensor sheet shelf shift signal slot stage stock switch table tank task team
    ticket token tower track truck valve vault wheel"""
)
_PARAMETERS = words_of(
    """weight label colour level size limit floor priority distance owner source target place kind mode price ratio
    speed width height score age length depth group stage region format title angle power volume reason count
    rate unit channel index offset zone state urgent public active locked silent"""
)
_KINDS = ("string", "string", "string", "integer", "integer", "number", "boolean")


@dataclass(frozen=True)
class _Request:
    """What the user says and the call that answers it."""

    asked: str
    wants: str
    tool: Tool
    arguments: Values

    @property
    def name(self) -> str:
        return str(self.tool["function"]["name"])


def generate(rng: random.Random) -> Conversation:
    """A call alone (45 %), a call with its answer (30 %), two calls (8 %), no tool (10 %), an invented tool (7 %)."""
    variants = (_call, _call_and_answer, _two_calls, _no_tool, _invented_tool)
    return rng.choices(variants, (45, 30, 8, 10, 7))[0](rng)


def _call(rng: random.Random) -> Conversation:
    request = _catalogue_request(rng.choice(CATALOGUE), rng)
    return _conversation(rng, request.asked, [_calling(request)], _offer(rng, request.tool))


def _call_and_answer(rng: random.Random) -> Conversation:
    entry = rng.choice(CATALOGUE)
    request = _catalogue_request(entry, rng)
    if rng.random() < 0.06:
        error = rng.choice(_ERRORS)
        result, answer = f"error: {error}", f"The tool failed: {error}."
    else:
        result, answer = _result_and_answer(entry, request.arguments, rng)
    said = [_calling(request), tool_response(result), assistant(_AFTER_RESULT, answer)]
    return _conversation(rng, request.asked, said, _offer(rng, request.tool))


def _two_calls(rng: random.Random) -> Conversation:
    """The same tool for two values of its only parameter that is required."""
    entry = rng.choice([entry for entry in CATALOGUE if entry.pair_requests])
    parameter = entry.schema["function"]["parameters"]["required"][0]
    first = second = entry.sample_argument(parameter, rng)
    while second == first:
        second = entry.sample_argument(parameter, rng)
    is_casual = _is_casual(rng)
    calls = [_lowered({parameter: value}) if is_casual else {parameter: value} for value in (first, second)]
    asked = rng.choice(entry.pair_requests).format(*(arguments[parameter] for arguments in calls))
    wants = " and ".join(entry.wants.format(**arguments) for arguments in calls)
    results = [_result_and_answer(entry, arguments, rng) for arguments in calls]
    said = [
        assistant(f"The user wants {wants}. I call {entry.name} twice.", calls=[(entry.name, call) for call in calls]),
        *(tool_response(result) for result, _ in results),
        assistant("The tools answered. I tell the user.", " ".join(answer for _, answer in results)),
    ]
    return _conversation(rng, _dressed(asked, is_casual, rng), said, _offer(rng, entry.schema))


def _no_tool(rng: random.Random) -> Conversation:
    """Something that needs no tool, or a request that none of the offered tools can serve."""
    kind = rng.choice(("sum", "greeting", "unserved", "unserved"))
    # A sum needs no refusal when its tool is missing, and a web search could serve nearly any request.
    entry, *others = rng.sample([entry for entry in CATALOGUE if entry.name not in ("calculate", "search_web")], 4)
    if kind == "unserved":
        request = _catalogue_request(entry, rng)
        asked = request.asked
        said = assistant(f"The user wants {request.wants}. No tool fits.", "I have no tool for that.")
    else:
        asked, said = _small_sum(rng) if kind == "sum" else _greeting(rng)
    return _conversation(rng, asked, [said], [entry.schema for entry in others[: _number_offered(rng)]])


def _small_sum(rng: random.Random) -> tuple[str, Message]:
    left, right = rng.randint(0, 9), rng.randint(0, 9)
    fact = rng.choice((f"{left} + {right} = {left + right}", f"{left} * {right} = {left * right}"))
    expression = fact.partition(" =")[0]
    asked = rng.choice(("What is {}?", "How much is {}?", "Work out {}.", "{}?", "Compute {}.")).format(expression)
    return _dressed(asked, False, rng), assistant(f"No tool is needed. {fact}.", fact)


def _greeting(rng: random.Random) -> tuple[str, Message]:
    name = rng.choice(FIRST_NAMES) if rng.random() < 0.5 else coined(rng).capitalize()
    asked, answer = rng.choice(
        (
            ("Hello, I am {}.", "Hello {}! How can I help you?"),
            ("Hi, my name is {}.", "Hello {}! How can I help you?"),
            ("Good morning, {} here.", "Hello {}! How can I help you?"),
            ("Thank you, says {}.", "You are welcome, {}."),
            ("Thanks from {}.", "You are welcome, {}."),
            ("Goodbye from {}.", "Goodbye, {}!"),
        )
    )
    return asked.format(name), assistant("No tool is needed.", answer.format(name))


def _invented_tool(rng: random.Random) -> Conversation:
    """A tool that no catalogue has, so that only its schema says what to do."""
    request = _invented_request(rng)
    said = [_calling(request)]
    if rng.random() < 0.3:
        fields = {key: _invented_value("string", rng) for key in rng.sample(["status", "place", "code", "owner"], 2)}
        answer = "Done: " + ", ".join(f"{key} {value}" for key, value in fields.items()) + "."
        said += [tool_response(json.dumps(fields)), assistant(_AFTER_RESULT, answer)]
    return _conversation(rng, request.asked, said, _offer(rng, request.tool, can_be_invented=True))


def _invented_schema(rng: random.Random) -> Tool:
    action, thing = rng.choice(_ACTIONS), rng.choice(_OBJECTS)
    names = rng.sample(_PARAMETERS, rng.choice((1, 2, 2, 3)))
    properties = {name: {"type": rng.choice(_KINDS)} for name in names}
    required = names[: rng.randint(1, len(names))]
    return function_schema(f"{action}_{thing}", f"{action.capitalize()} a {thing}", properties, required)


def _invented_value(kind: str, rng: random.Random) -> Any:
    if kind == "integer":
        return rng.choice((rng.randint(0, 9), rng.randint(10, 99), rng.randint(100, 2000)))
    if kind == "number":
        return rng.choice((rng.randint(1, 99), rng.randint(0, 99) + rng.randint(1, 9) / 10))
    if kind == "boolean":
        return rng.random() < 0.5
    code = f"{rng.choice('ABCDEFGHKLMPRSTXZ')}{rng.randint(1, 99)}"
    return rng.choice((f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}", rng.choice(NOUNS), coined(rng), code))


def _invented_request(rng: random.Random) -> _Request:
    tool = _invented_schema(rng)
    declared = tool["function"]["parameters"]
    given = [name for name in declared["properties"] if name in declared["required"] or rng.random() < 0.5]
    arguments = {name: _invented_value(declared["properties"][name]["type"], rng) for name in given}
    name = tool["function"]["name"]
    pattern, link, separator = rng.choice(
        (
            ("Run {name} with {values}.", " ", " and "),
            ("Call {name} with {values}.", "=", ", "),
            ("Use {name}: {values}.", " is ", ", "),
            ("Please use {name} with {values}.", " ", ", "),
            ("I need {name}, {values}.", " ", " and "),
            ("{words} with {values}.", " ", " and "),
            ("{words}: {values}.", " = ", ", "),
        )
    )
    values = separator.join(
        f"{key}{link}{_quoted(value)}" for key, value in rng.sample(list(arguments.items()), len(given))
    )
    asked = pattern.format(name=name, words=name.replace("_", " ").capitalize(), values=values)
    return _Request(_dressed(asked, False, rng), f"to {name.replace('_', ' ')}", tool, arguments)


def _quoted(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else str(value)


def _catalogue_request(entry: CatalogueTool, rng: random.Random) -> _Request:
    """The phrasing decides which of the optional parameters are given; the call has them in the schema's order."""
    phrasing = rng.choice(entry.requests)
    named = fields_of(phrasing)
    given = [name for name in entry.parameters if name in named]
    arguments = {name: entry.sample_argument(name, rng) for name in given}
    while len({spoken(value) for value in arguments.values()}) < len(given):  # from a city to another city
        arguments = {name: entry.sample_argument(name, rng) for name in given}
    is_casual = _is_casual(rng)
    if is_casual:
        arguments = _lowered(arguments)
    asked = phrasing.format(**{name: _as_asked(name, value) for name, value in arguments.items()})
    return _Request(_dressed(asked, is_casual, rng), entry.wants.format(**arguments), entry.schema, arguments)


def _as_asked(name: str, value: Any) -> str:
    return SPOKEN_BOOLEANS[name][value] if isinstance(value, bool) else spoken(value)


def _result_and_answer(entry: CatalogueTool, arguments: Values, rng: random.Random) -> tuple[str, str]:
    """What the tool says, as JSON or as text, and the assistant's answer."""
    fields = entry.sample_result(arguments, rng)
    values = {name: spoken(value) for name, value in (arguments | fields).items()}
    result = json.dumps(fields) if rng.random() < 0.5 else entry.says.format(**values)
    return result, entry.reply.format(**values)


def _calling(request: _Request) -> Message:
    reasoning = f"The user wants {request.wants}. I call {request.name}."
    return assistant(reasoning, calls=[(request.name, request.arguments)])


def _is_casual(rng: random.Random) -> bool:
    return rng.random() < 0.12


def _lowered(arguments: Values) -> Values:
    return {name: value.lower() if isinstance(value, str) else value for name, value in arguments.items()}


def _dressed(asked: str, is_casual: bool, rng: random.Random) -> str:
    """The request as people write it: with or without a greeting and a final stop, or all in lower case."""
    asked = rng.choice(_OPENERS) + asked
    if is_casual:
        asked = asked.lower()
    return asked.rstrip(".?") if rng.random() < 0.15 else asked


def _number_offered(rng: random.Random) -> int:
    return rng.choices((1, 2, 3), (40, 38, 22))[0]


def _offer(rng: random.Random, needed: Tool, can_be_invented: bool = False) -> list[Tool]:
    """The tool that is needed among up to two others, in random order."""
    others: dict[str, Tool] = {}
    for _ in range(_number_offered(rng) - 1):
        is_invented = rng.random() < (0.6 if can_be_invented else 0.15)
        other = _invented_schema(rng) if is_invented else rng.choice(CATALOGUE).schema
        others[other["function"]["name"]] = other
    others.pop(needed["function"]["name"], None)
    offered = [needed, *others.values()]
    rng.shuffle(offered)
    return offered


def _conversation(rng: random.Random, asked: str, said: Sequence[Message], tools: Sequence[Tool]) -> Conversation:
    opening = [system("You are a helpful assistant.")] if rng.random() < 0.1 else []
    return Conversation(SKILL, (*opening, user(asked), *said), tuple(tools))
