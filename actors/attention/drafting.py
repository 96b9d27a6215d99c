"""The draft pass of a step: the modules catch up with true tokens, then propose the next ones (specification 3.3, 3.4).

Every sequence takes part with one run of rows, from the first that some module has not seen with true tokens up to the
newest. Sequences stand in the order of their depth, so the rows of a deeper module are a beginning of the batch.

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
    """Rows first_row .. end_row - 1 of one sequence, through the first `depth` modules.

    num_drafts: 0 to catch up only, when all tokens that the modules read are known; else `depth`.
    """

    sequence: Sequence
    first_row: int
    end_row: int
    depth: int
    num_drafts: int

    @property
    def num_rows(self) -> int:
        return self.end_row - self.first_row


def draft_items(sequences: SequenceOf[Sequence], lengths: Mapping[Sequence, int]) -> list[DraftItem]:
    """What sequences have to compute to propose as many tokens as `lengths` says. Where the rows of one must not wait
    any longer, those of others that have waited for half as long come along: a pass for one costs as much as for some.
    """
    waiting = [_num_waiting(sequence) for sequence in sequences]
    is_due = max(waiting, default=0) > MAX_UNSETTLED
    items = (
        _draft_item(sequence, lengths.get(sequence, 0), is_due=is_due and 2 * num_waiting > MAX_UNSETTLED)
        for sequence, num_waiting in zip(sequences, waiting, strict=True)
    )
    return [item for item in items if item is not None]


def _draft_item(sequence: Sequence, num_drafts: int, *, is_due: bool) -> DraftItem | None:
    """None if there is nothing to do. is_due: every module catches up."""
    state, num_known = sequence.drafting, len(sequence.token_ids)
    is_decoding = state.num_rows == num_known - 1
    if is_decoding and not num_drafts and not is_due:
        return None
    if num_drafts and is_decoding:
        depth = state.num_modules if is_due else num_drafts
        return DraftItem(sequence, state.first_row(depth), state.num_rows, depth, depth)
    end_row = min(state.num_rows, num_known - state.num_modules)
    if end_row <= state.num_settled:
        return None
    return DraftItem(sequence, state.num_settled, end_row, state.num_modules, 0)


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

    def run(self, items: SequenceOf[DraftItem]) -> int:
        """Returns the rows computed, counted once for each module. A fault costs drafts, never a request."""
        ordered = sorted(items, key=lambda item: item.depth, reverse=True)
        drafts: dict[Sequence, list[Draft]] = {item.sequence: [] for item in ordered}
        try:
            num_module_rows = self._run_modules(ordered, drafts) if ordered else 0
        except Exception:  # the target alone decides about tokens
            logger.exception("drafting failed; %d sequences go on without", len(ordered))
            drafts, num_module_rows = {item.sequence: [] for item in ordered}, 0
        for item in ordered:
            state = item.sequence.drafting
            state.caught_up(item.depth, item.end_row, num_known=len(item.sequence.token_ids))
            state.drafts = tuple(drafts[item.sequence])
        return num_module_rows

    def _run_modules(self, items: SequenceOf[DraftItem], drafts: dict[Sequence, list[Draft]]) -> int:
        inputs = self._inputs(items)
        hidden = torch.cat([item.sequence.drafting.hidden(item.first_row, item.end_row) for item in items])
        num_module_rows = 0
        for module in range(items[0].depth):
            active = [item for item in items if item.depth > module]
            num_rows = sum(item.num_rows for item in active)
            token_ids = self._token_ids(active, module, drafts)
            part = _beginning(inputs, len(active), num_rows)
            num_module_rows += num_rows
            if module == items[0].depth - 1 and not any(item.num_drafts > module for item in active):
                self._modules.write(module, token_ids, hidden[:num_rows], part)  # nobody reads the last one's output
                break
            hidden = self._modules.run(module, token_ids, hidden[:num_rows], part)
            self._propose(active, module, hidden, drafts)
        return num_module_rows

    def _inputs(self, items: SequenceOf[DraftItem]) -> AttentionInputs:
        rows, first_row = [], 0
        for item in items:
            rows.append((first_row, item.num_rows, item.first_row))
            first_row += item.num_rows
        tables = [item.sequence.kv.sliding for item in items]
        return attention_inputs(rows, tables, self._block_size, self._device)

    def _token_ids(self, items: SequenceOf[DraftItem], module: int, drafts: dict[Sequence, list[Draft]]) -> Tensor:
        """For row p the token p + 1 + module: known, or a draft."""
        token_ids: list[int] = []
        for item in items:
            known = item.sequence.token_ids[item.first_row + 1 + module : item.end_row + 1 + module]
            missing = item.num_rows - len(known)
            token_ids += known + [draft.token_id for draft in drafts[item.sequence][:missing]]
        return torch.from_numpy(np.array(token_ids, dtype=np.int64)).to(self._device)

    def _propose(
        self, items: SequenceOf[DraftItem], module: int, hidden: Tensor, drafts: dict[Sequence, list[Draft]]
    ) -> None:
        ends = np.cumsum([item.num_rows for item in items])
        proposing = [(int(end) - 1, item) for end, item in zip(ends, items, strict=True) if item.num_drafts > module]
        if not proposing:
            return
        logits = self._modules.logits(module, hidden[[row for row, _ in proposing]])
        rows = [item.sequence.sampling_row() for _, item in proposing]
        chosen = self._sampler.draft(logits, rows, module, is_sampled=self._is_sampled)
        for (_, item), draft in zip(proposing, chosen, strict=True):
            drafts[item.sequence].append(draft)


def _beginning(inputs: AttentionInputs, num_sequences: int, num_rows: int) -> AttentionInputs:
    return AttentionInputs(
        inputs.positions[:num_rows], inputs.slot_mapping[:num_rows], inputs.sequences[:num_sequences]
    )
