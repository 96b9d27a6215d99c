"""How a server behaves under load: latencies, tokens and losses, at one level after the other.

  python -m ops.bench.load --rates 1 2 4 8            an open loop, on a nano cluster of its own
  python -m ops.bench.load --streams 1 8 32 --url http://127.0.0.1:8000 --traffic plain

--rates is an open loop: requests arrive at random times (Poisson) at so many a second, whatever happened to those
before, as users do. Latencies count from the moment when a request was due, so a server that stalls is charged for
everybody who would have asked meanwhile. This is the loop to judge latency by.

--streams is a closed loop: so many streams ask again as soon as they have their answer. It finds the greatest
throughput, but asks less of a server that is slow, so its latencies are of a server that is spared.

Every request is counted once: answered, shed (429 or 503: come back later) or failed (any other status, an error in
the stream, a stream that breaks off, no end in time). Percentiles are of answered requests; one that the number of
answers cannot tell is shown as -. "sent late" is how late this program was itself: if that is not small beside the
latencies, they are its own.

Load is sent to this machine only, unless you say that the other host is yours.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ops.bench.domains import DOMAINS, prompts
from ops.bench.load_figure import draw
from ops.bench.load_loops import Asked, closed_loop, open_loop, poisson_arrivals
from ops.bench.load_options import parse
from ops.bench.load_report import LATENCIES, Row, count_table, is_shed, latency_table, row_of
from ops.bench.rebalance import CHECKPOINT, ORDER, served
from ops.bench.traffic import Answer, Questions, Schedule, ask, greedy_body, model_of

PORTS = (8792, 8793)
SLOTS = 2
TICK_S = 0.25
NUM_PROMPTS = 400  # of each domain
NUM_PLAIN = 5000
PLAIN_TOKENS = (100, 2000)  # ids that every vocabulary of ours has, and that are no control tokens
EXIT_LOST, EXIT_INTERRUPTED = 1, 130

console = Console(width=130)
progress_console = Console(stderr=True)


@dataclass(frozen=True)
class Settings:
    """What is the same at every level. seconds: of offered load, the first warm_up_s of which are not counted.

    timeout_s: of a whole request. max_open: connections at once; a request that finds none free waits, and its latency
    has begun.
    """

    seconds: float
    warm_up_s: float
    max_tokens: int
    timeout_s: float
    max_open: int
    seed: int
    headers: Mapping[str, str] = field(default_factory=dict)


class Bar:
    """How far a level is, and what became of its requests."""

    def __init__(self, progress: Progress, name: str, seconds: float) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=seconds, answered=0, shed=0, failed=0)
        self._numbers: dict[str, Any] = {"answered": 0, "shed": 0, "failed": 0}

    def count(self, answer: Answer) -> None:
        outcome = "answered" if answer.error is None else "shed" if is_shed(answer) else "failed"
        self._numbers[outcome] += 1

    async def follow(self, began_at: float) -> None:
        """Until it is cancelled."""
        try:
            while True:
                self._show(began_at)
                await asyncio.sleep(TICK_S)
        finally:
            self._show(began_at)

    def _show(self, began_at: float) -> None:
        self._progress.update(self._task, completed=time.monotonic() - began_at, **self._numbers)


class Load:
    """Loads one server. A context: it owns the connections."""

    def __init__(self, url: str, questions: Questions, settings: Settings) -> None:
        self._questions = questions
        self._settings = settings
        limits = httpx.Limits(max_connections=settings.max_open, max_keepalive_connections=settings.max_open)
        # No proxy of the environment: the load is for this server alone.
        self._client = httpx.AsyncClient(
            base_url=url, headers=settings.headers, timeout=settings.timeout_s, limits=limits, trust_env=False
        )
        self._model = ""

    async def __aenter__(self) -> Self:
        """Raises httpx.HTTPError where nobody answers."""
        self._model = await model_of(self._client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def at_rate(self, rate: float, progress: Progress) -> Row:
        """An open loop of `rate` requests a second."""
        arrivals = poisson_arrivals(rate, self._settings.seconds, random.Random(f"{self._settings.seed} {rate}"))
        return await self._level(rate, progress, f"{rate:g} requests/s", arrivals)

    async def with_streams(self, num_streams: int, progress: Progress) -> Row:
        """A closed loop of so many streams."""
        return await self._level(num_streams, progress, f"{num_streams} streams", None)

    async def _level(self, load: float, progress: Progress, name: str, arrivals: Sequence[float] | None) -> Row:
        settings, asked = self._settings, list[Asked]()
        bar = Bar(progress, name, settings.seconds)

        def on_end(each: Asked) -> None:
            asked.append(each)
            bar.count(each.answer)

        began_at = time.monotonic()
        following = asyncio.create_task(bar.follow(began_at))
        try:
            if arrivals is not None:
                await open_loop(self._ask, arrivals, began_at, on_end)
            else:
                await closed_loop(self._ask, int(load), settings.seconds, began_at, on_end)
        finally:
            following.cancel()
        return row_of(load, asked, began_at + settings.warm_up_s, began_at + settings.seconds)

    async def _ask(self, elapsed_s: float) -> Answer:
        question, prompt = self._questions.take(elapsed_s)
        body = greedy_body(self._model, prompt, self._settings.max_tokens)
        return await ask(self._client, question, body, self._settings.timeout_s)


async def sweep(load: Load, options: argparse.Namespace, rows: list[Row]) -> None:
    """Level after level, each when every answer of the one before has ended. Adds to `rows`."""
    with _progress() as progress:
        async with load:
            for rate in options.rates or ():
                rows.append(await load.at_rate(rate, progress))  # noqa: PERF401  rows must be there if it is broken off
            for num_streams in options.streams or ():
                rows.append(await load.with_streams(num_streams, progress))  # noqa: PERF401


def questions_of(options: argparse.Namespace) -> Questions:
    """Domains in turn for the nano model, or prompts that no two requests share."""
    if options.traffic == "nano":
        texts = {domain: prompts(CHECKPOINT, domain, NUM_PROMPTS) for domain in DOMAINS}
        return Questions(texts, Schedule(ORDER, options.domain_s))
    rng = random.Random(options.seed)
    plain = [[rng.randrange(*PLAIN_TOKENS) for _ in range(options.prompt_tokens)] for _ in range(NUM_PLAIN)]
    return Questions({"plain": plain}, Schedule(("plain",), options.seconds))


def report(rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Tables, what to beware of, the files that were asked for, and a line of JSON."""
    unit = unit_of(options)
    console.print(count_table(rows, unit))
    console.print(latency_table(rows, unit))
    for name, meaning in LATENCIES.items():
        console.print(f"{name}: {meaning}", style="dim")
    late = [row for row in rows if row.is_late]
    if late:
        loads = ", ".join(f"{row.load:g}" for row in late)
        console.print(f"sent late at {unit} {loads}: latencies there are partly this program's own", style="yellow")
    summary = {"benchmark": "load", "unit": unit, "rows": [asdict(row) for row in rows]}
    if options.json is not None:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    if options.figure is not None and rows:
        title = f"{options.traffic} traffic, {options.seconds:g} s at each level, {options.max_tokens} tokens at most"
        draw(rows, unit, title, options.figure)
    console.print(json.dumps(summary), soft_wrap=True, markup=False, highlight=False)


def unit_of(options: argparse.Namespace) -> str:
    return "requests/s" if options.rates else "streams"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 if a request failed; shed ones are no failure."""
    options = parse(__doc__ or "", arguments)
    rows: list[Row] = []
    is_interrupted = False
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(_own_cluster())
        try:
            asyncio.run(sweep(Load(url, questions_of(options), _settings(options)), options, rows))
        except KeyboardInterrupt:
            is_interrupted = True
        except httpx.HTTPError as error:
            print(f"{url} does not serve models: {type(error).__name__}: {error}", file=sys.stderr)
            return EXIT_LOST
    report(rows, options)
    if is_interrupted:
        return EXIT_INTERRUPTED
    return EXIT_LOST if any(row.num_failed for row in rows) else 0


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        seconds=options.seconds,
        warm_up_s=options.warm_up_s,
        max_tokens=options.max_tokens,
        timeout_s=options.timeout_s,
        max_open=options.max_open,
        seed=options.seed,
        headers={} if options.api_key is None else {"authorization": f"Bearer {options.api_key}"},
    )


@contextlib.contextmanager
def _own_cluster() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        with served(Path(folder), "auto", SLOTS, ports=PORTS, sections={"deterministic": False}) as (url, _):
            yield url


def _progress() -> Progress:
    numbers = "{task.fields[answered]} answered, {task.fields[shed]} shed, {task.fields[failed]} failed"
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn(numbers),
        console=progress_console,
    )


if __name__ == "__main__":
    sys.exit(main())
