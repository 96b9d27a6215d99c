"""What the text of a parameter means: which JSON comes of it, by the types that it may have."""

from __future__ import annotations

import json

import pytest
from pydantic_core import from_json

from cluster.api.tool_values import value_json

VALUES: list[tuple[str, str, str]] = [
    ("5", "string", '"5"'),
    (" null ", "string", '" null "'),
    ("5", "integer", "5"),
    (" -5 ", "integer", "-5"),
    ("5.0", "integer", "5"),
    ("5.5", "integer", "5.5"),
    ("12345678901234567890.0", "integer", "12345678901234567890"),
    ("+00012345678901234567890", "integer", "12345678901234567890"),
    ("1e22", "integer", "10000000000000000000000"),
    ("1e-999999999999", "integer", "0.0"),
    ("0e999999999999", "integer", "0.0"),
    ("1" * 60 + ".5", "integer", f"{float('1' * 60)!r}"),
    ("five", "integer", '"five"'),
    ("1_000", "integer", '"1_000"'),
    ("٣", "integer", '"٣"'),
    ("null", "integer", "null"),
    ("5", "number", "5"),
    ("+.5", "number", "0.5"),
    ("1e3", "number", "1e3"),
    ("00.5", "number", "0.5"),
    ("12345678901234567890.123", "number", "12345678901234567890.123"),
    ("+12345678901234567890", "number", "12345678901234567890"),
    ("-0", "number", "-0"),
    ("1e999", "number", '"1e999"'),
    ("nan", "number", '"nan"'),
    ("Infinity", "number", '"Infinity"'),
    ("9" * 5000, "integer", f'"{"9" * 5000}"'),
    ("true", "boolean", "true"),
    ("False", "boolean", "false"),
    ("0", "boolean", "false"),
    ("yes", "boolean", '"yes"'),
    ('{"a": [1, "é"]}', "object", '{"a": [1, "é"]}'),
    ("[1,\n2]", "array", "[1, 2]"),
    ('{"a": 1}', "array", '{"a": 1}'),
    ("{'a': 1}", "object", "\"{'a': 1}\""),
    ("[1, 2", "array", '"[1, 2"'),
    ("[1e999]", "array", '"[1e999]"'),
    ("[NaN]", "array", '"[NaN]"'),
    ("[" * 100_000, "array", f'"{"[" * 100_000}"'),
    ('["\\ud800"]', "array", '"[\\"\\\\ud800\\"]"'),
    ("", "integer", '""'),
    ("null", "null", "null"),
    ("NULL", "null", "null"),
    ("None", "integer null", "null"),
    ("none", "string null", '"none"'),
    ("5", "string integer", "5"),
    ("five", "string integer", '"five"'),
    ("02134", "string integer", '"02134"'),
    ("+1", "string integer", '"+1"'),
    ("1.0", "string integer", '"1.0"'),
    (" 5", "string integer", '" 5"'),
    ("-5", "string integer", "-5"),
    ("1.50", "string number", "1.50"),
    (".5", "string number", '".5"'),
    ("1", "string boolean", '"1"'),
    ("True", "string boolean", '"True"'),
    ("true", "string boolean", "true"),
    ("null", "string null", "null"),
    ("None", "string null", '"None"'),
    ("NULL", "string null", '"NULL"'),
    ("[1]", "string array", "[1]"),
    ("1, 2", "array", '"1, 2"'),
    ("1], [2", "array", '"1], [2"'),
    ("[1]", "string integer", '"[1]"'),
    ("2.0", "integer number", "2"),
    ("2.5", "integer number", "2.5"),
    ("1", "boolean integer", "1"),
    ("[]", "object array", "[]"),
    ("x", "unheard-of", '"x"'),
]


@pytest.mark.parametrize(("text", "types", "expected"), VALUES, ids=[f"{t[:12]}-{k}" for t, k, _ in VALUES])
def test_values(text: str, types: str, expected: str) -> None:
    """The first type that fits gives the JSON; what fits none, or is no finite JSON, stays the string that it was."""
    assert value_json(text, frozenset(types.split())) == expected


@pytest.mark.parametrize("depth", [150, 199, 200, 201, 250])
def test_what_is_read_can_be_sent_back(depth: int) -> None:
    """A value so deep that no client could send its call back stays a string."""
    value = value_json("[" * depth + "]" * depth, frozenset({"array"}))
    from_json(f'{{"a": {value}}}')
    assert (value[0] == "[") == (depth <= 200)
    assert isinstance(json.loads(value), list if depth <= 200 else str)
