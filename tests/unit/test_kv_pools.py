"""KvCache: both pools as a sequence sees them, and prefix hits limited by either. Block size 4, window 6."""

import random

import pytest

from actors.cache.block_table import BlockTable, KvCache, SequenceKv
from actors.cache.blocks import KvLayout
from actors.cache.prefix_index import extend_keys

BLOCK_SIZE, WINDOW = 4, 6
LAYOUT = KvLayout(BLOCK_SIZE, WINDOW)

Contents = dict[tuple[str, int], tuple[int, ...]]  # (pool, block id) -> tokens from position 0 to the block's end


def _cache(num_full: int = 32, num_sliding: int = 32, **options: bool) -> KvCache:
    return KvCache(LAYOUT, num_full_blocks=num_full, num_sliding_blocks=num_sliding, **options)


def _compute(cache: KvCache, kv: SequenceKv, token_ids: list[int], chunk: int = 4) -> None:
    """Prefill all of `token_ids` in chunks."""
    while kv.num_tokens < len(token_ids):
        num_tokens = min(chunk, len(token_ids) - kv.num_tokens)
        assert cache.can_append(kv, num_tokens)
        cache.append(kv, num_tokens)
        cache.check()
        cache.commit(kv, token_ids, num_tokens)
        cache.check()


def _hit(cache: KvCache, token_ids: list[int]) -> int:
    """Tokens that a new sequence would get from the prefix cache."""
    kv = SequenceKv()
    num_tokens = cache.attach_prefix(kv, token_ids)
    cache.release(kv)
    return num_tokens


def test_blocks_leave_the_sliding_pool_when_no_later_row_sees_them() -> None:
    """Worked by hand: before the row at position p, positions p-5.. must be there, so blocks from (p-5)//4 on."""
    cache, kv = _cache(), SequenceKv()
    first_live = []
    for num_tokens in range(1, 18):
        _compute(cache, kv, list(range(num_tokens)), chunk=1)
        first_live.append(kv.sliding.first_live)
    # After n tokens the next row is at position n: block 0 goes at n = 9, block 1 at n = 13, block 2 at n = 17.
    assert first_live == [0] * 8 + [1] * 4 + [2] * 4 + [3]
    assert kv.full.first_live == 0


@pytest.mark.parametrize("chunk", [1, 3, 4, 9])
def test_a_long_sequence_holds_a_bounded_number_of_sliding_blocks(chunk: int) -> None:
    """A sliding pool of max_sliding_blocks(chunk) carries any length, full blocks grow with the length."""
    cache = _cache(num_full=250, num_sliding=LAYOUT.max_sliding_blocks(chunk), enable_prefix_cache=False)
    kv = SequenceKv()
    _compute(cache, kv, list(range(1000)), chunk=chunk)
    assert kv.full.num_blocks == 250
    assert len(kv.sliding.live_ids) <= LAYOUT.max_sliding_blocks(1)


def test_appending_again_after_a_failed_step_reserves_nothing_more() -> None:
    """Slots reserved for rows that were not committed are used by the next append."""
    cache, kv = _cache(num_full=2, num_sliding=2), SequenceKv()
    cache.append(kv, 8)
    ids = kv.full.ids.tolist()
    assert cache.can_append(kv, 8)
    cache.append(kv, 8)
    assert kv.full.ids.tolist() == ids
    assert not cache.can_append(kv, 9)
    cache.check()


def test_prefix_hit_leaves_a_token_to_compute() -> None:
    """A prompt that is cached whole still computes its last block: its logits are needed."""
    cache, kv = _cache(), SequenceKv()
    tokens = list(range(16))
    _compute(cache, kv, tokens)
    cache.release(kv)
    assert _hit(cache, tokens) == 12
    assert _hit(cache, [*tokens, 99]) == 16
    assert _hit(cache, [99, *tokens]) == 0


def test_a_hit_shares_the_same_blocks_and_the_newcomer_writes_elsewhere() -> None:
    """Shared blocks are read-only: the new sequence's own tokens go to blocks of its own."""
    cache, first, second = _cache(), SequenceKv(), SequenceKv()
    _compute(cache, first, list(range(14)))
    tokens = [*range(12), 50, 51, 52]
    assert cache.attach_prefix(second, tokens) == 12
    cache.check()
    _compute(cache, second, tokens)
    assert second.full.ids[:3].tolist() == first.full.ids[:3].tolist()
    assert second.full.ids[3] not in first.full.live_ids
    # Position 12 sees 7..12, so the hit holds sliding blocks 1 and 2 only; committing 15 tokens lets block 1 go.
    assert second.sliding.live_ids[0] == first.sliding.ids[2]
    cache.release(first)
    cache.check()
    cache.release(second)
    cache.check()
    assert cache.usage == 0.0


def test_a_hit_is_cut_to_where_the_sliding_pool_can_follow() -> None:
    """All 24 positions are cached in the full pool, only the end in the sliding one: a shorter prefix is no hit."""
    cache, kv = _cache(num_sliding=LAYOUT.max_sliding_blocks(4)), SequenceKv()
    tokens = list(range(24))
    _compute(cache, kv, tokens)  # 4 sliding blocks: the first ones were evicted on the way
    cache.release(kv)
    assert _hit(cache, [*tokens, 99]) == 24
    # The first 8 tokens would need sliding blocks 0 and 1 (positions 3..7 are in the window of row 8).
    assert _hit(cache, [*tokens[:8], *[99] * 16]) == 0


def test_evicting_full_blocks_shortens_hits_from_the_end() -> None:
    """A released chain is evicted tail first, so what remains is a usable beginning."""
    cache, kv, other = _cache(num_full=6), SequenceKv(), SequenceKv()
    tokens = list(range(24))
    _compute(cache, kv, tokens)
    cache.release(kv)
    _compute(cache, other, [90 + i for i in range(8)])  # takes two of the six full blocks
    assert _hit(cache, [*tokens, 99]) == 16
    cache.check()


def test_tokens_after_a_difference_never_hit() -> None:
    """A key names everything before its block too."""
    keys: list[bytes] = []
    extend_keys(keys, [1, 2, 3, 4, 5, 6, 7, 8], 4)
    changed: list[bytes] = []
    extend_keys(changed, [0, 2, 3, 4, 5, 6, 7, 8], 4)
    assert len({*keys, *changed}) == 4


def test_keys_are_extended_not_recomputed() -> None:
    """Growing a sequence appends keys and leaves those that exist alone."""
    keys = [b"kept"]
    extend_keys(keys, [1, 2, 3, 4, 5, 6, 7], 4)
    assert keys == [b"kept"]
    extend_keys(keys, [1, 2, 3, 4, 5, 6, 7, 8], 4)
    assert (len(keys), keys[0]) == (2, b"kept")


def test_distrust_forgets_blocks_that_have_left_the_window_too() -> None:
    """Sliding blocks 0..3 of 28 tokens were dropped, and idle ones are found by a shorter prompt until then."""
    cache, kv = _cache(), SequenceKv()
    tokens = list(range(28))
    _compute(cache, kv, tokens)
    assert kv.sliding.first_live > 2
    assert _hit(cache, [*tokens[:12], 99]) == 12
    cache.distrust(kv)
    cache.check()
    assert [_hit(cache, [*tokens[:n], 99]) for n in (4, 8, 12, 16, 20, 24, 28)] == [0] * 7
    cache.release(kv)
    cache.check()
    assert cache.usage == 0.0


def test_distrust_leaves_other_prefixes_alone() -> None:
    """Another conversation that shares the beginning loses it; one that shares nothing loses nothing."""
    cache, kv, other = _cache(), SequenceKv(), SequenceKv()
    _compute(cache, kv, list(range(16)))
    _compute(cache, other, [50 + i for i in range(16)])
    cache.distrust(kv)
    assert _hit(cache, [*range(16), 99]) == 0
    assert _hit(cache, [*(50 + i for i in range(16)), 99]) == 16


def test_a_distrusted_prefix_can_be_computed_and_found_again() -> None:
    """The second time it is right: its blocks are published as if the first had never been."""
    cache, bad, good = _cache(), SequenceKv(), SequenceKv()
    tokens = list(range(16))
    _compute(cache, bad, tokens)
    cache.distrust(bad)
    _compute(cache, good, tokens)  # while the distrusted one still runs
    cache.release(bad)
    assert _hit(cache, [*tokens, 99]) == 16
    cache.check()


def _draft_cache(*sequences: list[int]) -> tuple[KvCache, list[SequenceKv]]:
    """With three draft modules, after these sequences were computed; their last three rows await tokens."""
    cache = KvCache(KvLayout(BLOCK_SIZE, WINDOW, 3, 8), num_full_blocks=32, num_sliding_blocks=32)
    kvs = [SequenceKv() for _ in sequences]
    for kv, token_ids in zip(kvs, sequences, strict=True):
        for num_settled in range(1, len(token_ids) - 2, 4):
            cache.append(kv, num_settled + 3 - kv.num_tokens)
            cache.commit(kv, token_ids, num_settled + 3 - kv.num_tokens)
            cache.settle(kv, token_ids, num_settled)
            cache.check()
    return cache, kvs


def test_a_block_is_found_only_before_the_tokens_that_its_draft_rows_read() -> None:
    """Three modules: the rows of a block depend on the three tokens behind it, and these must be in the prompt."""
    tokens = list(range(16))
    cache, _ = _draft_cache(tokens)
    assert _hit(cache, [*tokens[:15], 99]) == 12
    assert _hit(cache, [*tokens[:15]]) == 12
    assert _hit(cache, [*tokens[:14], 99, 99]) == 8
    assert _hit(cache, [*tokens[:14]]) == 8
    assert _hit(cache, [*tokens[:12], 99]) == 8


def test_sequences_that_part_behind_a_block_each_leave_their_own_of_it() -> None:
    """One full block serves both continuations, in the sliding pool each has its own; distrust of one leaves one."""
    beginning = list(range(12))
    cache, (first, second) = _draft_cache([*beginning, 50, 51, 52, 53], [*beginning, 60, 61, 62, 63])
    prompts = [[*beginning, 50, 51, 52, 9], [*beginning, 60, 61, 62, 9], [*beginning, 50, 61, 62, 9]]
    assert [_hit(cache, prompt) for prompt in prompts] == [12, 12, 8]
    cache.distrust(first)
    cache.check()
    assert [_hit(cache, prompt) for prompt in prompts] == [0, 0, 0]
    for kv in (first, second):
        cache.release(kv)
    cache.check()
    assert cache.usage == 0.0


def test_without_prefix_cache_nothing_is_found() -> None:
    """The setting turns publication and lookup off."""
    cache, kv = _cache(enable_prefix_cache=False), SequenceKv()
    _compute(cache, kv, list(range(16)))
    cache.release(kv)
    assert _hit(cache, list(range(17))) == 0


def test_a_model_without_sliding_layers_uses_the_full_pool_alone() -> None:
    """window 0: hits need full blocks only and no sliding block is ever taken."""
    cache = KvCache(KvLayout(BLOCK_SIZE, 0), num_full_blocks=8, num_sliding_blocks=0)
    kv = SequenceKv()
    _compute(cache, kv, list(range(20)))
    cache.release(kv)
    hit = SequenceKv()
    assert cache.attach_prefix(hit, list(range(20))) == 16
    assert hit.sliding.num_blocks == 0
    cache.check()


def test_capacity_says_the_numbers() -> None:
    """Pools too small for one sequence are refused with what is needed and what there is."""
    cache = _cache(num_full=4, num_sliding=4)
    cache.check_capacity(16, 4)
    with pytest.raises(ValueError, match="17 tokens needs 5 full .* have 4 and 4"):
        cache.check_capacity(17, 4)


def test_admission_counts_idle_hits_and_reserved_blocks_as_taken() -> None:
    """6 blocks, 4 of them an idle hit: 2 are left for the rest of the prompt, and fewer if some are reserved."""
    cache, kv = _cache(num_full=6), SequenceKv()
    tokens = list(range(28))
    _compute(cache, kv, tokens[:16])
    cache.release(kv)
    for length, reserved, expected in ((24, 0, True), (24, 1, False), (28, 0, False)):
        can_admit = cache.can_admit(SequenceKv(), tokens[:length], max_rows=4, reserved_blocks=reserved)
        assert can_admit is expected


@pytest.mark.parametrize(("num_sliding", "expected"), [(2, False), (3, True)])
def test_admission_needs_the_sliding_blocks_of_one_chunk(num_sliding: int, expected: bool) -> None:
    """A window of 6 and a chunk of 4 span 9 positions, at most 3 blocks."""
    cache = _cache(num_sliding=num_sliding)
    assert cache.can_admit(SequenceKv(), list(range(40)), max_rows=4, reserved_blocks=0) is expected


def test_views_of_a_table_stay_true_while_it_grows() -> None:
    """A batch may keep a view: appending, dropping and reallocating do not change it."""
    table = BlockTable()
    table.extend([5, 6, 7])
    view = table.ids
    table.drop_before(2)
    table.extend(list(range(100)))
    assert view.tolist() == [5, 6, 7]
    assert table.ids[:4].tolist() == [5, 6, 7, 0]


def test_random_sequences_leak_nothing_and_hits_hold_the_right_tokens() -> None:
    """3,000 random operations on small pools; what every block contains is tracked and equals what a hit claims."""
    rng = random.Random(1)
    cache = _cache(num_full=24, num_sliding=14)
    contents: Contents = {}
    open_sequences: list[tuple[SequenceKv, list[int]]] = []
    num_hits = 0
    for _ in range(3000):
        if open_sequences and rng.random() < 0.8:
            kv, tokens = open_sequences[rng.randrange(len(open_sequences))]
            num_tokens = rng.randint(1, 6)
            if cache.can_append(kv, num_tokens) and len(tokens) < 60:
                tokens += [rng.randrange(2) for _ in range(kv.num_tokens + num_tokens - len(tokens))]
                cache.append(kv, num_tokens)
                _write(contents, kv, tokens, kv.num_tokens + num_tokens)
                cache.commit(kv, tokens, num_tokens)
            else:
                cache.release(kv)
                open_sequences.remove((kv, tokens))
        else:
            kv, tokens = SequenceKv(), [rng.randrange(2) for _ in range(rng.randint(1, 20))]
            num_hits += cache.attach_prefix(kv, tokens) > 0
            _assert_holds(contents, kv, tokens)
            open_sequences.append((kv, tokens))
        cache.check()
    assert num_hits > 50
    for kv, _ in open_sequences:
        cache.release(kv)
    cache.check()
    assert cache.usage == 0.0


def _write(contents: Contents, kv: SequenceKv, tokens: list[int], num_computed: int) -> None:
    """Record the whole history up to each complete live block: KV depends on everything before it."""
    for pool, table in (("full", kv.full), ("sliding", kv.sliding)):
        for block_idx in range(table.first_live, num_computed // BLOCK_SIZE):
            contents[pool, int(table.ids[block_idx])] = tuple(tokens[: (block_idx + 1) * BLOCK_SIZE])


def _assert_holds(contents: Contents, kv: SequenceKv, tokens: list[int]) -> None:
    for pool, table in (("full", kv.full), ("sliding", kv.sliding)):
        for block_idx in range(table.first_live, table.num_blocks):
            history = contents[pool, int(table.ids[block_idx])]
            assert history == tuple(tokens[: (block_idx + 1) * BLOCK_SIZE])
    needed = max(0, kv.num_tokens - WINDOW + 1)
    assert kv.num_tokens == 0 or kv.sliding.first_live * BLOCK_SIZE <= needed
