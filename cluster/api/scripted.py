"""The in-memory engine: plays prepared events and records what was asked, so that the API runs without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from actors.messages import GenerateRequest, TokenEvent
from cluster.api.engine import Readiness

Step: TypeAlias = TokenEvent | asyncio.Event | Exception
Script: TypeAlias = Callable[[GenerateRequest], Sequence[Step]]


@dataclass
class ScriptedEngine:
    """Plays `script(request)`: a TokenEvent is yielded, an asyncio.Event is waited for, an exception is raised.

    requests: what was asked, in order. aborted: ids of the sequences closed before their script ended; `abort_seen` is
    set with each of them.
    """

    script: Script
    readiness: Readiness = field(default_factory=lambda: Readiness(ready=True))
    requests: list[GenerateRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    abort_seen: asyncio.Event = field(default_factory=asyncio.Event)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """See `Engine.generate`. Events get the request's id."""
        self.requests.append(request)
        has_ended = False
        try:
            for step in self.script(request):
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    has_ended = True
                    raise step
                else:
                    has_ended = step.finish_reason is not None
                    yield replace(step, request_id=request.request_id)
            has_ended = True
        finally:
            if not has_ended:
                self.aborted.append(request.request_id)
                self.abort_seen.set()

    async def ready(self) -> Readiness:
        """The `readiness` it was given."""
        return self.readiness
