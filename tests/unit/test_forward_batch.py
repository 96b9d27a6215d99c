"""ForwardBatch: rows, slots and logits of a schedule, worked by hand and checked against every row's definition."""

import pytest
import torch

from actors.attention.batch import ForwardBatch, build_batch, split
from actors.attention.scheduler import ScheduledSequence, Scheduler, SchedulerLimits
from actors.attention.sequence import Sequence
from actors.cache.block_table import KvCache
from actors.cache.blocks import KvLayout
from actors.kernels.contract import AttentionInputs
from actors.messages import GenerateRequest, SamplingSpec

BLOCK_SIZE, WINDOW = 4, 6


def _scheduler(window: int = WINDOW) -> Scheduler:
    cache = KvCache(KvLayout(BLOCK_SIZE, window), num_full_blocks=64, num_sliding_blocks=64, enable_prefix_cache=False)
    limits = SchedulerLimits(max_running=8, max_waiting=8, max_step_tokens=12, max_model_len=64, vocab_size=100)
    return Scheduler(cache, limits)


def _add(scheduler: Scheduler, name: str, prompt: range) -> None:
    scheduler.add(GenerateRequest(name, tuple(prompt), SamplingSpec(max_tokens=8)), 0.0)


def _batch(items: tuple[ScheduledSequence, ...], *, has_sliding: bool = True) -> ForwardBatch:
    return build_batch(items, block_size=BLOCK_SIZE, has_sliding=has_sliding)


def test_a_step_of_decode_and_chunk_is_laid_out_by_hand() -> None:
    """One decode row, then the first 11 rows of a longer prompt, which needs no logits yet."""
    scheduler = _scheduler()
    _add(scheduler, "short", range(10, 13))
    first = scheduler.schedule()
    assert _batch(first.items).logit_rows.tolist() == [2]
    scheduler.commit(first)
    scheduler.accept(first.items[0].sequence, 77)
    _add(scheduler, "long", range(20, 40))
    batch = _batch(scheduler.schedule().items)
    assert batch.token_ids.tolist() == [77, *range(20, 31)]
    assert batch.positions.tolist() == [3, *range(11)]
    assert batch.logit_rows.tolist() == [0]
    assert [item.sequence.request_id for item in batch.logit_items] == ["short"]
    assert [(s.first_row, s.num_rows, s.first_position) for s in batch.full.sequences] == [(0, 1, 3), (1, 11, 0)]
    assert batch.token_ids.dtype == batch.positions.dtype == batch.logit_rows.dtype == torch.int64


def test_slots_follow_the_block_tables_through_a_whole_generation() -> None:
    """Every row's slot is block_ids[position // size] * size + position % size, and no two live rows share a slot."""
    scheduler = _scheduler()
    for name, prompt in (("a", range(30)), ("b", range(5)), ("c", range(17))):
        _add(scheduler, name, prompt)
    while scheduler.has_work:
        schedule = scheduler.schedule()
        batch = _batch(schedule.items)
        for inputs in (batch.full, batch.sliding):
            _check_slots(inputs)
        scheduler.commit(schedule)
        for item in batch.logit_items:
            scheduler.accept(item.sequence, 1)


def _check_slots(inputs: AttentionInputs) -> None:
    assert len(set(inputs.slot_mapping.tolist())) == len(inputs.slot_mapping)
    for sequence in inputs.sequences:
        for row in range(sequence.num_rows):
            position = sequence.first_position + row
            assert inputs.positions[sequence.first_row + row] == position
            slot = int(sequence.block_ids[position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
            assert int(inputs.slot_mapping[sequence.first_row + row]) == slot


def test_keys_written_through_the_slots_are_there_when_a_row_reads_its_window() -> None:
    """A cache of (sequence, position) labels: each row finds every key its layer may see, in both pools."""
    scheduler = _scheduler()
    pools = {"full": torch.full((64 * BLOCK_SIZE,), -1), "sliding": torch.full((64 * BLOCK_SIZE,), -1)}
    for label, length in enumerate((25, 9, 40)):
        _add(scheduler, str(label), range(length))
    while scheduler.has_work:
        schedule = scheduler.schedule()
        batch = _batch(schedule.items)
        for pool, inputs, window in (("full", batch.full, 1000), ("sliding", batch.sliding, WINDOW)):
            _write_and_read(pools[pool], batch, inputs, window)
        scheduler.commit(schedule)
        for item in batch.logit_items:
            scheduler.accept(item.sequence, 1)


def _write_and_read(pool: torch.Tensor, batch: ForwardBatch, inputs: AttentionInputs, window: int) -> None:
    labels = [int(item.sequence.request_id) * 1000 for item in batch.items for _ in range(item.num_tokens)]
    pool[inputs.slot_mapping] = torch.tensor(labels) + inputs.positions
    for item, rows in zip(batch.items, inputs.sequences, strict=True):
        for position in range(rows.first_position, rows.first_position + rows.num_rows):
            seen = torch.arange(max(0, position - window + 1), position + 1)
            slots = rows.block_ids[seen // BLOCK_SIZE] * BLOCK_SIZE + seen % BLOCK_SIZE
            assert torch.equal(pool[slots], int(item.sequence.request_id) * 1000 + seen)


def test_a_model_without_sliding_layers_has_one_set_of_inputs() -> None:
    """Nothing is built twice."""
    scheduler = _scheduler(window=0)
    _add(scheduler, "a", range(5))
    batch = _batch(scheduler.schedule().items, has_sliding=False)
    assert batch.sliding is batch.full


def _items(*num_rows: int) -> tuple[ScheduledSequence, ...]:
    request = GenerateRequest("r", (1,), SamplingSpec(max_tokens=1))
    sequence = Sequence(request, arrival=0, deadline=1.0, max_model_len=8)
    return tuple(ScheduledSequence(sequence, 0, rows, needs_logits=True) for rows in num_rows)


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [
        ((1, 1, 1, 1), [[1, 1], [1, 1]]),
        ((1, 1, 1), [[1], [1, 1]]),
        ((1, 1, 1, 60), [[1, 1, 1], [60]]),
        ((60, 1, 1), [[60], [1, 1]]),
        ((3, 5, 4, 4), [[3, 5], [4, 4]]),
        ((7,), [[7]]),
    ],
)
def test_split_cuts_between_sequences_where_rows_balance_best(
    num_rows: tuple[int, ...], expected: list[list[int]]
) -> None:
    """Order is kept, sequences stay whole, and a single sequence stays one micro-batch."""
    assert [[item.num_tokens for item in run] for run in split(_items(*num_rows))] == expected
