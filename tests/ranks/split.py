"""The split without Ray: expert ranks as processes, attention actors in this one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Timer

from actors.attention.actor import AttentionActor
from actors.attention.config import AttentionConfig
from actors.frame_limits import frame_limits
from actors.messages import GenerateRequest, TokenEvent
from actors.weights.check import read_model_config
from routing.experts import ExpertMap
from routing.transport.endpoint import Endpoint
from routing.transport.select import TransportOptions, open_attention_port

START_TIMEOUT_S = 60.0
READY_TIMEOUT_S = 60.0


class ExpertProcess:
    """A child that serves one rank. `close` ends it by closing its input, `kill` as a crash would."""

    def __init__(self, checkpoint: Path, ep_rank: int, transport: str) -> None:
        self.ep_rank = ep_rank
        command = [sys.executable, "-m", "tests.ranks.expert_process"]
        command += ["--checkpoint", str(checkpoint), "--ep-rank", str(ep_rank), "--transport", transport]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # noqa: TID251 - a child inherits its environment
        )
        self.endpoint: Endpoint | None = None

    @property
    def pid(self) -> int:
        return self._child.pid

    def tell(self, line: Mapping[str, object]) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(line) + "\n")
        self._child.stdin.flush()

    def await_endpoint(self) -> Endpoint:
        """Raises AssertionError if the child does not come up in time."""
        assert self._child.stdout is not None
        guard = Timer(START_TIMEOUT_S, self._child.kill)
        guard.start()
        try:
            line = self._child.stdout.readline()
        finally:
            guard.cancel()
        assert line, f"expert rank {self.ep_rank} did not start (exit code {self._child.poll()})"
        self.endpoint = Endpoint(**json.loads(line)["endpoint"])
        return self.endpoint

    def kill(self) -> None:
        self._child.kill()
        self._child.wait(timeout=10)

    def close(self) -> None:
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Split:
    """`ep_size` expert processes and any number of attention actors, joined by hand as the coordinator would."""

    def __init__(self, checkpoint: Path, config: AttentionConfig, expert_map: ExpertMap, transport: str) -> None:
        self._checkpoint, self._config, self._map, self._transport = checkpoint, config, expert_map, transport
        self._stack = ExitStack()
        self.attention: list[AttentionActor] = []
        self._attention_endpoints: list[Endpoint] = []
        self.experts: dict[int, ExpertProcess] = {}

    def open(self, num_attention: int = 1) -> None:
        for ep_rank in range(self._map.ep_size):
            self.start_expert(ep_rank)
        for expert in self.experts.values():
            expert.await_endpoint()
        for _ in range(num_attention):
            self._start_attention()
        self.reconcile()

    def start_expert(self, ep_rank: int) -> ExpertProcess:
        """A new process for a rank; the old one, if any, is gone. Follow with `await_endpoint` and `reconcile`."""
        expert = ExpertProcess(self._checkpoint, ep_rank, self._transport)
        self._stack.callback(expert.close)
        expert.tell({"engine": self._config.model_dump(), "expert_map": self._map.to_dict()})
        self.experts[ep_rank] = expert
        return expert

    def reconcile(self) -> None:
        """Tell every member who is there."""
        shards = {rank: expert.endpoint for rank, expert in self.experts.items() if expert.endpoint is not None}
        view = {
            "attention": [asdict(endpoint) for endpoint in self._attention_endpoints],
            "shards": {rank: asdict(endpoint) for rank, endpoint in shards.items()},
        }
        for rank in shards:
            self.experts[rank].tell(view)
        for actor in self.attention:
            actor.reconcile(shards, self._map)

    def close(self) -> None:
        for actor in self.attention:
            actor.close()
        self._stack.close()

    def _start_attention(self) -> None:
        limits = frame_limits(self._config, read_model_config(self._checkpoint))
        port = open_attention_port(
            self._transport, ep_size=self._map.ep_size, limits=limits, options=TransportOptions(timeout_s=20.0)
        )
        actor = AttentionActor(self._config, self._checkpoint, self._map, port)
        self._attention_endpoints.append(port.endpoint)
        self.attention.append(actor)
        actor.start()


@asynccontextmanager
async def opened(split: Split, num_attention: int = 1) -> AsyncIterator[Split]:
    """A split whose actors are ready."""
    try:
        split.open(num_attention)
        for actor in split.attention:
            await until_ready(actor)
        yield split
    finally:
        split.close()


async def until_ready(actor: AttentionActor) -> None:
    """Waits for the warm-up token. Raises TimeoutError."""
    async with asyncio.timeout(READY_TIMEOUT_S):
        while not actor.is_ready():
            actor.check_health()
            await asyncio.sleep(0.02)


async def collect(actor: AttentionActor, request: GenerateRequest) -> list[TokenEvent]:
    """Every event of a request."""
    return [event async for event in actor.generate(request)]
