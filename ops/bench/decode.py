"""Decode speed over HTTP: tokens per second and milliseconds per step at 1, 8 and 32 concurrent streams.

Speaks HTTP only. `python -m ops.bench.decode --url http://127.0.0.1:8000` measures a running server; without --url it
starts `step35 serve CHECKPOINT` itself and stops it afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median

import httpx

READY_TIMEOUT_S = 180.0
REQUEST_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Row:
    """One level of concurrency. step_ms: time per output token of a stream, which is a step, because a step emits one
    token per stream; median over streams. gap_ms_p99: between two chunks of a stream."""

    streams: int
    tokens: int
    tokens_per_s: float
    step_ms: float
    gap_ms_p99: float
    ttft_ms: float


@dataclass(frozen=True)
class Arrivals:
    """One stream: when each chunk with text came (time.perf_counter), and how many tokens there were in all."""

    times: list[float]
    tokens: int

    @property
    def step_ms(self) -> float:
        return 1e3 * (self.times[-1] - self.times[0]) / max(self.tokens - 1, 1)


async def measure(url: str, streams: int, tokens_per_stream: int, prompt_tokens: int) -> Row:
    """Open `streams` completions at once and read them to the end."""
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        bodies = [_body(model, idx, tokens_per_stream, prompt_tokens) for idx in range(streams)]
        started = time.perf_counter()
        arrivals = await asyncio.gather(*(_stream(client, body) for body in bodies))
        elapsed = time.perf_counter() - started
    gaps = sorted(1e3 * (b - a) for stream in arrivals for a, b in zip(stream.times, stream.times[1:], strict=False))
    tokens = sum(stream.tokens for stream in arrivals)
    return Row(
        streams=streams,
        tokens=tokens,
        tokens_per_s=round(tokens / elapsed, 1),
        step_ms=round(median(stream.step_ms for stream in arrivals), 2),
        gap_ms_p99=round(gaps[int(0.99 * (len(gaps) - 1))], 2),
        ttft_ms=round(1e3 * median(stream.times[0] - started for stream in arrivals), 1),
    )


def _body(model: str, idx: int, tokens: int, prompt_tokens: int) -> dict[str, object]:
    # Distinct prompts, so that the prefix cache does not help.
    prompt = [100 + (7 * idx + 13 * position) % 2000 for position in range(prompt_tokens)]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, **options}


async def _stream(client: httpx.AsyncClient, body: dict[str, object]) -> Arrivals:
    times: list[float] = []
    tokens = 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    raise RuntimeError(f"the server answered {event['error']}")
                if event["choices"]:
                    times.append(time.perf_counter())
                else:
                    tokens = event["usage"]["completion_tokens"]
    return Arrivals(times, tokens)


@contextlib.contextmanager
def served(checkpoint: str, port: int) -> Iterator[tuple[str, float]]:
    """A server of our own: yields its URL and the seconds until it was ready."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "cluster.cli", "serve", checkpoint]
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=sys.stderr)
    try:
        wait_ready(url, server)
        yield url, time.perf_counter() - started
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def wait_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    """Until the server can produce a token. Raises RuntimeError when it has ended, TimeoutError."""
    pause, deadline = threading.Event(), time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.returncode} before it was ready")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/ready", timeout=5).status_code == httpx.codes.OK:
                return
        pause.wait(0.25)
    raise TimeoutError(f"{url}/ready did not answer 200 within {READY_TIMEOUT_S:.0f} s")


def report(url: str, levels: list[int], tokens: int, prompt_tokens: int) -> list[Row]:
    """Warm up, then measure each level and print the table and one JSON line."""
    asyncio.run(measure(url, 1, 8, prompt_tokens))
    rows = [asyncio.run(measure(url, streams, tokens, prompt_tokens)) for streams in levels]
    print("| streams | tokens/s | ms per step | chunk gap p99, ms | TTFT, ms |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.streams} | {row.tokens_per_s} | {row.step_ms} | {row.gap_ms_p99} | {row.ttft_ms} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; default: start one")
    parser.add_argument("--checkpoint", default=".cache/demo-checkpoint", help="what to serve when starting one")
    parser.add_argument("--port", type=int, default=8000, help="where the started server listens (its default)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64, help="tokens per stream")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url, ready_s = options.url, None
        if url is None:
            url, ready_s = stack.enter_context(served(options.checkpoint, options.port))
            print(f"ready after {ready_s:.1f} s")
        rows = report(url, options.streams, options.tokens, options.prompt_tokens)
    print(json.dumps({"benchmark": "decode", "ready_s": ready_s, "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
