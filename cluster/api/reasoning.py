"""Splits a completion that starts inside the think block into reasoning and content, token by token.

The marks are recognised by token id, so text that merely looks like one stays text. Whitespace before the closing mark
and one newline after it belong to neither side.
"""

from __future__ import annotations

from typing import NamedTuple

from cluster.api.text import Tokenizer

OPEN, CLOSE, TOOL_CALL = "<think>", "</think>", "<tool_call>"


class Split(NamedTuple):
    """New text of either side."""

    reasoning: str = ""
    content: str = ""


class ReasoningSplitter:
    """State of one completion. `in_reasoning` tells where the next token belongs."""

    def __init__(self, tokenizer: Tokenizer, *, starts_in_reasoning: bool, has_tools: bool = False) -> None:
        """A completion that does not start in reasoning is content from end to end.

        has_tools: a call ends reasoning; where no tool was offered, its mark is text.
        """
        marks = ((OPEN, CLOSE, TOOL_CALL) if has_tools else (OPEN, CLOSE)) if starts_in_reasoning else ()
        self._mark_by_id = {tokenizer.control_id(mark): mark for mark in marks}
        self._held_whitespace = ""
        self._drops_newline = False
        self.in_reasoning = starts_in_reasoning

    def push(self, token_id: int | None, text: str, *, in_call: bool = False) -> Split:
        """Take a token and the text it completed; None for text that is left over at the end.

        in_call: the token belongs to a tool call that has begun, where a mark is text like any other.
        """
        if in_call:
            return Split(content=text)
        mark = self._mark_by_id.get(token_id) if token_id is not None else None
        before = text.removesuffix(mark) if mark is not None else text
        if not self.in_reasoning:
            return Split(content=self._content(text if mark == TOOL_CALL else before))
        if mark in (CLOSE, TOOL_CALL):
            return self._close(before, text if mark == TOOL_CALL else "")
        return Split(reasoning=self._reasoning(before))

    def _close(self, before: str, call: str) -> Split:
        reasoning = self._reasoning(before)
        self._held_whitespace = ""
        self.in_reasoning = False
        self._drops_newline = not call
        return Split(reasoning, call.removeprefix(before) if call else "")

    def _reasoning(self, text: str) -> str:
        """Holds back trailing whitespace until it is known not to be the last."""
        whole = self._held_whitespace + text
        kept = whole.rstrip()
        self._held_whitespace = whole[len(kept) :]
        return kept

    def _content(self, text: str) -> str:
        if not self._drops_newline or not text:
            return text
        self._drops_newline = False
        return text.removeprefix("\n")
