"""Times one exchange, attention -> every expert rank -> attention, through the ports of a transport.

One process per expert rank echoes the one row it gets. With `--responder native` (shm only) the echo is C++, so what is
measured is the transport and the attention port; with `--responder python` it is the Python expert port as well. Run as
`python -m ops.bench.exchange`; prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

import torch

from routing.errors import TransportError
from routing.plan import DispatchPlan
from routing.transport.contract import AttentionPort, Endpoint, Exchange, ExpertPort, FrameLimits
from routing.transport.host import host_id
from routing.transport.select import TransportOptions, open_attention_port, open_expert_port
from routing.wire import FrameKind, Header

_TIMEOUT_S = 30.0
_IDLE_S = 0.5  # between two looks at whether the benchmark is over
_WARM_UP_EXCHANGES = 50
_OPTIONS = TransportOptions(timeout_s=_TIMEOUT_S)
_QUANTILES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Setup:
    """What is measured. row_bytes: one row of bfloat16. exchanges: per repeat."""

    transport: str
    responder: str
    ranks: int
    row_bytes: int
    exchanges: int
    repeats: int

    @property
    def limits(self) -> FrameLimits:
        return FrameLimits(hidden_size=self.row_bytes // 2, top_k=self.ranks, dtype=torch.bfloat16, max_rows=8)


def main() -> None:
    """Entry point."""
    setup = _parse()
    torch.set_num_threads(1)
    with _expert_processes(setup) as pipes, _attention_port(setup) as port:
        shards = _meet(port, pipes)
        port.wait_connected(sorted(shards), _TIMEOUT_S)
        _time_exchanges(port, setup, range(_WARM_UP_EXCHANGES))
        repeats = [_time_exchanges(port, setup, sequences) for sequences in _sequences(setup)]
    _report(setup, [_quantiles(micros) for micros in repeats])


def _parse() -> Setup:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=("shm", "gloo"), default="shm")
    parser.add_argument("--responder", choices=("native", "python"), default="python")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--row-bytes", type=int, default=8192)
    parser.add_argument("--exchanges", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    setup = Setup(**vars(parser.parse_args()))
    if setup.responder == "native" and setup.transport != "shm":
        parser.error("--responder native exists for --transport shm only")
    return setup


@contextmanager
def _attention_port(setup: Setup) -> Iterator[AttentionPort]:
    port = open_attention_port(setup.transport, ep_size=setup.ranks, limits=setup.limits, options=_OPTIONS)
    try:
        yield port
    finally:
        port.close()


@contextmanager
def _expert_processes(setup: Setup) -> Iterator[list[Connection]]:
    """One process per rank. Closing the pipes is what ends them."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for ep_rank in range(setup.ranks):
            ours, theirs = spawn.Pipe()
            processes.append(spawn.Process(target=_expert_process, args=(setup, ep_rank, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
        yield pipes
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(_TIMEOUT_S)


def _meet(port: AttentionPort, pipes: Sequence[Connection]) -> dict[int, Endpoint]:
    """Tell everybody who is there; in the cluster the view does this."""
    shards = {ep_rank: Endpoint(**pipe.recv()) for ep_rank, pipe in enumerate(pipes)}
    for pipe in pipes:
        pipe.send((asdict(port.endpoint), {ep_rank: asdict(endpoint) for ep_rank, endpoint in shards.items()}))
    port.reconcile(shards)
    return shards


def _expert_process(setup: Setup, ep_rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    if setup.responder == "native":
        _echo_natively(setup, ep_rank, pipe)
    else:
        _echo_in_python(setup, ep_rank, pipe)


def _echo_natively(setup: Setup, ep_rank: int, pipe: Connection) -> None:
    from ops.bench import _echo

    limits, name = setup.limits, f"step35-bench-{secrets.token_hex(16)}"
    shape = (limits.dtype, 0, 0, 0, 0, limits.max_rows, limits.max_rows * limits.top_k, limits.hidden_size)
    largest = Header(FrameKind.DISPATCH, False, *shape)
    sizes = (limits.dtype.itemsize, limits.max_in_flight, limits.max_frame_bytes)
    port = _echo.EchoPort(name, ep_rank, largest.pack(), *sizes)
    pipe.send(asdict(Endpoint("shm", name, host_id())))
    attention, _ = pipe.recv()
    port.admit(attention["address"])
    while not pipe.poll():
        port.serve(_IDLE_S)
    port.close()


def _echo_in_python(setup: Setup, ep_rank: int, pipe: Connection) -> None:
    port = open_expert_port(setup.transport, ep_rank=ep_rank, limits=setup.limits, options=_OPTIONS)
    pipe.send(asdict(port.endpoint))
    attention, shards = pipe.recv()
    port.reconcile([Endpoint(**attention)], {int(rank): Endpoint(**shard) for rank, shard in shards.items()})
    closer = threading.Thread(target=_close_with_pipe, args=(port, pipe))
    closer.start()
    try:
        while True:
            for work in port.receive(_TIMEOUT_S):
                port.reply(work, work.hidden)
    except TransportError:
        closer.join(_TIMEOUT_S)  # it closed the port and is about to return


def _close_with_pipe(port: ExpertPort, pipe: Connection) -> None:
    try:
        pipe.recv()
    except EOFError:
        port.close()


def _one_row_each(setup: Setup) -> DispatchPlan:
    pairs = torch.zeros(setup.ranks, dtype=torch.int32)
    splits = (1,) * setup.ranks
    return DispatchPlan(
        row_token=torch.zeros(setup.ranks, dtype=torch.int64),
        row_splits=splits,
        pair_row=pairs,
        pair_slot=pairs,
        pair_weight=torch.ones(setup.ranks),
        pair_source=torch.arange(setup.ranks),
        pair_splits=splits,
    )


def _sequences(setup: Setup) -> list[range]:
    """One range per repeat: a bundle never uses a sequence number twice."""
    starts = range(_WARM_UP_EXCHANGES, _WARM_UP_EXCHANGES + setup.repeats * setup.exchanges, setup.exchanges)
    return [range(start, start + setup.exchanges) for start in starts]


def _time_exchanges(port: AttentionPort, setup: Setup, sequences: range) -> list[float]:
    """Microseconds of each exchange, send to drop."""
    hidden = torch.randn(1, setup.limits.hidden_size).to(torch.bfloat16)
    plan, micros = _one_row_each(setup), []
    for sequence in sequences:
        exchange = Exchange(sequence, 0, sequence % 42, 0, False, hidden, plan)
        start = time.perf_counter()
        port.send(exchange)
        port.receive(exchange, _TIMEOUT_S)
        port.drop(exchange)
        micros.append((time.perf_counter() - start) * 1e6)
    return micros


def _quantiles(micros: list[float]) -> dict[str, float]:
    ordered = sorted(micros)
    return {name: round(ordered[int(share * (len(ordered) - 1))], 1) for name, share in _QUANTILES.items()}


def _report(setup: Setup, repeats: list[dict[str, float]]) -> None:
    print(f"{setup.transport}, {setup.responder} experts, {os.cpu_count()} cores, in µs")
    print(f"1 -> {setup.ranks} -> 1, one row of {setup.row_bytes} bytes to each rank and back")
    print("repeat  " + "".join(f"{name:>9}" for name in _QUANTILES))
    for idx, quantiles in enumerate(repeats):
        print(f"{idx:>6}  " + "".join(f"{value:>9.1f}" for value in quantiles.values()))
    best = min(repeats, key=lambda quantiles: quantiles["median"])
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps({"bench": "exchange", **asdict(setup), **machine, "best_repeat_us": best, "all_us": repeats}))


if __name__ == "__main__":
    main()
