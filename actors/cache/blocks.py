"""Blocks of KV memory as numbers: which are free, which are referenced, which are idle but still hold known tokens.

`BlockPool` owns the ids 0..num_blocks-1 of one pool and the keys of cached blocks; it knows neither tensors nor
sequences. `KvLayout` owns the arithmetic between positions and blocks. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class KvLayout:
    """Positions to blocks.

    block_size: tokens per block. window: keys a sliding row sees, itself included; 0 if the model has no sliding layer.
    num_draft_modules: layers of the sliding pool whose row p depends on tokens up to p + num_draft_modules, so the last
    rows of a sequence are written again. max_unsettled: rows that may await this.
    """

    block_size: int
    window: int
    num_draft_modules: int = 0
    max_unsettled: int = 0

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.window < 0:
            raise ValueError(f"block_size must be at least 1 and window at least 0, got {self}")
        if not 0 <= self.num_draft_modules <= self.block_size:
            raise ValueError(f"{self.num_draft_modules} draft modules need a block_size of as many, got {self}")
        if self.num_draft_modules and not self.window:
            raise ValueError("draft modules attend to a sliding window; the model has none")

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold positions 0..num_tokens-1."""
        return -(-num_tokens // self.block_size)

    def first_live_block(self, position: int) -> int:
        """First sliding block that a row at `position` or later may read."""
        return max(0, position - self.window + 1) // self.block_size

    def max_sliding_blocks(self, num_rows: int) -> int:
        """Most sliding blocks a sequence holds while a step computes `num_rows` of its rows."""
        if self.window == 0 or num_rows < 1:
            return 0
        # A run of n positions that starts anywhere in a block touches at most ceil((n - 1) / block_size) + 1 blocks.
        return self.num_blocks(self.window - 2 + num_rows + self.max_unsettled) + 1


PoolName = Literal["full", "sliding"]


@dataclass(frozen=True)
class PoolUse:
    """Blocks of one pool: held by sequences, and all there are."""

    num_used: int
    num_blocks: int


class BlockPool:
    """Reference-counted block ids with an LRU of idle cached blocks.

    Every block is exactly one of free (content unknown), idle (cached under a key, nobody reads it, may be evicted) and
    referenced (held by one or more sequences, never evicted). Not thread-safe.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 0:
            raise ValueError(f"num_blocks must be at least 0, got {num_blocks}")
        self.num_blocks = num_blocks
        self._refs = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._block_to_key: dict[int, bytes] = {}
        self._key_to_block: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out: free and idle ones."""
        return len(self._free) + len(self._idle)

    @property
    def num_referenced(self) -> int:
        return self.num_blocks - self.num_available

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with one reference each: free ones first, then the idle ones unused for longest."""
        assert count <= self.num_available, f"asked for {count} blocks, {self.num_available} are available"
        return [self._take() for _ in range(count)]

    def share(self, block_ids: Iterable[int]) -> None:
        """Add a reference to blocks found by key."""
        for block_id in block_ids:
            if self._refs[block_id] == 0:
                assert block_id in self._idle, f"block {block_id} is free and cannot be shared"
                del self._idle[block_id]
            self._refs[block_id] += 1

    def free(self, block_ids: Iterable[int]) -> None:
        """Drop one reference each. A cached block without readers becomes idle, the last named being evicted last."""
        for block_id in block_ids:
            assert self._refs[block_id] > 0, f"block {block_id} is not referenced and cannot be freed"
            self._refs[block_id] -= 1
            if self._refs[block_id] == 0:
                self._park(block_id)

    def publish(self, block_id: int, key: bytes) -> None:
        """Let a referenced block be found by the key of its content. The first block under a key keeps it."""
        assert self._refs[block_id] > 0, f"block {block_id} is not referenced and cannot be published"
        if key not in self._key_to_block and block_id not in self._block_to_key:
            self._key_to_block[key] = block_id
            self._block_to_key[block_id] = key

    def withdraw(self, key: bytes) -> None:
        """Let no block be found under `key` any more; one that was kept only for that becomes free."""
        block_id = self._key_to_block.pop(key, None)
        if block_id is None:
            return
        del self._block_to_key[block_id]
        if block_id in self._idle:
            del self._idle[block_id]
            self._free.append(block_id)

    def find(self, key: bytes) -> int | None:
        """The block cached under `key`, without taking a reference."""
        return self._key_to_block.get(key)

    def num_idle(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks would stop being available if they were shared."""
        return sum(self._refs[block_id] == 0 for block_id in block_ids)

    def check(self, holders: Mapping[int, int]) -> None:
        """Prove the invariants; `holders` gives the references each block should have. AssertionError otherwise."""
        for block_id, refs in enumerate(self._refs):
            expected = holders.get(block_id, 0)
            assert refs == expected, f"block {block_id} has {refs} references, its holders are {expected}"
        parked = [*self._free, *self._idle]
        unreferenced = [block_id for block_id, refs in enumerate(self._refs) if refs == 0]
        assert sorted(parked) == unreferenced, "free and idle blocks are not exactly the unreferenced ones"
        assert all(block_id in self._block_to_key for block_id in self._idle), "an idle block has no key"
        assert not any(block_id in self._block_to_key for block_id in self._free), "a free block has a key"
        inverse = {block_id: key for key, block_id in self._key_to_block.items()}
        assert inverse == self._block_to_key, "keys and blocks do not name each other"

    def _take(self) -> int:
        if self._free:
            block_id = self._free.pop()
        else:
            block_id, _ = self._idle.popitem(last=False)
            del self._key_to_block[self._block_to_key.pop(block_id)]
        self._refs[block_id] = 1
        return block_id

    def _park(self, block_id: int) -> None:
        if block_id in self._block_to_key:
            self._idle[block_id] = None
        else:
            self._free.append(block_id)
