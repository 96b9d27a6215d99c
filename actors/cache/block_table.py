"""KvCache: the blocks of every sequence in both pools. The scheduler is its only user; it knows no tensors.

Rows move through three calls: `append` reserves slots, the forward pass writes them, `commit` counts them as computed,
and `settle` says that they will not be written again: complete blocks are published for reuse, and sliding blocks that
no later row can see are let go. Without draft modules every row is settled when it is committed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from actors.cache.blocks import BlockPool, KvLayout, PoolName, PoolUse
from actors.cache.prefix_index import PrefixIndex, extend_keys, extend_sliding_keys

INITIAL_CAPACITY = 16


class BlockTable:
    """Block of each logical block of one sequence in one pool.

    Entries before `first_live` are arbitrary. Entries once written never change, so a view of `ids` stays true while
    the table grows.
    """

    def __init__(self) -> None:
        self._ids: NDArray[np.int64] = np.zeros(INITIAL_CAPACITY, dtype=np.int64)
        self.num_blocks = 0
        self.first_live = 0

    @property
    def ids(self) -> NDArray[np.int64]:
        """int64 [num_blocks], a view."""
        return self._ids[: self.num_blocks]

    @property
    def live_ids(self) -> list[int]:
        """Blocks this table holds a reference to."""
        live: list[int] = self._ids[self.first_live : self.num_blocks].tolist()
        return live

    def skip_to(self, block_idx: int) -> None:
        """Start an empty table at `block_idx`: the entries before it are never read."""
        assert self.num_blocks == 0, "only an empty table can skip"
        self._reserve(block_idx)
        self.num_blocks = self.first_live = block_idx

    def extend(self, block_ids: Sequence[int]) -> None:
        end = self.num_blocks + len(block_ids)
        self._reserve(end)
        self._ids[self.num_blocks : end] = block_ids
        self.num_blocks = end

    def drop_before(self, block_idx: int) -> list[int]:
        """Forget the blocks before `block_idx` and return those that were live."""
        end = min(block_idx, self.num_blocks)
        dropped: list[int] = self._ids[self.first_live : end].tolist()
        self.first_live = max(self.first_live, end)
        return dropped

    def _reserve(self, num_blocks: int) -> None:
        if num_blocks > len(self._ids):
            grown = np.zeros(max(num_blocks, 2 * len(self._ids)), dtype=np.int64)
            grown[: self.num_blocks] = self.ids
            self._ids = grown


class SequenceKv:
    """What the cache knows of one sequence. Only KvCache changes it.

    num_tokens: positions computed. num_settled: positions that will not be written again, at most as many.
    keys, sliding_keys: prefix-cache keys of its complete blocks in either pool; they outlive a preemption.
    """

    def __init__(self) -> None:
        self.full = BlockTable()
        self.sliding = BlockTable()
        self.num_tokens = 0
        self.num_settled = 0
        self.keys: list[bytes] = []
        self.sliding_keys: list[bytes] = []
        self.num_published = 0


class KvCache:
    """Allocation of both pools. Not thread-safe: the scheduler's thread owns it."""

    def __init__(
        self,
        layout: KvLayout,
        *,
        num_full_blocks: int,
        num_sliding_blocks: int,
        enable_prefix_cache: bool = True,
    ) -> None:
        self.layout = layout
        self._full = BlockPool(num_full_blocks)
        self._sliding = BlockPool(num_sliding_blocks)
        self._index = PrefixIndex(self._full, self._sliding, layout)
        self._enable_prefix_cache = enable_prefix_cache
        self._open: set[SequenceKv] = set()

    @property
    def pools(self) -> Mapping[PoolName, PoolUse]:
        """Both pools, one without layers left out."""
        pools: dict[PoolName, BlockPool] = {"full": self._full, "sliding": self._sliding}
        return {name: PoolUse(pool.num_referenced, pool.num_blocks) for name, pool in pools.items() if pool.num_blocks}

    @property
    def usage(self) -> float:
        """Referenced blocks over blocks, of the fuller pool."""
        return max(_usage(self._full), _usage(self._sliding))

    @property
    def num_available_blocks(self) -> tuple[int, int]:
        """(full, sliding) blocks that could be allocated now."""
        return self._full.num_available, self._sliding.num_available

    def check_capacity(self, max_tokens: int, max_rows: int) -> None:
        """ValueError unless one sequence of `max_tokens`, computed `max_rows` at a time, fits in empty pools."""
        full = self.layout.num_blocks(max_tokens)
        sliding = self._max_sliding(max_tokens, max_rows)
        if full > self._full.num_blocks or sliding > self._sliding.num_blocks:
            raise ValueError(
                f"a sequence of {max_tokens} tokens needs {full} full and {sliding} sliding blocks of "
                f"{self.layout.block_size} tokens, "
                f"the pools have {self._full.num_blocks} and {self._sliding.num_blocks}"
            )

    def attach_prefix(self, kv: SequenceKv, token_ids: Sequence[int]) -> int:
        """Share the longest cached prefix with an empty sequence. Returns its number of tokens.

        At least one token is always left to compute.
        """
        assert kv.full.num_blocks == 0, "a prefix is attached before any block is appended"
        num_blocks = self._hit_blocks(kv, token_ids)
        self._open.add(kv)
        if num_blocks:
            self._share(kv, *self._blocks_of_hit(kv, num_blocks))
        kv.num_tokens = kv.num_settled = num_blocks * self.layout.block_size
        kv.num_published = num_blocks
        return kv.num_tokens

    def can_admit(self, kv: SequenceKv, token_ids: Sequence[int], *, max_rows: int, reserved_blocks: int) -> bool:
        """Whether all of `token_ids` fit, computed `max_rows` at a time, leaving `reserved_blocks` full blocks."""
        full_hits, sliding_hits = self._blocks_of_hit(kv, self._hit_blocks(kv, token_ids))
        full_need = self.layout.num_blocks(len(token_ids)) - len(full_hits)
        sliding_need = self._max_sliding(len(token_ids), max_rows) - len(sliding_hits)
        return (
            full_need + reserved_blocks + self._full.num_idle(full_hits) <= self._full.num_available
            and sliding_need + self._sliding.num_idle(sliding_hits) <= self._sliding.num_available
        )

    def can_append(self, kv: SequenceKv, num_tokens: int) -> bool:
        """Whether `append` of as many rows would succeed."""
        full, sliding = self._missing(kv, num_tokens)
        return full <= self._full.num_available and sliding <= self._sliding.num_available

    def append(self, kv: SequenceKv, num_tokens: int) -> None:
        """Reserve slots for the next `num_tokens` rows. Repeating it after a failed step reserves nothing more."""
        full, sliding = self._missing(kv, num_tokens)
        self._open.add(kv)
        kv.full.extend(self._full.allocate(full))
        kv.sliding.extend(self._sliding.allocate(sliding))

    def commit(self, kv: SequenceKv, token_ids: Sequence[int], num_tokens: int) -> None:
        """Count `num_tokens` appended rows as computed. `token_ids`: the sequence's, at least up to them."""
        kv.num_tokens += num_tokens
        assert self.layout.num_blocks(kv.num_tokens) <= kv.full.num_blocks, "rows are committed that were not appended"
        if not self.layout.num_draft_modules:
            self.settle(kv, token_ids, kv.num_tokens)

    def settle(self, kv: SequenceKv, token_ids: Sequence[int], num_settled: int) -> None:
        """The first `num_settled` rows, at least as many as before, will not be written again in any layer."""
        assert kv.num_settled <= num_settled <= kv.num_tokens, "rows are settled that were not committed"
        assert kv.num_tokens - num_settled <= max(1, self.layout.max_unsettled), "too many rows await their drafts"
        if num_settled == kv.num_settled:
            return
        kv.num_settled = num_settled
        if self._enable_prefix_cache:
            self._publish(kv, token_ids)
        if self.layout.window:
            self._sliding.free(kv.sliding.drop_before(self.layout.first_live_block(num_settled)))

    def distrust(self, kv: SequenceKv) -> None:
        """What this sequence computed or shared may be wrong: nobody may find a block of its prefix any more.

        Goes by key, so it reaches blocks that it has dropped or released, and those that others published. Whoever
        holds such a block keeps it.
        """
        self._index.withdraw(kv.keys, kv.sliding_keys)

    def release(self, kv: SequenceKv) -> None:
        """Give back every block. Complete ones stay findable until evicted, a chain's end before its beginning."""
        self._full.free(reversed(kv.full.live_ids))
        self._sliding.free(reversed(kv.sliding.live_ids))
        kv.full, kv.sliding = BlockTable(), BlockTable()
        kv.num_tokens = kv.num_settled = kv.num_published = 0
        self._open.discard(kv)

    def check(self) -> None:
        """Prove that references and tables agree and that the sliding tables are bounded. AssertionError otherwise."""
        self._full.check(_holders(kv.full for kv in self._open))
        self._sliding.check(_holders(kv.sliding for kv in self._open))
        for kv in self._open:
            assert kv.full.first_live == 0, "a full block was dropped"
            if self.layout.window:
                assert kv.sliding.num_blocks == kv.full.num_blocks, "the pools hold different positions"
                assert kv.sliding.first_live == self._first_live(kv), "sliding blocks behind the window are still held"

    def _hit_blocks(self, kv: SequenceKv, token_ids: Sequence[int]) -> int:
        if not self._enable_prefix_cache:
            return 0
        self._extend_keys(kv, token_ids)
        # What the rows of draft modules read must be known, and a row be left whose logits give the next token.
        num_left = max(1, self.layout.num_draft_modules)
        num_blocks = max(0, len(token_ids) - num_left) // self.layout.block_size
        return self._index.longest_hit(kv.keys[:num_blocks], kv.sliding_keys[:num_blocks])

    def _blocks_of_hit(self, kv: SequenceKv, num_blocks: int) -> tuple[list[int], list[int]]:
        """Full and sliding blocks."""
        return (
            self._index.full_blocks(kv.keys[:num_blocks]),
            self._index.sliding_blocks(kv.sliding_keys[:num_blocks]),
        )

    def _extend_keys(self, kv: SequenceKv, token_ids: Sequence[int]) -> None:
        extend_keys(kv.keys, token_ids, self.layout.block_size)
        extend_sliding_keys(kv.sliding_keys, kv.keys, token_ids, self.layout)

    def _share(self, kv: SequenceKv, full_ids: list[int], sliding_ids: list[int]) -> None:
        self._full.share(full_ids)
        self._sliding.share(sliding_ids)
        kv.full.extend(full_ids)
        if self.layout.window:
            kv.sliding.skip_to(len(full_ids) - len(sliding_ids))
            kv.sliding.extend(sliding_ids)

    def _missing(self, kv: SequenceKv, num_tokens: int) -> tuple[int, int]:
        need = self.layout.num_blocks(kv.num_tokens + num_tokens)
        sliding = need - kv.sliding.num_blocks if self.layout.window else 0
        return max(0, need - kv.full.num_blocks), max(0, sliding)

    def _publish(self, kv: SequenceKv, token_ids: Sequence[int]) -> None:
        start, end = kv.num_published, kv.num_settled // self.layout.block_size
        if end > start:
            self._extend_keys(kv, token_ids)
            ids = slice(start, end)
            self._index.publish(kv.keys[ids], kv.full.ids[ids].tolist())
            if self.layout.window:
                self._index.publish_sliding(kv.sliding_keys[ids], kv.sliding.ids[ids].tolist())
            kv.num_published = end

    def _max_sliding(self, max_tokens: int, max_rows: int) -> int:
        if self.layout.window == 0:
            return 0
        return min(self.layout.num_blocks(max_tokens), self.layout.max_sliding_blocks(min(max_rows, max_tokens)))

    def _first_live(self, kv: SequenceKv) -> int:
        return min(kv.sliding.num_blocks, self.layout.first_live_block(kv.num_settled))


def _usage(pool: BlockPool) -> float:
    return pool.num_referenced / pool.num_blocks if pool.num_blocks else 0.0


def _holders(tables: Iterable[BlockTable]) -> Counter[int]:
    return Counter(block_id for table in tables for block_id in table.live_ids)
