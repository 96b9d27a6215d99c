"""Writes the JSON of a call's arguments while its parameters come, as OpenAI's clients read it. No I/O, no markup."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cluster.api.tool_schema import STRING
from cluster.api.tool_values import value_json
from cluster.api.tools import Toolset


@dataclass(frozen=True)
class CallPiece:
    """News of one call. The first piece has its id and name and no arguments, the others have arguments alone."""

    index: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


class ArgumentsWriter:
    """State of one call. A string is written piece by piece, any other value when it is whole."""

    def __init__(self, toolset: Toolset, name: str, index: int | None) -> None:
        """index: None for a call that nobody hears of."""
        self._toolset = toolset
        self._name = name
        self._index = index
        self._keys: set[str] = set()
        self._written: list[str] = []
        self._types = STRING
        self._value: list[str] | None = None  # the parts of a value that is not written yet
        self._is_open = False
        self._is_repeated = False
        self._is_at_start = False
        self._line_end = ""  # the value's last newline as far as it came, which may belong to the markup

    @property
    def is_told(self) -> bool:
        """Whether anybody hears of the call."""
        return self._index is not None

    def begin(self, key: str) -> None:
        """A value begins. What is sent cannot be taken back, so of a key that comes twice the first value counts."""
        self._is_open = self._is_at_start = True
        self._line_end = ""
        self._is_repeated = key in self._keys
        if self._is_repeated:
            return
        self._written.append(f"{', ' if self._keys else '{'}{_string_json(key)}: ")
        self._keys.add(key)
        self._types = self._toolset.types(self._name, key)
        self._value = None if self._types == STRING else []
        if self._value is None:
            self._written.append('"')

    def add(self, text: str) -> None:
        """Text of the value, whose first and last newline belong to the markup. A newline is \\n or \\r\\n."""
        whole = self._line_end + text
        if self._is_at_start:
            self._is_at_start = whole in ("", "\r")
            whole = whole if self._is_at_start else whole.removeprefix("\r\n" if whole.startswith("\r\n") else "\n")
        self._line_end = next((end for end in ("\r\n", "\n", "\r") if whole.endswith(end)), "")
        self._write_value(whole.removesuffix(self._line_end))

    def end(self) -> None:
        """The value is whole. Nothing happens between values."""
        if not self._is_open:
            return
        self._is_open = False
        if not self._line_end.endswith("\n"):
            self._write_value(self._line_end)
        if not self._is_repeated:
            self._written.append('"' if self._value is None else value_json("".join(self._value), self._types))

    def close(self) -> None:
        """The call is complete."""
        self.end()
        self._written.append("}" if self._keys else "{}")

    def cut(self) -> None:
        """The call ends before it is complete. No arguments at all would read as a call without any."""
        if not self._keys:
            self._written.append("{")

    def take(self) -> CallPiece | None:
        """What was written since the last time; None for nothing, or for a call that nobody hears of."""
        written = "".join(self._written)
        self._written.clear()
        return CallPiece(self._index, written) if written and self._index is not None else None

    def _write_value(self, text: str) -> None:
        if self._is_repeated or not text:
            return
        if self._value is None:
            self._written.append(_string_json(text)[1:-1])
        else:
            self._value.append(text)


def _string_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
