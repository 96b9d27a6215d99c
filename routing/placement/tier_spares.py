"""Copies for availability: who has none on another host gets one where slots are left, hottest first. Pure.

A copy that is there takes its share of the pairs, which would cost balance. So ranks meet in pairs and back each other:
the hottest expert of the one gets a copy on the other, and the other's hottest that makes up for it one in return.
Where there is none, the copy goes alone if it fits. routing/native/spares.cpp holds the same meetings, with equal bits.

Legend: L MoE layers, R EP ranks, S slots of a rank, E logical experts, P pairs of ranks, no rank in two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from routing.placement.contract import FloatArray
from routing.placement.holders import BoolArray
from routing.placement.tier_search import TOLERANCE
from routing.placement.tier_state import IntArray, TierState

MEETINGS_PER_SLOT = 3


@dataclass
class Spares:
    """Owns what is being added. queue: int64 [L, R, S], experts of each rank, hottest first.

    is_open: bool [L, R, S], experts that only this rank holds and whose turn is still to come. alone, shared:
    [L, R, S] seconds of a copy, now and with a second one. left: [L, R], seconds that a rank can take more.
    num_empty: [L, R] slots. max_added: [L]. max_moves: over all layers. added: bool [L, R, E + 1].
    """

    queue: IntArray
    is_open: BoolArray
    alone: FloatArray
    shared: FloatArray
    left: FloatArray
    num_empty: IntArray
    max_added: IntArray
    max_moves: int
    added: BoolArray

    def meet(self, one: IntArray, other: IntArray) -> bool:
        """The hottest of the first ranks have their turn; says whether anything was given. one, other: [P]."""
        layers, pairs = np.nonzero(self.is_open[:, one].any(axis=2) & (self.num_empty[:, other] > 0))
        one, other = one[pairs], other[pairs]
        hot = self.is_open[layers, one].argmax(axis=1)
        partner, has_partner = self._partners(layers, one, other, hot)
        is_given = has_partner | (self.shared[layers, one, hot] <= self.left[layers, other])
        is_given = self._within(layers, self.shared[layers, one, hot], is_given * (1 + has_partner))
        self.is_open[layers, one, hot] = False
        returns = is_given & has_partner
        self.is_open[layers[returns], other[returns], partner[returns]] = False
        self._give(
            np.concatenate([layers[is_given], layers[returns]]),
            np.concatenate([one[is_given], other[returns]]),
            np.concatenate([other[is_given], one[returns]]),
            np.concatenate([hot[is_given], partner[returns]]),
        )
        return bool(is_given.any())

    def _partners(self, layers: IntArray, one: IntArray, other: IntArray, hot: IntArray) -> tuple[IntArray, BoolArray]:
        """[N] each: the other's hottest expert such that both ranks stay within what they can take; if there is one."""
        comes = self.shared[layers, one, hot][:, None]
        goes = self.alone[layers, one, hot][:, None] - comes
        back, gone = self.shared[layers, other], self.alone[layers, other] - self.shared[layers, other]
        fits = self.is_open[layers, other] & (self.num_empty[layers, one] > 0)[:, None]
        fits &= (back - goes <= self.left[layers, one][:, None]) & (comes - gone <= self.left[layers, other][:, None])
        partner = fits.argmax(axis=1)
        return partner, fits[np.arange(len(layers)), partner]

    def _within(self, layers: IntArray, heat: FloatArray, num_copies: IntArray) -> BoolArray:
        """[N]: whose copies are within what a layer and all layers may get; the hottest come first."""
        is_allowed: BoolArray = num_copies > 0
        of_layer = np.bincount(layers, weights=num_copies, minlength=len(self.max_added))
        if num_copies.sum() <= self.max_moves and (of_layer <= self.max_added).all():
            return is_allowed
        order = np.argsort(-heat, kind="stable")
        is_allowed[order] &= np.cumsum(num_copies[order]) <= self.max_moves
        order = order[np.argsort(layers[order], kind="stable")]
        total, first = np.cumsum(num_copies[order]), np.searchsorted(layers[order], layers[order])
        is_allowed[order] &= total - (total - num_copies[order])[first] <= self.max_added[layers[order]]
        return is_allowed

    def _give(self, layers: IntArray, source: IntArray, target: IntArray, place: IntArray) -> None:
        """A copy each to the targets. No rank of a layer is twice a source or twice a target."""
        shared = self.shared[layers, source, place]
        self.added[layers, target, self.queue[layers, source, place]] = True
        self.num_empty[layers, target] -= 1
        self.left[layers, target] -= shared
        self.left[layers, source] += self.alone[layers, source, place] - shared
        self.max_added -= np.bincount(layers, minlength=len(self.max_added))
        self.max_moves -= len(layers)


Turns = list[tuple[IntArray, IntArray]]
Meetings = Callable[[Spares, Turns, int], None]


def with_spares(
    state: TierState, max_redundant: int, max_moves: int | None, meetings: Meetings | None = None
) -> BoolArray:
    """bool [L, R, E]: who holds what. max_redundant: copies in a layer. max_moves: over all layers.

    meetings: the fastest there are unless given.
    """
    spares = _spares(state, max_redundant, state.slots.size if max_moves is None else max(max_moves, 0))
    turns = _turns(state.problem.host_of_rank or range(state.seconds.shape[1]))
    if turns:
        num_meetings = MEETINGS_PER_SLOT * int(spares.num_empty.max(initial=0)) + len(turns)
        (meetings or open_meetings())(spares, turns, num_meetings)
    held: BoolArray = (state.holds | spares.added)[..., :-1]
    return held


def open_meetings() -> Meetings:
    """The fastest there are."""
    try:
        from routing.placement.tier_native import native_meetings
    except ImportError:  # not built
        return hold_meetings
    return native_meetings


def hold_meetings(spares: Spares, turns: Turns, num_meetings: int) -> None:
    """One turn after the other, until nobody has given anything in all of them. The reference."""
    num_idle = 0
    for number in range(num_meetings):
        num_idle = 0 if spares.meet(*turns[number % len(turns)]) else num_idle + 1
        if num_idle == len(turns):
            return


def _spares(state: TierState, max_redundant: int, max_moves: int) -> Spares:
    column = np.arange(len(state.slots))[:, None, None]
    limit = np.maximum(state.seconds.max(axis=1), (1.0 + TOLERANCE) * state.seconds.mean(axis=1))
    alone = state.seconds_of_copy[column, state.slots]
    order = np.argsort(-alone, axis=2, kind="stable")
    queue, alone = np.take_along_axis(state.slots, order, axis=2), np.take_along_axis(alone, order, axis=2)
    num_empty = np.count_nonzero(state.slots == state.nobody, axis=2)
    max_added = np.minimum(max_redundant - state.num_redundant, num_empty.sum(axis=1))
    return Spares(
        queue=queue,
        is_open=(state.copies == 1)[column, queue] & state.is_free[column, queue] & (max_added > 0)[:, None, None],
        alone=alone,
        shared=state.seconds_if(column, queue, np.asarray(2)),
        left=limit[:, None] - state.seconds,
        num_empty=num_empty,
        max_added=max_added,
        max_moves=max_moves,
        added=np.zeros_like(state.holds),
    )


def _turns(hosts: Sequence[int]) -> Turns:
    """Rounds of a tournament, [P] and [P], in which every two ranks of different hosts meet, each being the first once
    in two tournaments."""
    size = len(hosts) + len(hosts) % 2
    turns: Turns = []
    for turn in range(2 * (size - 1)):
        circle = [0, *((turn + idx) % (size - 1) + 1 for idx in range(size - 1))]
        pairs = [(circle[idx], circle[size - 1 - idx])[:: 1 if turn < size - 1 else -1] for idx in range(size // 2)]
        met = [(one, other) for one, other in pairs if max(one, other) < len(hosts) and hosts[one] != hosts[other]]
        if met:
            turns.append((np.array([one for one, _ in met]), np.array([other for _, other in met])))
    return turns
