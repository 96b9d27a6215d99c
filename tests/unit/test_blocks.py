"""BlockPool and KvLayout: reference counts, eviction order, and the arithmetic of the sliding window."""

import random

import pytest

from actors.cache.blocks import BlockPool, KvLayout


def test_free_blocks_are_taken_before_idle_ones() -> None:
    """A cached block survives as long as there is a block without known content."""
    pool = BlockPool(3)
    (cached,) = pool.allocate(1)
    pool.publish(cached, b"a")
    pool.free([cached])
    assert cached not in pool.allocate(2)
    assert pool.find(b"a") == cached
    assert pool.allocate(1) == [cached]
    assert pool.find(b"a") is None


def test_idle_blocks_are_evicted_in_the_order_they_became_idle() -> None:
    """The block that has been idle for longest goes first; sharing and freeing it again makes it the youngest."""
    pool = BlockPool(3)
    first, second, third = pool.allocate(3)
    for block_id, key in zip((first, second, third), (b"1", b"2", b"3"), strict=True):
        pool.publish(block_id, key)
    pool.free([second, first, third])
    pool.share([second])
    pool.free([second])
    assert pool.allocate(3) == [first, third, second]


def test_a_shared_block_is_held_until_its_last_reader_lets_go() -> None:
    """References are counted, and a referenced block is never available."""
    pool = BlockPool(1)
    (block_id,) = pool.allocate(1)
    pool.share([block_id])
    pool.free([block_id])
    assert pool.num_available == 0
    pool.check({block_id: 1})
    pool.free([block_id])
    assert pool.num_available == 1
    pool.check({})


def test_the_first_block_under_a_key_keeps_it() -> None:
    """Two sequences that compute the same tokens at once leave one cached copy."""
    pool = BlockPool(2)
    first, second = pool.allocate(2)
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    pool.free([first, second])
    assert pool.find(b"a") == first
    pool.check({})
    assert pool.allocate(2) == [second, first], "the second block has no key, so it was free"


def test_a_withdrawn_key_finds_nothing_and_frees_what_was_idle() -> None:
    """Referenced blocks stay with their reader and become free after it; an unknown key is no error."""
    pool = BlockPool(2)
    idle, held = pool.allocate(2)
    pool.publish(idle, b"i")
    pool.publish(held, b"h")
    pool.free([idle])
    for key in (b"i", b"h", b"unknown", b"i"):
        pool.withdraw(key)
    assert (pool.find(b"i"), pool.find(b"h")) == (None, None)
    pool.check({held: 1})
    pool.free([held])
    pool.check({})
    assert sorted(pool.allocate(2)) == [idle, held]


def test_misuse_is_a_bug_with_a_sentence() -> None:
    """Asking for too much, freeing twice and sharing a free block are assertions."""
    pool = BlockPool(1)
    with pytest.raises(AssertionError, match="asked for 2 blocks, 1 are available"):
        pool.allocate(2)
    with pytest.raises(AssertionError, match="not referenced"):
        pool.free([0])
    with pytest.raises(AssertionError, match="is free"):
        pool.share([0])
    with pytest.raises(AssertionError, match="not referenced"):
        pool.publish(0, b"a")


def test_check_notices_a_wrong_count() -> None:
    """The invariants' proof can fail."""
    pool = BlockPool(2)
    (block_id,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="its holders are 2"):
        pool.check({block_id: 2})


def test_random_operations_keep_the_invariants() -> None:
    """2,000 random allocations, shares, publications and frees never break the partition or the counts."""
    rng = random.Random(0)
    pool = BlockPool(12)
    refs: dict[int, int] = {}
    for step in range(2000):
        operation = rng.randrange(5)
        if operation == 0 and pool.num_available:
            refs |= dict.fromkeys(pool.allocate(rng.randint(1, pool.num_available)), 1)
        elif operation == 1 and refs:
            pool.publish(rng.choice(sorted(refs)), bytes([step % 16]))
        elif operation == 2 and (block_id := pool.find(bytes([rng.randrange(16)]))) is not None:
            pool.share([block_id])
            refs[block_id] = refs.get(block_id, 0) + 1
        elif operation == 3 and refs:
            block_id = rng.choice(sorted(refs))
            pool.free([block_id])
            refs[block_id] -= 1
            refs = {block_id: count for block_id, count in refs.items() if count}
        elif operation == 4 and rng.random() < 0.1:
            pool.withdraw(bytes([rng.randrange(16)]))
        pool.check(refs)
    assert any(pool.find(bytes([key])) is not None for key in range(16))


@pytest.mark.parametrize("block_size", [1, 3, 4, 16])
@pytest.mark.parametrize("window", [1, 2, 5, 16, 17])
def test_sliding_window_arithmetic_agrees_with_counting(block_size: int, window: int) -> None:
    """first_live_block and max_sliding_blocks equal what listing every readable position gives."""
    layout = KvLayout(block_size, window)
    for num_rows in (1, 2, 7):
        most = 0
        for position in range(4 * (window + block_size)):
            first_kept = max(0, position - window + 1)
            blocks = {p // block_size for p in range(first_kept, position + num_rows)}
            assert layout.first_live_block(position) == min(blocks)
            most = max(most, len(blocks))
        assert layout.max_sliding_blocks(num_rows) >= most
        assert layout.max_sliding_blocks(num_rows) <= most + (block_size == 1)


def test_a_model_without_sliding_layers_needs_no_sliding_block() -> None:
    """window 0 means that no layer slides."""
    assert KvLayout(16, 0).max_sliding_blocks(100) == 0


def test_impossible_layouts_are_refused() -> None:
    """A block holds at least one token."""
    with pytest.raises(ValueError, match="block_size"):
        KvLayout(0, 4)
    with pytest.raises(ValueError, match="num_blocks"):
        BlockPool(-1)
