"""Times one exchange, attention -> every expert rank -> attention, through the Python ports of a transport.

One process per expert rank echoes the one row it gets, so what is measured is the transport and the two ports around
it. Run as `python -m ops.bench.exchange`; prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
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
from routing.transport.shm import ShmAttentionPort, ShmExpertPort

_TIMEOUT_S = 30.0
_WARM_UP_EXCHANGES = 200
_QUANTILES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True)
class Setup:
    """What is measured. row_bytes: one row of bfloat16. exchanges: per repeat."""

    transport: str
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
    with _expert_processes(setup) as pipes, _attention_port(setup) as port:
        shards = _meet(port, pipes)
        port.wait_connected(sorted(shards), _TIMEOUT_S)
        _time_exchanges(port, setup, _WARM_UP_EXCHANGES)
        repeats = [_time_exchanges(port, setup, setup.exchanges) for _ in range(setup.repeats)]
    _report(setup, [_quantiles(micros) for micros in repeats])


def _parse() -> Setup:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=("shm",), default="shm")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--row-bytes", type=int, default=8192)
    parser.add_argument("--exchanges", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    return Setup(**vars(parser.parse_args()))


@contextmanager
def _attention_port(setup: Setup) -> Iterator[AttentionPort]:
    torch.set_num_threads(1)
    port = ShmAttentionPort(ep_size=setup.ranks, limits=setup.limits)
    try:
        yield port
    finally:
        port.close()


@contextmanager
def _expert_processes(setup: Setup) -> Iterator[list[Connection]]:
    """One process per rank. Closing the pipes is what ends them."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited: nine processes share the cores
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
        pipe.send(asdict(port.endpoint))
    port.reconcile(shards)
    return shards


def _expert_process(setup: Setup, ep_rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    port = ShmExpertPort(ep_rank=ep_rank, limits=setup.limits)
    pipe.send(asdict(port.endpoint))
    port.reconcile([Endpoint(**pipe.recv())], {})
    threading.Thread(target=_close_with_pipe, args=(port, pipe), daemon=True).start()
    try:
        while True:
            for work in port.receive(_TIMEOUT_S):
                port.reply(work, work.hidden)
    except TransportError:
        return  # closed


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


def _time_exchanges(port: AttentionPort, setup: Setup, count: int) -> list[float]:
    """Microseconds of each exchange, send to drop."""
    hidden = torch.randn(1, setup.limits.hidden_size).to(torch.bfloat16)
    plan, micros = _one_row_each(setup), []
    for sequence in range(count):
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
    print(f"{setup.transport}: 1 -> {setup.ranks} -> 1, {setup.row_bytes} byte rows, {os.cpu_count()} cores, in µs")
    print("repeat  " + "".join(f"{name:>9}" for name in _QUANTILES))
    for idx, quantiles in enumerate(repeats):
        print(f"{idx:>6}  " + "".join(f"{value:>9.1f}" for value in quantiles.values()))
    best = min(repeats, key=lambda quantiles: quantiles["median"])
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps({"bench": "exchange", **asdict(setup), **machine, "best_repeat_us": best, "all_us": repeats}))


if __name__ == "__main__":
    main()
