"""Finds a tokenizer's added tokens in text, and texts that end within one. Work grows with the text alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

# The shape of nearly all added tokens: a pattern finds what looks like one, a set tells whether it is one. The
# published tokenizer has 800 of them, and a pattern of them all would try each at every `<`.
_BRACKETED = re.compile(r"<[^<>]+>")


class ControlText:
    """The added tokens of one tokenizer as text. Immutable."""

    def __init__(self, tokens: Collection[str]) -> None:
        """tokens: non-empty, such as `<|im_end|>`."""
        self._tokens = frozenset(tokens)
        self._pattern = _pattern(self._tokens)
        self._begins = frozenset(token[:end] for token in self._tokens for end in range(1, len(token)))
        self._longest_begin = max(map(len, self._begins), default=0)

    def find(self, text: str) -> Iterator[re.Match[str]]:
        """Every added token in the text; of two that start alike, the longer one, as the original tokenizer does."""
        return (match for match in self._pattern.finditer(text) if match[0] in self._tokens)

    def unfinished(self, text: str) -> tuple[int, int]:
        """In a text without added tokens, the span of one that begins in it and is cut by its end; empty for none.

        Whitespace behind it does not count: who trims the text and writes on can still complete the token.
        """
        end = len(text.rstrip())
        starts = range(max(0, end - self._longest_begin), end)
        return next(((start, end) for start in starts if text[start:end] in self._begins), (end, end))


def _pattern(tokens: Collection[str]) -> re.Pattern[str]:
    if tokens and all(map(_BRACKETED.fullmatch, tokens)):
        return re.compile(rf"<[^<>]{{1,{max(map(len, tokens)) - 2}}}>")
    by_length = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, by_length)) or r"(?!)")
