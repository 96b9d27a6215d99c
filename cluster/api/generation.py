"""Runs the sequences of one HTTP request side by side and merges their news. Owns the tasks that follow them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType

from actors.messages import NO_DRAFTS, ErrorKind
from cluster.api.choice import Choice, ChoicePlan, Delta
from cluster.api.engine import Engine
from cluster.api.errors import ANSWERS
from cluster.api.generation_record import GenerationRecord
from cluster.api.text import Tokenizer
from cluster.api.usage import Usage
from cluster.errors import GenerationFailed

MAX_QUEUED_DELTAS = 64
# The engine keeps the deadline; the API only notices an engine that does not.
DEADLINE_GRACE_S = 5.0


class Generation:
    """An async context: entering starts the sequences, leaving it aborts whatever still runs."""

    def __init__(
        self, engine: Engine, plans: Sequence[ChoicePlan], tokenizer: Tokenizer, record: GenerationRecord | None = None
    ) -> None:
        """plans: at least one; `index` counts from 0 in order. record: None to record nothing."""
        self._engine = engine
        self._choices = [Choice(plan, tokenizer) for plan in plans]
        self._record = record or GenerationRecord()
        self._queue: asyncio.Queue[Delta | Exception] = asyncio.Queue(MAX_QUEUED_DELTAS)
        self._tasks: list[asyncio.Task[None]] = []
        self._deadline = 0.0
        self._num_running = len(plans)

    async def __aenter__(self) -> Generation:
        timeout_s = max(choice.plan.request.deadline_s for choice in self._choices) + DEADLINE_GRACE_S
        self._deadline = asyncio.get_running_loop().time() + timeout_s
        self._record.opened([choice.plan for choice in self._choices])
        self._tasks = [asyncio.create_task(self._follow(choice)) for choice in self._choices]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._record.closed(self.usage)

    @property
    def num_choices(self) -> int:
        return len(self._choices)

    @property
    def is_running(self) -> bool:
        """Whether some choice has not told its finish reason yet."""
        return self._num_running > 0

    @property
    def usage(self) -> Usage:
        first_of_prompt = {choice.plan.prompt_idx: choice for choice in reversed(self._choices)}.values()
        return Usage(
            prompt_tokens=sum(len(choice.plan.request.prompt_token_ids) for choice in first_of_prompt),
            completion_tokens=sum(choice.num_completion_tokens for choice in self._choices),
            cached_tokens=sum(choice.num_cached_tokens for choice in first_of_prompt),
            reasoning_tokens=sum(choice.num_reasoning_tokens for choice in self._choices),
            draft_counts=sum((choice.draft_counts for choice in self._choices), NO_DRAFTS),
        )

    async def next(self, patience_s: float) -> Delta | None:
        """The next news, None after `patience_s` of silence. Raises what failed; GenerationFailed past the deadline."""
        remaining_s = self._deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(max(0.0, min(patience_s, remaining_s))):
                news = await self._queue.get()
        except TimeoutError:
            if remaining_s <= patience_s:
                late = GenerationFailed(ErrorKind.DEADLINE, ANSWERS[ErrorKind.DEADLINE].sentence)
                self._record.failed(late)
                raise late from None
            return None
        if isinstance(news, Exception):
            raise news
        self._num_running -= news.finish_reason is not None
        return news

    async def deltas(self) -> AsyncIterator[Delta]:
        """All news until every choice is finished."""
        while self.is_running:
            delta = await self.next(math.inf)
            if delta is not None:
                yield delta

    async def _follow(self, choice: Choice) -> None:
        """Feed one sequence's events to its choice. A failure is handed to whoever awaits `next`."""
        try:
            last = await self._follow_to_end(choice)
        except Exception as error:  # noqa: BLE001  crosses to the consumer, which raises it
            self._record.failed(error, choice)
            await self._queue.put(error)
        else:
            await self._queue.put(last)

    async def _follow_to_end(self, choice: Choice) -> Delta:
        async with aclosing(self._engine.generate(choice.plan.request)) as events:
            async for event in events:
                delta = choice.feed(event)
                self._record.fed(choice, delta)
                if choice.is_finished:
                    # Leaving closes the sequence before the last news is queued: a slow reader cannot keep it alive.
                    return delta
                if not delta.is_empty:
                    await self._queue.put(delta)
        raise GenerationFailed(ErrorKind.UNAVAILABLE, "The sequence was lost before it was complete; try again.")
