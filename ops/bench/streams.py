"""Times a batch of streams that decode together. Knows no benchmark: it is given an engine and requests.

A stream counts until its answer ends or has `quota` tokens, and goes on after that without counting, so that the batch
stays full until the last one is there. So the rate is that of a server whose streams ask again at once, without its
prefill. Engines to be compared take turns step by step, so that a machine that becomes slower slows all alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
    """Runs requests on one engine: `start`, then `advance` until `is_over`, then `finish`.

    quota: tokens of a stream that count. The requests must ignore end tokens.
    """

    def __init__(
        self, engine: EngineStep, requests: Sequence[GenerateRequest], end_ids: frozenset[int], quota: int = 0
    ) -> None:
        self._engine = engine
        self._end_ids = end_ids
        self._quota = quota
        self._durations: list[float] = []
        self._streams = {request.request_id: Stream() for request in requests}
        self._counting: list[Stream] = []
        for request in requests:
            engine.add(request, now=0.0)

    def start(self) -> None:
        """Step until every stream has its first token."""
        while not all(stream.token_ids for stream in self._streams.values()):
            self.step()
        for stream in self._streams.values():
            stream.num_before = len(stream.token_ids)
        self._counting = [stream for stream in self._streams.values() if not self._has_ended(stream)]

    @property
    def is_over(self) -> bool:
        """Whether every stream's answer has ended or has its quota of tokens."""
        return not self._counting

    @property
    def num_counted(self) -> int:
        """Tokens of all streams so far."""
        return sum(stream.num_counted for stream in self._streams.values())

    def advance(self) -> None:
        """One step that counts."""
        self._durations.append(self.step())
        for stream in self._counting:
            stream.num_counted = self._answer_length(stream) - stream.num_before
            stream.num_steps += 1
            stream.seconds += self._durations[-1]
        self._counting = [stream for stream in self._counting if not self._has_ended(stream)]

    def finish(self) -> Batch:
        """Forget the requests."""
        self.forget()
        return Batch(tuple(self._streams.values()), tuple(self._durations))

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

    def _has_ended(self, stream: Stream) -> bool:
        is_complete = not self._end_ids.isdisjoint(stream.token_ids)
        return is_complete or len(stream.token_ids) >= stream.num_before + self._quota

    def _answer_length(self, stream: Stream) -> int:
        """Tokens up to the answer's end."""
        ends = (idx + 1 for idx, token_id in enumerate(stream.token_ids) if token_id in self._end_ids)
        return next(ends, len(stream.token_ids))


def decode_in_turns(timers: Mapping[str, StreamTimer]) -> dict[str, Batch]:
    """Started timers of the same prompts, to their ends: whoever has the fewest tokens steps next."""
    waiting = [timer for timer in timers.values() if not timer.is_over]
    while waiting:
        timer = min(waiting, key=lambda timer: timer.num_counted)
        timer.advance()
        if timer.is_over:
            waiting.remove(timer)
    return {name: timer.finish() for name, timer in timers.items()}
