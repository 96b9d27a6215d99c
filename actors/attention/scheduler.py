"""Which sequences run in a step and how many rows each computes. No clock, no I/O, no tensors: time is an argument.

Decode first, then prefill in chunks within the step's token budget. When KV blocks run out, the lowest-ranked running
sequence is preempted and computed again later; a sequence without anyone below it waits a step with what it has. The
highest-ranked one can therefore always advance, so everything finishes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter

from actors.attention.sequence import Sequence, SequenceState, check_request
from actors.cache.block_table import KvCache
from actors.cache.blocks import PoolName, PoolUse
from actors.errors import EngineOverloaded, RequestRejected
from actors.messages import ErrorKind, FinishReason, GenerateRequest, RequestError, TokenLogprob
from actors.speculative.state import Draft

_RANK = attrgetter("rank")
DEADLINE_PASSED = RequestError(ErrorKind.DEADLINE, "The request's deadline passed before it was finished.")


@dataclass(frozen=True)
class SchedulerLimits:
    """Bounds of the engine.

    max_model_len: prompt and completion tokens of a sequence. vocab_size: width of the logits, bound of prompt ids.
    eos_token_ids: the checkpoint's stop ids. num_draft_modules: 0 without drafts.
    """

    max_running: int
    max_waiting: int
    max_step_tokens: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int] = frozenset()
    num_draft_modules: int = 0


@dataclass(frozen=True)
class ScheduledSequence:
    """The rows of one sequence in a step: known tokens from first_position on, then drafts to be verified.

    needs_logits: the last known token is among them, so a new one is sampled from its row, and from each draft's.
    """

    sequence: Sequence
    first_position: int
    num_tokens: int
    needs_logits: bool
    drafts: tuple[Draft, ...] = ()

    @property
    def num_rows(self) -> int:
        return self.num_tokens + len(self.drafts)

    @property
    def num_logits(self) -> int:
        """The last rows of the item, whose logits are needed."""
        return 1 + len(self.drafts) if self.needs_logits else 0

    @property
    def draft_ids(self) -> list[int]:
        return [draft.token_id for draft in self.drafts]


@dataclass(frozen=True)
class Schedule:
    """One step's work, decoding sequences first."""

    items: tuple[ScheduledSequence, ...]


@dataclass
class _Plan:
    """A schedule in the making. has_preempted: a sequence has lost its blocks to it."""

    budget: int
    items: dict[Sequence, ScheduledSequence] = field(default_factory=dict)
    has_preempted: bool = False

    def add(self, item: ScheduledSequence) -> None:
        self.items[item.sequence] = item
        self.budget -= item.num_rows

    def drop(self, sequence: Sequence) -> None:
        item = self.items.pop(sequence, None)
        self.budget += item.num_rows if item else 0
        self.has_preempted = True

    def freeze(self) -> Schedule:
        return Schedule(tuple(self.items.values()))


class Scheduler:
    """Owner of all sequences and of the KV cache's allocation. One thread uses it, between forward passes.

    A step is: `schedule`, forward pass, `commit`, then `accept` or `finish` for each sequence that needed logits, and
    `commit_draft` for each draft that proved right. After a failed forward pass, leave out `commit`; the next schedule
    computes the same rows again.
    """

    def __init__(self, kv_cache: KvCache, limits: SchedulerLimits) -> None:
        if limits.max_step_tokens < limits.max_running:
            raise ValueError(f"max_step_tokens {limits.max_step_tokens} is below max_running {limits.max_running}")
        kv_cache.check_capacity(limits.max_model_len, limits.max_step_tokens)
        self._kv_cache = kv_cache
        self._limits = limits
        self._sequences: dict[str, Sequence] = {}
        self._waiting: list[Sequence] = []  # by rank
        self._running: list[Sequence] = []  # by rank
        self._next_arrival = 0
        self._blocked_at: tuple[Sequence, tuple[int, int]] | None = None
        self.num_preemptions_total = 0
        self.num_prefix_queries_total = 0  # tokens
        self.num_prefix_hits_total = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait, preempted ones included."""
        return len(self._waiting)

    @property
    def num_preempted(self) -> int:
        """Sequences that wait to be computed again."""
        return sum(sequence.state is SequenceState.PREEMPTED for sequence in self._waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def kv_usage(self) -> float:
        return self._kv_cache.usage

    @property
    def kv_pools(self) -> Mapping[PoolName, PoolUse]:
        """Blocks of both pools; a number may be a step old."""
        return self._kv_cache.pools

    def add(self, request: GenerateRequest, now: float) -> Sequence:
        """Queue a request. Raises RequestRejected if it can never run, EngineOverloaded if the queue is full."""
        check_request(request, max_model_len=self._limits.max_model_len, vocab_size=self._limits.vocab_size)
        if request.request_id in self._sequences:
            raise RequestRejected(f"request_id {request.request_id} is already in use", "request_id")
        if len(self._waiting) - self.num_preempted >= self._limits.max_waiting:
            raise EngineOverloaded(f"{self._limits.max_waiting} requests are already waiting")
        sequence = Sequence(
            request,
            arrival=self._next_arrival,
            deadline=now + request.deadline_s,
            max_model_len=self._limits.max_model_len,
            eos_token_ids=self._limits.eos_token_ids,
            num_draft_modules=self._limits.num_draft_modules,
        )
        self._next_arrival += 1
        self._sequences[request.request_id] = sequence
        insort(self._waiting, sequence, key=_RANK)
        return sequence

    def schedule(self) -> Schedule:
        """Decide the next step and reserve its KV slots. Empty only if nothing is running or waiting."""
        plan = _Plan(self._limits.max_step_tokens)
        decoding = [sequence for sequence in self._running if sequence.num_uncomputed_tokens == 1]
        prefilling = [sequence for sequence in self._running if sequence.num_uncomputed_tokens > 1]
        for num_before, sequence in enumerate(decoding + prefilling):
            if sequence.state is SequenceState.RUNNING and plan.budget > 0:  # an earlier one may have preempted it
                # A draft must not cost another sequence its next token.
                self._advance(sequence, plan, num_reserved=max(0, len(decoding) - num_before - 1))
        if not plan.has_preempted:
            self._admit(plan)
        return plan.freeze()

    def commit(self, schedule: Schedule) -> None:
        """The forward pass of `schedule` succeeded: the rows of known tokens are in the cache. Skips sequences finished
        meanwhile."""
        for item in schedule.items:
            sequence = item.sequence
            if sequence.state is SequenceState.RUNNING:
                self._kv_cache.commit(sequence.kv, sequence.token_ids, item.num_tokens)

    def commit_draft(self, sequence: Sequence) -> None:
        """The next draft's row is in the cache too: the draft was accepted, and the sequence goes on."""
        self._kv_cache.commit(sequence.kv, sequence.token_ids, 1)

    def settle(self, sequence: Sequence, num_rows: int) -> None:
        """No layer, draft modules included, will write the first `num_rows` rows again."""
        self._kv_cache.settle(sequence.kv, sequence.token_ids, num_rows)

    def accept(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None = None) -> None:
        """Add the sampled token, and finish the sequence if it is the last. No effect on a finished sequence."""
        if sequence.is_finished:
            return
        reason = sequence.append_token(token_id, logprob)
        if reason is not None:
            self.finish(sequence, reason)

    def finish(self, sequence: Sequence, reason: FinishReason, error: RequestError | None = None) -> None:
        """End a sequence in any state and give back its blocks. No effect on a finished one.

        Blocks are published before anybody knows whether what they hold is finite. So an error withdraws the prefix
        from the cache: else one transient fault would fail every later request that begins the same.
        """
        if sequence.is_finished:
            return
        if reason is FinishReason.ERROR:
            self._kv_cache.distrust(sequence.kv)
        queue = self._running if sequence.state is SequenceState.RUNNING else self._waiting
        queue.remove(sequence)
        self._kv_cache.release(sequence.kv)
        sequence.state = SequenceState.FINISHED
        sequence.finish_reason, sequence.error = reason, error
        del self._sequences[sequence.request_id]

    def abort(self, request_id: str) -> Sequence | None:
        """The client left. Returns the sequence, or None if it is unknown or already finished."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self.finish(sequence, FinishReason.ABORT)
        return sequence

    def expire(self, now: float) -> list[Sequence]:
        """Finish every sequence whose deadline has passed, and return them."""
        late = [sequence for sequence in self._sequences.values() if sequence.deadline <= now]
        for sequence in late:
            self.finish(sequence, FinishReason.ABORT, DEADLINE_PASSED)
        return late

    def sequences(self) -> list[Sequence]:
        """Every unfinished sequence, in order of arrival."""
        return list(self._sequences.values())

    def check(self) -> None:
        """Prove the invariants of queues and cache. AssertionError otherwise."""
        self._kv_cache.check()
        assert self._running == sorted(self._running, key=_RANK), "running sequences are out of order"
        assert self._waiting == sorted(self._waiting, key=_RANK), "waiting sequences are out of order"
        assert all(s.state is SequenceState.RUNNING for s in self._running), "a running sequence has another state"
        waits = (SequenceState.WAITING, SequenceState.PREEMPTED)
        assert all(s.state in waits and s.context_len == 0 for s in self._waiting), "a waiting sequence holds KV"
        assert set(self._running) | set(self._waiting) == set(self._sequences.values()), "a sequence is in no queue"
        assert len(self._running) <= self._limits.max_running, "more sequences run than may"

    def _advance(self, sequence: Sequence, plan: _Plan, num_reserved: int = 0) -> None:
        item = _item(sequence, plan.budget, num_reserved)
        if not self._kv_cache.can_append(sequence.kv, item.num_rows):
            item = replace(item, drafts=())  # nobody loses its blocks to a draft
        while not self._kv_cache.can_append(sequence.kv, item.num_rows):
            victim = self._running[-1]
            if victim is sequence:
                return  # it keeps its blocks and waits for those above it
            self._preempt(victim, plan)
        self._kv_cache.append(sequence.kv, item.num_rows)
        plan.add(item)

    def _preempt(self, sequence: Sequence, plan: _Plan) -> None:
        self._running.remove(sequence)
        self._kv_cache.release(sequence.kv)
        sequence.drafting.restart(0)
        sequence.state = SequenceState.PREEMPTED
        sequence.num_preemptions += 1
        self.num_preemptions_total += 1
        insort(self._waiting, sequence, key=_RANK)
        plan.drop(sequence)

    def _admit(self, plan: _Plan) -> None:
        while self._waiting and plan.budget > 0 and len(self._running) < self._limits.max_running:
            sequence = self._waiting[0]  # nobody overtakes it, or a long one would wait forever
            if not self._has_room(sequence, plan.budget):
                return
            self._start(self._waiting.pop(0))
            self._advance(sequence, plan)

    def _has_room(self, sequence: Sequence, budget: int) -> bool:
        # Looking up a long prefix costs milliseconds; with others running, nothing changes until blocks come or go.
        state = sequence, self._kv_cache.num_available_blocks
        if self._running and self._blocked_at == state:
            return False
        has_room = self._kv_cache.can_admit(
            sequence.kv, sequence.token_ids, max_rows=budget, reserved_blocks=self._reserved_blocks()
        )
        self._blocked_at = None if has_room else state
        return has_room

    def _reserved_blocks(self) -> int:
        # What running prefills still need, and a block for each to grow: else the newcomer is soon preempted again.
        layout = self._kv_cache.layout
        return sum(
            layout.num_blocks(len(sequence.token_ids)) - sequence.kv.full.num_blocks + 1 for sequence in self._running
        )

    def _start(self, sequence: Sequence) -> None:
        num_hit = self._kv_cache.attach_prefix(sequence.kv, sequence.token_ids)
        self.num_prefix_queries_total += len(sequence.token_ids)
        self.num_prefix_hits_total += num_hit
        if sequence.state is SequenceState.WAITING:
            sequence.num_cached_tokens = num_hit
        sequence.drafting.restart(num_hit)
        sequence.state = SequenceState.RUNNING
        insort(self._running, sequence, key=_RANK)


def _item(sequence: Sequence, budget: int, num_reserved: int) -> ScheduledSequence:
    """As many known tokens as the budget allows, and after the last one drafts that leave `num_reserved` rows."""
    num_tokens = min(sequence.num_uncomputed_tokens, budget)
    assert num_tokens > 0, f"{sequence.request_id} runs without a token to compute"
    needs_logits = num_tokens == sequence.num_uncomputed_tokens
    num_drafts = min(budget - num_tokens - num_reserved, sequence.num_left - 1) if needs_logits else 0
    drafts = sequence.drafting.drafts[: max(0, num_drafts)]
    return ScheduledSequence(sequence, sequence.context_len, num_tokens, needs_logits, drafts)
