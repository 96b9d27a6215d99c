"""Which types a tool's schema allows each of its parameters. Schemas are read for types alone.

No pattern in them is ever compiled, and no value is checked against them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

STRING = frozenset({"string"})
# Of a type that no schema language knows: nothing says that its values are strings.
UNKNOWN = "unknown"

_TYPE_OF_ALIAS: Mapping[str, str] = {
    **dict.fromkeys(("string", "str", "text", "enum"), "string"),
    **dict.fromkeys(("integer", "int", "int32", "int64", "uint", "uint32", "uint64", "long"), "integer"),
    **dict.fromkeys(("number", "float", "float32", "float64", "double"), "number"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("object", "dict"), "object"),
    **dict.fromkeys(("array", "list"), "array"),
    "null": "null",
}
_TYPE_OF_CLASS: Mapping[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


class _Said(NamedTuple):
    """What a node and its choices say without leaving it: types, and references to more."""

    types: frozenset[str]
    references: frozenset[str]


class ParameterTypes:
    """The types of one function's parameters. No node of the schema is looked into twice, whoever refers to it."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """schema: JSON schema of the object of all parameters."""
        self._schema = schema
        self._said: dict[int, _Said] = {}  # by identity: the schema keeps its nodes alive
        self._behind: dict[str, Any] = {}
        self._types: dict[str | None, frozenset[str]] = {}  # None: every parameter that is not listed
        self._listed: dict[str, list[Any]] | None = None
        self._others: list[Any] = []

    def of(self, parameter: str) -> frozenset[str]:
        """JSON schema's names of the types; a string where the schema does not say.

        For a name that is not listed, additionalProperties and all patternProperties count.
        """
        if self._listed is None:
            self._listed = self._list_parameters()
        name = parameter if parameter in self._listed else None
        if name not in self._types:
            self._types[name] = self._types_of(self._others if name is None else self._listed[name]) or STRING
        return self._types[name]

    def _list_parameters(self) -> dict[str, list[Any]]:
        """Schemas by parameter, from the root and from what it is made of."""
        listed: dict[str, list[Any]] = {}
        for part in self._parts_of_root():
            properties, patterns = part.get("properties"), part.get("patternProperties")
            for name, node in properties.items() if isinstance(properties, Mapping) else ():
                listed.setdefault(name, []).append(node)
            self._others += patterns.values() if isinstance(patterns, Mapping) else ()
            self._others.append(part.get("additionalProperties"))
        return listed

    def _parts_of_root(self) -> Iterator[Mapping[str, Any]]:
        waiting: list[Any] = [self._schema]
        seen: set[int] = set()
        while waiting:
            node = waiting.pop()
            if isinstance(node, Mapping) and id(node) not in seen:
                seen.add(id(node))
                yield node
                waiting += _choices(node)
                waiting += [self._node_behind(reference) for reference in _references(node)]

    def _types_of(self, nodes: list[Any]) -> frozenset[str]:
        waiting, types, followed = list(nodes), set[str](), set[str]()
        while waiting:
            said = self._said_by(waiting.pop())
            types |= said.types
            waiting += [self._node_behind(reference) for reference in said.references - followed]
            followed |= said.references
        return frozenset(types)

    def _said_by(self, node: Any) -> _Said:
        """Recursion is as deep as the schema, whose depth the parser of bodies bounds."""
        if not isinstance(node, Mapping):
            return _Said(frozenset(), frozenset())
        if id(node) not in self._said:
            choices = [self._said_by(choice) for choice in _choices(node)]
            self._said[id(node)] = _Said(
                frozenset(_own_types(node)).union(*(choice.types for choice in choices)),
                frozenset(_references(node)).union(*(choice.references for choice in choices)),
            )
        return self._said[id(node)]

    def _node_behind(self, reference: str) -> Any:
        if reference not in self._behind:
            self._behind[reference] = _follow(self._schema, reference)
        return self._behind[reference]


def _choices(node: Mapping[str, Any]) -> Iterator[Any]:
    for choices in (node.get(word) for word in ("anyOf", "oneOf", "allOf")):
        yield from choices if isinstance(choices, list) else ()


def _references(node: Mapping[str, Any]) -> Iterator[str]:
    reference = node.get("$ref")
    if isinstance(reference, str):
        yield reference


def _own_types(node: Mapping[str, Any]) -> Iterator[str]:
    named = node.get("type")
    for name in named if isinstance(named, list) else [named]:
        if isinstance(name, str):
            yield _TYPE_OF_ALIAS.get(name.lower(), UNKNOWN)
    listed = node.get("enum")
    values = [*(listed if isinstance(listed, list) else ()), *([node["const"]] if "const" in node else ())]
    yield from (_TYPE_OF_CLASS[type(value)] for value in values)
    if node.get("nullable") is True:
        yield "null"
    if named is None and not values:
        yield from _types_by_shape(node)


def _types_by_shape(node: Mapping[str, Any]) -> Iterator[str]:
    """A node that only says what its value is made of."""
    if isinstance(node.get("properties"), Mapping):
        yield "object"
    elif "items" in node:
        yield "array"


def _follow(schema: Mapping[str, Any], reference: str) -> Any:
    """What a reference into the same schema names; None for any other, and where there is nothing."""
    if reference == "#":
        return schema
    node: Any = schema if reference.startswith("#/") else None
    for step in unquote(reference).removeprefix("#/").split("/"):
        node = _step(node, step.replace("~1", "/").replace("~0", "~"))
    return node


def _step(node: Any, step: str) -> Any:
    if isinstance(node, Mapping):
        return node.get(step)
    if isinstance(node, list) and step.isascii() and step.isdigit() and len(step) < 10:
        return node[int(step)] if int(step) < len(node) else None
    return None
