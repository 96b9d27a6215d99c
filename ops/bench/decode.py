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
    """One level of concurrency. A step emits one token per stream, so the gap between a stream's tokens is the step."""

    streams: int
    tokens: int
    tokens_per_s: float
    step_ms_median: float
    step_ms_p99: float
    ttft_ms_median: float


async def measure(url: str, streams: int, tokens_per_stream: int, prompt_tokens: int) -> Row:
    """Open `streams` completions at once and read them to the end."""
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        bodies = [_body(model, idx, tokens_per_stream, prompt_tokens) for idx in range(streams)]
        started = time.perf_counter()
        arrivals = await asyncio.gather(*(_stream(client, body) for body in bodies))
        elapsed = time.perf_counter() - started
    gaps = sorted(1e3 * (b - a) for times in arrivals for a, b in zip(times, times[1:], strict=False))
    tokens = sum(len(times) for times in arrivals)
    return Row(
        streams=streams,
        tokens=tokens,
        tokens_per_s=round(tokens / elapsed, 1),
        step_ms_median=round(median(gaps), 2),
        step_ms_p99=round(gaps[int(0.99 * (len(gaps) - 1))], 2),
        ttft_ms_median=round(1e3 * median(times[0] - started for times in arrivals), 1),
    )


def _body(model: str, idx: int, tokens: int, prompt_tokens: int) -> dict[str, object]:
    # Distinct prompts, so that the prefix cache does not help.
    prompt = [100 + (7 * idx + 13 * position) % 2000 for position in range(prompt_tokens)]
    sampling = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, "logprobs": 0}
    return {"model": model, "prompt": prompt, "stream": True, **sampling}


async def _stream(client: httpx.AsyncClient, body: dict[str, object]) -> list[float]:
    """Arrival time of every token; tokens that arrive together share one."""
    times: list[float] = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            times.extend([time.perf_counter()] * _tokens_in(json.loads(line[6:])))
    return times


def _tokens_in(event: dict[str, object]) -> int:
    if "error" in event:
        raise RuntimeError(f"the server answered {event['error']}")
    choices = event["choices"]
    assert isinstance(choices, list)
    return sum(len((choice.get("logprobs") or {}).get("tokens", ())) for choice in choices)


@contextlib.contextmanager
def served(checkpoint: str, port: int) -> Iterator[tuple[str, float]]:
    """A server of our own: yields its URL and the seconds until it was ready."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "cluster.cli", "serve", checkpoint]
    started = time.perf_counter()
    server = subprocess.Popen(command, stdout=sys.stderr)
    try:
        _wait_ready(url, server)
        yield url, time.perf_counter() - started
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def _wait_ready(url: str, server: subprocess.Popen[bytes]) -> None:
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
    print("| streams | tokens/s | ms per step, median | p99 | TTFT ms, median |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.streams} | {row.tokens_per_s} | {row.step_ms_median} | {row.step_ms_p99} | {row.ttft_ms_median} |"
        )
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
