"""Scheduler: hand-worked steps, preemption, and random traffic that must drain. A toy model stands for the rest."""

import random
import zlib

import pytest

from actors.attention.scheduler import Schedule, Scheduler, SchedulerLimits
from actors.attention.sequence import Sequence, SequenceState
from actors.cache.block_table import KvCache
from actors.cache.blocks import KvLayout
from actors.errors import EngineOverloaded, RequestRejected
from actors.messages import ErrorKind, FinishReason, GenerateRequest, RequestError, SamplingSpec

LAYOUT = KvLayout(block_size=4, window=6)
VOCAB_SIZE = 100


def _scheduler(
    num_full: int = 64,
    num_sliding: int = 64,
    *,
    max_running: int = 4,
    max_waiting: int = 100,
    max_step_tokens: int = 8,
    max_model_len: int = 40,
    enable_prefix_cache: bool = False,
) -> Scheduler:
    cache = KvCache(
        LAYOUT, num_full_blocks=num_full, num_sliding_blocks=num_sliding, enable_prefix_cache=enable_prefix_cache
    )
    limits = SchedulerLimits(max_running, max_waiting, max_step_tokens, max_model_len, VOCAB_SIZE)
    return Scheduler(cache, limits)


def _request(name: str, num_prompt: int, max_tokens: int = 4, priority: int = 0, **fields: float) -> GenerateRequest:
    prompt = tuple(zlib.crc32(f"{name}{i}".encode()) % VOCAB_SIZE for i in range(num_prompt))
    return GenerateRequest(name, prompt, SamplingSpec(max_tokens=max_tokens), priority, **fields)


def _next_token(sequence: Sequence) -> int:
    """The toy model: the next token is a hash of all tokens so far, so a wrong history shows."""
    return zlib.crc32(bytes(sequence.token_ids)) % VOCAB_SIZE


def _step(scheduler: Scheduler) -> Schedule:
    """One step of the toy engine."""
    schedule = scheduler.schedule()
    scheduler.check()
    scheduler.commit(schedule)
    scheduler.check()
    for item in schedule.items:
        if item.needs_logits:
            scheduler.accept(item.sequence, _next_token(item.sequence))
    scheduler.check()
    return schedule


def _rows(schedule: Schedule) -> list[tuple[str, int, int, bool]]:
    return [(i.sequence.request_id, i.first_position, i.num_tokens, i.needs_logits) for i in schedule.items]


def _expected_completion(request: GenerateRequest) -> list[int]:
    tokens = list(request.prompt_token_ids)
    for _ in range(request.sampling.max_tokens):
        tokens.append(zlib.crc32(bytes(tokens)) % VOCAB_SIZE)
    return tokens[len(request.prompt_token_ids) :]


def test_prefill_is_chunked_and_decode_goes_first() -> None:
    """Budget 8, worked by hand: the short prompt decodes in every step while the long one gets what is left."""
    scheduler = _scheduler()
    scheduler.add(_request("short", 3), 0.0)
    scheduler.add(_request("long", 18), 0.0)
    assert _rows(_step(scheduler)) == [("short", 0, 3, True), ("long", 0, 5, False)]
    assert _rows(_step(scheduler)) == [("short", 3, 1, True), ("long", 5, 7, False)]
    assert _rows(_step(scheduler)) == [("short", 4, 1, True), ("long", 12, 6, True)]
    assert _rows(_step(scheduler)) == [("short", 5, 1, True), ("long", 18, 1, True)]
    assert scheduler.num_running == 1  # the short one has its four tokens


def test_lower_priority_numbers_start_first_then_arrival() -> None:
    """With one place, the order of service is (priority, arrival)."""
    scheduler = _scheduler(max_running=1)
    for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", 0)):
        scheduler.add(_request(name, 2, max_tokens=1, priority=priority), 0.0)
    order = [_step(scheduler).items[0].sequence.request_id for _ in range(4)]
    assert order == ["b", "d", "a", "c"]


def test_a_full_queue_refuses_and_recovers() -> None:
    """One request more than may wait raises EngineOverloaded and changes nothing."""
    scheduler = _scheduler(max_running=1, max_waiting=2)
    scheduler.add(_request("a", 2), 0.0)
    scheduler.add(_request("b", 2), 0.0)
    with pytest.raises(EngineOverloaded, match="2 requests"):
        scheduler.add(_request("c", 2), 0.0)
    _step(scheduler)
    scheduler.add(_request("c", 2), 0.0)
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)


def test_an_id_in_use_is_rejected() -> None:
    """Two live sequences never share a request id; a finished one frees it."""
    scheduler = _scheduler()
    scheduler.add(_request("a", 2), 0.0)
    with pytest.raises(RequestRejected, match="already in use"):
        scheduler.add(_request("a", 2), 0.0)
    scheduler.abort("a")
    scheduler.add(_request("a", 2), 0.0)


def test_the_latest_of_the_lowest_priority_is_preempted_and_continues_identically() -> None:
    """8 blocks for two sequences of 5 blocks each: the later one gives way, is computed again, and ends the same."""
    scheduler = _scheduler(num_full=8, max_model_len=20)
    requests = [_request("first", 6, max_tokens=14), _request("second", 6, max_tokens=14)]
    first, second = (scheduler.add(request, 0.0) for request in requests)
    states = set()
    while scheduler.has_work:
        _step(scheduler)
        states.add(second.state)
    assert SequenceState.PREEMPTED in states
    assert (first.num_preemptions, second.num_preemptions) == (0, 1)
    assert scheduler.num_preemptions_total == 1
    for sequence in (first, second):
        assert sequence.completion_token_ids == _expected_completion(sequence.request)


def test_a_higher_priority_prefill_takes_blocks_from_a_decode_scheduled_in_the_same_step() -> None:
    """The victim leaves the plan, its row returns to the budget, and nobody is admitted into the blocks just freed.

    11 blocks, 4 rows a step: while the prompt of 30 is computed 3 rows at a time, the low one grows from 2 to 4 blocks.
    """
    scheduler = _scheduler(num_full=11, max_running=2, max_waiting=1, max_step_tokens=4)
    low = scheduler.add(_request("low", 4, max_tokens=30, priority=5), 0.0)
    _step(scheduler)
    high = scheduler.add(_request("high", 30, max_tokens=2), 0.0)
    _step(scheduler)
    scheduler.add(_request("tiny", 2, priority=1), 0.0)
    schedule = _step(scheduler)
    while not scheduler.num_preempted:
        schedule = _step(scheduler)
    assert low.state is SequenceState.PREEMPTED
    assert [item.sequence for item in schedule.items] == [high]
    assert (scheduler.num_waiting, scheduler.num_preempted) == (2, 1)


def test_a_preempted_sequence_takes_no_place_in_the_queue_of_new_requests() -> None:
    """max_waiting bounds requests that have not run yet."""
    scheduler = _scheduler(num_full=8, max_model_len=20, max_waiting=1)
    scheduler.add(_request("first", 6, max_tokens=14), 0.0)
    _step(scheduler)
    scheduler.add(_request("second", 6, max_tokens=14), 0.0)
    while not scheduler.num_preempted:
        _step(scheduler)
    scheduler.add(_request("third", 2), 0.0)
    with pytest.raises(EngineOverloaded):
        scheduler.add(_request("fourth", 2), 0.0)


def test_the_lowest_ranked_waits_with_its_blocks_instead_of_preempting_itself() -> None:
    """10 blocks, 5 each: at position 20 the second must wait, until the first needs a sixth block and takes them."""
    scheduler = _scheduler(num_full=10, max_step_tokens=64)
    first = scheduler.add(_request("first", 13, max_tokens=27), 0.0)
    second = scheduler.add(_request("second", 15, max_tokens=25), 0.0)
    schedules = [_step(scheduler) for _ in range(8)]
    # The second computes positions 0..14, then 15, 16, 17, 18 and 19; position 20 would be its sixth block.
    assert [[rows[0] for rows in _rows(schedule)] for schedule in schedules[5:]] == [
        ["first", "second"],
        ["first"],
        ["first"],
    ]
    assert (second.state, second.context_len, first.context_len) == (SequenceState.RUNNING, 20, 20)
    _step(scheduler)
    assert second.state is SequenceState.PREEMPTED


def test_nobody_overtakes_a_long_prompt_that_waits_for_blocks() -> None:
    """Short requests behind it do not starve the head of the queue."""
    scheduler = _scheduler(num_full=10)
    scheduler.add(_request("running", 8, max_tokens=10), 0.0)
    _step(scheduler)
    scheduler.add(_request("long", 36, max_tokens=2), 0.0)
    scheduler.add(_request("short", 2, max_tokens=2), 0.0)
    finished: list[str] = []
    while scheduler.has_work:
        schedule = _step(scheduler)
        finished += [item.sequence.request_id for item in schedule.items if item.sequence.is_finished]
    assert finished == ["running", "long", "short"]


def test_a_failed_step_is_repeated_with_the_same_rows() -> None:
    """Without commit, the next schedule computes the same positions and takes no further block."""
    scheduler = _scheduler()
    scheduler.add(_request("a", 12), 0.0)
    before = _rows(scheduler.schedule())
    usage = scheduler.kv_usage
    assert _rows(scheduler.schedule()) == before
    assert scheduler.kv_usage == usage
    scheduler.check()


def test_abort_works_in_every_state_and_is_told_once() -> None:
    """Waiting, running, and in the middle of a step; blocks come back and the event says abort."""
    scheduler = _scheduler(max_running=1)
    running, waiting = (scheduler.add(_request(name, 4), 0.0) for name in ("running", "waiting"))
    schedule = scheduler.schedule()
    assert scheduler.abort("waiting") is waiting
    assert scheduler.abort("running") is running
    scheduler.commit(schedule)  # the forward pass of an aborted sequence changes nothing
    scheduler.accept(running, 7)
    scheduler.check()
    assert scheduler.kv_usage == 0.0
    assert not scheduler.has_work
    assert scheduler.abort("running") is None
    event = running.take_event()
    assert event is not None
    assert (event.finish_reason, event.token_ids) == (FinishReason.ABORT, ())
    assert running.take_event() is None


def test_deadlines_count_from_arrival_and_name_their_error() -> None:
    """A sequence ends at its deadline, not before."""
    scheduler = _scheduler()
    sequence = scheduler.add(_request("a", 4, deadline_s=5.0), 100.0)
    assert scheduler.expire(104.9) == []
    assert scheduler.expire(105.0) == [sequence]
    assert sequence.error is not None
    assert sequence.error.kind is ErrorKind.DEADLINE
    assert not scheduler.has_work


def test_a_prefix_hit_skips_computed_rows_and_is_reported() -> None:
    """The second request with the same 16 tokens starts at 12: block 3 holds the token whose logits are needed."""
    scheduler = _scheduler(enable_prefix_cache=True, max_step_tokens=16)
    prompt = tuple(range(16))
    sampling = SamplingSpec(max_tokens=1)
    scheduler.add(GenerateRequest("a", prompt, sampling), 0.0)
    _step(scheduler)
    second = scheduler.add(GenerateRequest("b", prompt, sampling), 0.0)
    assert _rows(_step(scheduler)) == [("b", 12, 4, True)]
    event = second.take_event()
    assert event is not None
    assert event.num_cached_tokens == 12


FAILED = RequestError(ErrorKind.INTERNAL, "not finite")
SHARED = tuple(range(24))


def _cached_after_error(scheduler: Scheduler, at: int, others: list[Sequence]) -> int:
    """Run a sequence over SHARED until `at` tokens are computed, fail it, and see what a third one then finds."""
    failing = scheduler.add(GenerateRequest("failing", SHARED, SamplingSpec(max_tokens=9)), 0.0)
    while failing.context_len < at:
        _step(scheduler)
    scheduler.finish(failing, FinishReason.ERROR, FAILED)
    scheduler.check()
    for other in others:
        scheduler.abort(other.request_id)
        scheduler.check()
    later = scheduler.add(GenerateRequest("later", SHARED, SamplingSpec(max_tokens=1)), 0.0)
    _step(scheduler)
    return later.num_cached_tokens


@pytest.mark.parametrize("at", [8, 16, 26])
def test_a_failed_sequence_leaves_nothing_to_be_found(at: int) -> None:
    """In the middle of its prompt or later: blocks that may hold NaN are not handed to the next one."""
    assert _cached_after_error(_scheduler(enable_prefix_cache=True), at, []) == 0


def test_a_failed_sequence_takes_the_blocks_it_shared_along() -> None:
    """The first one is fine and the second fails on its blocks: they are withdrawn, though their owner still runs."""
    scheduler = _scheduler(enable_prefix_cache=True, max_step_tokens=64)
    owner = scheduler.add(GenerateRequest("owner", SHARED, SamplingSpec(max_tokens=10)), 0.0)
    _step(scheduler)
    assert _cached_after_error(scheduler, 24, [owner]) == 0


def test_a_failure_after_preemption_reaches_blocks_that_were_given_back() -> None:
    """Idle blocks of a sequence that waits to be computed again are withdrawn too."""
    scheduler = _scheduler(num_full=8, max_model_len=20, enable_prefix_cache=True)
    scheduler.add(_request("first", 6, max_tokens=14), 0.0)
    second = scheduler.add(_request("second", 6, max_tokens=14), 0.0)
    while second.state is not SequenceState.PREEMPTED:
        _step(scheduler)
    tokens = tuple(second.token_ids)
    scheduler.finish(second, FinishReason.ERROR, FAILED)
    scheduler.check()
    scheduler.abort("first")
    later = scheduler.add(GenerateRequest("later", tokens, SamplingSpec(max_tokens=1)), 0.0)
    _step(scheduler)
    assert later.num_cached_tokens == 0


@pytest.mark.parametrize("reason", [FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT])
def test_other_ends_keep_the_prefix(reason: FinishReason) -> None:
    """Only an error says that what was computed may be wrong."""
    scheduler = _scheduler(enable_prefix_cache=True, max_step_tokens=64)
    sequence = scheduler.add(GenerateRequest("a", SHARED, SamplingSpec(max_tokens=9)), 0.0)
    _step(scheduler)
    scheduler.finish(sequence, reason)
    later = scheduler.add(GenerateRequest("later", SHARED, SamplingSpec(max_tokens=1)), 0.0)
    _step(scheduler)
    assert later.num_cached_tokens == 20


def test_pools_that_cannot_hold_one_sequence_are_refused_at_start() -> None:
    """Construction fails with the numbers instead of a later deadlock."""
    with pytest.raises(ValueError, match="40 tokens needs 10 full"):
        _scheduler(num_full=9)
    with pytest.raises(ValueError, match="max_step_tokens 3 is below max_running 4"):
        _scheduler(max_step_tokens=3)


@pytest.mark.parametrize("enable_prefix_cache", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_traffic_always_drains_and_every_completion_is_right(seed: int, enable_prefix_cache: bool) -> None:
    """Arrivals, priorities, aborts, failed steps and deadlines at random on scarce pools: no leak, no mix-up."""
    rng = random.Random(seed)
    num_sliding = LAYOUT.max_sliding_blocks(8) + rng.randrange(4)
    scheduler = _scheduler(12, num_sliding, enable_prefix_cache=enable_prefix_cache, max_waiting=30)
    sequences: list[Sequence] = []
    for now in range(300):
        if rng.random() < 0.4 and scheduler.num_waiting < 20:
            sequences.append(scheduler.add(_random_request(rng, f"r{now}"), float(now)))
        if rng.random() < 0.05 and sequences:
            scheduler.abort(rng.choice(sequences).request_id)
        if rng.random() < 0.05:
            scheduler.schedule()  # a step whose forward pass failed
        scheduler.expire(float(now))
        _step(scheduler)
    _drain(scheduler)
    assert scheduler.kv_usage == 0.0
    assert scheduler.num_preemptions_total > 0
    finished = [sequence for sequence in sequences if sequence.finish_reason is FinishReason.LENGTH]
    assert len(finished) > 30
    assert all(sequence.completion_token_ids == _expected_completion(sequence.request) for sequence in finished)


def _random_request(rng: random.Random, name: str) -> GenerateRequest:
    num_prompt = rng.randint(1, 30)
    start = rng.choice((0, 0, 0, rng.randrange(VOCAB_SIZE)))
    prompt = tuple((start + i) % VOCAB_SIZE for i in range(num_prompt))
    spec = SamplingSpec(max_tokens=rng.randint(1, 40 - num_prompt))
    return GenerateRequest(name, prompt, spec, rng.randrange(3), deadline_s=rng.choice((600.0, 600.0, 60.0)))


def _drain(scheduler: Scheduler) -> None:
    """Every step computes something, so the rest of the work ends in a bounded number of them."""
    for _ in range(5000):
        if not scheduler.has_work:
            return
        assert _step(scheduler).items, "work is left and the step is empty"
    pytest.fail("the scheduler did not drain")
