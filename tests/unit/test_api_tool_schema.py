"""Which types a tool's schema allows its parameters, and how much work it is to find out."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.api import tool_schema
from cluster.api.tool_schema import ParameterTypes
from cluster.api.tools import Toolset

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
    ({"$ref": "#"}, {"object"}),
    ({"$ref": "#/$defs/choice/anyOf/1"}, {"array"}),
    ({"$ref": "#/$defs/choice/anyOf/2"}, {"string"}),
    ({"$ref": "#/$defs/choice/anyOf/x"}, {"string"}),
    ({"$ref": "#/$defs/A%3Cint%3E"}, {"integer"}),
    ({"properties": {}}, {"object"}),
    ({"items": {}}, {"array"}),
    ({"type": "string", "nullable": True}, {"string", "null"}),
    ({"type": "file"}, {"unknown"}),
]
DEFINITIONS = {
    "place": {"type": "object"},
    "choice": {"anyOf": [{"type": "null"}, {"type": "array"}]},
    "A<int>": {"type": "integer"},
    "a/b~c": {"type": "boolean"},
    "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"$ref": "#/$defs/loop"}, {"type": "number"}]},
}


@pytest.mark.parametrize(("node", "types"), TYPES)
def test_types_of_a_parameter(node: Any, types: set[str]) -> None:
    """Own type, lists, aliases, enums, choices and local references; a string where nothing is said."""
    assert ParameterTypes({"properties": {"x": node}, "$defs": DEFINITIONS}).of("x") == types


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({}, {"string"}),
        ({"properties": []}, {"string"}),
        ({"properties": {"y": {"type": "integer"}}}, {"string"}),
        ({"additionalProperties": False}, {"string"}),
        ({"additionalProperties": {"type": "integer"}}, {"integer"}),
        ({"patternProperties": {"(a+)+$": {"type": "integer"}}}, {"integer"}),
        ({"properties": {"": {"type": "integer"}}}, {"string"}),
    ],
)
def test_types_of_a_parameter_that_is_not_listed(schema: dict[str, Any], types: set[str]) -> None:
    """What the schema says of further parameters counts, and nothing makes it a string."""
    assert ParameterTypes(schema).of("x") == types


@pytest.mark.parametrize(
    "root",
    [
        {"$ref": "#/$defs/root"},
        {"allOf": [{"description": "d"}, {"$ref": "#/$defs/root"}]},
        {"anyOf": [{"$ref": "#/$defs/root"}, {"$ref": "#"}]},
    ],
)
def test_parameters_behind_the_root(root: dict[str, Any]) -> None:
    """A schema whose parameters are not at its root itself, as generators of schemas write recursive ones."""
    defs = {"root": {"properties": {"x": {"type": "integer"}, "next": {"$ref": "#/$defs/root"}}}}
    types = ParameterTypes({**root, "$defs": defs})
    assert [set(types.of(name)) for name in ("x", "next", "other")] == [{"integer"}, {"object"}, {"string"}]


def wide(num_choices: int) -> dict[str, Any]:
    """A node of many nodes."""
    return {"anyOf": [{"type": "integer"} for _ in range(num_choices)]}


@pytest.mark.parametrize(
    ("schema", "num_nodes"),
    [
        ({"additionalProperties": wide(1000)}, 1001),
        ({"properties": {f"k{n}": {"$ref": "#/$defs/x"} for n in range(200)}, "$defs": {"x": wide(1000)}}, 1201),
        (
            {
                "properties": {f"k{n}": {"anyOf": [{"$ref": f"#/$defs/x/anyOf/{n}"}]} for n in range(200)},
                "$defs": {"x": {"anyOf": [{"$ref": "#/$defs/x"}, *wide(1000)["anyOf"]]}},
            },
            1602,
        ),
    ],
    ids=["not listed", "one reference", "references into each other"],
)
def test_each_node_is_looked_at_once(schema: dict[str, Any], num_nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many parameters a model writes, all calls of all choices together cost no more than the schema's size."""
    num_seen = 0
    own_types = tool_schema._own_types

    def counted(node: Any) -> Any:
        nonlocal num_seen
        num_seen += 1
        return own_types(node)

    monkeypatch.setattr(tool_schema, "_own_types", counted)
    toolset = Toolset({"f": schema})
    for _ in range(3):
        assert all(toolset.types("f", f"k{n}") == {"integer"} for n in range(200))
    assert num_seen <= num_nodes


def test_references_are_followed_once() -> None:
    """A schema whose references double at each level, 2**40 paths in all, costs no more than its size."""
    defs: dict[str, Any] = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    defs["d40"] = {"type": "integer"}
    assert ParameterTypes({"properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": defs}).of("x") == {"integer"}
