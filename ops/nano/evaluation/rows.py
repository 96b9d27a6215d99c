"""Sequences of any length as batches with one sequence in each row, similar lengths together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ops.nano.data.packing import stack
from ops.nano.data.rendering import Document
from ops.nano.dense import Batch

TOKENS_AT_ONCE = 4096  # of a batch; larger ones are no faster on a CPU and need more memory


@dataclass(frozen=True)
class Rows:
    """A batch and what is in it. numbers: which sequence each row holds. lengths: tokens of each row that count."""

    batch: Batch
    numbers: list[int]
    lengths: list[int]

    def sequence(self, values: Tensor, row: int) -> Tensor:
        """What a pass gave for the tokens of one row. values: [B * L, ...]."""
        kept: Tensor = values.unflatten(0, self.batch.token_ids.shape)[row, : self.lengths[row]]
        return kept


def rows_of(sequences: Sequence[Sequence[int]], *, window: int, tokens_at_once: int = TOKENS_AT_ONCE) -> list[Rows]:
    """All sequences, the shortest first. Rows are padded to a multiple of `window`, as `DenseModel` needs them."""
    batches: list[Rows] = []
    group: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda number: len(sequences[number])):
        if group and (len(group) + 1) * _padded(sequences[number], window) > tokens_at_once:
            batches.append(_rows(sequences, group, window))
            group = []
        group.append(number)
    return [*batches, _rows(sequences, group, window)] if group else batches


def _padded(sequence: Sequence[int], window: int) -> int:
    return -(-len(sequence) // window) * window


def _rows(sequences: Sequence[Sequence[int]], numbers: list[int], window: int) -> Rows:
    members = [sequences[number] for number in numbers]
    documents = [[Document(list(member), [0.0] * len(member))] for member in members]
    return Rows(stack(documents, _padded(members[-1], window)), numbers, [len(member) for member in members])
