"""The engine's step: schedule, forward, commit, sample, accept, publish.

Single-threaded; time is an argument. Whatever fails here fails one request, except the expert tier: that is the
caller's to wait for. A failed step may simply be repeated: it wrote nothing but KV slots that it will write again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.attention.batch import build_batch, split
from actors.attention.history import StepFacts
from actors.attention.scheduler import Schedule, ScheduledSequence, Scheduler
from actors.attention.sequence import Sequence
from actors.attention.speculation import Speculation
from actors.errors import ActorError
from actors.messages import ErrorKind, FinishReason, GenerateRequest, RequestError, SamplingSpec, TokenEvent
from actors.model.decoder import Decoder, run_passes
from actors.sampling.sampler import LogitRows, RowFailure, Sampler
from actors.speculative.stats import SpeculationCounts
from routing.dispatcher import Dispatcher
from routing.errors import TransportError
from routing.load.monitor import LoadMonitor

logger = logging.getLogger(__name__)

FAILED = RequestError(ErrorKind.INTERNAL, "Computing this request failed.")
WARM_UP_ID = "warm-up"
MAX_UNREAD = 2048  # queue times that wait to be taken


@dataclass(frozen=True)
class BatchShape:
    """How a schedule becomes tensors. num_microbatches: 1, or 2 to hide expert round trips behind attention."""

    block_size: int
    has_sliding: bool
    num_microbatches: int
    device: str


@dataclass(frozen=True)
class StepSize:
    """What a step computed. num_microbatches: those in flight together."""

    num_rows: int
    num_microbatches: int


@dataclass(frozen=True)
class Computed:
    """What the trunk made of the items that worked: hidden, [T, H] of all their rows, and logits, float32 [R, V] of
    those that were asked for, both in the order of `items`."""

    items: tuple[ScheduledSequence, ...]
    hidden: Tensor
    logits: Tensor


class EngineStep:
    """Sequences in, token events out. One thread calls it."""

    def __init__(
        self,
        scheduler: Scheduler,
        decoder: Decoder,
        dispatcher: Dispatcher,
        sampler: Sampler,
        shape: BatchShape,
        speculation: Speculation | None = None,
        monitor: LoadMonitor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """speculation: None to decode one token at a time. monitor: what counts the decoder's gates, if any. clock:
        seconds, that of `now`; asked for what sequences remember, never for what is done."""
        self.scheduler = scheduler
        self._decoder = decoder
        self._dispatcher = dispatcher
        self._sampler = sampler
        self._shape = shape
        self._speculation = speculation
        self.monitor = monitor
        self._clock = clock
        self._news: dict[str, Sequence] = {}  # sequences with something to report
        self._queue_s: deque[float] = deque(maxlen=MAX_UNREAD)
        self.on_end: Callable[[Sequence], None] | None = None  # told of each sequence that has ended, once
        self.map_epoch = 0  # of the map that steps are planned with; set by whoever adopts one
        self.step_id = 0
        self.last_size = StepSize(0, 0)
        self.is_suspect = False  # every sequence of the last step failed: is it them, or is it us?

    def add(self, request: GenerateRequest, now: float) -> None:
        """Queue a request. Raises RequestRejected or EngineOverloaded."""
        self.scheduler.add(request, now)

    @property
    def speculation_counts(self) -> SpeculationCounts | None:
        """What drafting came to since birth; None without draft modules. May be read by any thread."""
        return None if self._speculation is None else self._speculation.counts()

    def abort(self, request_id: str) -> None:
        """Forget a sequence; nothing more is reported of it."""
        sequence = self.scheduler.abort(request_id)
        self._news.pop(request_id, None)
        if sequence is not None:
            sequence.take_draft_counts()
            self._tell_end(sequence)

    def expire(self, now: float) -> None:
        """End every sequence whose deadline has passed; `take_events` reports them."""
        self._note(self.scheduler.expire(now))

    @torch.inference_mode()
    def run(self) -> None:
        """One step; `take_events` tells what came of it.

        Raises TransportError when the expert tier did not answer; the next call repeats the step.
        """
        if self._speculation is not None:
            self._speculation.begin()
        schedule = self.scheduler.schedule()
        if not schedule.items:
            return
        began_at = self._clock()
        try:
            computed = self._forward(schedule)
        except TransportError:
            self._remember(schedule, began_at, is_failed=True)
            raise
        if self.monitor is not None:
            self.monitor.end_step()
        self.scheduler.commit(schedule)
        self._verify(computed)
        if self._speculation is not None:
            self._speculation.draft(computed.items)
        self._remember(schedule, began_at)
        self.step_id += 1

    def take_events(self) -> list[TokenEvent]:
        """News of every sequence since it was last asked for. Must follow every `run`, also one that raised."""
        events = []
        for sequence in self._news.values():
            event = sequence.take_event()
            if event is not None:
                events.append(event)
                if event.finish_reason is not None:
                    self._tell_end(sequence)
        self._news.clear()
        if self._speculation is not None:
            self._speculation.end()
        return events

    def take_queue_seconds(self) -> tuple[float, ...]:
        """From arrival to first step, of each sequence that had it since the last call. From any thread."""
        return tuple(self._queue_s.popleft() for _ in range(len(self._queue_s)))

    def fail_all(self, error: RequestError) -> None:
        """End every sequence with `error`; the next `take_events` reports them."""
        for sequence in self.scheduler.sequences():
            self._fail(sequence, error)

    def warm_up(self, now: float) -> None:
        """Produce tokens of our own through every part: proof that the engine works.

        Raises TransportError as `run`, EngineOverloaded when there is no room for it, ActorError when it fails.
        """
        spec = SamplingSpec(max_tokens=2, temperature=0.0, ignore_eos=True)
        sequence = self.scheduler.add(GenerateRequest(WARM_UP_ID, (0,), spec), now)
        try:
            while not sequence.is_finished:
                self.run()
        finally:
            self.abort(WARM_UP_ID)
        if sequence.finish_reason is not FinishReason.LENGTH:
            raise ActorError(f"a token of our own could not be computed: {sequence.error}")
        self.is_suspect = False

    def _forward(self, schedule: Schedule) -> Computed:
        """Logits of the sequences that need them. A sequence whose computation fails is ended, alone."""
        try:
            return self._forward_items(schedule.items)
        except TransportError:
            self._forget_observed()
            raise
        # Any fault at all: one request must not take the others with it. KV writes may be repeated.
        except Exception:
            self._forget_observed()
            logger.exception("a batch of %d sequences failed; computing each alone", len(schedule.items))
        alone = [self._forward_alone(item) for item in schedule.items]
        done = [computed for computed in alone if computed is not None]
        self.is_suspect = not done
        if not done:
            return Computed((), torch.empty((0, 1)), torch.empty((0, 1)))
        items = tuple(item for computed in done for item in computed.items)
        return Computed(items, *(torch.cat(parts) for parts in zip(*((c.hidden, c.logits) for c in done), strict=True)))

    def _forward_alone(self, item: ScheduledSequence) -> Computed | None:
        try:
            return self._forward_items((item,))
        except TransportError:
            self._forget_observed()
            raise
        except Exception:
            logger.exception("a request failed", extra={"request_id": item.sequence.request_id})
            self._fail(item.sequence, FAILED)
            return None

    def _forget_observed(self) -> None:
        """A pass that failed is repeated, and must not count twice."""
        if self.monitor is not None:
            self.monitor.drop_step()

    def _forward_items(self, items: SequenceOf[ScheduledSequence]) -> Computed:
        shape = self._shape
        parts = split(items) if shape.num_microbatches > 1 else (items,)
        self.last_size = StepSize(sum(item.num_rows for item in items), len(parts))
        batches = [
            build_batch(part, block_size=shape.block_size, has_sliding=shape.has_sliding, device=shape.device)
            for part in parts
        ]
        passes = [
            self._decoder.forward(batch.token_ids, batch.inputs_for, self._dispatcher, microbatch_idx)
            for microbatch_idx, batch in enumerate(batches)
        ]
        hidden = run_passes(passes, self._dispatcher)
        chosen = torch.cat([rows[batch.logit_rows] for rows, batch in zip(hidden, batches, strict=True)])
        return Computed(tuple(items), torch.cat(hidden), self._decoder.logits(chosen))

    def _verify(self, computed: Computed) -> None:
        """A new token for every item that reached its last known one, and one more for each draft that was right."""
        logits = self._sampler.open(computed.logits)
        first_logit, first_row = 0, 0
        for item in computed.items:
            num_accepted = self._accept(item, logits, first_logit)
            if self._speculation is not None:
                kept = item.num_tokens + num_accepted
                self._speculation.verified(item, num_accepted, computed.hidden[first_row : first_row + kept])
            first_logit += item.num_logits
            first_row += item.num_rows

    def _accept(self, item: ScheduledSequence, logits: LogitRows, first_logit: int) -> int:
        """Tokens until a draft is wrong, the drafts are used up, or the sequence ends. Returns the drafts accepted."""
        sequence = item.sequence
        for num_accepted in range(item.num_logits):
            draft = item.drafts[num_accepted] if num_accepted < len(item.drafts) else None
            result = logits.token(first_logit + num_accepted, sequence.sampling_row(), draft)
            if isinstance(result, RowFailure):
                self._fail(sequence, RequestError(ErrorKind.INTERNAL, result.message))
                return num_accepted
            self.scheduler.accept(sequence, result.token_id, result.logprob)
            self._note([sequence])
            if draft is None or sequence.is_finished or result.token_id != draft.token_id:
                return num_accepted
            self.scheduler.commit_draft(sequence)
        return 0

    def _fail(self, sequence: Sequence, error: RequestError) -> None:
        self.scheduler.finish(sequence, FinishReason.ERROR, error)
        self._note([sequence])

    def _remember(self, schedule: Schedule, began_at: float, *, is_failed: bool = False) -> None:
        """Each sequence's own account of the step."""
        num_sequences, num_rows = len(schedule.items), sum(item.num_rows for item in schedule.items)
        step = StepFacts(self.step_id, began_at, self._clock(), num_sequences, num_rows, self.map_epoch, is_failed)
        for item in schedule.items:
            history = item.sequence.history
            is_first = history.first_step_at is None
            history.add(step, item.sequence.num_completion_tokens)
            if is_first and history.queue_s is not None:
                self._queue_s.append(history.queue_s)

    def _tell_end(self, sequence: Sequence) -> None:
        if self._speculation is not None:
            self._speculation.ended(sequence)
        if self.on_end is not None:
            self.on_end(sequence)

    def _note(self, sequences: Iterable[Sequence]) -> None:
        self._news.update((sequence.request_id, sequence) for sequence in sequences)
