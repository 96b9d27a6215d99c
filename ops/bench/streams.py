"""Times a batch of streams that decode together. Knows no benchmark: it is given an engine and requests.

A stream counts until its answer ends or has `quota` tokens, and goes on after that without counting, so that the batch
stays full until the last one is there. So the rate is that of a server whose streams ask again at once, without its
prefill.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.attention.step import EngineStep
from actors.messages import GenerateRequest


@dataclass
class Stream:
    """token_ids: all that came, the first num_before of them while others still computed their prompts. The
    num_counted after those took num_steps and seconds."""

    token_ids: list[int] = field(default_factory=list)
    num_before: int = 0
    num_counted: int = 0
    num_steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Batch:
    """What was measured. step_seconds: of every step from the moment when all streams were decoding."""

    streams: tuple[Stream, ...]
    step_seconds: tuple[float, ...]

    @property
    def num_tokens(self) -> int:
        return sum(stream.num_counted for stream in self.streams)

    @property
    def num_steps(self) -> int:
        """Of all streams added up."""
        return sum(stream.num_steps for stream in self.streams)

    @property
    def seconds(self) -> float:
        """Of all streams added up."""
        return sum(stream.seconds for stream in self.streams)


class StreamTimer:
    """Runs requests on one engine: first `start`, then `decode`. The requests must ignore end tokens."""

    def __init__(self, engine: EngineStep, requests: Sequence[GenerateRequest], end_ids: frozenset[int]) -> None:
        self._engine = engine
        self._end_ids = end_ids
        self._streams = {request.request_id: Stream() for request in requests}
        for request in requests:
            engine.add(request, now=0.0)

    def start(self) -> None:
        """Step until every stream has its first token."""
        while not all(stream.token_ids for stream in self._streams.values()):
            self.step()
        for stream in self._streams.values():
            stream.num_before = len(stream.token_ids)

    def decode(self, quota: int) -> Batch:
        """Step until every stream's answer has ended or has `quota` more tokens, then forget the requests."""
        durations: list[float] = []
        seconds = 0.0
        counting = [stream for stream in self._streams.values() if not self._is_over(stream, quota)]
        while counting:
            durations.append(self.step())
            seconds += durations[-1]
            for stream in counting:
                stream.num_counted = self._answer_length(stream) - stream.num_before
                stream.num_steps, stream.seconds = len(durations), seconds
            counting = [stream for stream in counting if not self._is_over(stream, quota)]
        self.forget()
        return Batch(tuple(self._streams.values()), tuple(durations))

    def forget(self) -> None:
        """Drop the requests, ended or not."""
        for request_id in self._streams:
            self._engine.abort(request_id)

    def step(self) -> float:
        """One step of the engine, in seconds."""
        began_at = time.perf_counter()
        self._engine.run()
        events = self._engine.take_events()
        seconds = time.perf_counter() - began_at
        for event in events:
            if event.error is not None:
                raise RuntimeError(f"request {event.request_id} failed: {event.error.message}")
            self._streams[event.request_id].token_ids.extend(event.token_ids)
        return seconds

    def _is_over(self, stream: Stream, quota: int) -> bool:
        has_ended = not self._end_ids.isdisjoint(stream.token_ids)
        return has_ended or len(stream.token_ids) >= stream.num_before + quota

    def _answer_length(self, stream: Stream) -> int:
        """Tokens up to the answer's end."""
        ends = (idx + 1 for idx, token_id in enumerate(stream.token_ids) if token_id in self._end_ids)
        return next(ends, len(stream.token_ids))
