"""Finds stop strings in text that comes in pieces. Where the pieces are cut never changes the result."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Knuth-Morris-Pratt for a few strings at once. The string that is complete first wins, of those the longest."""

    def __init__(self, stops: Sequence[str]) -> None:
        """stops: non-empty strings, possibly none."""
        self._stops = [(stop, _failure_table(stop)) for stop in stops]
        self._num_matched = [0] * len(self._stops)
        self._held = ""
        self.is_matched = False

    def push(self, text: str) -> str:
        """The text that cannot be part of a stop string any more. After a match: what stands before the stop string."""
        if not self._stops:
            return text
        for end, char in enumerate(text, start=1):
            longest = self._advance(char)
            if longest:
                self.is_matched = True
                whole = self._held + text[:end]
                self._held = ""
                return whole[: len(whole) - longest]
        whole = self._held + text
        num_free = len(whole) - max(self._num_matched)
        self._held = whole[num_free:]
        return whole[:num_free]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> int:
        """Length of the longest stop string that this character completes, 0 for none."""
        longest = 0
        for index, (stop, failure) in enumerate(self._stops):
            num = self._num_matched[index]
            while num and stop[num] != char:
                num = failure[num - 1]
            num += stop[num] == char
            self._num_matched[index] = num
            if num == len(stop):
                longest = max(longest, num)
        return longest


def _failure_table(stop: str) -> list[int]:
    """failure[i]: length of the longest proper prefix of stop[:i + 1] that is also its suffix."""
    failure = [0] * len(stop)
    num = 0
    for i in range(1, len(stop)):
        while num and stop[i] != stop[num]:
            num = failure[num - 1]
        num += stop[i] == stop[num]
        failure[i] = num
    return failure
