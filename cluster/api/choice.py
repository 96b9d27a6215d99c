"""One choice of an answer: from the engine's events to text, reasoning, logprobs and a finish reason. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from actors.messages import ErrorKind, FinishReason, GenerateRequest, RequestError, TokenEvent, TokenLogprob
from cluster.api.errors import ANSWERS
from cluster.api.reasoning import ReasoningSplitter
from cluster.api.stop import StopMatcher
from cluster.api.text import Detokenizer, Tokenizer
from cluster.errors import GenerationFailed


@dataclass(frozen=True)
class ChoicePlan:
    """What one choice needs. `end_ids`: tokens that end the sequence and are no text of it."""

    index: int
    prompt_idx: int
    request: GenerateRequest
    end_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    starts_in_reasoning: bool = False
    skip_special_tokens: bool = True


@dataclass(frozen=True)
class ScoredToken:
    """A content token's logprobs. offset: where its text begins, in characters of the content."""

    offset: int
    score: TokenLogprob


@dataclass(frozen=True)
class Delta:
    """News of one choice. finish_reason is OpenAI's, on the last delta only."""

    index: int
    content: str = ""
    reasoning: str = ""
    scored: tuple[ScoredToken, ...] = ()
    finish_reason: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell, because all text is held back."""
        return not (self.content or self.reasoning or self.scored or self.finish_reason)


def join_deltas(index: int, deltas: Iterable[Delta]) -> Delta:
    """All news of one choice as one."""
    parts = list(deltas)
    return Delta(
        index=index,
        content="".join(part.content for part in parts),
        reasoning="".join(part.reasoning for part in parts),
        scored=tuple(token for part in parts for token in part.scored),
        finish_reason=parts[-1].finish_reason if parts else None,
    )


class Choice:
    """State of one choice. Counts what usage reports.

    Stop strings are looked for in the content alone: reasoning is not part of the text that OpenAI's `stop` speaks of.
    """

    def __init__(self, plan: ChoicePlan, tokenizer: Tokenizer) -> None:
        self.plan = plan
        self.num_completion_tokens = 0
        self.num_reasoning_tokens = 0
        self.num_cached_tokens = 0
        self.is_finished = False
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=plan.skip_special_tokens)
        self._splitter = ReasoningSplitter(tokenizer, starts_in_reasoning=plan.starts_in_reasoning)
        self._matcher = StopMatcher(plan.stop_strings)
        self._num_content_chars = 0
        self._num_released_chars = 0
        self._unreleased: deque[ScoredToken] = deque()

    def feed(self, event: TokenEvent) -> Delta:
        """The news that an event makes. Once `is_finished`, the sequence is over or to be closed.

        Raises GenerationFailed if the event says that the sequence failed.
        """
        _raise_failure(event)
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        reasoning, content = self._push_tokens(event)
        if event.finish_reason is not None and not self._matcher.is_matched:
            rest = self._splitter.push(None, self._detokenizer.flush())
            reasoning += rest.reasoning
            content += self._release(rest.content)
            content += "" if self._matcher.is_matched else self._matcher.flush()
        self.is_finished = self._matcher.is_matched or event.finish_reason is not None
        self._num_released_chars += len(content)
        return Delta(
            index=self.plan.index,
            content=content,
            reasoning=reasoning,
            scored=self._released_scores(),
            finish_reason=self._finish_reason(event),
        )

    def _push_tokens(self, event: TokenEvent) -> tuple[str, str]:
        reasoning, content = "", ""
        scores = event.logprobs or (None,) * len(event.token_ids)
        for token_id, score in zip(event.token_ids, scores, strict=True):
            self.num_completion_tokens += 1
            was_reasoning = self._splitter.in_reasoning
            self.num_reasoning_tokens += was_reasoning
            if token_id in self.plan.end_ids and event.finish_reason is FinishReason.STOP:
                break  # nothing follows an end token, and it is no text
            split = self._splitter.push(token_id, self._detokenizer.push(token_id))
            if score is not None and not was_reasoning:
                self._unreleased.append(ScoredToken(self._num_content_chars, score))
            reasoning += split.reasoning
            content += self._release(split.content)
            if self._matcher.is_matched:
                break
        return reasoning, content

    def _release(self, text: str) -> str:
        """Content that may be sent. Stop strings do not count before min_tokens, as stop ids do not."""
        self._num_content_chars += len(text)
        if self.num_completion_tokens <= self.plan.request.sampling.min_tokens:
            return text
        return self._matcher.push(text)

    def _released_scores(self) -> tuple[ScoredToken, ...]:
        """Scores of the tokens whose text has begun to be sent; at a natural end, of all that are left."""
        is_cut = self._matcher.is_matched
        released = []
        while self._unreleased and (
            self._unreleased[0].offset < self._num_released_chars or (self.is_finished and not is_cut)
        ):
            released.append(self._unreleased.popleft())
        return tuple(released)

    def _finish_reason(self, event: TokenEvent) -> str | None:
        if self._matcher.is_matched:
            return FinishReason.STOP.value
        return None if event.finish_reason is None else event.finish_reason.value


def _raise_failure(event: TokenEvent) -> None:
    """An abort that the client did not cause is a passed deadline."""
    kinds = {FinishReason.ERROR: ErrorKind.INTERNAL, FinishReason.ABORT: ErrorKind.DEADLINE}
    kind = kinds.get(event.finish_reason) if event.finish_reason is not None else None
    error = event.error or (RequestError(kind, ANSWERS[kind].sentence) if kind is not None else None)
    if error is not None:
        raise GenerationFailed(error.kind, error.message, error.param)
