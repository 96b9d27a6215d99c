"""What is recorded of one generation: its tokens and times while it runs, and how each of its sequences ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.messages import ErrorKind, FinishReason
from cluster.api.choice import Choice, ChoicePlan, Delta, join_deltas
from cluster.api.observation import UNOBSERVED, Observation
from cluster.api.request_span import answer_attributes, output_attributes
from cluster.api.usage import Usage
from cluster.errors import GenerationFailed


@dataclass
class _Course:
    """One sequence so far. Times on the observation's clock. deltas: kept only where content is captured."""

    num_tokens: int = 0
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    told_at: float | None = None
    finish_reason: str = ""
    has_ended: bool = False
    deltas: list[Delta] = field(default_factory=list)


class GenerationRecord:
    """`Generation` calls it: `opened`, `fed` and `failed`, `closed`, in this order.

    A request that was sent away before a token came counts as rejected or shed, and its sequences not at all.
    """

    def __init__(self, observation: Observation = UNOBSERVED, *, is_stream: bool = False) -> None:
        self._observation = observation
        self._metrics = observation.metrics
        self._is_stream = is_stream
        self._courses: dict[int, _Course] = {}
        self._num_prompt_tokens = 0
        self._first_content_at: float | None = None
        self._is_sent_away = False

    def opened(self, plans: Sequence[ChoicePlan]) -> None:
        """The sequences start."""
        self._metrics.opened()
        self._courses = {plan.index: _Course() for plan in plans}
        prompts = {plan.prompt_idx: len(plan.request.prompt_token_ids) for plan in plans}
        self._num_prompt_tokens = sum(prompts.values())

    def fed(self, choice: Choice, delta: Delta) -> None:
        """News of a sequence, as they come from the engine."""
        now, course = self._observation.clock(), self._courses[choice.plan.index]
        num_new = choice.num_completion_tokens - course.num_tokens
        if num_new:
            self._count_tokens(course, num_new, now)
        if not delta.is_empty:
            self._time(course, delta, now)
        if choice.is_finished:
            course.has_ended, course.finish_reason = True, delta.finish_reason or ""
            course.last_token_at = now  # also where it ended without a token
            is_cut = delta.finish_reason == FinishReason.LENGTH
            self._metrics.finished(FinishReason.LENGTH if is_cut else FinishReason.STOP)

    def failed(self, error: Exception, choice: Choice | None = None) -> None:
        """A sequence failed; None: the API noticed that the engine is silent."""
        courses = list(self._courses.values()) if choice is None else [self._courses[choice.plan.index]]
        has_tokens = any(course.num_tokens for course in courses)
        if self._observation.failed(error, has_tokens=has_tokens):
            self._is_sent_away = True
        elif choice is not None and not self._is_sent_away:
            self._end(courses[0], _reason(error))

    def closed(self, usage: Usage) -> None:
        """Nothing runs any more. Sequences that were still running have been aborted."""
        self._metrics.closed()
        courses = self._courses.values()
        is_complete = all(course.finish_reason for course in courses)
        for course in courses:
            if not course.has_ended and (course.num_tokens or not self._is_sent_away):
                self._end(course, FinishReason.ABORT)
        if is_complete:
            self._finish(usage)
        self._describe(usage)

    def _describe(self, usage: Usage) -> None:
        """To the request's span."""
        observation, at = self._observation, self._first_content_at
        reasons = [course.finish_reason for course in self._courses.values() if course.finish_reason]
        first_content_s = None if at is None else at - observation.arrived_at
        observation.describe(lambda: answer_attributes(usage, reasons, first_content_s))
        if observation.captures_content:
            joined = [join_deltas(index, course.deltas) for index, course in self._courses.items()]
            observation.describe(lambda: output_attributes(joined))

    def _count_tokens(self, course: _Course, num_new: int, now: float) -> None:
        if not any(other.num_tokens for other in self._courses.values()):
            self._metrics.prompt_tokens.add(self._num_prompt_tokens)
            self._metrics.prompt_sizes.record(self._num_prompt_tokens)
        if not course.num_tokens:
            course.first_token_at = now
        course.num_tokens += num_new
        course.last_token_at = now
        self._metrics.completion_tokens.add(num_new)

    def _time(self, course: _Course, delta: Delta, now: float) -> None:
        has_content = bool(delta.content or delta.reasoning or delta.calls)
        if has_content and self._first_content_at is None:
            self._first_content_at = now
            self._metrics.first_token_s.record(now - self._observation.arrived_at)
        if self._is_stream and course.told_at is not None:
            self._metrics.between_events_s.record(now - course.told_at)
        course.told_at = now
        if self._observation.captures_content:
            course.deltas.append(delta)

    def _end(self, course: _Course, reason: FinishReason) -> None:
        if not course.has_ended:
            course.has_ended = True
            self._metrics.finished(reason)

    def _finish(self, usage: Usage) -> None:
        """Every sequence came to its own end: times of parts would only mislead."""
        courses = self._courses.values()
        self._metrics.completion_sizes.record(usage.completion_tokens)
        self._metrics.latency_s.record(max(c.last_token_at for c in courses) - self._observation.arrived_at)
        num_later = sum(course.num_tokens - 1 for course in courses if course.num_tokens)
        if num_later:
            seconds = sum(course.last_token_at - course.first_token_at for course in courses)
            self._metrics.per_token_s.record(seconds / num_later)


def _reason(error: Exception) -> FinishReason:
    """A passed deadline is no fault of the engine."""
    is_late = isinstance(error, TimeoutError) or (
        isinstance(error, GenerationFailed) and error.kind is ErrorKind.DEADLINE
    )
    return FinishReason.ABORT if is_late else FinishReason.ERROR
