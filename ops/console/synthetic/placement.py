"""Which expert lives in which slot: copies of the hottest, then swaps from the hottest rank to the coolest. Pure.

Only good enough to look at; the placement that serves is another one. Slots of one layer are an array [rank, slot].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.console.synthetic.load import FloatArray

IntArray = NDArray[np.int64]

MAX_SWAPS = 24
CLOSE_ENOUGH = 0.01  # of the mean, between the hottest rank and the coolest


def first_placement(load: FloatArray, ep_size: int, slots_per_rank: int) -> IntArray:
    """One layer: experts dealt out in the order of their load, the spare slots for the hottest."""
    slots = np.full((ep_size, slots_per_rank), -1, dtype=np.int64)
    for position, expert in enumerate(np.argsort(-load, kind="stable")):
        turn, place = divmod(position, ep_size)
        slots[place if turn % 2 == 0 else ep_size - 1 - place, turn] = expert
    return rebalanced(slots, load)


def rebalanced(slots: IntArray, load: FloatArray) -> IntArray:
    """One layer after a rebalance for this load."""
    slots = _with_copies_of_hottest(slots, load)
    for _ in range(MAX_SWAPS):
        shares = slot_loads(slots, load)
        totals = shares.sum(axis=1)
        hot, cool = int(totals.argmax()), int(totals.argmin())
        difference = totals[hot] - totals[cool]
        if difference < CLOSE_ENOUGH * totals.mean():
            break
        gain = shares[hot][:, None] - shares[cool][None, :]
        gain[np.isin(slots[hot], slots[cool]), :] = np.inf  # two copies on one rank would help nobody
        gain[:, np.isin(slots[cool], slots[hot])] = np.inf
        here, there = np.unravel_index(np.abs(gain - difference / 2.0).argmin(), gain.shape)
        slots[hot, here], slots[cool, there] = slots[cool, there], slots[hot, here]
    return slots


def slot_loads(slots: IntArray, load: FloatArray) -> FloatArray:
    """Load of each slot of a layer [rank, slot]; copies share alike. An empty slot has none."""
    copies = np.bincount(slots[slots >= 0], minlength=load.size)
    return np.where(slots >= 0, load[slots] / np.maximum(copies[slots], 1), 0.0)


def num_moves(before: IntArray, after: IntArray) -> int:
    """Experts that a rank holds after and did not hold before, in one layer or in all [L, rank, slot]."""
    ranks = zip(before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1]), strict=True)
    return sum(np.setdiff1d(new, old).size for old, new in ranks)


def _with_copies_of_hottest(slots: IntArray, load: FloatArray) -> IntArray:
    slots = slots.copy()
    _, first = np.unique(slots, return_index=True)
    spare = np.setdiff1d(np.arange(slots.size), first)
    if (slots < 0).any():
        spare = np.union1d(spare, np.flatnonzero(slots.ravel() < 0))
    slots.ravel()[spare] = -1
    copies = np.ones(load.size)
    for place in spare:
        rank, slot = divmod(int(place), slots.shape[1])
        wanted = load / copies
        wanted[slots[rank][slots[rank] >= 0]] = -1.0
        slots[rank, slot] = wanted.argmax()
        copies[slots[rank, slot]] += 1
    return slots
