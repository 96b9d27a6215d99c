"""One running generation: its tokens, its place in the KV cache, when it stops, and what the client has been told.

WAITING -> RUNNING -> FINISHED         any state may go to FINISHED (abort, deadline, error)
   ^          |
PREEMPTED <---+                        PREEMPTED waits like WAITING; its tokens are computed again
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from actors.attention.history import History
from actors.cache.block_table import SequenceKv
from actors.errors import RequestRejected
from actors.messages import (
    DraftCounts,
    FinishReason,
    GenerateRequest,
    RequestError,
    SamplingSpec,
    TokenEvent,
    TokenLogprob,
    check_sampling,
)
from actors.sampling.penalties import PenaltyCounts, has_penalties
from actors.sampling.rng import fresh_seed
from actors.sampling.sampler import SamplingRow
from actors.speculative.state import DraftState


class SequenceState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class Sequence:
    """State of one request. The scheduler moves it between states; nobody else changes it.

    token_ids: prompt, then completion, stop token included. deadline: on the scheduler's clock, in seconds.
    num_cached_tokens: prompt tokens that the prefix cache supplied when it first ran. history: for whoever asks at its
    end what it went through.
    """

    def __init__(
        self,
        request: GenerateRequest,
        *,
        arrival: int,
        deadline: float,
        max_model_len: int,
        eos_token_ids: Iterable[int] = (),
        num_draft_modules: int = 0,
    ) -> None:
        spec = request.sampling
        self.request = request
        self.arrival = arrival
        self.deadline = deadline
        self.state = SequenceState.WAITING
        self.token_ids = list(request.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.kv = SequenceKv()
        self.drafting = DraftState(num_draft_modules)
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.history = History(arrived_at=deadline - request.deadline_s)
        self.seed = fresh_seed() if spec.seed is None else spec.seed
        self.finish_reason: FinishReason | None = None
        self.error: RequestError | None = None
        self._max_len = min(max_model_len, self.num_prompt_tokens + spec.max_tokens)
        self._stop_token_ids = _stop_token_ids(spec, eos_token_ids)
        self._counts = PenaltyCounts(self.token_ids) if has_penalties(spec) else None
        self._num_reported = self.num_prompt_tokens
        self._unreported_logprobs: list[TokenLogprob] = []
        self._has_reported = False
        self._has_ended = False

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def rank(self) -> tuple[int, int]:
        """Order of service, lower first: priority, then arrival."""
        return self.request.priority, self.arrival

    @property
    def context_len(self) -> int:
        """Tokens in the KV cache."""
        return self.kv.num_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known tokens that are not in the KV cache; 1 while decoding."""
        return len(self.token_ids) - self.kv.num_tokens

    @property
    def num_left(self) -> int:
        """Tokens that may still be generated."""
        return self._max_len - len(self.token_ids)

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def completion_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def is_finished(self) -> bool:
        return self.state is SequenceState.FINISHED

    def sampling_row(self) -> SamplingRow:
        """What the sampler needs to choose the next token."""
        return SamplingRow(
            spec=self.request.sampling,
            seed=self.seed,
            position=len(self.token_ids),
            num_completion_tokens=self.num_completion_tokens,
            stop_token_ids=self._stop_token_ids,
            counts=self._counts,
        )

    def append_token(self, token_id: int, logprob: TokenLogprob | None = None) -> FinishReason | None:
        """Add a completion token. Returns the reason if it is the last one."""
        assert len(self.token_ids) < self._max_len, f"{self.request_id} already has its {self._max_len} tokens"
        self.token_ids.append(token_id)
        if self._counts is not None:
            self._counts.add(token_id)
        if logprob is not None:
            self._unreported_logprobs.append(logprob)
        # min_tokens counts tokens before the stop; the sampler masks stop ids until then.
        if token_id in self._stop_token_ids and self.num_completion_tokens > self.request.sampling.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.token_ids) == self._max_len else None

    def take_event(self) -> TokenEvent | None:
        """News since the last call, or None. The event with the finish reason is the last and comes once."""
        has_news = self.is_finished or self._num_reported < len(self.token_ids)
        if self._has_ended or not has_news:
            return None
        event = TokenEvent(
            request_id=self.request_id,
            token_ids=tuple(self.token_ids[self._num_reported :]),
            logprobs=tuple(self._unreported_logprobs),
            finish_reason=self.finish_reason,
            num_cached_tokens=0 if self._has_reported else self.num_cached_tokens,
            draft_counts=self.take_draft_counts(),
            error=self.error,
        )
        self._has_reported, self._has_ended = True, self.is_finished
        self._unreported_logprobs = []
        self._num_reported = len(self.token_ids)
        return event

    def take_draft_counts(self) -> DraftCounts:
        """What became of drafts since the last call."""
        counts = self.drafting.take_counts()
        self.history.num_drafts_verified += sum(counts.drafted)
        self.history.num_drafts_accepted += sum(counts.accepted)
        return counts


def check_request(request: GenerateRequest, *, max_model_len: int, vocab_size: int) -> None:
    """Raises RequestRejected, naming the field to blame, for a request that this engine can never serve."""
    num_prompt = len(request.prompt_token_ids)
    if num_prompt == 0:
        raise RequestRejected("the prompt is empty", "prompt")
    if num_prompt >= max_model_len:
        raise RequestRejected(
            f"the prompt has {num_prompt} tokens; it must leave room for one more within {max_model_len}", "prompt"
        )
    if min(request.prompt_token_ids) < 0 or max(request.prompt_token_ids) >= vocab_size:
        raise RequestRejected(f"the prompt holds token ids outside 0..{vocab_size - 1}", "prompt")
    if not request.deadline_s > 0:  # also catches NaN
        raise RequestRejected(f"deadline_s must be above 0, got {request.deadline_s}", "deadline_s")
    try:
        check_sampling(request.sampling, vocab_size)
    except ValueError as error:
        message = str(error)
        raise RequestRejected(message, message.split()[0]) from error


def _stop_token_ids(spec: SamplingSpec, eos_token_ids: Iterable[int]) -> tuple[int, ...]:
    own = () if spec.ignore_eos else tuple(eos_token_ids)
    return tuple(dict.fromkeys((*own, *spec.stop_token_ids)))
