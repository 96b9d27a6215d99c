"""Finds blocks whose keys and values are already known: the prefix cache over both pools. Pure.

A block's key is a chain hash, so it names the block's tokens and everything before them. The index owns no block and no
memory of its own: keys live in the pools and vanish with the blocks they name.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from actors.cache.blocks import BlockPool, KvLayout

DIGEST_BYTES = 16


def extend_keys(keys: list[bytes], token_ids: Sequence[int], block_size: int) -> None:
    """Append to `keys` the keys of the full blocks of `token_ids` that have none yet.

    key[i] = blake2b-128(key[i - 1], token ids of block i as int64). Earlier tokens must not have changed.
    """
    for block_idx in range(len(keys), len(token_ids) // block_size):
        start = block_idx * block_size
        digest = blake2b(keys[-1] if keys else b"", digest_size=DIGEST_BYTES)
        digest.update(array("q", token_ids[start : start + block_size]))
        keys.append(digest.digest())


class PrefixIndex:
    """Longest usable prefixes among the cached blocks of the full and the sliding pool."""

    def __init__(self, full: BlockPool, sliding: BlockPool, layout: KvLayout) -> None:
        self._full, self._sliding, self._layout = full, sliding, layout

    def longest_hit(self, keys: Sequence[bytes]) -> int:
        """The largest n such that a sequence can continue after the n blocks named by `keys[:n]`.

        That needs all n in the full pool, and in the sliding pool those that the next row's window still reaches.
        """
        longest, sliding_run = 0, 0
        for block_idx, key in enumerate(keys):
            if self._full.find(key) is None:
                break
            sliding_run = sliding_run + 1 if self._sliding.find(key) is not None else 0
            num_blocks = block_idx + 1
            if sliding_run >= num_blocks - self.first_sliding_block(num_blocks):
                longest = num_blocks
        return longest

    def first_sliding_block(self, num_blocks: int) -> int:
        """First block of an n-block hit that must be in the sliding pool; n if none must."""
        if self._layout.window == 0:
            return num_blocks
        return min(num_blocks, self._layout.first_live_block(num_blocks * self._layout.block_size))

    def full_blocks(self, keys: Sequence[bytes]) -> list[int]:
        """Full-pool blocks of a hit on all of `keys`."""
        return [_found(self._full, key) for key in keys]

    def sliding_blocks(self, keys: Sequence[bytes]) -> list[int]:
        """Sliding-pool blocks of a hit on all of `keys`, from `first_sliding_block` on."""
        return [_found(self._sliding, key) for key in keys[self.first_sliding_block(len(keys)) :]]

    def publish(self, keys: Sequence[bytes], full_ids: Sequence[int], sliding_ids: Sequence[int]) -> None:
        """Let complete, referenced blocks be found. `sliding_ids` is empty if the model has no sliding layer."""
        for key, block_id in zip(keys, full_ids, strict=True):
            self._full.publish(block_id, key)
        if sliding_ids:
            for key, block_id in zip(keys, sliding_ids, strict=True):
                self._sliding.publish(block_id, key)

    def withdraw(self, keys: Sequence[bytes]) -> None:
        """Let no block be found under these keys in either pool, whoever published it."""
        for key in keys:
            self._full.withdraw(key)
            self._sliding.withdraw(key)


def _found(pool: BlockPool, key: bytes) -> int:
    block_id = pool.find(key)
    assert block_id is not None, "a block of a hit is no longer cached"
    return block_id
