"""What crosses a process between the gateway and an attention actor. Frozen, plain values, no tensors.

`SamplingSpec` is the only form of sampling parameters that an engine takes; every front end must build one, so every
limit is checked in one place (`check_sampling`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import zip_longest

MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024
MAX_LOGPROBS = 20
MAX_SEED = 2**63 - 1


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # a stop token id
    LENGTH = "length"  # max_tokens or the context's end
    ABORT = "abort"  # the client left, or its deadline passed
    ERROR = "error"  # this request failed; `TokenEvent.error` says how


class ErrorKind(StrEnum):
    """What the gateway must know of a failure to choose a status."""

    REJECTED = "rejected"  # the request can never work: 400
    OVERLOADED = "overloaded"  # the waiting queue is full: 429, may be sent again later
    UNAVAILABLE = "unavailable"  # experts are missing or the actor is going away: 503, may be sent again
    DEADLINE = "deadline"  # the request's own deadline passed: 504
    INTERNAL = "internal"  # a bug: 500


@dataclass(frozen=True)
class SamplingSpec:
    """How to choose tokens.

    temperature 0 is greedy. top_k 0 and top_p 1 and min_p 0 filter nothing. seed None lets the engine choose one.
    logprobs None returns none; n returns the chosen token's and the n most likely.
    logit_bias: (token id, bias) pairs. stop_token_ids come on top of the checkpoint's own unless ignore_eos.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True)
class GenerateRequest:
    """One sequence to generate. `request_id` is made by the gateway, never taken from a client.

    priority: lower runs first. deadline_s: seconds from arrival after which the engine aborts it. traceparent,
    tracestate: the span that it belongs to, as W3C Trace Context has them; empty without a trace.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingSpec
    priority: int = 0
    deadline_s: float = 600.0
    traceparent: str = ""
    tracestate: str = ""


@dataclass(frozen=True)
class TokenLogprob:
    """logprob: natural log of the probability before temperature and filters. top: (token id, logprob) descending."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class RequestError:
    """A failure as the client may see it. `message` is a sentence of ours, never an exception's text."""

    kind: ErrorKind
    message: str
    param: str | None = None


@dataclass(frozen=True)
class DraftCounts:
    """What became of drafts. drafted, accepted: by position behind the token that the target chose itself.

    num_steps: verifications, those without drafts included.
    """

    num_steps: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]

    def __add__(self, other: DraftCounts) -> DraftCounts:
        return DraftCounts(
            self.num_steps + other.num_steps,
            tuple(map(sum, zip_longest(self.drafted, other.drafted, fillvalue=0))),
            tuple(map(sum, zip_longest(self.accepted, other.accepted, fillvalue=0))),
        )

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens of a step, the target's own included; 0 before the first."""
        return 1.0 + sum(self.accepted) / self.num_steps if self.num_steps else 0.0


NO_DRAFTS = DraftCounts(0, (), ())


@dataclass(frozen=True)
class TokenEvent:
    """News of one sequence: the tokens since the last event, in order. The last event has a finish_reason.

    num_cached_tokens: prompt tokens taken from the prefix cache (on the first event; 0 later). draft_counts: of the
    steps since the last event; NO_DRAFTS without speculation.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    draft_counts: DraftCounts = NO_DRAFTS
    error: RequestError | None = None


@dataclass(frozen=True)
class LoadReport:
    """How busy one attention actor is."""

    num_running: int
    num_waiting: int
    num_preempted: int
    kv_usage: float
    step_id: int
    ready: bool = field(default=False)


def check_sampling(spec: SamplingSpec, vocab_size: int) -> None:
    """Raises ValueError naming the first field that is out of range. `vocab_size` is the width of the logits."""
    for name, low, high in _RANGES:
        value = getattr(spec, name)
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError(f"{name} must be between {low} and {high}, got {value}")
    if spec.top_p == 0.0:
        raise ValueError("top_p must be above 0")
    if spec.min_tokens > spec.max_tokens:
        raise ValueError(f"min_tokens {spec.min_tokens} exceeds max_tokens {spec.max_tokens}")
    if spec.repetition_penalty <= 0.0:
        raise ValueError(f"repetition_penalty must be above 0, got {spec.repetition_penalty}")
    if spec.seed is not None and not -MAX_SEED <= spec.seed <= MAX_SEED:
        raise ValueError("seed must fit 64 bits")
    if spec.logprobs is not None and not 0 <= spec.logprobs <= MAX_LOGPROBS:
        raise ValueError(f"logprobs must be between 0 and {MAX_LOGPROBS}, got {spec.logprobs}")
    _check_ids("logit_bias", [token_id for token_id, _ in spec.logit_bias], vocab_size, MAX_LOGIT_BIAS)
    _check_ids("stop_token_ids", spec.stop_token_ids, vocab_size, MAX_STOP_TOKEN_IDS)
    for token_id, bias in spec.logit_bias:
        if not math.isfinite(bias) or abs(bias) > 100.0:
            raise ValueError(f"logit_bias of token {token_id} must be between -100 and 100, got {bias}")


_RANGES = (
    ("max_tokens", 1, 2**31),
    ("min_tokens", 0, 2**31),
    ("temperature", 0.0, 2.0),
    ("top_p", 0.0, 1.0),
    ("top_k", 0, 2**31),
    ("min_p", 0.0, 1.0),
    ("frequency_penalty", -2.0, 2.0),
    ("presence_penalty", -2.0, 2.0),
    ("repetition_penalty", 0.0, 2.0),
)


def _check_ids(name: str, ids: tuple[int, ...] | list[int], vocab_size: int, limit: int) -> None:
    if len(ids) > limit:
        raise ValueError(f"{name} holds {len(ids)} entries, at most {limit} are allowed")
    outside = [token_id for token_id in ids if not 0 <= token_id < vocab_size]
    if outside:
        raise ValueError(f"{name} holds token ids outside 0..{vocab_size - 1}: {outside[:8]}")
