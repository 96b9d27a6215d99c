"""Finds blocks whose keys and values are already known: the prefix cache over both pools. Pure.

A block's key is a chain hash, so it names the block's tokens and everything before them; in the sliding pool, where
draft modules keep rows that depend on the next tokens, it names these too. The index owns no block and no memory of its
own: keys live in the pools and vanish with the blocks they name.
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


def extend_sliding_keys(
    sliding_keys: list[bytes], keys: Sequence[bytes], token_ids: Sequence[int], layout: KvLayout
) -> None:
    """Append the keys in the sliding pool of the blocks in `keys` that have none yet and whose next tokens are known.

    Without draft modules they are those of `keys`; else key[i] = blake2b-128(keys[i], the next tokens as int64), one
    token for each module.
    """
    for block_idx in range(len(sliding_keys), len(keys)):
        end = (block_idx + 1) * layout.block_size
        ahead = token_ids[end : end + layout.num_draft_modules]
        if len(ahead) < layout.num_draft_modules:
            return
        key = keys[block_idx]
        sliding_keys.append(
            blake2b(key + array("q", ahead).tobytes(), digest_size=DIGEST_BYTES).digest() if ahead else key
        )


class PrefixIndex:
    """Longest usable prefixes among the cached blocks of the full and the sliding pool."""

    def __init__(self, full: BlockPool, sliding: BlockPool, layout: KvLayout) -> None:
        self._full, self._sliding, self._layout = full, sliding, layout

    def longest_hit(self, keys: Sequence[bytes], sliding_keys: Sequence[bytes]) -> int:
        """The largest n such that a sequence can continue after the n blocks named by `keys[:n]`, `sliding_keys[:n]`.

        That needs all n in the full pool, and in the sliding pool those that the next row's window still reaches.
        """
        longest, sliding_run = 0, 0
        for block_idx, (key, sliding_key) in enumerate(zip(keys, sliding_keys, strict=True)):
            if self._full.find(key) is None:
                break
            sliding_run = sliding_run + 1 if self._sliding.find(sliding_key) is not None else 0
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

    def sliding_blocks(self, sliding_keys: Sequence[bytes]) -> list[int]:
        """Sliding-pool blocks of a hit on all of `sliding_keys`, from `first_sliding_block` on."""
        return [_found(self._sliding, key) for key in sliding_keys[self.first_sliding_block(len(sliding_keys)) :]]

    def publish(self, keys: Sequence[bytes], block_ids: Sequence[int]) -> None:
        """Let complete, referenced blocks of the full pool be found."""
        for key, block_id in zip(keys, block_ids, strict=True):
            self._full.publish(block_id, key)

    def publish_sliding(self, sliding_keys: Sequence[bytes], block_ids: Sequence[int]) -> None:
        """The same for the sliding pool."""
        for key, block_id in zip(sliding_keys, block_ids, strict=True):
            self._sliding.publish(block_id, key)

    def withdraw(self, keys: Sequence[bytes], sliding_keys: Sequence[bytes]) -> None:
        """Let no block be found under these keys, whoever published it."""
        for key in keys:
            self._full.withdraw(key)
        for key in sliding_keys:
            self._sliding.withdraw(key)


def _found(pool: BlockPool, key: bytes) -> int:
    block_id = pool.find(key)
    assert block_id is not None, "a block of a hit is no longer cached"
    return block_id
