"""Hidden states of a run of rows that somebody will read later. Knows no modules and no sequences."""

from __future__ import annotations

import torch
from torch import Tensor


class KeptRows:
    """Rows first_row .. end_row - 1 of one sequence, in parts: each holds what came together, and stays a view of
    whatever it came in until `own`."""

    def __init__(self, first_row: int = 0) -> None:
        self.first_row = self.end_row = first_row
        self._parts: list[Tensor] = []

    @property
    def num_parts(self) -> int:
        return len(self._parts)

    @property
    def num_bytes(self) -> int:
        """That the parts keep alive, those of others in the same storage included."""
        return sum(part.untyped_storage().nbytes() for part in self._parts)

    def put(self, first_row: int, hidden: Tensor) -> None:
        """Rows first_row .. come in place of those that are there from first_row on. hidden: [R, H]. No row may be
        left out between them."""
        if not self._parts:
            self.first_row = self.end_row = first_row
        assert self.first_row <= first_row <= self.end_row, f"rows {self.end_row}..{first_row - 1} are missing"
        while self.end_row > first_row:
            last = self._parts.pop()
            self.end_row -= last.shape[0]
            if self.end_row < first_row:
                self._add(last[: first_row - self.end_row])
        self._add(hidden)

    def rows(self, wanted: range) -> list[Tensor]:
        """Views of these rows, [R, H] each, in order."""
        assert not wanted or self.first_row <= wanted.start < wanted.stop <= self.end_row, (
            f"not all of {wanted} are here"
        )
        found, first_row = [], self.first_row
        for part in self._parts:
            start, stop = max(wanted.start - first_row, 0), min(wanted.stop - first_row, part.shape[0])
            if start < stop:
                found.append(part[start:stop])
            first_row += part.shape[0]
        return found

    def forget(self, end_row: int) -> None:
        """Nobody will read rows before this one."""
        while self._parts and self.first_row < end_row:
            first = self._parts.pop(0)
            num_rows = min(first.shape[0], end_row - self.first_row)
            self.first_row += num_rows
            if num_rows < first.shape[0]:
                self._parts.insert(0, first[num_rows:])

    def own(self) -> None:
        """Copy what is left, so that nothing else stays alive for it."""
        if self._parts:
            self._parts = [torch.cat(self._parts)]

    def _add(self, hidden: Tensor) -> None:
        if hidden.shape[0]:
            self._parts.append(hidden)
            self.end_row += hidden.shape[0]
