"""Whether an answer is the one that was expected, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ops.nano.data.conversation import Tool
from ops.nano.evaluation.parsing import Call, MalformedAnswer, parse_answer, typed_values
from ops.nano.evaluation.results import Verdict
from ops.nano.evaluation.turns import Turn


def judge(text: str, turn: Turn) -> Verdict:
    """text: the completion with its special tokens."""
    try:
        answer = parse_answer(text)
    except MalformedAnswer as error:
        return Verdict(is_well_formed=False, problem=str(error))
    expected = turn.expected
    functions = [call["function"] for call in expected.get("tool_calls", ())]
    are_names_right = [call.name for call in answer.calls] == [function["name"] for function in functions]
    arguments = [function["arguments"] for function in functions]
    return Verdict(
        is_well_formed=True,
        is_reasoning_right=answer.reasoning.strip() == expected["reasoning_content"].strip(),
        is_content_right=answer.content == expected["content"].strip(),
        are_names_right=are_names_right,
        are_arguments_right=are_names_right and _are_right(answer.calls, arguments, turn.tools),
    )


def problem_of(verdict: Verdict) -> str:
    """Why an answer is wrong, in a few words; "" for an exact one."""
    if not verdict.is_well_formed:
        return f"malformed: {verdict.problem}"
    if not verdict.are_names_right:
        return "wrong function called, or none, or one where none is due"
    if not verdict.are_arguments_right:
        return "wrong arguments"
    return "" if verdict.is_content_right else "wrong content"


def _are_right(calls: Sequence[Call], expected: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> bool:
    """Whether the calls, of the right functions, have these arguments in any order."""
    return all(_is_same(typed_values(call, tools), arguments) for call, arguments in zip(calls, expected, strict=True))


def _is_same(values: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    # True equals 1 in Python, but not in JSON.
    return values.keys() == expected.keys() and all(
        value == expected[key] and isinstance(value, bool) == isinstance(expected[key], bool)
        for key, value in values.items()
    )
