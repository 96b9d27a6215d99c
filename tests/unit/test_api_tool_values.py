"""What the text of a parameter means: which types a schema allows, and which JSON comes of the text."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.api.tool_values import parameter_types, value_json

TYPES: list[tuple[Any, set[str]]] = [
    ({"type": "integer"}, {"integer"}),
    ({"type": ["integer", "null"]}, {"integer", "null"}),
    ({"type": "INTEGER"}, {"integer"}),
    ({"type": "float"}, {"number"}),
    ({"type": "dict"}, {"object"}),
    ({"type": 5}, {"string"}),
    ({"type": [5, "array"]}, {"array"}),
    ({}, {"string"}),
    (True, {"string"}),
    ({"enum": ["a", "b"]}, {"string"}),
    ({"enum": [1, 2.5, None, True, [], {}]}, {"integer", "number", "null", "boolean", "array", "object"}),
    ({"enum": "abc"}, {"string"}),
    ({"const": 3}, {"integer"}),
    ({"anyOf": [{"type": "integer"}, {"oneOf": [{"type": "null"}, {"enum": ["x"]}]}]}, {"integer", "null", "string"}),
    ({"allOf": [{"type": "object"}]}, {"object"}),
    ({"anyOf": "no list"}, {"string"}),
    ({"$ref": "#/$defs/place"}, {"object"}),
    ({"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]}, {"object", "null"}),
    ({"$ref": "#/$defs/a~1b~0c"}, {"boolean"}),
    ({"$ref": "#/$defs/loop"}, {"number"}),
    ({"$ref": "#/$defs/missing"}, {"string"}),
    ({"$ref": "https://example.org/schema"}, {"string"}),
]
DEFINITIONS = {
    "place": {"type": "object"},
    "a/b~c": {"type": "boolean"},
    "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/loop"}, {"type": "number"}]},
}


@pytest.mark.parametrize(("node", "types"), TYPES)
def test_types_of_a_parameter(node: Any, types: set[str]) -> None:
    """Own type, lists, aliases, enums, choices and local references; a string where nothing is said."""
    assert parameter_types({"properties": {"x": node}, "$defs": DEFINITIONS}, "x") == types


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({}, {"string"}),
        ({"properties": []}, {"string"}),
        ({"properties": {"y": {"type": "integer"}}}, {"string"}),
        ({"additionalProperties": False}, {"string"}),
        ({"additionalProperties": {"type": "integer"}}, {"integer"}),
    ],
)
def test_types_of_a_parameter_that_is_not_listed(schema: dict[str, Any], types: set[str]) -> None:
    """What the schema says of further parameters counts, and nothing makes it a string."""
    assert parameter_types(schema, "x") == types


def test_references_are_followed_once() -> None:
    """A schema whose references double at each level, 2**40 paths in all, costs no more than its size."""
    defs: dict[str, Any] = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    defs["d40"] = {"type": "integer"}
    assert parameter_types({"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": defs}, "x") == {"integer"}


VALUES: list[tuple[str, str, str]] = [
    ("5", "string", '"5"'),
    (" null ", "string", '" null "'),
    ("5", "integer", "5"),
    (" -5 ", "integer", "-5"),
    ("5.0", "integer", "5"),
    ("5.5", "integer", "5.5"),
    ("five", "integer", '"five"'),
    ("1_000", "integer", '"1_000"'),
    ("٣", "integer", '"٣"'),
    ("null", "integer", "null"),
    ("5", "number", "5"),
    ("+.5", "number", "0.5"),
    ("1e3", "number", "1000.0"),
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
    ("NULL", "string null", "null"),
    ("None", "integer null", "null"),
    ("none", "string null", '"none"'),
    ("5", "string integer", "5"),
    ("five", "string integer", '"five"'),
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
