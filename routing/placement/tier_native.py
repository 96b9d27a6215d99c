"""The loops of `tier_search` and `tier_spares` in C++: the same changes and the same pictures, bit by bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routing import _search, _spares
from routing.placement.tier_pictures import Pictures
from routing.placement.tier_search import HEAVY, HELPINGS, MAX_ROUNDS, STEP, STUCK, TOLERANCE, least_of
from routing.placement.tier_spares import Spares, Turns
from routing.placement.tier_state import TierState


def native_search(state: TierState, max_redundant: int) -> Pictures:
    """See `tier_search.search`."""
    least = least_of(state, max_redundant)
    found = _search.Search(
        state=(
            _address(state.slots),
            _address(state.holds),
            _address(state.began),
            _address(state.is_free),
            _address(state.copies),
            _address(state.seconds_by_copies),
            _address(state.seconds_of_copy),
            _address(state.seconds),
            _address(state.num_redundant),
            _address(state.num_added),
        ),
        sizes=(*state.slots.shape, *state.seconds_by_copies.shape[1:]),
        least=_address(least),
        limits=(TOLERANCE, STUCK, STEP, HEAVY),
        counts=(MAX_ROUNDS, HELPINGS, max_redundant),
    )
    return _fetched(found, state)


def native_meetings(spares: Spares, turns: Turns, num_meetings: int) -> None:
    """See `tier_spares.hold_meetings`."""
    num_pairs = np.array([len(one) for one, _ in turns], dtype=np.int64)
    pairs = np.concatenate([np.stack(turn, axis=1) for turn in turns])
    _spares.hold_meetings(
        arrays=(
            _address(spares.queue),
            _address(spares.is_open),
            _address(spares.alone),
            _address(spares.shared),
            _address(spares.left),
            _address(spares.num_empty),
            _address(spares.max_added),
            _address(spares.added),
        ),
        sizes=(*spares.queue.shape, spares.added.shape[2]),
        max_moves=spares.max_moves,
        turns=(_address(num_pairs), _address(pairs), len(turns)),
        num_meetings=num_meetings,
    )


def _fetched(found: _search.Search, state: TierState) -> Pictures:
    pictures = Pictures(
        num_of_layer=np.empty(len(state.slots), dtype=np.int64),
        seconds=np.empty(found.num_pictures, dtype=np.float64),
        num_added=np.empty(found.num_pictures, dtype=np.int64),
        slots=np.empty((found.num_pictures, *state.slots.shape[1:]), dtype=np.int32),
    )
    found.write(
        (
            _address(pictures.num_of_layer),
            _address(pictures.seconds),
            _address(pictures.num_added),
            _address(pictures.slots),
        )
    )
    return pictures


def _address(array: NDArray) -> int:  # type: ignore[type-arg]
    assert array.flags.c_contiguous, "the search walks through an array as it lies in memory"
    return array.ctypes.data
