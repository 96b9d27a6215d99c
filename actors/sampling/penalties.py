"""Which tokens a sequence has seen and how often it produced them, kept up to date token by token.

Owns the counts and the three penalties computed from them; knows nothing of sampling.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.messages import SamplingSpec

INITIAL_CAPACITY = 64


def has_penalties(spec: SamplingSpec) -> bool:
    return spec.repetition_penalty != 1.0 or spec.frequency_penalty != 0.0 or spec.presence_penalty != 0.0


class PenaltyCounts:
    """Distinct tokens of a prompt and its completion, each with its number of occurrences in the completion."""

    def __init__(self, prompt_token_ids: Iterable[int]) -> None:
        ids = np.unique(np.fromiter(prompt_token_ids, dtype=np.int64))
        self._size = len(ids)
        capacity = max(INITIAL_CAPACITY, 2 * self._size)
        self._ids: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)
        self._ids[: self._size] = ids
        self._counts: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)
        self._id_to_idx = {token_id: idx for idx, token_id in enumerate(ids.tolist())}

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """int64 [U], distinct tokens in order of first appearance after the prompt's, a view."""
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 [U], occurrences in the completion (0 for tokens of the prompt alone), a view."""
        return self._counts[: self._size]

    def add(self, token_id: int) -> None:
        """Count one more completion token."""
        idx = self._id_to_idx.get(token_id)
        if idx is None:
            idx = self._id_to_idx[token_id] = self._size
            self._grow()
            self._ids[idx] = token_id
            self._size += 1
        self._counts[idx] += 1

    def apply(self, logits: Tensor, spec: SamplingSpec) -> None:
        """Penalise `logits` [V] in place.

        Repetition scales the logit of every seen token towards less likely; frequency and presence subtract per
        occurrence in the completion, and once.
        """
        ids = torch.from_numpy(self.token_ids).to(logits.device)
        counts = torch.from_numpy(self.counts).to(logits)
        seen = logits[ids]
        scale = spec.repetition_penalty
        seen = torch.where(seen > 0, seen / scale, seen * scale)
        logits[ids] = seen - counts * spec.frequency_penalty - (counts > 0) * spec.presence_penalty

    def _grow(self) -> None:
        if self._size == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
