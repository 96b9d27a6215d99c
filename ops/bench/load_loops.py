"""Two ways to load a server: open, where requests arrive whatever happens to those before, and closed, where each
stream asks again when it has its answer.

Only the open loop shows how users wait: a closed one asks less when the server is slow, and so leaves out what they
would have felt (coordinated omission). Times are those of time.monotonic.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from ops.bench.traffic import Answer

MAX_BACK_OFF_S = 5.0  # of a stream that was sent away, whatever Retry-After says
BACK_OFF_S = 1.0  # where it says nothing

# Asks the question of a moment, in seconds since the beginning.
Ask = Callable[[float], Awaitable[Answer]]


@dataclass(frozen=True)
class Asked:
    """due_at: when the request was to be sent, from which every latency counts; however late it really was."""

    due_at: float
    answer: Answer

    @property
    def lag_s(self) -> float:
        """How late this program was."""
        return self.answer.sent_at - self.due_at


OnEnd = Callable[[Asked], None]


def poisson_arrivals(rate: float, seconds: float, rng: random.Random) -> list[float]:
    """Seconds from the beginning at which requests arrive that know nothing of each other: `rate` a second."""
    arrivals: list[float] = []
    at = rng.expovariate(rate)
    while at < seconds:
        arrivals.append(at)
        at += rng.expovariate(rate)
    return arrivals


async def open_loop(ask: Ask, arrivals: Sequence[float], began_at: float, on_end: OnEnd) -> None:
    """Ask at each of the arrivals (seconds from began_at), and wait for every answer."""

    async def one(arrival: float) -> None:
        on_end(Asked(began_at + arrival, await ask(arrival)))

    async with asyncio.TaskGroup() as group:
        for arrival in arrivals:
            await asyncio.sleep(began_at + arrival - time.monotonic())
            group.create_task(one(arrival))


async def closed_loop(
    ask: Ask, num_streams: int, seconds: float, began_at: float, on_end: OnEnd, done: asyncio.Event | None = None
) -> None:
    """Each stream asks one question after the other for so long, or until `done` is set. One that is sent away comes
    back when it was told."""
    done = done or asyncio.Event()

    async def stream() -> None:
        while (elapsed := time.monotonic() - began_at) < seconds and not done.is_set():
            answer = await ask(elapsed)
            on_end(Asked(began_at + elapsed, answer))
            if answer.error is not None:
                told_s = BACK_OFF_S if answer.retry_after_s is None else answer.retry_after_s
                await asyncio.sleep(min(told_s, MAX_BACK_OFF_S))

    async with asyncio.TaskGroup() as group:
        for _ in range(num_streams):
            group.create_task(stream())
