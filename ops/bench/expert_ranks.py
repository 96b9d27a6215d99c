"""Expert ranks for a benchmark's engines: in this process, or in processes of their own over shared memory.

The engines of one benchmark share a dispatcher, because only one of them runs at a time.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from actors.attention.config import AttentionConfig
from actors.expert.actor import ExpertActor, load_shard
from actors.expert.config import ExpertConfig
from actors.frame_limits import frame_limits
from actors.weights.check import read_model_config
from routing.dispatcher import DispatchHandle, ExpertRequest, TimedDispatcher
from routing.experts import ExpertMap
from routing.local import LocalDispatcher
from routing.remote import RemoteDispatcher
from routing.transport.contract import AttentionPort, Endpoint
from routing.transport.select import TransportOptions, open_attention_port, open_expert_port

TRANSPORT = "shm"
TIMEOUT_S = 60.0


class CountingDispatcher:
    """A dispatcher that counts, since `count`, the distinct experts of requests with a given number of rows."""

    def __init__(self, inner: TimedDispatcher) -> None:
        self._inner = inner
        self.count(None)

    def count(self, num_rows: int | None) -> None:
        """Begin anew. None: none of them, for it costs time."""
        self._num_rows = num_rows
        self.num_dispatches = self.num_experts = 0

    @property
    def waited_s(self) -> float:
        return self._inner.waited_s

    def dispatch(self, request: ExpertRequest) -> DispatchHandle:
        if request.hidden.shape[0] == self._num_rows:
            self.num_dispatches += 1
            self.num_experts += torch.unique(request.topk_ids).numel()
        return self._inner.dispatch(request)

    def combine(self, handle: DispatchHandle) -> Tensor:
        return self._inner.combine(handle)

    def abandon(self, handle: DispatchHandle) -> None:
        self._inner.abandon(handle)


def local_experts(checkpoint: Path, config: AttentionConfig, expert_map: ExpertMap) -> LocalDispatcher:
    """Every rank in this process."""
    ranks = [
        load_shard(_expert_config(config), checkpoint, expert_map, ep_rank) for ep_rank in range(expert_map.ep_size)
    ]
    return LocalDispatcher(expert_map, ranks, deterministic=config.deterministic, device=config.device)


@contextmanager
def separate_experts(checkpoint: Path, config: AttentionConfig, expert_map: ExpertMap) -> Iterator[RemoteDispatcher]:
    """A process for each rank; this process is the attention rank. Closing the pipes is what ends the others."""
    with shared_experts(checkpoint, config, expert_map, num_attention=1) as (dispatcher,):
        yield dispatcher


@contextmanager
def shared_experts(
    checkpoint: Path, config: AttentionConfig, expert_map: ExpertMap, num_attention: int
) -> Iterator[tuple[RemoteDispatcher, ...]]:
    """A process for each rank, and in this one as many attention ranks, each of which may step in its own thread."""
    limits = frame_limits(config, read_model_config(checkpoint))
    options = TransportOptions(timeout_s=TIMEOUT_S)
    spawn = multiprocessing.get_context("spawn")
    ports: list[AttentionPort] = []
    pipes, processes = [], []
    try:
        ports.extend(
            open_attention_port(TRANSPORT, ep_size=expert_map.ep_size, limits=limits, options=options)
            for _ in range(num_attention)
        )
        for ep_rank in range(expert_map.ep_size):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(checkpoint, config, expert_map, ep_rank, theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        _meet(ports, pipes)
        yield tuple(_dispatcher(port, config, expert_map) for port in ports)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(TIMEOUT_S)
        for port in ports:
            port.close()


def _dispatcher(port: AttentionPort, config: AttentionConfig, expert_map: ExpertMap) -> RemoteDispatcher:
    dispatcher = RemoteDispatcher(
        port, deterministic=config.deterministic, timeout_s=config.exchange_timeout_s, device=config.device
    )
    dispatcher.adopt(dispatcher.tables_of(expert_map))
    return dispatcher


def _meet(ports: Sequence[AttentionPort], pipes: Sequence[Connection]) -> None:
    """Tell everybody who is there; in the cluster the view does this. Raises EOFError if a rank died loading."""
    shards = {ep_rank: Endpoint(**pipe.recv()) for ep_rank, pipe in enumerate(pipes)}
    attention = [asdict(port.endpoint) for port in ports]
    for pipe in pipes:
        pipe.send((attention, {ep_rank: asdict(endpoint) for ep_rank, endpoint in shards.items()}))
    for port in ports:
        port.reconcile(shards)
        port.wait_connected(sorted(shards), TIMEOUT_S)


def _serve(checkpoint: Path, config: AttentionConfig, expert_map: ExpertMap, ep_rank: int, pipe: Connection) -> None:
    """One rank, until the other end of the pipe is closed."""
    torch.set_num_threads(1)
    limits = frame_limits(config, read_model_config(checkpoint))
    port = open_expert_port(TRANSPORT, ep_rank=ep_rank, limits=limits, options=TransportOptions(timeout_s=TIMEOUT_S))
    actor = ExpertActor(_expert_config(config), checkpoint, expert_map, ep_rank, port)
    actor.start()
    try:
        pipe.send(asdict(port.endpoint))
        attention, shards = pipe.recv()
        actor.reconcile(
            [Endpoint(**fields) for fields in attention], {rank: Endpoint(**shard) for rank, shard in shards.items()}
        )
        pipe.poll(None)
    finally:
        actor.close()


def _expert_config(config: AttentionConfig) -> ExpertConfig:
    return ExpertConfig(
        param_dtype=config.param_dtype,
        kernels=config.kernels,
        deterministic=config.deterministic,
        monitor_load=config.monitor_load,
    )
