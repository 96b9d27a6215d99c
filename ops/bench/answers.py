"""Lets engines answer requests to the end, and keeps what they answered and what their drafts did. Knows no clock."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce

from actors.attention.step import EngineStep
from actors.messages import NO_DRAFTS, DraftCounts, FinishReason, GenerateRequest

Answer = tuple[tuple[int, ...], FinishReason]


@dataclass(frozen=True)
class Run:
    """by_request: tokens and end of every answer. counts, num_preemptions: of all engines together."""

    by_request: dict[str, Answer]
    counts: DraftCounts
    num_preemptions: int

    @property
    def num_tokens(self) -> int:
        return sum(len(token_ids) for token_ids, _ in self.by_request.values())

    def __add__(self, other: Run) -> Run:
        """Of two engines, or of one engine's different requests."""
        return Run(
            {**self.by_request, **other.by_request},
            self.counts + other.counts,
            self.num_preemptions + other.num_preemptions,
        )


def answer(engine: EngineStep, requests: Sequence[GenerateRequest]) -> Run:
    """All requests at once. Raises RuntimeError if one fails, AssertionError if the engine is not left empty."""
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    reasons: dict[str, FinishReason] = {}
    counts, num_preempted_before = NO_DRAFTS, engine.scheduler.num_preemptions_total
    for request in requests:
        engine.add(request, now=0.0)
    while engine.scheduler.has_work:
        engine.run()
        for event in engine.take_events():
            if event.error is not None:
                raise RuntimeError(f"request {event.request_id} failed: {event.error.message}")
            tokens[event.request_id] += event.token_ids
            counts += event.draft_counts
            if event.finish_reason is not None:
                reasons[event.request_id] = event.finish_reason
    engine.scheduler.check()
    assert engine.scheduler.kv_usage == 0.0, "blocks of finished requests are still in use"
    by_request = {name: (tuple(token_ids), reasons[name]) for name, token_ids in tokens.items()}
    return Run(by_request, counts, engine.scheduler.num_preemptions_total - num_preempted_before)


def answer_together(engines: Sequence[EngineStep], requests: Sequence[GenerateRequest]) -> Run:
    """The requests dealt out to engines that step at the same time, each in a thread of its own."""
    num = len(engines)
    with ThreadPoolExecutor(num) as executor:
        runs = list(executor.map(answer, engines, [requests[idx::num] for idx in range(num)]))
    return reduce(Run.__add__, runs)
