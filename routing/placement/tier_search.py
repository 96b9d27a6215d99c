"""The search for less time, all layers side by side: in each round every layer's slowest rank gets rid of something.

Experts too heavy for one rank are copied, copies that only cost are dropped, and then the slowest rank and the calmest
trade until no trade is worth it. Where a rank is still slow, its experts are pieces too large to balance: they are
split over more copies, a few at a time, and ranks trade again. Every change leaves a picture, so that fewer moves can
be chosen later. This is the reference; routing/native/search.cpp does the same layer by layer, with equal bits. Pure.

Legend: L MoE layers, R EP ranks, S slots of a rank, N layers that are changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from routing.placement.contract import FloatArray
from routing.placement.holders import BoolArray
from routing.placement.score import least_seconds
from routing.placement.tier_offers import Pairs, carry_out, room_on
from routing.placement.tier_pictures import Album, Pictures
from routing.placement.tier_state import IntArray, TierState

TOLERANCE = 2e-3  # above the least time there can be: good enough
STUCK = 1e-2  # above it when no trade is left: experts are split further
STEP = 5e-4  # of a rank's mean time: a change that gains less is not worth it
HEAVY = 0.95  # of a rank's mean time: no place for a copy that takes more
MAX_ROUNDS = 96  # of trades in a row
HELPINGS = 8  # in which experts that are too large get what copies a layer may have


class Search(Protocol):
    """Changes the state as long as it helps. max_redundant: copies in a layer."""

    def __call__(self, state: TierState, max_redundant: int) -> Pictures: ...


def open_search() -> Search:
    """The fastest there is."""
    try:
        from routing.placement.tier_native import native_search
    except ImportError:  # not built
        return search
    return native_search


def search(state: TierState, max_redundant: int) -> Pictures:
    """In numpy, all layers side by side."""
    run = _Run(state, max_redundant, least_of(state, max_redundant), Album(state))
    copy_what_is_heavy(run)
    drop_what_costs(run)
    trade(run, np.arange(len(state.seconds)))
    split(run)
    return run.album.pictures()


@dataclass(frozen=True)
class _Run:
    """A search under way. least: [L], seconds that no map can beat."""

    state: TierState
    max_redundant: int
    least: FloatArray
    album: Album

    def slow(self, layers: IntArray, tolerance: float) -> IntArray:
        """Those of the layers whose slowest rank is that far above the least time there can be."""
        seconds = self.state.seconds[layers].max(axis=1)
        slow: IntArray = layers[seconds > (1.0 + tolerance) * np.maximum(self.state.mean(layers), self.least[layers])]
        return slow


def copy_what_is_heavy(run: _Run) -> None:
    """Experts of which one copy is nearly a rank's time or more: no trade can help with them."""
    state, layers = run.state, np.arange(len(run.state.seconds))
    while len(layers):
        expert = state.seconds_of_copy[layers].argmax(axis=1)
        heavy = state.seconds_of_copy[layers, expert]
        can_take = ~state.holds[layers, :, expert] & _has_room(state, layers)
        rank = np.where(can_take, state.seconds[layers], np.inf).argmin(axis=1)
        room = room_on(state, layers, rank)
        is_new = room.expert == state.nobody
        is_worth = (heavy > HEAVY * state.mean(layers)) & state.is_free[layers, expert]
        is_worth &= can_take[np.arange(len(layers)), rank] & np.where(
            is_new, state.num_redundant[layers] < run.max_redundant, room.freed + room.rise < heavy
        )
        layers, expert, rank, place, is_new = (part[is_worth] for part in (layers, expert, rank, room.place, is_new))
        state.take(layers[~is_new], rank[~is_new], place[~is_new])
        state.put(layers, rank, place, expert)
        run.album.take(layers)


def drop_what_costs(run: _Run) -> None:
    """Redundant copies without which the slowest rank is faster, and nobody as slow. Costs no move."""
    state, layers = run.state, np.flatnonzero(run.state.num_redundant > 0)
    while len(layers):
        busy = state.seconds[layers].argmax(axis=1)
        gain, place = dropping(state, layers, busy)
        is_worth = gain > STEP * state.mean(layers)
        layers, busy, place = layers[is_worth], busy[is_worth], place[is_worth]
        state.take(layers, busy, place)
        run.album.take(layers)


def dropping(state: TierState, layers: IntArray, busy: IntArray) -> tuple[FloatArray, IntArray]:
    """[N] each: the most that one redundant copy less on a rank gains, the others considered; and its slot."""
    rows, column = np.arange(len(layers)), layers[:, None]
    experts = state.slots[layers, busy]
    copies, seconds = state.copies[column, experts], state.seconds_of_copy[column, experts]
    rise = state.seconds_if(column, experts, copies - 1) - seconds
    is_other = state.holds[column, :, experts]  # [N, S, R]
    is_other[rows, :, busy] = False
    others = np.where(is_other, state.seconds[layers][:, None, :], -np.inf).max(axis=2) + rise
    now = state.seconds[layers, busy][:, None]
    # What would become too heavy for one rank has its copies for that.
    may_go = (copies > 1) & (seconds + rise <= HEAVY * state.mean(layers)[:, None])
    may_go &= state.is_free[column, experts]
    gains = np.where(may_go, now - np.maximum(now - seconds, others), -np.inf)
    place = gains.argmax(axis=1)
    return gains[rows, place], place


def trade(run: _Run, layers: IntArray) -> None:
    """The slowest rank with the calmest; if they have nothing to trade, with the next calm one, until none is left."""
    state = run.state
    num_layers, ep_size = state.seconds.shape
    num_failed, partner = np.zeros(num_layers, np.int64), np.zeros(num_layers, np.int64)
    for _ in range(MAX_ROUNDS):
        layers = run.slow(layers[num_failed[layers] < ep_size - 1], TOLERANCE)
        if not len(layers):
            return
        order = np.argsort(-state.seconds[layers], axis=1, kind="stable")
        calm = order[np.arange(len(layers)), ep_size - 1 - partner[layers]]
        pairs = Pairs(state, layers, order[:, 0], calm)
        offers = pairs.offers(run.max_redundant)
        is_worth = offers.gain > STEP * state.mean(layers)
        carry_out(pairs, offers, np.flatnonzero(is_worth))
        num_failed[layers] = np.where(is_worth, 0, num_failed[layers] + 1)
        partner[layers] = np.where(is_worth, partner[layers], (partner[layers] + 1) % (ep_size - 1))
        run.album.take(layers[is_worth])


def split(run: _Run) -> None:
    """Experts whose copies take longest get more of them, a helping at a time, and after each one ranks trade."""
    layers = np.arange(len(run.state.seconds))
    for _ in range(HELPINGS):
        layers = copied = _copy_what_takes_longest(run, run.slow(layers, STUCK))
        for _ in range(run.max_redundant // HELPINGS - 1):
            copied = _copy_what_takes_longest(run, copied)
        if not len(layers):
            return
        run.album.take(layers)
        trade(run, layers)


def _copy_what_takes_longest(run: _Run, layers: IntArray) -> IntArray:
    """One copy in each layer, for the calmest rank that has none of this expert. Returns the layers that had room."""
    state, layers = run.state, layers[run.state.num_redundant[layers] < run.max_redundant]
    can_get = state.is_free[layers] & (state.copies[layers] < state.seconds.shape[1])
    seconds = np.where(can_get, state.seconds_of_copy[layers], -np.inf)
    expert = seconds.argmax(axis=1)
    rank = np.where(state.holds[layers, :, expert], np.inf, state.seconds[layers]).argmin(axis=1)
    has_room = can_get.any(axis=1)
    has_room[has_room] = _make_room(state, layers[has_room], rank[has_room])
    layers, rank, expert = layers[has_room], rank[has_room], expert[has_room]
    state.put(layers, rank, (state.slots[layers, rank] == state.nobody).argmax(axis=1), expert)
    return layers


def _make_room(state: TierState, layers: IntArray, ranks: IntArray) -> BoolArray:
    """bool [N]: whether these ranks have an empty slot. Full ones send what takes least to the emptiest rank."""
    num_empty = np.count_nonzero(state.slots[layers] == state.nobody, axis=2)
    target, rows, column = num_empty.argmax(axis=1), np.arange(len(layers)), layers[:, None]
    experts = state.slots[layers, ranks]
    can_go = state.is_free[column, experts] & ~state.holds[column, target[:, None], experts]
    place = np.where(can_go, state.seconds_of_copy[column, experts], np.inf).argmin(axis=1)
    is_full = num_empty[rows, ranks] == 0
    can_send = is_full & can_go[rows, place] & (num_empty[rows, target] > 0)
    layers, ranks, place, target = layers[can_send], ranks[can_send], place[can_send], target[can_send]
    gone = state.take(layers, ranks, place)
    state.put(layers, target, (state.slots[layers, target] == state.nobody).argmax(axis=1), gone)
    has_room: BoolArray = can_send | ~is_full
    return has_room


def least_of(state: TierState, max_redundant: int) -> FloatArray:
    """[L]: seconds that no map with so many copies in a layer can beat."""
    problem = state.problem
    slots_per_rank = problem.expert_map.slots_per_rank
    return least_seconds(problem.load, problem.cost, problem.expert_map.ep_size, max_redundant, slots_per_rank)


def _has_room(state: TierState, layers: IntArray) -> BoolArray:
    """bool [N, R]: ranks with an empty slot or a redundant copy that may go."""
    slots, column = state.slots[layers], layers[:, None, None]
    is_room = (slots == state.nobody) | (state.is_free[column, slots] & (state.copies[column, slots] > 1))
    has_room: BoolArray = is_room.any(axis=2)
    return has_room
