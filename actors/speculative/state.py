"""What one sequence keeps between two steps for its draft modules (specification 3.2 to 3.5). Knows no sequences.

Module j at row p reads token p + 1 + j and what module j - 1 made of the row, or the trunk for module 0. So the last
rows of a sequence hold what drafts made of them until the true tokens are known. Rows are counted from the start of the
sequence; "true" rows were computed from true tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actors.messages import NO_DRAFTS, DraftCounts
from actors.speculative.acceptance import request_acceptance
from actors.speculative.kept_rows import KeptRows
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
    """Drafts that await their verification, and for each module what it has not yet seen with true tokens."""

    def __init__(self, num_modules: int) -> None:
        self._num_rows = 0
        self._true_rows = [0] * num_modules  # of each module; never more than of the one before
        self._num_before = 0  # rows before the last step
        self._kept = [KeptRows() for _ in range(num_modules)]  # what each module will read, from its first true row on
        self.drafts: tuple[Draft, ...] = ()
        self.last_length: int | None = None  # that was chosen because it pays; None: nobody has chosen yet
        self.acceptance = request_acceptance(num_modules)
        self.num_caught_up = 0  # module rows once left out, and seen later
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
        return self._true_rows[-1] if self._true_rows else self._num_rows

    @property
    def num_left_out(self) -> int:
        """Rows of earlier steps, added up over the modules that have not seen them, where this is no matter of a step:
        module j always waits for its last j rows, whose drafts await their verification."""
        return sum(map(self._left_out, range(self.num_modules)))

    def true_rows(self, module: int) -> int:
        """Rows that this module has computed from true tokens: it must run from there."""
        return self._true_rows[module]

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """Drafts of this sequence were verified: for its acceptance rates, and for the client."""
        if num_drafts:
            self.acceptance.forget()
            self.acceptance.observe(num_drafts, num_accepted)
        self._tally.observe(num_drafts, num_accepted)

    def take_counts(self) -> DraftCounts:
        """What was observed since the last call."""
        return self._tally.take() if self._tally.num_steps else NO_DRAFTS

    def restart(self, num_rows: int) -> None:
        """The sequence now begins with `num_rows` rows that somebody else has computed, for all modules."""
        self._num_rows = self._num_before = num_rows
        self._true_rows = [num_rows] * self.num_modules
        self._kept = [KeptRows(num_rows) for _ in self._kept]
        self.drafts = ()

    def accepted(self, num_accepted: int) -> None:
        """So many of the drafts were right: what the modules made of them is true after all."""
        for module in range(1, len(self.drafts)):
            # Its last rows read the first drafts: row p token p + 1 + module, of which num_rows + 1 + num_accepted are
            # known now.
            self._now_true(module, self._num_rows - max(0, module - num_accepted))
        self.drafts = ()

    def add_rows(self, hidden: Tensor) -> None:
        """The trunk has computed these rows for good. hidden: [R, H], before the final norm; kept for some steps as it
        is."""
        self._num_before = self._num_rows
        self._num_rows += hidden.shape[0]
        if not self._kept:
            return
        self._kept[0].put(self._num_before, hidden)
        if self._kept[0].num_parts > MAX_PARTS:
            for kept in self._kept:
                kept.own()

    def kept(self, module: int, rows: range) -> list[Tensor]:
        """What this module reads at rows that it has yet to run, [R, H] each, in order."""
        return self._kept[module].rows(rows)

    def keep(self, module: int, first_row: int, hidden: Tensor) -> None:
        """This is what the module will read from row `first_row` on, as far as the one before has run. hidden: [R, H],
        kept for some steps as it is."""
        kept = self._kept[module]
        kept.put(first_row, hidden)
        if kept.num_parts > MAX_PARTS:
            kept.own()

    def has_run(self, module: int, end_row: int, num_known: int) -> None:
        """The module has run up to row `end_row` - 1 while `num_known` tokens were known."""
        self.num_caught_up += self._left_out(module)
        self._now_true(module, min(end_row, num_known - 1 - module))

    def skip(self, num_known: int) -> None:
        """The modules could not run while `num_known` tokens were known, and must not be asked for the same again: rows
        count as seen, and what the next modules read of the last ones is made up. Costs good drafts, no more."""
        (newest,) = self._kept[0].rows(range(self._num_rows - 1, self._num_rows))
        for module, kept in enumerate(self._kept):
            self.has_run(module, self._num_rows, num_known)
            if module:
                first_row = self._true_rows[module]
                kept.forget(self._num_rows)
                kept.put(first_row, torch.zeros_like(newest).expand(self._num_rows - first_row, -1))
        self.drafts = ()

    def _left_out(self, module: int) -> int:
        return max(0, self._num_before - module - self._true_rows[module])

    def _now_true(self, module: int, num_rows: int) -> None:
        if num_rows > self._true_rows[module]:
            self._true_rows[module] = num_rows
            self._kept[module].forget(num_rows)
