"""Typed values out of a config.json that nobody vouches for: each is understood or noted as a problem, nothing raises.

Knows JSON and bounds; what a field means is the affair of `config.py`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

MAX_INTEGER = 2**31 - 1
MAX_NUMBER = 1e30  # float32, in which everything is computed, holds it
_MISSING = object()

# Values go into messages: short, and never a RecursionError.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 100
_REPR.maxlist = _REPR.maxdict = 10
_REPR.maxlevel = 3


def shown(value: object) -> str:
    """repr, cut to a length that fits a sentence."""
    return _REPR.repr(value)


class FieldReader:
    """Reads the fields of one JSON object. `problems`: one sentence for each thing wrong so far, naming its field.

    What cannot be read comes back as the least legal value, so that the caller can go on and find the rest. A reader
    made by `section` shares the problems and prefixes its names.
    """

    def __init__(self, fields: Mapping[str, Any], *, prefix: str = "", problems: list[str] | None = None) -> None:
        self._fields = fields
        self._prefix = prefix
        self.problems: list[str] = [] if problems is None else problems

    def note(self, problem: str) -> None:
        """Add a problem once, however often its field is read."""
        if problem not in self.problems:
            self.problems.append(problem)

    def note_value(self, name: str, rule: str) -> None:
        """Add a problem that says name, value and rule."""
        self.note(f"{self._prefix}{name} = {shown(self._fields.get(name))} {rule}")

    def get(self, name: str) -> Any:
        """The raw value; None if it is absent."""
        return self._fields.get(name)

    def names(self) -> AbstractSet[str]:
        """The fields that are there."""
        return self._fields.keys()

    def integer(self, name: str, *, minimum: int = 1, maximum: int = MAX_INTEGER, default: int | None = None) -> int:
        """An integer in [minimum, maximum]. default: for an absent field; None: it must be there."""
        value = self._value(name, default)
        if not is_integer(value, minimum, maximum):
            self.note_value(name, f"must be an integer of {minimum} to {maximum}")
            return minimum
        return int(value)

    def number(self, name: str, *, minimum: float = 0.0, is_above: bool = False, default: float | None = None) -> float:
        """A finite number of at least `minimum`, or above it if `is_above`. default: as in `integer`."""
        value = self._value(name, default)
        if not is_number(value, minimum) or (is_above and value == minimum):
            self.note_value(name, f"must be a finite number {'above' if is_above else 'of at least'} {minimum:g}")
            return 1.0
        return float(value)

    def numbers(self, name: str, length: int, *, minimum: float, default: float | None = None) -> Sequence[float]:
        """`length` finite numbers of at least `minimum`, from a list of them or one number that stands for all.

        default: what stands for all where the field is absent or null; None: it must be there.
        """
        value = default if self._fields.get(name) is None and default is not None else self._value(name, None)
        values = value if isinstance(value, list) else [value] * length
        if len(values) != length:
            self.note(f"{self._prefix}{name} has {len(values)} entries, needs {length}, one for each layer and module")
            return [1.0] * length
        return [self._entry(name, idx, entry, minimum) for idx, entry in enumerate(values)]

    def section(self, name: str) -> FieldReader | None:
        """A reader of the object that a field holds. None if the field is absent or null, or, noted, no object."""
        value = self._fields.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.note_value(name, "must be an object")
            return None
        return FieldReader(value, prefix=f"{self._prefix}{name}.", problems=self.problems)

    def _value(self, name: str, default: object) -> Any:
        return self._fields.get(name, _MISSING if default is None else default)

    def _entry(self, name: str, idx: int, entry: object, minimum: float) -> float:
        if not is_number(entry, minimum):
            place = f"[{idx}]" if isinstance(self._fields.get(name), list) else ""
            rule = f"must be a finite number of at least {minimum:g}"
            self.note(f"{self._prefix}{name}{place} = {shown(entry)} {rule}")
            return max(minimum, 1.0)
        return float(entry)  # type: ignore[arg-type]  # is_number has seen to it


def is_integer(value: object, minimum: int, maximum: int = MAX_INTEGER) -> bool:
    """Whether a value is an integer, not a boolean, in [minimum, maximum]."""
    return type(value) is int and minimum <= value <= maximum


def is_number(value: object, minimum: float) -> bool:
    """Whether a value is an integer or float, not a boolean or NaN, in [minimum, MAX_NUMBER]."""
    return type(value) in (int, float) and minimum <= value <= MAX_NUMBER  # type: ignore[operator]
