"""A sequence that has ended as a tree of spans: its time in the queue, in prefill and in decode. Pure."""

from __future__ import annotations

from collections.abc import Callable

from actors.attention.sequence import Sequence
from actors.messages import FinishReason
from ops.telemetry import span_names as names
from ops.telemetry.tracing import Attributes, AttributeValue, SpanEvent, TimedSpan

ToNs = Callable[[float], int]


def sequence_span(sequence: Sequence, now: float, now_ns: int) -> TimedSpan:
    """now, now_ns: the same moment on the scheduler's clock, and since the epoch."""

    def to_ns(at: float) -> int:
        return now_ns - round((now - at) * 1e9)

    history = sequence.history
    reason = str(sequence.finish_reason)
    events = [] if history.first_token_at is None else [SpanEvent(names.FIRST_TOKEN, to_ns(history.first_token_at))]
    return TimedSpan(
        names.SEQUENCE,
        to_ns(history.arrived_at),
        now_ns,
        _attributes(sequence),
        events=(*events, SpanEvent(names.FINISH, now_ns, {names.FINISH_REASON: reason})),
        children=_parts(sequence, to_ns, now),
        error=_failure(sequence),
    )


def _parts(sequence: Sequence, to_ns: ToNs, now: float) -> tuple[TimedSpan, ...]:
    """What was reached: a sequence may end in the queue, or before its first token."""
    history = sequence.history
    ends = (history.first_step_at, history.first_token_at, history.last_token_at)
    parts, began_at = [], history.arrived_at
    for name, ended_at in zip((names.QUEUE, names.PREFILL, names.DECODE), ends, strict=True):
        parts.append(TimedSpan(name, to_ns(began_at), to_ns(now if ended_at is None else ended_at)))
        if ended_at is None:
            break
        began_at = ended_at
    return tuple(parts)


def _attributes(sequence: Sequence) -> Attributes:
    history = sequence.history
    attributes: dict[str, AttributeValue] = {
        names.REQUEST_ID: sequence.request_id,
        names.PROMPT_TOKENS: sequence.num_prompt_tokens,
        names.CACHED_TOKENS: sequence.num_cached_tokens,
        names.COMPLETION_TOKENS: sequence.num_completion_tokens,
        names.FINISH_REASON: str(sequence.finish_reason),
        names.STEPS: history.num_steps,
        names.RETRIES: history.num_retries,
        names.PREEMPTIONS: sequence.num_preemptions,
        names.DRAFTS_VERIFIED: history.num_drafts_verified,
        names.DRAFTS_ACCEPTED: history.num_drafts_accepted,
    }
    if history.first_step_at is not None:
        attributes |= {names.FIRST_STEP: history.first_step_id, names.FIRST_MAP_EPOCH: history.first_map_epoch}
    if history.num_steps:
        attributes |= {
            names.LAST_STEP: history.last_step_id,
            names.LAST_MAP_EPOCH: history.last_map_epoch,
            names.MAX_BATCH_SEQUENCES: history.max_batch_sequences,
            names.MAX_BATCH_ROWS: history.max_batch_rows,
        }
    if sequence.error is not None:
        attributes[names.ERROR_KIND] = str(sequence.error.kind)
    return attributes


def _failure(sequence: Sequence) -> str | None:
    """A client that leaves is no failure; a deadline that passes is one."""
    if sequence.error is not None:
        return sequence.error.message
    return "The sequence failed." if sequence.finish_reason is FinishReason.ERROR else None
