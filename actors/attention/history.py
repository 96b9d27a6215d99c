"""History: when a sequence was where, and what its steps were like. Plain numbers, kept step by step; no clock.

What a trace of the request is made of at its end.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepFacts:
    """One step, as each of its sequences remembers it. Seconds, on the clock of arrivals and deadlines.

    is_failed: the expert tier did not answer, and the step is repeated.
    """

    step_id: int
    began_at: float
    ended_at: float
    num_sequences: int
    num_rows: int
    map_epoch: int
    is_failed: bool = False


class History:
    """One sequence's. None: that has not happened. Steps that failed count as retries, and as nothing else."""

    __slots__ = (
        "arrived_at",
        "first_map_epoch",
        "first_step_at",
        "first_step_id",
        "first_token_at",
        "last_map_epoch",
        "last_step_id",
        "last_token_at",
        "max_batch_rows",
        "max_batch_sequences",
        "num_drafts_accepted",
        "num_drafts_verified",
        "num_retries",
        "num_steps",
        "_num_tokens",
    )

    def __init__(self, arrived_at: float) -> None:
        self.arrived_at = arrived_at
        self.first_step_at: float | None = None
        self.first_token_at: float | None = None
        self.last_token_at: float | None = None
        self.first_step_id = self.last_step_id = 0
        self.first_map_epoch = self.last_map_epoch = 0
        self.num_steps = 0
        self.num_retries = 0
        self.max_batch_sequences = 0
        self.max_batch_rows = 0
        self.num_drafts_verified = 0
        self.num_drafts_accepted = 0
        self._num_tokens = 0

    def add(self, step: StepFacts, num_completion_tokens: int) -> None:
        """A step that the sequence was part of. num_completion_tokens: that it has after it."""
        if self.first_step_at is None:
            self.first_step_at = step.began_at
            self.first_step_id, self.first_map_epoch = step.step_id, step.map_epoch
        if step.is_failed:
            self.num_retries += 1
            return
        self.num_steps += 1
        self.last_step_id, self.last_map_epoch = step.step_id, step.map_epoch
        if step.num_sequences > self.max_batch_sequences:
            self.max_batch_sequences = step.num_sequences
        if step.num_rows > self.max_batch_rows:
            self.max_batch_rows = step.num_rows
        if num_completion_tokens > self._num_tokens:
            self._num_tokens = num_completion_tokens
            self.last_token_at = step.ended_at
            if self.first_token_at is None:
                self.first_token_at = step.ended_at

    @property
    def queue_s(self) -> float | None:
        """From arrival to the first step."""
        return None if self.first_step_at is None else self.first_step_at - self.arrived_at
