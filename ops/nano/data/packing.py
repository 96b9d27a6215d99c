"""Documents packed into rows of one length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ops.nano.data.rendering import Document
from ops.nano.dense import Batch

MAX_WAITING = 8  # documents looked at before a row is closed with padding


def batches(documents: Iterator[Document], num_rows: int, num_tokens: int) -> Iterator[Batch]:
    """Batches of `num_rows` rows; a document that is longer than a row is cut."""
    waiting: list[Document] = []
    while True:
        yield stack([_fill(documents, waiting, num_tokens) for _ in range(num_rows)], num_tokens)


def stack(rows: list[list[Document]], num_tokens: int) -> Batch:
    """A batch with these documents in its rows, padded to `num_tokens` with a document of weight 0."""
    shape = (len(rows), num_tokens)
    token_ids, position = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    document, weight = torch.full(shape, -1, dtype=torch.int64), torch.zeros(shape)
    for row_idx, row in enumerate(rows):
        first = 0
        for number, part in enumerate(row):
            place = (row_idx, slice(first, first + len(part.token_ids)))
            token_ids[place] = torch.tensor(part.token_ids)
            position[place] = torch.arange(len(part.token_ids))
            document[place] = number
            weight[place] = torch.tensor(part.weights)
            first += len(part.token_ids)
    return Batch(token_ids, document, position, weight)


def _fill(documents: Iterator[Document], waiting: list[Document], num_tokens: int) -> list[Document]:
    """Documents for one row. One that does not fit waits for a later row; the oldest goes first."""
    row: list[Document] = []
    room = num_tokens
    candidates = list(waiting)
    waiting.clear()
    while room > 0 and len(waiting) < MAX_WAITING:
        document = candidates.pop(0) if candidates else next(documents)
        if row and len(document.token_ids) > room:
            waiting.append(document)
            continue
        row.append(Document(document.token_ids[:num_tokens], document.weights[:num_tokens]))
        room -= len(row[-1].token_ids)
    waiting += candidates
    return row
