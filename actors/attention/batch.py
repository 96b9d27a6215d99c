"""ForwardBatch: the rows of one step, or of one micro-batch, as tensors. Knows nothing of why they were chosen."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.attention.scheduler import ScheduledSequence
from actors.cache.block_table import BlockTable
from actors.kernels.contract import AttentionInputs, SequenceRows
from actors.model.config import LayerSpec


@dataclass(frozen=True)
class ForwardBatch:
    """T rows, grouped by sequence in the order of `items`.

    token_ids: int64 [T]. full, sliding: what attention reads, per KV pool (the same object if no layer slides).
    logit_rows: int64 [R], rows whose logits are needed: the last of each item that needs them, and those of its drafts.
    logit_items: the items they belong to, in order.
    """

    items: tuple[ScheduledSequence, ...]
    token_ids: Tensor
    full: AttentionInputs
    sliding: AttentionInputs
    logit_rows: Tensor
    logit_items: tuple[ScheduledSequence, ...]

    @property
    def num_rows(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def positions(self) -> Tensor:
        """int64 [T]."""
        return self.full.positions

    def inputs_for(self, spec: LayerSpec) -> AttentionInputs:
        """The attention inputs of a layer's KV pool."""
        return self.sliding if spec.is_sliding else self.full


def build_batch(
    items: SequenceOf[ScheduledSequence], *, block_size: int, has_sliding: bool, device: torch.device | str = "cpu"
) -> ForwardBatch:
    """Tensors for `items`, of which there is at least one; KV slots must be appended already.

    On the CPU, block ids are views of the block tables; elsewhere, all tables of a pool travel in one copy.
    """
    assert items, "a batch has at least one sequence"
    rows = _rows(items)
    full = attention_inputs(rows, [item.sequence.kv.full for item in items], block_size, device)
    sliding = full
    if has_sliding:
        sliding = attention_inputs(rows, [item.sequence.kv.sliding for item in items], block_size, device)
    logit_rows = [
        row
        for item, (first, num, _) in zip(items, rows, strict=True)
        for row in range(first + num - item.num_logits, first + num)
    ]
    return ForwardBatch(
        items=tuple(items),
        token_ids=_to_device(_token_ids(items), device),
        full=full,
        sliding=sliding,
        logit_rows=_to_device(np.array(logit_rows, dtype=np.int64), device),
        logit_items=tuple(item for item in items if item.needs_logits),
    )


def split(items: SequenceOf[ScheduledSequence]) -> tuple[SequenceOf[ScheduledSequence], ...]:
    """Two runs of whole sequences with row counts as equal as a single cut allows; one run if there is one sequence.

    Concatenated, the runs are `items`: sampled rows keep their order.
    """
    if len(items) < 2:
        return (items,)
    ends = np.cumsum([item.num_rows for item in items])[:-1]
    total = sum(item.num_rows for item in items)
    cut = int(np.argmin(np.abs(2 * ends - total))) + 1
    return items[:cut], items[cut:]


Rows = tuple[int, int, int]
"""first_row, num_rows, first_position of one sequence."""


def _rows(items: SequenceOf[ScheduledSequence]) -> list[Rows]:
    rows, first_row = [], 0
    for item in items:
        rows.append((first_row, item.num_rows, item.first_position))
        first_row += item.num_rows
    return rows


def _positions(rows: SequenceOf[Rows]) -> NDArray[np.int64]:
    return _concatenate([range(position, position + num_rows) for _, num_rows, position in rows])


def _token_ids(items: SequenceOf[ScheduledSequence]) -> NDArray[np.int64]:
    return _concatenate(
        [
            item.sequence.token_ids[item.first_position : item.first_position + item.num_tokens] + item.draft_ids
            for item in items
        ]
    )


def _concatenate(runs: list[range] | list[list[int]]) -> NDArray[np.int64]:
    # Decode makes many runs of one: a flat list converts faster than as many small arrays.
    return np.array([value for run in runs for value in run], dtype=np.int64)


def attention_inputs(
    rows: SequenceOf[Rows], tables: SequenceOf[BlockTable], block_size: int, device: torch.device | str
) -> AttentionInputs:
    """What attention reads of runs of rows, one for each table, whose slots are reserved."""
    ids = [table.ids for table in tables]
    slots = np.empty(rows[-1][0] + rows[-1][1], dtype=np.int64)
    for (first_row, num_rows, position), blocks in zip(rows, ids, strict=True):
        if num_rows == 1:
            slots[first_row] = blocks[position // block_size] * block_size + position % block_size
        else:
            run = np.arange(position, position + num_rows)
            slots[first_row : first_row + num_rows] = blocks[run // block_size] * block_size + run % block_size
    sequences = tuple(
        SequenceRows(*row, block_ids) for row, block_ids in zip(rows, _block_ids(ids, device), strict=True)
    )
    return AttentionInputs(_to_device(_positions(rows), device), _to_device(slots, device), sequences)


def _block_ids(ids: list[NDArray[np.int64]], device: torch.device | str) -> SequenceOf[Tensor]:
    if torch.device(device).type == "cpu":
        return [torch.from_numpy(blocks) for blocks in ids]
    together = _to_device(np.concatenate(ids), device)
    return torch.split(together, [len(blocks) for blocks in ids])


def _to_device(values: NDArray[np.int64], device: torch.device | str) -> Tensor:
    return torch.from_numpy(values).to(device)
