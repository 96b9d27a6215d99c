"""One choice of an answer: from the engine's events to text, reasoning, calls, logprobs, finish reason. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.messages import (
    NO_DRAFTS,
    ErrorKind,
    FinishReason,
    GenerateRequest,
    RequestError,
    TokenEvent,
    TokenLogprob,
)
from cluster.api.errors import ANSWERS
from cluster.api.reasoning import ReasoningSplitter
from cluster.api.stop import StopMatcher
from cluster.api.text import Detokenizer, Tokenizer
from cluster.api.tool_arguments import CallPiece
from cluster.api.tool_calls import Event, ToolCallParser
from cluster.api.tools import Toolset
from cluster.errors import GenerationFailed


@dataclass(frozen=True)
class ChoicePlan:
    """What one choice needs.

    end_ids: tokens that end the sequence and are no text of it. cut_ids: those of them by which the client cuts it, not
    the model ends it. tools: None where calls are not looked for.
    """

    index: int
    prompt_idx: int
    request: GenerateRequest
    end_ids: frozenset[int] = frozenset()
    cut_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    starts_in_reasoning: bool = False
    skip_special_tokens: bool = True
    tools: Toolset | None = None


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
    calls: tuple[CallPiece, ...] = ()
    scored: tuple[ScoredToken, ...] = ()
    finish_reason: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell, because all text is held back."""
        return not (self.content or self.reasoning or self.calls or self.scored or self.finish_reason)


def join_deltas(index: int, deltas: Iterable[Delta]) -> Delta:
    """All news of one choice as one."""
    parts = list(deltas)
    return Delta(
        index=index,
        content="".join(part.content for part in parts),
        reasoning="".join(part.reasoning for part in parts),
        calls=tuple(piece for part in parts for piece in part.calls),
        scored=tuple(token for part in parts for token in part.scored),
        finish_reason=parts[-1].finish_reason if parts else None,
    )


@dataclass
class _News:
    """What one event of the engine brings."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallPiece] = field(default_factory=list)


class Choice:
    """State of one choice. Counts what usage reports.

    Stop strings are looked for in the content alone: reasoning and calls are not part of the text that OpenAI's `stop`
    speaks of. Whitespace between content and a call is no content unless text follows the call, and a stop string in it
    counts only then.
    """

    def __init__(self, plan: ChoicePlan, tokenizer: Tokenizer) -> None:
        self.plan = plan
        self.num_completion_tokens = 0
        self.num_reasoning_tokens = 0
        self.num_cached_tokens = 0
        self.draft_counts = NO_DRAFTS
        self.is_finished = False
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=plan.skip_special_tokens)
        self._splitter = ReasoningSplitter(
            tokenizer, starts_in_reasoning=plan.starts_in_reasoning, has_tools=plan.tools is not None
        )
        self._calls = None if plan.tools is None else ToolCallParser(plan.tools)
        self._matcher = StopMatcher(plan.stop_strings)
        self._is_cut = False
        self._num_content_chars = 0
        self._num_released_chars = 0
        self._unreleased: deque[ScoredToken] = deque()

    def feed(self, event: TokenEvent) -> Delta:
        """The news that an event makes. Once `is_finished`, the sequence is over or to be closed.

        Raises GenerationFailed if the event says that the sequence failed.
        """
        _raise_failure(event)
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        self.draft_counts += event.draft_counts
        news = _News()
        self._push_tokens(event, news)
        if event.finish_reason is not None and not self._matcher.is_matched:
            self._push_rest(event.finish_reason, news)
        self.is_finished = self._matcher.is_matched or event.finish_reason is not None
        self._num_released_chars += len(news.content)
        return Delta(
            index=self.plan.index,
            content=news.content,
            reasoning=news.reasoning,
            calls=tuple(news.calls),
            scored=self._released_scores(),
            finish_reason=self._finish_reason(event),
        )

    def _push_tokens(self, event: TokenEvent, news: _News) -> None:
        scores = event.logprobs or (None,) * len(event.token_ids)
        for token_id, score in zip(event.token_ids, scores, strict=True):
            self.num_completion_tokens += 1
            was_reasoning = self._splitter.in_reasoning
            self.num_reasoning_tokens += was_reasoning
            if token_id in self.plan.end_ids and event.finish_reason is FinishReason.STOP:
                self._is_cut = token_id in self.plan.cut_ids
                break  # nothing follows an end token, and it is no text
            in_call = self._calls is not None and self._calls.has_open_call
            split = self._splitter.push(token_id, self._detokenizer.push(token_id), in_call=in_call)
            if score is not None and not was_reasoning:
                num_held = 0 if self._calls is None else self._calls.num_held_chars
                self._unreleased.append(ScoredToken(self._num_content_chars + num_held, score))
            news.reasoning += split.reasoning
            self._take([split.content] if self._calls is None else self._calls.feed(split.content), news)
            if self._matcher.is_matched:
                break

    def _push_rest(self, finish_reason: FinishReason, news: _News) -> None:
        """What is held back when the sequence ends and no stop string did it."""
        rest = self._splitter.push(None, self._detokenizer.flush())
        news.reasoning += rest.reasoning
        events: list[Event] = [rest.content]
        if self._calls is not None:
            is_complete = finish_reason is FinishReason.STOP and not self._is_cut
            events = [*self._calls.feed(rest.content), *self._calls.finish(is_complete=is_complete)]
        self._take(events, news)
        news.content += "" if self._matcher.is_matched else self._matcher.flush()

    def _take(self, events: list[Event], news: _News) -> None:
        """Nothing counts behind a stop string.

        Tokens of calls, and of whitespace beside them, have no scores: those are for the content.
        """
        for event in events:
            if self._matcher.is_matched:
                return
            if isinstance(event, CallPiece):
                news.calls.append(event)
            else:
                news.content += self._release(event)
        if self._calls is not None and self._calls.in_call:
            while self._unreleased and self._unreleased[-1].offset >= self._num_content_chars:
                self._unreleased.pop()

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
        """OpenAI's word; a text that stops after whole calls has one of its own."""
        reason = FinishReason.STOP if self._matcher.is_matched else event.finish_reason
        if reason is FinishReason.STOP and self._calls is not None and self._calls.has_called:
            return "tool_calls"
        return None if reason is None else reason.value


def _raise_failure(event: TokenEvent) -> None:
    """An abort that the client did not cause is a passed deadline."""
    kinds = {FinishReason.ERROR: ErrorKind.INTERNAL, FinishReason.ABORT: ErrorKind.DEADLINE}
    kind = kinds.get(event.finish_reason) if event.finish_reason is not None else None
    error = event.error or (RequestError(kind, ANSWERS[kind].sentence) if kind is not None else None)
    if error is not None:
        raise GenerationFailed(error.kind, error.message, error.param)
