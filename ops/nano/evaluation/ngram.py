"""The yardstick of perplexity: interpolated Kneser-Ney n-grams over token ids (Ney, Essen and Kneser, 1994).

    P(w | h) = (max(c(h w) - D, 0) + D * N(h) * P(w | h')) / c(h)

c counts; for contexts shorter than the longest it counts the different tokens in front instead. N(h) is how many
different tokens follow h, D the discount n1 / (n1 + 2 * n2) from how many n-grams were seen once and twice, h' the
context without its first token. Below the unigram every token is equally likely, so every token has a probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]

MIN_DISCOUNT, MAX_DISCOUNT = 0.1, 0.95  # a tiny text may have no n-gram that was seen once, or none that was seen twice


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length. keys, contexts: sorted numbers that stand for them; the rest is by their place.

    kept: counts less the discount. totals: of each context, the sum of counts. spared: what the discount took."""

    keys: Ids
    kept: Numbers
    contexts: Ids
    totals: Numbers
    spared: Numbers


class Ngram:
    """A model of order n: a token is predicted from the n - 1 before it. Text starts with its first token repeated."""

    def __init__(self, texts: Sequence[Sequence[int]], order: int, vocab_size: int) -> None:
        """Learn from `texts`, whose first tokens are not predicted. Raises ValueError for n-grams that do not fit into
        64 bits."""
        if vocab_size**order >= 2**63:
            raise ValueError(f"{order}-grams over {vocab_size} tokens do not fit into 64 bits")
        self._order, self._vocab_size = order, vocab_size
        self.num_tokens = sum(len(text) - 1 for text in texts)
        keys = np.concatenate([self._keys(text) for text in texts])
        grams, counts = np.unique(keys, return_counts=True)
        levels = [self._level(grams, counts)]
        for length in range(order - 1, 0, -1):
            grams, counts = np.unique(grams % vocab_size**length, return_counts=True)
            levels.append(self._level(grams, counts))
        self._levels = levels[::-1]

    def log_probabilities(self, token_ids: Sequence[int]) -> Numbers:
        """Natural logarithms for every token of a text but the first."""
        return self._log_probabilities(self._keys(token_ids))

    def next_probabilities(self, context: Sequence[int]) -> Numbers:
        """Of every token of the vocabulary, after a text that so far is `context`."""
        last = self._keys([*context, 0])[-1]
        return np.exp(self._log_probabilities(last + np.arange(self._vocab_size)))

    def _log_probabilities(self, keys: Ids) -> Numbers:
        probabilities = np.full(len(keys), 1.0 / self._vocab_size)
        for length, level in enumerate(self._levels, start=1):
            own = keys % self._vocab_size**length
            probabilities = _mixed(level, own, own // self._vocab_size, probabilities)
        logarithms: Numbers = np.log(probabilities)
        return logarithms

    def _keys(self, token_ids: Sequence[int]) -> Ids:
        """One number for each n-gram that ends in a token after the first."""
        ids = np.asarray(token_ids, dtype=np.int64)
        padded = np.concatenate((np.repeat(ids[:1], self._order - 1), ids[1:])) if self._order > 1 else ids[1:]
        num_keys = len(ids) - 1
        keys = np.zeros(num_keys, dtype=np.int64)
        for offset in range(self._order):
            keys = keys * self._vocab_size + padded[offset : offset + num_keys]
        return keys

    def _level(self, grams: Ids, counts: NDArray[np.intp]) -> _Level:
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = min(max(once / max(once + 2 * twice, 1), MIN_DISCOUNT), MAX_DISCOUNT)
        contexts, first, types = np.unique(grams // self._vocab_size, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts.astype(np.float64), first)
        kept, spared = counts.astype(np.float64) - discount, types.astype(np.float64) * discount
        return _Level(grams, kept, contexts, totals, spared)


def _mixed(level: _Level, keys: Ids, contexts: Ids, shorter: Numbers) -> Numbers:
    """The probabilities with this much context. shorter: with one token less; it stays where the context is new."""
    place, is_known = _find(level.contexts, contexts)
    gram, is_seen = _find(level.keys, keys)
    kept = np.where(is_seen, level.kept[gram], 0.0)
    return np.where(is_known, (kept + level.spared[place] * shorter) / level.totals[place], shorter)


def _find(sorted_keys: Ids, wanted: Ids) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each wanted key is, and whether it is there at all."""
    place = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    return place, sorted_keys[place] == wanted
