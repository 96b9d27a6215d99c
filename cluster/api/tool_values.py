"""What the text of a call's parameter means: the JSON of a value by the types that its schema allows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal

from pydantic_core import from_json

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
# What JSON's own words are. Where a string is allowed too, anything else is one: "02134" is no number, "None" a name.
_EXACT = {
    "null": re.compile("null"),
    "integer": re.compile(r"-?(?:0|[1-9][0-9]*)"),
    "number": _JSON_NUMBER,
    "boolean": re.compile("true|false"),
}
# Python, and so many a client, reads no integer with more digits.
_MAX_DIGITS = 4300
_MAX_EXPONENT_CHARS = 4  # sign and three digits, as far as doubles go


def value_json(text: str, types: frozenset[str]) -> str:
    """The JSON of a value that a model wrote as text. What fits none of the types stays a string.

    The first type that fits wins, in the order of `_READERS`. Where a string is not allowed, readers are lenient, and
    text that is JSON of another type is taken as what it says. Where it is, only exact JSON is no string.
    """
    is_string = "string" in types
    readers = [read for name, read in _READERS if name in types and not (is_string and _is_inexact(name, text))]
    for read in readers if is_string else [*readers, _any]:
        try:
            return read(text.strip())
        except ValueError:
            continue
    return json.dumps(text, ensure_ascii=False)


def _is_inexact(name: str, text: str) -> bool:
    return name in _EXACT and not _EXACT[name].fullmatch(text)


def _null(text: str) -> str:
    # The template writes a null of an earlier call as Python does, so the model may do the same.
    if text.lower() != "null" and text != "None":
        raise ValueError("not null")
    return "null"


def _integer(text: str) -> str:
    """Not by way of a float, which keeps 15 digits."""
    _number(text)
    if len(text.lower().partition("e")[2]) > _MAX_EXPONENT_CHARS:
        raise ValueError("too large")
    number = Decimal(text)
    if number != number.to_integral_value():
        raise ValueError("not a whole number")
    return str(int(number))


def _number(text: str) -> str:
    """JSON's own form stays as it is, so that no digit is lost."""
    if not _NUMBER.fullmatch(text) or len(text) > _MAX_DIGITS:
        raise ValueError("not a number, or too long")
    if math.isinf(float(text)):
        raise ValueError("too large")
    if _JSON_NUMBER.fullmatch(text):
        return text
    return str(int(text)) if text.lstrip("+-").isdigit() else json.dumps(float(text))


def _boolean(text: str) -> str:
    values = {"true": "true", "1": "true", "false": "false", "0": "false"}
    if text.lower() not in values:
        raise ValueError("neither true nor false")
    return values[text.lower()]


def _json_of(*kinds: type) -> Callable[[str], str]:
    def read(text: str) -> str:
        # Not the json module: this parser bounds depth and refuses text that is no Unicode. Within a list, as deep as
        # the value is within its arguments, so that a client can send those back.
        values = from_json(f"[{text}]")
        if len(values) != 1 or not isinstance(values[0], kinds):
            raise ValueError("no JSON, or of another type")
        return json.dumps(values[0], ensure_ascii=False, allow_nan=False)

    return read


_any = _json_of(object)
_READERS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("null", _null),
    ("integer", _integer),
    ("number", _number),
    ("boolean", _boolean),
    ("object", _json_of(dict)),
    ("array", _json_of(list)),
)
