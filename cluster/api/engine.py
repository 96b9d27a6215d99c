"""What the API asks of the machinery behind it. Knows nothing of Ray, handles or routing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from actors.messages import GenerateRequest, TokenEvent


@dataclass(frozen=True)
class Readiness:
    """Whether a token can be produced now. `reason`: one sentence of ours for an operator, empty when ready."""

    ready: bool
    reason: str = ""


class Engine(Protocol):
    """Produces tokens. Implemented over attention actors by the gateway, and in memory by `ScriptedEngine`."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """The events of one sequence; the last one has a finish_reason. Nothing runs before the first `anext`.

        Closing the iterator (`aclose`, or cancelling the task that awaits it) aborts the sequence at once.
        Failures come as an event with `error`, or are raised: RequestRejected, EngineOverloaded, ExpertsUnavailable,
        NotReady.
        """
        ...

    async def ready(self) -> Readiness:
        """Answers from what is known; the API puts a deadline on it."""
        ...
