"""Finds the tool calls in a completion's content, however it is cut. Pure: text in, text and pieces of calls out.

    <tool_call>
    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>
    </tool_call>

The rules are those of the model's published parser; where it loses text, this one does not. A tag of a call may be
missing: `<tool_call>` and `</tool_call>` always, `</parameter>` before the next parameter or the call's end, and
`</function>` before `</tool_call>` or the next call. Within a value `</tool_call>` is text, unless the end or a
`<tool_call>` follows it. A key ends with its line at the latest. Markup that turns out to be no call is content again,
and so is text that goes on after a call. Whitespace around calls is dropped, but for what parts the texts before and
after them: the whitespace before the calls, or where there is none, what stands behind the first that has some.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import TypeAlias

from cluster.api.tool_arguments import ArgumentsWriter, CallPiece
from cluster.api.tools import Toolset

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
FUNCTION_OPEN, FUNCTION_CLOSE = "<function=", "</function>"
PARAMETER_OPEN, PARAMETER_CLOSE = "<parameter=", "</parameter>"
NAME_END, LINE_END = ">", "\n"

# Longer than any name of a tool: bounds what is held back for text that only begins like a call.
MAX_NAME_CHARS = 256
# Between two tags of which neither means anything alone.
MAX_SPACE_CHARS = 256

Event: TypeAlias = str | CallPiece  # a string is content


class _State(Enum):
    CONTENT = auto()
    OPENED = auto()  # behind <tool_call>
    NAME = auto()
    ARGUMENTS = auto()  # within the function, between parameters
    KEY = auto()
    VALUE = auto()
    CLOSING = auto()  # behind </tool_call> within a value, as long as only whitespace follows
    AFTER = auto()  # behind </function>, and behind </tool_call> as long as only whitespace follows


# In each state only these are markup; everything else is text.
_TAGS: Mapping[_State, tuple[str, ...]] = {
    _State.CONTENT: (CALL_OPEN, FUNCTION_OPEN),
    _State.OPENED: (CALL_OPEN, FUNCTION_OPEN),
    _State.NAME: (NAME_END, FUNCTION_CLOSE, CALL_OPEN, FUNCTION_OPEN),
    _State.ARGUMENTS: (PARAMETER_OPEN, FUNCTION_CLOSE, CALL_CLOSE, CALL_OPEN, FUNCTION_OPEN),
    _State.KEY: (NAME_END, LINE_END),
    _State.VALUE: (PARAMETER_CLOSE, PARAMETER_OPEN, FUNCTION_CLOSE, CALL_CLOSE),
    _State.CLOSING: (PARAMETER_CLOSE, PARAMETER_OPEN, FUNCTION_CLOSE, CALL_CLOSE, CALL_OPEN),
    _State.AFTER: (CALL_CLOSE, CALL_OPEN, FUNCTION_OPEN),
}
_PATTERNS = {state: re.compile("|".join(map(re.escape, tags))) for state, tags in _TAGS.items()}
_LONGEST_TAG = max(len(tag) for tags in _TAGS.values() for tag in tags)
_UNDECIDED = frozenset({_State.CONTENT, _State.OPENED, _State.NAME})
_NAME = re.compile(rf"[^\s<>]{{1,{MAX_NAME_CHARS}}}")


def new_call_id() -> str:
    """An id for one call, in OpenAI's form and within the 40 characters that OpenAI takes back."""
    return f"call_{secrets.token_hex(12)}"


class ToolCallParser:
    """State of one completion. Each character is looked at a bounded number of times."""

    def __init__(self, toolset: Toolset, new_id: Callable[[], str] = new_call_id) -> None:
        self._toolset = toolset
        self._new_id = new_id
        self._state = _State.CONTENT
        self._tag_begin = ""  # the text's end, where it may begin a tag
        self._held: list[str] = []  # what may belong to a call, or is whitespace that a call may follow
        self._num_held_chars = 0
        self._max_held_chars = 0  # with the whitespace that may follow a tag
        self._gap: str | None = None  # whitespace between the last content and the next; None before any content
        self._space: list[str] = []  # whitespace behind a call
        self._name = ""
        self._key: list[str] = []
        self._arguments: ArgumentsWriter | None = None
        self._events: list[Event] = []
        self.num_calls = 0

    @property
    def in_call(self) -> bool:
        """Whether all of the last text belonged to a call, none of it to content."""
        return self._state not in _UNDECIDED and not self._tag_begin

    @property
    def has_open_call(self) -> bool:
        """Whether a call's arguments are not complete."""
        return self._arguments is not None

    @property
    def has_called(self) -> bool:
        """Whether a call was told, and each that was is complete."""
        is_open = self._arguments is not None and self._arguments.is_told
        return self.num_calls > 0 and not is_open

    @property
    def num_held_chars(self) -> int:
        """Characters of which it is not known yet whether they are content."""
        return self._num_held_chars + len(self._tag_begin)

    def feed(self, text: str) -> list[Event]:
        """What this text makes known, in order."""
        self._scan(self._tag_begin + text)
        return self._take_events()

    def finish(self, *, is_complete: bool) -> list[Event]:
        """What is left at the end.

        is_complete: the model ended by itself, so an open call is closed for it. Where the text was cut instead, the
        arguments stay as they are, which is no JSON: nobody runs a call with half a value by mistake.
        """
        rest, self._tag_begin = self._tag_begin, ""
        if rest:
            self._on_text(rest)
        if self._state in _UNDECIDED:
            self._emit(self._take_held())
        elif self.has_open_call and is_complete:
            self._end_call()
        elif self.has_open_call:
            self._open_call.cut()
        return self._take_events()

    def _scan(self, text: str) -> None:
        start = 0
        while True:
            state = self._state
            match = _PATTERNS[state].search(text, start)
            end = match.start() if match else _end_of_plain_text(text, start, state)
            if end > start:
                self._on_text(text[start:end])
                start = end
                if self._state is not state:
                    continue  # what follows may be no tag now
            if match is None:
                break
            self._on_tag(match[0])
            start = match.end()
        self._tag_begin = text[start:]

    def _on_text(self, text: str) -> None:
        if self._state is _State.CONTENT:
            self._on_content(text)
        elif self._state in (_State.OPENED, _State.CLOSING):
            self._hold(text)
            if not text.isspace() or self._num_held_chars > self._max_held_chars:
                self._give_back()
        elif self._state is _State.NAME:
            self._hold(text)
            self._name += text
            if len(self._name) > MAX_NAME_CHARS:
                self._give_back()
        elif self._state is _State.KEY:
            self._key.append(text)
        elif self._state is _State.VALUE:
            self._open_call.add(text)
        elif self._state is _State.AFTER:
            self._on_text_after(text)

    def _on_text_after(self, text: str) -> None:
        content = text.lstrip()
        self._space.append(text[: len(text) - len(content)])
        if content:
            self._widen_gap()
            self._state = _State.CONTENT
            self._on_content(content)

    def _on_tag(self, tag: str) -> None:
        if self._state is _State.CLOSING and tag != CALL_OPEN:
            self._give_back()
        if tag in (CALL_OPEN, FUNCTION_OPEN):
            self._on_opening(tag)
        elif self._state is _State.NAME:
            self._on_name_end(tag)
        elif self._state is _State.KEY:
            self._on_key_end(tag)
        elif tag == PARAMETER_OPEN:
            self._end_value()
            self._state = _State.KEY
        elif tag == PARAMETER_CLOSE:
            self._end_value()
        elif self._state is _State.VALUE and tag == CALL_CLOSE:
            self._hold_tag(tag)
            self._state = _State.CLOSING
        elif self._state is _State.AFTER:  # where a closing tag has nothing to close any more
            self._space.clear()
        else:
            self._end_call()

    def _on_opening(self, tag: str) -> None:
        if self._state in (_State.ARGUMENTS, _State.CLOSING):
            self._take_held()
            self._end_call()
        elif self._state is _State.AFTER:
            self._widen_gap()
        elif self._state is _State.NAME or (self._state is _State.OPENED and tag == CALL_OPEN):
            self._give_back()
        self._hold_tag(tag)
        self._name = ""
        self._state = _State.OPENED if tag == CALL_OPEN else _State.NAME

    def _on_name_end(self, tag: str) -> None:
        """A name that no function can have shows that this is prose about calls."""
        name = self._name.strip()
        if not _NAME.fullmatch(name):
            self._hold(tag)
            self._give_back()
            return
        held = self._take_held()
        if self._gap is not None:
            self._gap += held[: len(held) - len(held.lstrip())]
        self._begin_call(name)
        if tag == FUNCTION_CLOSE:
            self._end_call()

    def _on_content(self, text: str) -> None:
        kept = text.rstrip()
        if kept:
            self._emit(self._take_held() + kept)
        self._hold(text[len(kept) :])

    def _begin_call(self, name: str) -> None:
        """Tools that were not offered can be called too: the client knows best what to answer."""
        limit = self._toolset.max_calls
        index = self.num_calls if limit is None or self.num_calls < limit else None
        self._arguments = ArgumentsWriter(self._toolset, name, index)
        self._state = _State.ARGUMENTS
        if index is not None:
            self.num_calls += 1
            self._events.append(CallPiece(index, call_id=self._new_id(), name=name))

    @property
    def _open_call(self) -> ArgumentsWriter:
        assert self._arguments is not None, "between a function's tags a call is open"
        return self._arguments

    def _end_call(self) -> None:
        self._open_call.close()
        self._take_arguments()
        self._arguments = None
        self._state = _State.AFTER

    def _on_key_end(self, tag: str) -> None:
        key = "".join(self._key).strip()
        if tag == LINE_END and not key:
            return  # before the key
        self._key.clear()
        self._open_call.begin(key)
        self._state = _State.VALUE
        if tag == LINE_END:
            self._open_call.add(tag)

    def _end_value(self) -> None:
        self._open_call.end()
        self._state = _State.ARGUMENTS

    def _hold(self, text: str) -> None:
        if text:
            self._held.append(text)
            self._num_held_chars += len(text)

    def _hold_tag(self, tag: str) -> None:
        self._hold(tag)
        self._max_held_chars = self._num_held_chars + MAX_SPACE_CHARS

    def _take_held(self) -> str:
        held = "".join(self._held)
        self._held.clear()
        self._num_held_chars = 0
        return held

    def _give_back(self) -> None:
        """What looked like a call is content, and what looked like its end is part of a value."""
        self._state = _State.VALUE if self._state is _State.CLOSING else _State.CONTENT
        self._on_text(self._take_held())

    def _widen_gap(self) -> None:
        """Content whose parts are apart only behind a call stays apart."""
        self._gap = self._gap or ("".join(self._space) if self._gap is not None else None)
        self._space.clear()

    def _emit(self, content: str) -> None:
        if content:
            self._events.append((self._gap or "") + content)
            self._gap = ""

    def _take_arguments(self) -> None:
        piece = self._arguments.take() if self._arguments is not None else None
        if piece is not None:
            self._events.append(piece)

    def _take_events(self) -> list[Event]:
        self._take_arguments()
        events, self._events = self._events, []
        return events


def _end_of_plain_text(text: str, start: int, state: _State) -> int:
    """Where the text ends, or where its last characters may begin a tag. A tag has `<` nowhere but at its start."""
    begin = text.rfind("<", max(start, len(text) - _LONGEST_TAG + 1))
    is_tag_begin = begin >= 0 and any(tag.startswith(text[begin:]) for tag in _TAGS[state])
    return begin if is_tag_begin else len(text)
