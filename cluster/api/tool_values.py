"""What the text of a call's parameter means: the types that the tool's schema allows it, and the JSON of its value.

Schemas are read for types alone. No pattern in them is ever compiled, and no value is checked against them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic_core import from_json

STRING = frozenset({"string"})

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TYPE_OF_ALIAS: Mapping[str, str] = {
    **dict.fromkeys(("str", "text", "enum"), "string"),
    **dict.fromkeys(("int", "int32", "int64", "uint", "uint32", "uint64", "long"), "integer"),
    **dict.fromkeys(("float", "float32", "float64", "double"), "number"),
    "bool": "boolean",
    "dict": "object",
    "list": "array",
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


def parameter_types(schema: Mapping[str, Any], parameter: str) -> frozenset[str]:
    """The types that a schema of parameters allows one of them: its own, its choices', and those behind references.

    Each reference is followed once, so that the work is bounded by the schema's size however it refers to itself.
    """
    properties = schema.get("properties")
    known = properties if isinstance(properties, Mapping) else {}
    waiting: list[Any] = [known.get(parameter, schema.get("additionalProperties"))]
    types: set[str] = set()
    followed: set[str] = set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Mapping):
            continue
        types.update(_own_types(node))
        for choices in (node.get(word) for word in ("anyOf", "oneOf", "allOf")):
            waiting += choices if isinstance(choices, list) else ()
        reference = node.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            followed.add(reference)
            waiting.append(_behind(schema, reference))
    return frozenset(types) or STRING


def value_json(text: str, types: frozenset[str]) -> str:
    """The JSON of a value that a model wrote as text. What fits none of the types stays a string.

    The first type that fits wins, in the order of `_READERS`. Where a string is not allowed either, text that is JSON
    is taken as what it says.
    """
    readers = [read for name, read in _READERS if name in types]
    for read in readers if "string" in types else [*readers, _from_json]:
        try:
            return json.dumps(read(text.strip()), ensure_ascii=False, allow_nan=False)
        except ValueError:
            continue
    return json.dumps(text, ensure_ascii=False)


def _own_types(node: Mapping[str, Any]) -> Iterator[str]:
    named = node.get("type")
    for name in named if isinstance(named, list) else [named]:
        if isinstance(name, str):
            yield _TYPE_OF_ALIAS.get(name.lower(), name.lower())
    listed = node.get("enum")
    values = [*(listed if isinstance(listed, list) else ()), *([node["const"]] if "const" in node else ())]
    yield from (_TYPE_OF_CLASS[type(value)] for value in values)


def _behind(schema: Mapping[str, Any], reference: str) -> Any:
    """What a reference into the same schema names; None for any other, and where there is nothing."""
    node: Any = schema if reference.startswith("#/") else None
    for part in reference.removeprefix("#/").split("/"):
        node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, Mapping) else None
    return node


def _null(text: str) -> None:
    # The template writes a null of an earlier call as Python does, so the model may do the same.
    if text.lower() != "null" and text != "None":
        raise ValueError("not null")


def _integer(text: str) -> int:
    number = _number(text)
    if number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def _number(text: str) -> int | float:
    if not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    number = int(text) if text.lstrip("+-").isdigit() else float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError("too large")
    return number


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in values:
        raise ValueError("neither true nor false")
    return values[text.lower()]


def _json_of(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = _from_json(text)
        if not isinstance(value, kind):
            raise ValueError("JSON of another type")  # noqa: TRY004  readers say with ValueError that a text does not fit
        return value

    return read


def _from_json(text: str) -> Any:
    # Not the json module: this parser bounds depth and refuses text that is no Unicode.
    return from_json(text)


_READERS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    ("null", _null),
    ("integer", _integer),
    ("number", _number),
    ("boolean", _boolean),
    ("object", _json_of(dict)),
    ("array", _json_of(list)),
)
