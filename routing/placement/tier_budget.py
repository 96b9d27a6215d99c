"""Which picture of each layer to choose when only so many moves are allowed: best gain for a move first. Pure.

Legend: L MoE layers, R EP ranks, S slots of a rank, K pictures.
"""

from __future__ import annotations

import numpy as np

from routing.placement.contract import FloatArray
from routing.placement.tier_pictures import Pictures
from routing.placement.tier_state import IntArray

NO_WORSE = 5e-4  # relative: a picture this close to the best one is as good, and has fewer moves
NO_BETTER = 4e-3  # relative: a layer that gains no more stays as it is, so that a balancer comes to rest


def chosen_slots(pictures: Pictures, max_moves: int | None) -> IntArray:
    """int64 [L, R, S]: from the pictures of each layer."""
    seconds, num_added = pictures.by_layer(pictures.seconds, np.inf), pictures.by_layer(pictures.num_added, 0)
    chosen = chosen_pictures(seconds, num_added, max_moves)
    slots: IntArray = pictures.slots[pictures.first_of_layer + chosen].astype(np.int64)
    return slots


def chosen_pictures(seconds: FloatArray, num_moves: IntArray, max_moves: int | None) -> IntArray:
    """int64 [L]: a picture for each layer. seconds, num_moves: [K, L], the former infinite where a layer has fewer.

    Moves of the first pictures are not counted.
    """
    least = seconds.min(axis=0)
    best: IntArray = np.argmax(seconds <= (1.0 + NO_WORSE) * least, axis=0)
    best[seconds[0] <= (1.0 + NO_BETTER) * least] = 0
    layers = np.arange(seconds.shape[1])
    if max_moves is None or num_moves[best, layers].sum() <= max_moves:
        return best
    return _best_within(seconds, num_moves, max_moves - int(num_moves[0].sum()))


def _best_within(seconds: FloatArray, num_moves: IntArray, num_left: int) -> IntArray:
    """From the first pictures on, again and again the step of one layer that gains most for each move."""
    layers = np.arange(seconds.shape[1])
    chosen = np.zeros(seconds.shape[1], np.int64)
    while True:
        gains = seconds[chosen, layers] - seconds
        price = num_moves - num_moves[chosen, layers]
        worth = np.where((gains > 0.0) & (price <= max(num_left, 0)), gains / np.maximum(price, 0.5), 0.0)
        picture, layer = np.unravel_index(worth.argmax(), worth.shape)
        if worth[picture, layer] <= 0.0:
            return chosen
        num_left -= int(price[picture, layer])
        chosen[layer] = picture
