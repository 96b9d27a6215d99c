"""What one sequence keeps between two steps for its draft modules (specification 3.2 to 3.5). Knows no sequences.

Module j at row p reads token p + 1 + j, so the last rows of a sequence hold what drafts made of them until the true
tokens are known. Rows are counted from the start of the sequence; "true" rows were computed from true tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actors.messages import NO_DRAFTS, DraftCounts
from actors.speculative.acceptance import request_acceptance
from actors.speculative.stats import DraftTally

# Steps whose rows are kept apart. A part keeps all rows of its step alive, prompts of others included; joining them
# copies what waits.
MAX_PARTS = 8


@dataclass(frozen=True)
class Draft:
    """A proposed token. probabilities: float64 [V] it was drawn from; None: it was the most likely one."""

    token_id: int
    probabilities: Tensor | None = None


class DraftState:
    """Drafts that await their verification, and the rows that the modules have not yet seen with true tokens."""

    def __init__(self, num_modules: int) -> None:
        self._true_rows = [0] * num_modules
        self._hidden: list[Tensor] = []
        self._num_rows = 0
        self.drafts: tuple[Draft, ...] = ()
        self.last_length: int | None = None  # that was chosen because it pays; None: nobody has chosen yet
        self.previous_length = 0  # that was drafted in the last draft pass
        self.acceptance = request_acceptance(num_modules)
        self.num_left_out = 0  # rows of earlier steps that some module has not seen, where this is no matter of a step
        self.num_caught_up = 0  # such rows that it saw later
        self._tally = DraftTally()

    @property
    def num_modules(self) -> int:
        return len(self._true_rows)

    @property
    def num_rows(self) -> int:
        """Rows that the trunk has computed."""
        return self._num_rows

    @property
    def num_settled(self) -> int:
        """Rows that no module will write again."""
        return min(self._true_rows) if self._true_rows else self._num_rows

    def first_row(self, depth: int) -> int:
        """The row from which the first `depth` modules must run."""
        return min(self._true_rows[:depth])

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """Drafts of this sequence were verified: for its acceptance rates, and for the client."""
        self.acceptance.observe(num_drafts, num_accepted)
        self._tally.observe(num_drafts, num_accepted)

    def take_counts(self) -> DraftCounts:
        """What was observed since the last call."""
        if not self._tally.num_steps:
            return NO_DRAFTS
        tally, self._tally = self._tally, DraftTally()
        return tally.counts

    def restart(self, num_rows: int) -> None:
        """The sequence now begins with `num_rows` rows that somebody else has computed, for all modules."""
        self._true_rows = [num_rows] * self.num_modules
        self._hidden, self._num_rows, self.drafts, self.num_left_out = [], num_rows, (), 0

    def add_rows(self, hidden: Tensor) -> None:
        """The trunk has computed these rows for good. hidden: [R, H], before the final norm; kept for some steps as it
        is."""
        num_waiting = self._num_rows - self.num_settled
        # As many wait for their drafts to be verified, whatever is drafted.
        self.num_left_out = num_waiting if num_waiting > self.num_modules else 0
        self._hidden.append(hidden)
        if len(self._hidden) > MAX_PARTS:
            self._hidden = [torch.cat(self._hidden)]
        self._num_rows += hidden.shape[0]

    def hidden(self, first_row: int, end_row: int) -> Tensor:
        """The trunk's output at rows that are not settled yet, [end_row - first_row, H]."""
        if len(self._hidden) > 1:
            self._hidden = [torch.cat(self._hidden)]
        start = self._num_rows - self._hidden[0].shape[0]
        return self._hidden[0][first_row - start : end_row - start]

    def caught_up(self, depth: int, end_row: int, num_known: int) -> None:
        """The first `depth` modules have run up to row `end_row` - 1 while `num_known` tokens were known."""
        for module in range(depth):
            self._true_rows[module] = max(self._true_rows[module], min(end_row, num_known - 1 - module))
        if depth == self.num_modules:
            self.num_caught_up, self.num_left_out = self.num_caught_up + self.num_left_out, 0
        self._forget_settled()

    def accepted(self, num_accepted: int) -> None:
        """So many of the drafts were right: what the modules made of them is true after all."""
        if not self.drafts:
            return
        depth = len(self.drafts)
        for module in range(1, depth):
            # Its last rows read the first drafts: row p token p + 1 + module, of which num_rows + 1 + num_accepted are
            # known now.
            true_rows = self._num_rows - max(0, module - num_accepted)
            self._true_rows[module] = max(self._true_rows[module], true_rows)
        self.drafts = ()
        self._forget_settled()

    def _forget_settled(self) -> None:
        if not self._hidden:
            return
        kept = self.hidden(self.num_settled, self._num_rows)
        # A slice would keep the whole step's rows alive.
        self._hidden = [kept.clone()] if kept.shape[0] < self._hidden[0].shape[0] else [kept]
