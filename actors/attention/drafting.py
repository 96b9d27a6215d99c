"""The draft pass of a step: the modules catch up with true tokens, then propose the next ones (specification 3.3, 3.4).

Every module runs from the first row that it has not seen with true tokens. What it makes of rows that the next one will
read in a later step is kept, so no row is run twice with the same tokens.

Legend: S sequences, T rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.attention.batch import attention_inputs
from actors.attention.sequence import Sequence
from actors.kernels.contract import AttentionInputs
from actors.model.draft_modules import DraftModules
from actors.sampling.sampler import Sampler
from actors.speculative.state import Draft

logger = logging.getLogger(__name__)

# Rows that may wait for the modules while nothing is drafted. More would cost sliding blocks, fewer a pass more often.
MAX_UNSETTLED = 128


@dataclass(frozen=True)
class DraftItem:
    """What one sequence has to compute. rows: of each module that takes part; some of them may be empty, not all.

    num_drafts: 0 to catch up only. The first so many modules run up to the newest row and propose a token each; the
    others run as far as the tokens that they read are known.
    """

    sequence: Sequence
    rows: tuple[range, ...]
    num_drafts: int


@dataclass(frozen=True)
class DraftPass:
    """What was computed. num_modules: that ran. num_module_rows: their rows added up."""

    num_modules: int = 0
    num_module_rows: int = 0


def draft_items(sequences: SequenceOf[Sequence], lengths: Mapping[Sequence, int]) -> list[DraftItem]:
    """What sequences have to compute to propose as many tokens as `lengths` says. Prompts are settled at once. Where
    later rows of one must not wait any longer, those of others that have waited for half as long come along: a pass for
    one costs as much as for some."""
    waiting = [_num_waiting(sequence) for sequence in sequences]
    is_due = max(waiting, default=0) > MAX_UNSETTLED
    items = []
    for sequence, num_waiting in zip(sequences, waiting, strict=True):
        num_drafts = lengths.get(sequence, 0) if _is_decoding(sequence) else 0
        catches_up = _has_new_prompt(sequence) or (is_due and 2 * num_waiting > MAX_UNSETTLED)
        if num_drafts or catches_up:
            rows = _rows(sequence, num_drafts, catches_up=catches_up)
            if any(rows):
                items.append(DraftItem(sequence, rows, num_drafts))
    return items


def num_steps_before_due(sequences: SequenceOf[Sequence]) -> int:
    """Steps that they may decode, a row each, before one of them has rows that must not wait any longer."""
    return max(0, MAX_UNSETTLED - max(map(_num_waiting, sequences), default=0))


def _is_decoding(sequence: Sequence) -> bool:
    """Whether the newest token alone is not computed yet."""
    return sequence.drafting.num_rows == len(sequence.token_ids) - 1


def _has_new_prompt(sequence: Sequence) -> bool:
    """Whether some rows of the prompt are not settled but could be: others may be waiting to share them."""
    state = sequence.drafting
    return state.num_settled < min(state.num_rows, sequence.num_prompt_tokens + 1 - state.num_modules)


def _rows(sequence: Sequence, num_drafts: int, *, catches_up: bool) -> tuple[range, ...]:
    """Of each module: those that draft run to the end, and all others, if it catches up, as far as tokens are known."""
    state, num_known = sequence.drafting, len(sequence.token_ids)
    num_modules = state.num_modules if catches_up else num_drafts
    ends = (state.num_rows if module < num_drafts else num_known - 1 - module for module in range(num_modules))
    return tuple(range(state.true_rows(module), min(end, state.num_rows)) for module, end in enumerate(ends))


def _num_waiting(sequence: Sequence) -> int:
    """Rows that the next step could leave waiting for the modules."""
    state = sequence.drafting
    return state.num_rows - state.num_settled + 1 + state.num_modules


class Drafter:
    """Runs the modules over items and leaves drafts with the sequences."""

    def __init__(
        self, modules: DraftModules, sampler: Sampler, block_size: int, device: str, *, is_sampled: bool
    ) -> None:
        """is_sampled: where a request samples, draw drafts from the modules' distribution, not the likeliest."""
        self._modules = modules
        self._sampler = sampler
        self._block_size, self._device = block_size, device
        self._is_sampled = is_sampled

    def run(self, items: SequenceOf[DraftItem]) -> DraftPass:
        """Module after module, over all items at once. A fault costs drafts, never a request."""
        drafts: dict[Sequence, list[Draft]] = {item.sequence: [] for item in items}
        try:
            done = self._run_modules(items, drafts)
        except Exception:  # the target alone decides about tokens
            logger.exception("drafting failed; %d sequences go on without", len(items))
            for item in items:
                item.sequence.drafting.skip(len(item.sequence.token_ids))
            return DraftPass()
        for item in items:
            state, num_known = item.sequence.drafting, len(item.sequence.token_ids)
            for module, rows in enumerate(item.rows):
                state.has_run(module, rows.stop, num_known)
            state.drafts = tuple(drafts[item.sequence])
        return done

    def _run_modules(self, items: SequenceOf[DraftItem], drafts: dict[Sequence, list[Draft]]) -> DraftPass:
        num_modules = num_module_rows = 0
        for module in range(max((len(item.rows) for item in items), default=0)):
            active = [item for item in items if len(item.rows) > module and item.rows[module]]
            if not active:
                continue
            num_modules, num_module_rows = num_modules + 1, num_module_rows + _num_rows(active, module)
            self._run_module(active, module, drafts)
        return DraftPass(num_modules, num_module_rows)

    def _run_module(self, items: SequenceOf[DraftItem], module: int, drafts: dict[Sequence, list[Draft]]) -> None:
        token_ids, inputs = self._token_ids(items, module, drafts), self._inputs(items, module)
        hidden = torch.cat([part for item in items for part in item.sequence.drafting.kept(module, item.rows[module])])
        is_last = module == self._modules.num_modules - 1
        if is_last and not any(item.num_drafts > module for item in items):
            self._modules.write(module, token_ids, hidden, inputs)  # nobody reads its output
            return
        hidden = self._modules.run(module, token_ids, hidden, inputs)
        if not is_last:
            _keep(items, module, hidden)
        self._propose(items, module, hidden, drafts)

    def _inputs(self, items: SequenceOf[DraftItem], module: int) -> AttentionInputs:
        runs, first_row = [], 0
        for item in items:
            rows = item.rows[module]
            runs.append((first_row, len(rows), rows.start))
            first_row += len(rows)
        tables = [item.sequence.kv.sliding for item in items]
        return attention_inputs(runs, tables, self._block_size, self._device)

    def _token_ids(self, items: SequenceOf[DraftItem], module: int, drafts: dict[Sequence, list[Draft]]) -> Tensor:
        """For row p the token p + 1 + module: known, or a draft."""
        token_ids: list[int] = []
        for item in items:
            rows = item.rows[module]
            known = item.sequence.token_ids[rows.start + 1 + module : rows.stop + 1 + module]
            missing = len(rows) - len(known)
            token_ids += known + [draft.token_id for draft in drafts[item.sequence][:missing]]
        return torch.from_numpy(np.array(token_ids, dtype=np.int64)).to(self._device)

    def _propose(
        self, items: SequenceOf[DraftItem], module: int, hidden: Tensor, drafts: dict[Sequence, list[Draft]]
    ) -> None:
        ends = np.cumsum([len(item.rows[module]) for item in items]).tolist()
        proposing = [(end - 1, item) for end, item in zip(ends, items, strict=True) if item.num_drafts > module]
        if not proposing:
            return
        logits = self._modules.logits(module, hidden[[row for row, _ in proposing]])
        rows = [item.sequence.sampling_row() for _, item in proposing]
        chosen = self._sampler.draft(logits, rows, module, is_sampled=self._is_sampled)
        for (_, item), draft in zip(proposing, chosen, strict=True):
            drafts[item.sequence].append(draft)


def _keep(items: SequenceOf[DraftItem], module: int, hidden: Tensor) -> None:
    """For the next module, now or later. hidden: [T, H], what this one has made of all rows."""
    parts = hidden.split([len(item.rows[module]) for item in items])
    for item, part in zip(items, parts, strict=True):
        item.sequence.drafting.keep(module + 1, item.rows[module].start, part)


def _num_rows(items: SequenceOf[DraftItem], module: int) -> int:
    return sum(len(item.rows[module]) for item in items)
