"""Traffic over HTTP whose domain changes with time, and what its users felt. Speaks HTTP only.

Streams ask one question after the other (a closed loop; `load_loops` has others). Every answer is kept, so that two
runs can be compared token by token.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

REQUEST_TIMEOUT_S = 120.0

Question = tuple[str, int]  # domain, and number of the prompt within it


@dataclass(frozen=True)
class Answer:
    """One request. Times are those of time.monotonic: when it was sent, and when each chunk with text came.

    text: of the whole answer. error: why it failed, None if it did not. status: of the HTTP answer where that was the
    failure; retry_after_s: when the server asked to come back.
    """

    question: Question
    sent_at: float
    times: tuple[float, ...]
    num_tokens: int
    text: str
    error: str | None = None
    status: int | None = None
    retry_after_s: float | None = None

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


class Questions:
    """Prompts (token ids) by domain. Those of a domain come in turn, from the first again after the last."""

    def __init__(self, prompts: Mapping[str, Sequence[Sequence[int]]], schedule: Schedule) -> None:
        self._prompts = prompts
        self._schedule = schedule
        self._counters = {domain: itertools.count() for domain in prompts}

    def take(self, elapsed_s: float) -> tuple[Question, Sequence[int]]:
        """The next one of the domain whose turn it is, and its prompt."""
        domain = self._schedule.domain_at(elapsed_s)
        idx = next(self._counters[domain]) % len(self._prompts[domain])
        return (domain, idx), self._prompts[domain][idx]


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
        questions = Questions(self.prompts, self.schedule)
        limits = httpx.Limits(max_connections=self.num_streams + 1)
        async with httpx.AsyncClient(base_url=self.url, timeout=REQUEST_TIMEOUT_S, limits=limits) as client:
            model = await model_of(client)
            await asyncio.gather(*(self._loop(client, model, questions, seconds) for _ in range(self.num_streams)))

    async def _loop(self, client: httpx.AsyncClient, model: str, questions: Questions, seconds: float) -> None:
        while (elapsed := time.monotonic() - self.began_at) < seconds:
            question, prompt = questions.take(elapsed)
            answer = await ask(client, question, greedy_body(model, prompt, self.max_tokens))
            self.answers.append(answer)
            self.on_answer(answer)


async def model_of(client: httpx.AsyncClient) -> str:
    """The model that is served. Raises httpx.HTTPError."""
    response = await client.get("/v1/models")
    response.raise_for_status()
    return str(response.json()["data"][0]["id"])


def greedy_body(model: str, prompt: Sequence[int], max_tokens: int) -> dict[str, Any]:
    """A streamed completion that is the same whenever it is asked for."""
    return {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def ask(
    client: httpx.AsyncClient, question: Question, body: Mapping[str, Any], timeout_s: float = REQUEST_TIMEOUT_S
) -> Answer:
    """One streamed completion, read to its end. Failures are part of the answer. timeout_s: of the whole request."""
    sent_at, times, pieces, num_tokens = time.monotonic(), list[float](), list[str](), 0
    error, status, retry_after_s = None, None, None
    try:
        async with asyncio.timeout(timeout_s), client.stream("POST", "/v1/completions", json=body) as response:
            if response.is_success:
                async for event in _events(response):
                    if event["choices"] and event["choices"][0]["text"]:
                        times.append(time.monotonic())
                        pieces.append(event["choices"][0]["text"])
                    num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
                if pieces and not num_tokens:
                    raise StreamFailed("the server does not say how many tokens it sent")
            else:
                error, status = f"HTTP {response.status_code}", response.status_code
                retry_after_s = _seconds(response.headers.get("retry-after"))
    except (httpx.HTTPError, StreamFailed, TimeoutError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    return Answer(question, sent_at, tuple(times), num_tokens, "".join(pieces), error, status, retry_after_s)


class StreamFailed(Exception):
    """A stream ended with an error, before its closing mark, or in something that is no event."""


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Raises StreamFailed."""
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            try:
                event = json.loads(line.removeprefix("data: "))
            except ValueError as error:
                raise StreamFailed("an event that is no JSON") from error
            if "error" in event:
                raise StreamFailed(str(event["error"]))
            yield event
    raise StreamFailed("the stream ended before its closing mark")


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After in seconds; one that is a date is not understood."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None


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
