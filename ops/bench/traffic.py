"""Traffic over HTTP whose domain changes with time, and what its users felt. Speaks HTTP only.

Streams ask one question after the other (a closed loop). Every answer is kept, so that two runs can be compared token
by token.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

REQUEST_TIMEOUT_S = 120.0

Question = tuple[str, int]  # domain, and number of the prompt within it


@dataclass(frozen=True)
class Answer:
    """One request. Times are those of time.monotonic: when it was sent, and when each chunk with tokens came.

    text: of the whole answer. error: why it failed, None if it did not.
    """

    question: Question
    sent_at: float
    times: tuple[float, ...]
    num_tokens: int
    text: str
    error: str | None = None

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """(when, seconds since the chunk before) of each chunk but the first."""
        return [(after, after - before) for before, after in itertools.pairwise(self.times)]


@dataclass(frozen=True)
class Schedule:
    """Domains in turn, each for `seconds`, from the first again after the last."""

    domains: tuple[str, ...]
    seconds: float

    def domain_at(self, elapsed_s: float) -> str:
        return self.domains[int(elapsed_s / self.seconds) % len(self.domains)]


@dataclass
class Traffic:
    """`num_streams` closed loops against one server. prompts: token ids by domain; a stream takes them in turn.

    on_answer: told of each answer as it ends.
    """

    url: str
    prompts: Mapping[str, Sequence[Sequence[int]]]
    schedule: Schedule
    num_streams: int
    max_tokens: int
    on_answer: Callable[[Answer], None] = lambda _: None
    answers: list[Answer] = field(default_factory=list)
    began_at: float = 0.0

    async def run(self, seconds: float) -> None:
        """Ask until the time is over, then let the running answers end."""
        self.began_at = time.monotonic()
        counters = {domain: itertools.count() for domain in self.prompts}
        limits = httpx.Limits(max_connections=self.num_streams + 1)
        async with httpx.AsyncClient(base_url=self.url, timeout=REQUEST_TIMEOUT_S, limits=limits) as client:
            model = (await client.get("/v1/models")).json()["data"][0]["id"]
            await asyncio.gather(*(self._loop(client, model, counters, seconds) for _ in range(self.num_streams)))

    async def _loop(
        self, client: httpx.AsyncClient, model: str, counters: Mapping[str, Iterator[int]], seconds: float
    ) -> None:
        while (elapsed := time.monotonic() - self.began_at) < seconds:
            domain = self.schedule.domain_at(elapsed)
            question = domain, next(counters[domain]) % len(self.prompts[domain])
            answer = await self._ask(client, model, question)
            self.answers.append(answer)
            self.on_answer(answer)

    async def _ask(self, client: httpx.AsyncClient, model: str, question: Question) -> Answer:
        domain, idx = question
        body = {
            "model": model,
            "prompt": list(self.prompts[domain][idx]),
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        sent_at, times, num_tokens, pieces = time.monotonic(), list[float](), 0, list[str]()
        try:
            async with client.stream("POST", "/v1/completions", json=body) as response:
                response.raise_for_status()
                async for event in _events(response):
                    if event["choices"]:
                        times.append(time.monotonic())
                        pieces.append(event["choices"][0]["text"])
                    else:
                        num_tokens = event["usage"]["completion_tokens"]
        except (httpx.HTTPError, StreamFailed) as failure:
            error = f"{type(failure).__name__}: {failure}"
            return Answer(question, sent_at, tuple(times), num_tokens, "".join(pieces), error)
        return Answer(question, sent_at, tuple(times), num_tokens, "".join(pieces))


class StreamFailed(Exception):
    """The server ended a stream with an error."""


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in response.aiter_lines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise StreamFailed(str(event["error"]))
            yield event


def differing_answers(runs: Sequence[Sequence[Answer]]) -> list[Question]:
    """Questions that were answered differently anywhere in these runs. Failed answers are left out."""
    texts: dict[Question, set[str]] = {}
    for answer in itertools.chain.from_iterable(runs):
        if answer.error is None:
            texts.setdefault(answer.question, set()).add(answer.text)
    return sorted(question for question, found in texts.items() if len(found) > 1)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; NaN of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
