"""What users feel while the attention tier scales under load: from one replica to three and back.

    python -m ops.bench.scaling [--figure FILE.svg]

Starts `step35 serve` on the nano model with one attention actor and eight expert ranks, deterministic, autoscaled
between one and three by the policy that serves. A few streams stay for the whole run. After a minute more of them come,
until the policy has brought three replicas; then these go, until it has gone back to one. Load is asked for over HTTP,
replicas are those of the admin route, and decisions those that Serve's controller has logged. Delays are short for a
benchmark, but long enough that each change has a time of equal load before it to be compared with.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Self

import httpx
from rich.console import Console
from rich.progress import Progress

from cluster.admin.paths import STATE
from ops.bench.domains import prompts
from ops.bench.load_loops import Ask, Asked, closed_loop
from ops.bench.processes import command_lines
from ops.bench.rebalance import CHECKPOINT, served
from ops.bench.scaling_changes import Look, Run, decisions_in, look_of
from ops.bench.scaling_figure import draw
from ops.bench.scaling_report import console, report
from ops.bench.traffic import REQUEST_TIMEOUT_S, Answer, ask, greedy_body, model_of

PORTS = (8798, 8799)
MOST = 3
TARGET_SEQUENCES = 8
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 40.0, 45.0
LOOK_S = 1.0
CALM_S, HOLD_S, END_S = 60.0, 45.0, 20.0  # before more streams come; with all replicas; after the last change
SCALE_TIMEOUT_S = 200.0  # for both changes of one direction
EXPECTED_S = CALM_S + HOLD_S + END_S + 2 * (UPSCALE_DELAY_S + DOWNSCALE_DELAY_S) + 60.0
SESSION = re.compile(r"(/\S*/session_[\d_-]+)/")


class NotScaled(Exception):
    """Replicas did not come, or did not go, in time."""


@dataclass(frozen=True)
class Streams:
    """So many closed loops. Their prompts are few, so that each is asked for several times, by different replicas."""

    domain: str
    num_streams: int
    num_prompts: int
    max_tokens: int


STAYING = Streams("text", num_streams=3, num_prompts=12, max_tokens=512)
COMING = Streams("arithmetic", num_streams=20, num_prompts=24, max_tokens=128)


class Scenario:
    """Drives one run. A context: it owns the connections to the gateway."""

    def __init__(self, url: str, admin: httpx.Client, run: Run, show: Callable[[str], None]) -> None:
        """show: told what is going on, after each look at the cluster."""
        self._admin, self._run, self._show = admin, run, show
        limits = httpx.Limits(max_connections=STAYING.num_streams + COMING.num_streams)
        # No proxy of the environment: the load is for this server alone.
        self._client = httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S, limits=limits, trust_env=False)
        self._asks: dict[Streams, Ask] = {}

    async def __aenter__(self) -> Self:
        model = await model_of(self._client)
        # Before anything is timed: to make prompts takes a while.
        self._asks = {streams: asker(self._client, model, streams) for streams in (STAYING, COMING)}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def play(self) -> None:
        """From the first request to the end of the last."""
        run, staying_done, coming_done = self._run, asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            try:
                self._offer(STAYING.num_streams)
                group.create_task(self._streams(STAYING, run.staying, staying_done))
                await self._stay("one replica, few streams", CALM_S)
                self._offer(STAYING.num_streams + COMING.num_streams)
                group.create_task(self._streams(COMING, run.coming, coming_done))
                await self._scaled("many streams", MOST)
                await self._stay("many streams", HOLD_S)
                self._offer(STAYING.num_streams)
                coming_done.set()
                await self._scaled("few streams again", 1)
                await self._stay("few streams again", END_S)
            except (NotScaled, httpx.HTTPError) as error:
                run.problem = f"{type(error).__name__}: {error}"
            finally:
                coming_done.set()
                staying_done.set()

    def _offer(self, num_streams: int) -> None:
        self._run.offered.append((time.monotonic(), num_streams))

    async def _streams(self, streams: Streams, answers: list[Answer], done: asyncio.Event) -> None:
        """Until `done`, and to the ends of their answers."""

        def keep(asked: Asked) -> None:
            answers.append(asked.answer)

        await closed_loop(self._asks[streams], streams.num_streams, float("inf"), time.monotonic(), keep, done)

    async def _stay(self, what: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        await self._look_until(what, lambda look: look.at >= end)

    async def _scaled(self, what: str, replicas: int) -> None:
        """Raises NotScaled."""
        end = time.monotonic() + SCALE_TIMEOUT_S
        look = await self._look_until(what, lambda look: len(look.ready) == replicas or look.at >= end)
        if len(look.ready) != replicas:
            raise NotScaled(f"{len(look.ready)} instead of {replicas} replicas after {SCALE_TIMEOUT_S:.0f} s")

    async def _look_until(self, what: str, is_over: Callable[[Look], bool]) -> Look:
        """The look that ended it."""
        while True:
            response = await asyncio.to_thread(self._admin.get, STATE)
            response.raise_for_status()
            look = look_of(time.monotonic(), response.json())
            self._run.looks.append(look)
            self._show(f"{what}: {len(look.ready)} ready, {len(self._run.failures)} failed")
            if is_over(look):
                return look
            await asyncio.sleep(LOOK_S)


def asker(client: httpx.AsyncClient, model: str, streams: Streams) -> Ask:
    """Asks for the prompts in turn; answers have their full length."""
    texts, indices = prompts(CHECKPOINT, streams.domain, streams.num_prompts), cycle(range(streams.num_prompts))

    async def one(_elapsed: float) -> Answer:
        idx = next(indices)
        body = {**greedy_body(model, texts[idx], streams.max_tokens), "ignore_eos": True}
        return await ask(client, (streams.domain, idx), body)

    return one


def sections(port: int) -> Mapping[str, object]:
    """Of the configuration. A request may take two minutes, and an actor that goes lets those it has end."""
    scaling = {
        "max_replicas": MOST,
        "target_sequences": TARGET_SEQUENCES,
        "upscale_delay_s": UPSCALE_DELAY_S,
        "downscale_delay_s": DOWNSCALE_DELAY_S,
    }
    return {
        "attention": {"autoscaling": scaling, "engine": {"kv_cache_tokens": 16384}},
        "gateway": {"port": port, "limits": {"request_timeout_s": REQUEST_TIMEOUT_S}},
        "control": {"drain_timeout_s": REQUEST_TIMEOUT_S + 5},
        "ray": {"app_name": "bench-scaling"},
    }


def observe() -> Run:
    """A whole run, with what the policy said in it."""
    run, pids = Run(), list[int]()
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True), transient=True) as progress:
        bar, settings = progress.add_task("starting", total=EXPECTED_S), sections(PORTS[0])

        def show(text: str) -> None:
            progress.update(bar, description=text, completed=time.monotonic() - run.began_at)

        async def play(url: str, admin: httpx.Client) -> None:
            async with Scenario(url, admin, run, show) as scenario:
                await scenario.play()

        with served(Path(folder), "off", 0, ports=PORTS, sections=settings, on_start=pids.append) as (url, admin):
            asyncio.run(play(url, admin))
            log = controller_log(pids[0])
    behind = time.time() - time.monotonic()
    run.decisions = decisions_in(log, lambda wall: wall - behind)
    return run


def controller_log(pid: int) -> str:
    """Of the cluster that descends from this process."""
    found = next(match for match in map(SESSION.search, command_lines(pid)) if match)
    return "".join(path.read_text() for path in Path(found[1]).glob("logs/serve/controller_*.log"))


def main() -> None:
    """Exit status 1 if a request failed, an answer differs, or the replicas did not come and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, help="an SVG of replicas, streams and gaps over time")
    options = parser.parse_args()
    console.print(
        f"{STAYING.num_streams} streams stay, {COMING.num_streams} come and go; target_sequences {TARGET_SEQUENCES}; "
        f"for a benchmark, upscale_delay_s {UPSCALE_DELAY_S:g} and downscale_delay_s {DOWNSCALE_DELAY_S:g}"
    )
    run = observe()
    is_whole = report(run)
    if options.figure is not None:
        draw(run, options.figure)
    sys.exit(0 if is_whole else 1)


if __name__ == "__main__":
    main()
