"""The JSON of answers, whole and in chunks, for both endpoints. Pure: deltas in, plain values out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

from actors.messages import TokenLogprob
from cluster.api.choice import Delta, ScoredToken
from cluster.api.text import Tokenizer
from cluster.api.tool_arguments import CallPiece
from cluster.api.usage import Usage

IMPOSSIBLE_LOGPROB = -9999.0


@dataclass(frozen=True)
class AnswerHead:
    """What every chunk and body of one answer repeats. created: Unix time in seconds."""

    answer_id: str
    created: int
    model: str
    has_usage_chunk: bool


class Bodies(Protocol):
    """One endpoint's way to write an answer."""

    def opening(self, num_choices: int) -> list[dict[str, Any]]:
        """Chunks before any text."""
        ...

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """Chunks for one delta, possibly none."""
        ...

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The chunk without choices that ends a stream which asked for usage."""
        ...

    def whole(self, choices: Sequence[Delta], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed; one joined delta per choice, in order."""
        ...


class ChatBodies:
    """Chat completions."""

    def __init__(self, head: AnswerHead, tokenizer: Tokenizer, *, reasoning_fields: Sequence[str]) -> None:
        """reasoning_fields: the names under which reasoning is sent; none hides it."""
        self._head = head
        self._tokenizer = tokenizer
        self._reasoning_fields = tuple(reasoning_fields)

    def opening(self, num_choices: int) -> list[dict[str, Any]]:
        role = {"role": "assistant", "content": ""}
        return [self._chunk(_choice(index, delta=role)) for index in range(num_choices)]

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        fields = self._reasoning(delta.reasoning) if delta.reasoning else {}
        if delta.content:
            fields["content"] = delta.content
        scores = self._logprobs(delta.scored) if delta.scored else None
        chunks = [_choice(delta.index, scores, delta=fields)] if fields or scores else []
        chunks += [_choice(delta.index, delta={"tool_calls": [entry]}) for entry in _call_entries(delta.calls)]
        if delta.finish_reason is not None:
            chunks.append(_choice(delta.index, finish_reason=delta.finish_reason, delta={}))
        return [self._chunk(choice) for choice in chunks]

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return _head_fields(self._head, "chat.completion.chunk", choices=[], usage=self._usage(usage))

    def whole(self, choices: Sequence[Delta], usage: Usage) -> dict[str, Any]:
        written = [
            _choice(
                choice.index,
                self._logprobs(choice.scored) if choice.scored else None,
                choice.finish_reason,
                message={
                    "role": "assistant",
                    # OpenAI's null where calls stand in for an answer.
                    "content": choice.content or (None if choice.calls else ""),
                    "refusal": None,
                    **self._reasoning(choice.reasoning or None),
                    **({"tool_calls": _whole_calls(choice.calls)} if choice.calls else {}),
                },
            )
            for choice in choices
        ]
        return _head_fields(self._head, "chat.completion", choices=written, usage=self._usage(usage))

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        extra = {"usage": None} if self._head.has_usage_chunk else {}
        return _head_fields(self._head, "chat.completion.chunk", choices=[choice], **extra)

    def _reasoning(self, text: str | None) -> dict[str, Any]:
        return dict.fromkeys(self._reasoning_fields, text)

    def _usage(self, usage: Usage) -> dict[str, Any]:
        details = {"reasoning_tokens": usage.reasoning_tokens}
        return {**_usage_fields(usage), "completion_tokens_details": details}

    def _logprobs(self, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        return {"content": [self._scored(token.score) for token in scored], "refusal": None}

    def _scored(self, score: TokenLogprob) -> dict[str, Any]:
        top = [self._alternative(token_id, logprob) for token_id, logprob in score.top]
        return {**self._alternative(score.token_id, score.logprob), "top_logprobs": top}

    def _alternative(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token_id)
        return {"token": self._tokenizer.token_text(token_id), "logprob": _finite(logprob), "bytes": list(raw)}


class CompletionBodies:
    """Plain completions. Everything the model writes is text."""

    def __init__(self, head: AnswerHead, tokenizer: Tokenizer) -> None:
        self._head = head
        self._tokenizer = tokenizer

    def opening(self, num_choices: int) -> list[dict[str, Any]]:
        return []

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        extra = {"usage": None} if self._head.has_usage_chunk else {}
        return [_head_fields(self._head, "text_completion", choices=[self._choice(delta)], **extra)]

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        return _head_fields(self._head, "text_completion", choices=[], usage=_usage_fields(usage))

    def whole(self, choices: Sequence[Delta], usage: Usage) -> dict[str, Any]:
        written = [self._choice(choice) for choice in choices]
        return _head_fields(self._head, "text_completion", choices=written, usage=_usage_fields(usage))

    def _choice(self, delta: Delta) -> dict[str, Any]:
        scores = self._logprobs(delta.scored) if delta.scored else None
        return _choice(delta.index, scores, delta.finish_reason, text=delta.content)

    def _logprobs(self, scored: Sequence[ScoredToken]) -> dict[str, Any]:
        name = self._tokenizer.token_text
        return {
            "tokens": [name(token.score.token_id) for token in scored],
            "token_logprobs": [_finite(token.score.logprob) for token in scored],
            "top_logprobs": [
                {name(token_id): _finite(logprob) for token_id, logprob in token.score.top}
                | {name(token.score.token_id): _finite(token.score.logprob)}
                for token in scored
            ],
            "text_offset": [token.offset for token in scored],
        }


def _call_entries(pieces: Sequence[CallPiece]) -> Iterator[dict[str, Any]]:
    """Entries of chunks' tool_calls: a call's head, then what there is of its arguments.

    Clients join the entries of one index, though not all do so within one chunk: each entry needs its own.
    """
    for (index, call_id), group in groupby(pieces, key=lambda piece: (piece.index, piece.call_id)):
        parts = list(group)
        arguments = "".join(piece.arguments for piece in parts)
        if call_id is None:
            yield {"index": index, "function": {"arguments": arguments}}
        else:
            function = {"name": parts[0].name, "arguments": arguments}
            yield {"index": index, "id": call_id, "type": "function", "function": function}


def _whole_calls(pieces: Sequence[CallPiece]) -> list[dict[str, Any]]:
    """A message's tool_calls."""
    arguments: dict[int, list[str]] = {}
    for piece in pieces:
        arguments.setdefault(piece.index, []).append(piece.arguments)
    return [
        {
            "id": piece.call_id,
            "type": "function",
            "function": {"name": piece.name, "arguments": "".join(arguments[piece.index])},
        }
        for piece in pieces
        if piece.call_id is not None
    ]


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes the logprob of the impossible as -9999."""
    return max(IMPOSSIBLE_LOGPROB, logprob)  # in this order NaN gives the constant too


def _choice(
    index: int, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None, **text: object
) -> dict[str, Any]:
    return {"index": index, **text, "logprobs": logprobs, "finish_reason": finish_reason}


def _head_fields(head: AnswerHead, kind: str, **rest: object) -> dict[str, Any]:
    return {"id": head.answer_id, "object": kind, "created": head.created, "model": head.model, **rest}


def _usage_fields(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage, and `speculation`, a field of our own, where drafts were possible."""
    counts = usage.draft_counts
    speculation = {
        "drafted": list(counts.drafted),
        "accepted": list(counts.accepted),
        "mean_acceptance_length": round(counts.mean_acceptance_length, 3),
    }
    return {
        **({"speculation": speculation} if counts.num_steps else {}),
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
