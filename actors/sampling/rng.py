"""Random numbers that are a function of (seed, position) alone, so that any replica can repeat a choice.

Counter-based (Philox 4x64-10): no state is kept between calls. Knows nothing of what the numbers decide.
"""

from __future__ import annotations

import secrets
from enum import IntEnum

import numpy as np

WORD = 2**64 - 1


class Purpose(IntEnum):
    """What a number decides; numbers of different purposes at one position are independent."""

    TOKEN = 0
    DRAFT = 1
    ACCEPTANCE = 2


def uniform(seed: int, position: int, purpose: Purpose = Purpose.TOKEN) -> float:
    """A float64 in [0, 1) with 53 random bits.

    seed: any integer, taken modulo 2^64. position: index in the sequence of the token that is being chosen.
    """
    key = np.array([seed & WORD, int(purpose)], dtype=np.uint64)
    # Philox itself counts in word 0; the position lives above it, so no two calls share a counter.
    counter = np.array([0, position, 0, 0], dtype=np.uint64)
    raw = int(np.random.Philox(key=key, counter=counter).random_raw())
    return (raw >> 11) * 2.0**-53


def fresh_seed() -> int:
    """A 63-bit seed for a request that brings none; drawn once per request."""
    return secrets.randbits(63)
