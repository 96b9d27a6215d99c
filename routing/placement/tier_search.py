"""The search for less time, all layers side by side: in each round every layer's slowest rank gets rid of something.

Three phases: experts too heavy for one rank are copied, copies that only cost are dropped, and then the slowest rank
and the calmest trade until no trade is worth it. Every round leaves a picture, so that fewer moves can be chosen later.
Pure.

Legend: L MoE layers, R EP ranks, S slots of a rank, K pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from routing.placement.contract import FloatArray
from routing.placement.holders import BoolArray
from routing.placement.score import least_seconds
from routing.placement.tier_offers import Pairs, carry_out, room_on
from routing.placement.tier_state import IntArray, TierState

TOLERANCE = 2e-3  # above the least time there can be: good enough
STEP = 5e-4  # of a rank's mean time: a change that gains less is not worth it
HEAVY = 0.95  # of a rank's mean time: no place for a copy that takes more
MAX_ROUNDS = 96


@dataclass
class Pictures:
    """How the search went. [K] lists of: seconds [L] of the slowest rank, experts to load [L], slots [L, R, S]."""

    seconds: list[FloatArray] = field(default_factory=list)
    num_added: list[IntArray] = field(default_factory=list)
    slots: list[IntArray] = field(default_factory=list)

    def take(self, state: TierState) -> None:
        """Keep what is now."""
        self.seconds.append(state.seconds.max(axis=1))
        self.num_added.append(state.num_added.copy())
        self.slots.append(state.slots.copy())


def search(state: TierState, max_redundant: int) -> Pictures:
    """Change the state as long as it helps. max_redundant: copies in a layer."""
    pictures = Pictures()
    pictures.take(state)
    for phase in (copy_what_is_heavy, drop_what_costs, trade):
        phase(state, max_redundant, pictures)
    return pictures


def copy_what_is_heavy(state: TierState, max_redundant: int, pictures: Pictures) -> None:
    """Experts of which one copy is nearly a rank's time or more: no trade can help with them."""
    layers = np.arange(len(state.seconds))
    while len(layers):
        expert = state.seconds_of_copy[layers].argmax(axis=1)
        heavy = state.seconds_of_copy[layers, expert]
        can_take = ~state.holds[layers, :, expert] & _has_room(state, layers)
        rank = np.where(can_take, state.seconds[layers], np.inf).argmin(axis=1)
        room = room_on(state, layers, rank)
        is_new = room.expert == state.nobody
        is_worth = (heavy > HEAVY * state.seconds[layers].mean(axis=1)) & state.is_free[layers, expert]
        is_worth &= can_take[np.arange(len(layers)), rank] & np.where(
            is_new, state.num_redundant[layers] < max_redundant, room.freed + room.rise < heavy
        )
        layers, expert, rank, place, is_new = (part[is_worth] for part in (layers, expert, rank, room.place, is_new))
        state.take(layers[~is_new], rank[~is_new], place[~is_new])
        state.put(layers, rank, place, expert)
        pictures.take(state)


def drop_what_costs(state: TierState, max_redundant: int, pictures: Pictures) -> None:
    """Redundant copies without which the slowest rank is faster, and nobody as slow. Costs no move."""
    layers = np.flatnonzero(state.num_redundant > 0)
    while len(layers):
        busy = state.seconds[layers].argmax(axis=1)
        gain, place = dropping(state, layers, busy)
        is_worth = gain > STEP * state.seconds[layers].mean(axis=1)
        layers, busy, place = layers[is_worth], busy[is_worth], place[is_worth]
        state.take(layers, busy, place)
        pictures.take(state)


def dropping(state: TierState, layers: IntArray, busy: IntArray) -> tuple[FloatArray, IntArray]:
    """[N] each: the most that one redundant copy less on a rank gains, the others considered; and its slot."""
    rows, column = np.arange(len(layers)), layers[:, None]
    experts = state.slots[layers, busy]
    copies, seconds = state.copies[column, experts], state.seconds_of_copy[column, experts]
    rise = state.seconds_if(column, experts, np.maximum(copies - 1, 1)) - seconds
    is_other = state.holds[column, :, experts]  # [N, S, R]
    is_other[rows, :, busy] = False
    others = np.where(is_other, state.seconds[layers][:, None, :], -np.inf).max(axis=2) + rise
    now = state.seconds[layers, busy][:, None]
    # What would become too heavy for one rank has its copies for that.
    may_go = (copies > 1) & (seconds + rise <= HEAVY * state.seconds[layers].mean(axis=1)[:, None])
    may_go &= state.is_free[column, experts]
    gains = np.where(may_go, now - np.maximum(now - seconds, others), -np.inf)
    place = gains.argmax(axis=1)
    return gains[rows, place], place


def trade(state: TierState, max_redundant: int, pictures: Pictures) -> None:
    """The slowest rank with the calmest; if they have nothing to trade, with the next calm one, until none is left."""
    num_layers, ep_size = state.seconds.shape
    num_failed, partner = np.zeros(num_layers, np.int64), np.zeros(num_layers, np.int64)
    least, layers = _least(state, max_redundant), np.arange(num_layers)
    for _ in range(MAX_ROUNDS):
        seconds = state.seconds[layers]
        mean = seconds.mean(axis=1)
        is_slow = seconds.max(axis=1) > (1.0 + TOLERANCE) * np.maximum(mean, least[layers])
        goes_on = is_slow & (num_failed[layers] < ep_size - 1)
        layers, mean, order = layers[goes_on], mean[goes_on], np.argsort(-seconds[goes_on], axis=1, kind="stable")
        if not len(layers):
            return
        calm = order[np.arange(len(layers)), ep_size - 1 - partner[layers]]
        pairs = Pairs(state, layers, order[:, 0], calm)
        offers = pairs.offers(max_redundant)
        is_worth = offers.gain > STEP * mean
        carry_out(pairs, offers, np.flatnonzero(is_worth))
        num_failed[layers] = np.where(is_worth, 0, num_failed[layers] + 1)
        partner[layers] = np.where(is_worth, partner[layers], (partner[layers] + 1) % (ep_size - 1))
        pictures.take(state)


def _has_room(state: TierState, layers: IntArray) -> BoolArray:
    """bool [N, R]: ranks with an empty slot or a redundant copy that may go."""
    slots, column = state.slots[layers], layers[:, None, None]
    is_room = (slots == state.nobody) | (state.is_free[column, slots] & (state.copies[column, slots] > 1))
    has_room: BoolArray = is_room.any(axis=2)
    return has_room


def _least(state: TierState, max_redundant: int) -> FloatArray:
    problem = state.problem
    slots_per_rank = problem.expert_map.slots_per_rank
    return least_seconds(problem.load, problem.cost, problem.expert_map.ep_size, max_redundant, slots_per_rank)
