"""What can be done between two ranks of a layer: what each way gains, and how it is done. Pure.

The busy rank gives an expert to the calm one: as a move, as a copy, or in exchange for another. Where the calm rank is
full, a redundant copy there makes room. A gain is by how much the busier one of both, afterwards, is below the busy one
now; it counts for each expert that has to be loaded.

Legend: N layers, S slots of a rank, R EP ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from routing.placement.contract import FloatArray
from routing.placement.holders import BoolArray
from routing.placement.tier_state import IntArray, TierState


@dataclass(frozen=True)
class Room:
    """Where a rank of each layer can take an expert: [N] each. freed: seconds that go with a redundant copy there.

    rise: seconds that the other copies of that expert take more.
    """

    place: IntArray
    is_there: BoolArray
    expert: IntArray
    freed: FloatArray
    rise: FloatArray


@dataclass(frozen=True)
class Offers:
    """One for each pair: [N] each. gain: minus infinity where there is nothing. given, taken: slots of the busy and the
    calm rank. is_copy: the busy rank keeps the expert. is_swap: it gets the calm one's."""

    gain: FloatArray
    given: IntArray
    taken: IntArray
    is_copy: BoolArray
    is_swap: BoolArray


@dataclass(frozen=True)
class Pairs:
    """A busy and a calm rank in each of some layers: [N] each."""

    state: TierState
    layers: IntArray
    busy: IntArray
    calm: IntArray

    @cached_property
    def gap(self) -> FloatArray:
        """[N]: how much longer the busy rank takes."""
        gap: FloatArray = self.state.seconds[self.layers, self.busy] - self.state.seconds[self.layers, self.calm]
        return gap

    @cached_property
    def can_give(self) -> BoolArray:
        """[N, S]: what the calm rank does not hold, and no pin holds."""
        return self._can_go(self.busy, self.calm)

    @cached_property
    def can_take(self) -> BoolArray:
        """[N, S]: the same the other way."""
        return self._can_go(self.calm, self.busy)

    def offers(self, max_redundant: int) -> Offers:
        """The best for each pair; the first of equals, moves before copies before swaps."""
        one_way = self._one_way(max_redundant)
        # Nothing gains more than half the gap, and a swap loads two experts: few pairs have to look for one.
        rows = np.flatnonzero(one_way.gain < self.gap / 4.0)
        return _with_swaps(one_way, self._part(rows)._swaps(), rows) if len(rows) else one_way

    def _can_go(self, source: IntArray, target: IntArray) -> BoolArray:
        column, experts = self.layers[:, None], self.state.slots[self.layers, source]
        can_go: BoolArray = self.state.is_free[column, experts] & ~self.state.holds[column, target[:, None], experts]
        return can_go

    def _seconds(self, ranks: IntArray) -> FloatArray:
        """[N, S]: of each copy on these ranks."""
        seconds: FloatArray = self.state.seconds_of_copy[self.layers[:, None], self.state.slots[self.layers, ranks]]
        return seconds

    def _one_way(self, max_redundant: int) -> Offers:
        state, layers, rows = self.state, self.layers, np.arange(len(self.layers))
        room = room_on(state, layers, self.calm)
        rise, is_safe = self._rise(room)
        experts, seconds = state.slots[layers, self.busy], self._seconds(self.busy)
        shared = state.seconds_if(layers[:, None], experts, state.copies[layers[:, None], experts] + 1)
        gap = (self.gap + room.freed)[:, None]
        can_move = self.can_give & (room.is_there & is_safe)[:, None]
        has_share = (state.num_redundant[layers] < max_redundant) | (room.expert != state.nobody)
        moves = np.where(can_move, np.minimum(seconds - rise[:, None], gap - seconds), -np.inf)
        copies = np.minimum(seconds - shared - rise[:, None], gap - shared)
        copies = np.where(can_move & has_share[:, None], copies, -np.inf)
        move, copy = moves.argmax(axis=1), copies.argmax(axis=1)
        is_copy: BoolArray = copies[rows, copy] > moves[rows, move]
        gain = np.where(is_copy, copies[rows, copy], moves[rows, move])
        return Offers(gain, np.where(is_copy, copy, move), room.place, is_copy, np.zeros(len(rows), np.bool_))

    def _rise(self, room: Room) -> tuple[FloatArray, BoolArray]:
        """[N] each: what the busy rank takes more when the room is made; whether all others stay below it."""
        state, rows = self.state, np.arange(len(self.layers))
        others = state.holds[self.layers, :, room.expert]
        others[rows, self.calm] = False
        own = np.where(others[rows, self.busy], room.rise, 0.0)
        others[rows, self.busy] = False
        limit = state.seconds[self.layers, self.busy, None]
        is_over: BoolArray = others & (state.seconds[self.layers] + room.rise[:, None] >= limit)
        is_safe: BoolArray = np.asarray(~is_over.any(axis=1))
        return own, is_safe

    def _swaps(self) -> Offers:
        """Whose difference comes next to half the gap, which is what brings both ranks together."""
        rows, num_slots = np.arange(len(self.layers)), self.can_give.shape[1]
        # Single precision halves the time of the one large table here; the gain is computed exactly.
        given = np.where(self.can_give, self._seconds(self.busy), np.inf).astype(np.float32)
        wanted = np.where(self.can_take, self._seconds(self.calm), -np.inf) + self.gap[:, None] / 2.0
        miss = np.abs(given[:, :, None] - wanted.astype(np.float32)[:, None, :])
        give, take = np.divmod(miss.reshape(len(rows), -1).argmin(axis=1), num_slots)
        more = self._seconds(self.busy)[rows, give] - self._seconds(self.calm)[rows, take]
        is_allowed = self.can_give[rows, give] & self.can_take[rows, take]
        gain = np.where(is_allowed, np.minimum(more, self.gap - more), -np.inf)
        return Offers(gain, give, take, np.zeros(len(rows), np.bool_), np.ones(len(rows), np.bool_))

    def _part(self, rows: IntArray) -> Pairs:
        return Pairs(self.state, self.layers[rows], self.busy[rows], self.calm[rows])


def room_on(state: TierState, layers: IntArray, ranks: IntArray) -> Room:
    """An empty slot, or else the redundant copy that takes least."""
    rows, column = np.arange(len(layers)), layers[:, None]
    experts = state.slots[layers, ranks]
    can_go = state.is_free[column, experts] & (state.copies[column, experts] > 1)
    price = np.where(can_go, state.seconds_of_copy[column, experts], np.inf)
    price[experts == state.nobody] = -1.0
    place = price.argmin(axis=1)
    is_there, expert = price[rows, place] < np.inf, experts[rows, place]
    expert = np.where(is_there, expert, state.nobody)
    freed = state.seconds_of_copy[layers, expert]
    rise = state.seconds_if(layers, expert, state.copies[layers, expert] - 1) - freed
    return Room(place, is_there, expert, freed, rise)


def carry_out(pairs: Pairs, offers: Offers, rows: IntArray) -> None:
    """Change the state of these pairs as offered."""
    state, layers, busy, calm = pairs.state, pairs.layers[rows], pairs.busy[rows], pairs.calm[rows]
    given, taken = offers.given[rows], offers.taken[rows]
    goes, comes = ~offers.is_copy[rows], offers.is_swap[rows]
    expert, partner = state.slots[layers, busy, given], state.slots[layers, calm, taken]
    is_held = partner != state.nobody
    state.take(layers[is_held], calm[is_held], taken[is_held])
    state.take(layers[goes], busy[goes], given[goes])
    state.put(layers, calm, taken, expert)
    state.put(layers[comes], busy[comes], given[comes], partner[comes])


def _with_swaps(offers: Offers, swaps: Offers, rows: IntArray) -> Offers:
    """The offers, with swaps in the rows where they are worth more."""
    is_better = np.zeros(len(offers.gain), dtype=np.bool_)
    is_better[rows] = swaps.gain / 2.0 > offers.gain[rows]
    chosen = is_better[rows]
    gain, given, taken = offers.gain.copy(), offers.given.copy(), offers.taken.copy()
    gain[is_better], given[is_better], taken[is_better] = swaps.gain[chosen], swaps.given[chosen], swaps.taken[chosen]
    return Offers(gain, given, taken, offers.is_copy & ~is_better, is_better)
