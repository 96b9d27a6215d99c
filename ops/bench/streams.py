"""Times a batch of streams that decode together. Knows no benchmark: it is given an engine and requests.

All streams count until the first of them ends, so that the batch is full throughout and nobody decodes what was not
asked for: what a model says after its answer's end is easier to foresee. Engines to be compared take turns step by
step, so that a machine that becomes slower slows all alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from actors.attention.step import EngineStep
from actors.messages import GenerateRequest, TokenEvent


@dataclass
class Stream:
    """token_ids: all that came, the first num_before of them while others still computed their prompts. num_drafts:
    verified since then."""

    token_ids: list[int] = field(default_factory=list)
    has_ended: bool = False
    num_before: int = 0
    num_drafts: int = 0

    @property
    def num_counted(self) -> int:
        """Tokens."""
        return len(self.token_ids) - self.num_before

    def begin(self) -> None:
        """What comes from now on counts."""
        self.num_before, self.num_drafts = len(self.token_ids), 0

    def observe(self, event: TokenEvent) -> None:
        """Raises RuntimeError when it failed."""
        if event.error is not None:
            raise RuntimeError(f"request {event.request_id} failed: {event.error.message}")
        self.token_ids.extend(event.token_ids)
        self.num_drafts += sum(event.draft_counts.drafted)
        self.has_ended = event.finish_reason is not None


@dataclass(frozen=True)
class TimedStep:
    """num_rows: of all its sequences, prompts included."""

    num_rows: int
    seconds: float


@dataclass(frozen=True)
class Batch:
    """What was measured. steps: from the moment when all streams were decoding until one ended."""

    streams: tuple[Stream, ...]
    steps: tuple[TimedStep, ...]

    @property
    def num_tokens(self) -> int:
        return sum(stream.num_counted for stream in self.streams)

    @property
    def num_drafts(self) -> int:
        return sum(stream.num_drafts for stream in self.streams)

    @property
    def num_steps(self) -> int:
        """Of all streams added up."""
        return len(self.streams) * len(self.steps)

    @property
    def seconds_per_token(self) -> float:
        """Of a stream, the mean over streams: how long answers of the same length take."""
        seconds = sum(step.seconds for step in self.steps)
        return fmean(seconds / stream.num_counted for stream in self.streams)


class StreamTimer:
    """Runs requests on one engine: `start`, then `advance` until `is_over`, then `finish`."""

    def __init__(self, engine: EngineStep, requests: Sequence[GenerateRequest]) -> None:
        self._engine = engine
        self._steps: list[TimedStep] = []
        self._streams = {request.request_id: Stream() for request in requests}
        for request in requests:
            engine.add(request, now=0.0)

    def start(self) -> None:
        """Step until every stream has its first token. Raises RuntimeError when one ends before."""
        while not all(stream.token_ids for stream in self._streams.values()):
            self.step()
        if self.is_over:
            raise RuntimeError("an answer ended before all had begun; allow more tokens, or ask for fewer streams")
        for stream in self._streams.values():
            stream.begin()

    @property
    def is_over(self) -> bool:
        """Whether a stream has ended."""
        return any(stream.has_ended for stream in self._streams.values())

    @property
    def num_counted(self) -> int:
        """Tokens of all streams so far."""
        return sum(stream.num_counted for stream in self._streams.values())

    def advance(self) -> None:
        """One step that counts."""
        seconds = self.step()
        self._steps.append(TimedStep(self._engine.last_size.num_rows, seconds))

    def finish(self) -> Batch:
        """Forget the requests."""
        self.forget()
        return Batch(tuple(self._streams.values()), tuple(self._steps))

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
            self._streams[event.request_id].observe(event)
        return seconds


def decode_in_turns(timers: Mapping[str, StreamTimer]) -> dict[str, Batch]:
    """Started timers of the same prompts, to their ends: whoever has the fewest tokens steps next."""
    waiting = [timer for timer in timers.values() if not timer.is_over]
    while waiting:
        timer = min(waiting, key=lambda timer: timer.num_counted)
        timer.advance()
        if timer.is_over:
            waiting.remove(timer)
    return {name: timer.finish() for name, timer in timers.items()}
