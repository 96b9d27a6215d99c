"""Bundles of every transport inside the test process, the rows they carry, and experts that double their input.

Payloads are small whole numbers made from the token's index, so that sums are exact in every dtype.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from routing.errors import TransportError
from routing.experts import linear_expert_map
from routing.plan import layer_routing, plan_dispatch
from routing.transport.collective import PayloadFormat
from routing.transport.contract import AttentionPort, Endpoint, Exchange, ExpertPort, FrameLimits, Work
from routing.transport.loopback import LoopbackAttentionPort, LoopbackExpertPort, LoopbackNetwork
from routing.transport.select import TransportOptions, open_attention_port, open_expert_port

KINDS = ("loopback", "shm", "gloo")
LIMITS = FrameLimits(hidden_size=16, top_k=4, dtype=torch.float32, max_rows=32)
EXPERTS_PER_RANK = 4
DEADLINE_S = 10.0
SOON_S = 0.05

Answer = Callable[[ExpertPort, Work], None]


class Bundles:
    """Attention ports and one expert port per rank, all of one kind. `connect` joins them; `close` closes all."""

    def __init__(
        self,
        kind: str,
        *,
        ep_size: int = 2,
        num_attention: int = 1,
        limits: FrameLimits = LIMITS,
        capacity_rows: int | None = None,
    ) -> None:
        self.kind = kind
        self.limits = limits
        self.ep_size = ep_size
        self.network = LoopbackNetwork()
        self.options = TransportOptions(timeout_s=DEADLINE_S, capacity_rows=capacity_rows)
        self.experts = [self.open_expert(ep_rank) for ep_rank in range(ep_size)]
        self.attention = [self.open_attention() for _ in range(num_attention)]

    def open_attention(self) -> AttentionPort:
        if self.kind == "loopback":
            return LoopbackAttentionPort(self.network, ep_size=self.ep_size, limits=self.limits)
        return open_attention_port(self.kind, ep_size=self.ep_size, limits=self.limits, options=self.options)

    def open_expert(self, ep_rank: int) -> ExpertPort:
        if self.kind == "loopback":
            return LoopbackExpertPort(self.network, ep_rank=ep_rank, limits=self.limits)
        return open_expert_port(self.kind, ep_rank=ep_rank, limits=self.limits, options=self.options)

    @property
    def shards(self) -> dict[int, Endpoint]:
        return {ep_rank: port.endpoint for ep_rank, port in enumerate(self.experts)}

    @property
    def terms(self) -> str:
        """What members of a gloo bundle compare."""
        return PayloadFormat(self.limits, self.options.capacity_rows).terms

    def connect(self) -> None:
        for expert in self.experts:
            expert.reconcile([port.endpoint for port in self.attention], self.shards)
        for port in self.attention:
            port.reconcile(self.shards)
        for port in self.attention:
            self.wait(port)

    def wait(self, port: AttentionPort) -> None:
        """Until all ranks are connected; a transport may have to form its bundle again after a failure."""
        port.wait_connected(range(self.ep_size), DEADLINE_S)

    def close(self) -> None:
        for port in (*self.attention, *self.experts):
            port.close()

    @contextlib.contextmanager
    def serving(self, answer: Answer) -> Iterator[None]:
        """Every expert rank answers on a thread of its own. An exception there fails the test."""
        stop = threading.Event()
        failures: list[BaseException] = []
        threads = [threading.Thread(target=_serve, args=(port, answer, stop, failures)) for port in self.experts]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE_S)
        assert not failures, failures


def require(kind: str) -> None:
    """Skip when the native module has not been built; every other transport is always there."""
    if kind == "shm":
        try:
            importlib.import_module("routing.transport.shm")
        except ImportError as error:
            pytest.skip(f"the native module is not built: {error}")


def token_rows(num_tokens: int, limits: FrameLimits = LIMITS) -> Tensor:
    """hidden [T, H]: whole numbers 0..7, different for neighbouring tokens and columns."""
    numbers = torch.arange(num_tokens * limits.hidden_size).view(num_tokens, limits.hidden_size)
    return ((numbers * 5 + numbers // limits.hidden_size) % 8).to(limits.dtype)


def make_exchange(
    sequence: int,
    topk_ids: Sequence[Sequence[int]] | Tensor,
    *,
    ep_size: int = 2,
    limits: FrameLimits = LIMITS,
    per_expert: bool = False,
) -> Exchange:
    """Rows from `token_rows`; weights 1, 2, 1, 2... Expert e lives on rank e // EXPERTS_PER_RANK."""
    ids = torch.as_tensor(topk_ids, dtype=torch.int64).view(-1, limits.top_k)
    weights = torch.tensor([1.0, 2.0]).repeat(limits.top_k)[: limits.top_k].expand(ids.shape).contiguous()
    routing = layer_routing(linear_expert_map(1, ep_size * EXPERTS_PER_RANK, ep_size), 0)
    hidden = token_rows(len(ids), limits)
    plan = plan_dispatch(ids, weights, routing)
    return Exchange(sequence, 7, 3, sequence % 2, per_expert, hidden, plan)


def random_ids(num_tokens: int, ep_size: int, top_k: int = LIMITS.top_k) -> Tensor:
    """int64 [T, K]: distinct experts per token, spread over all ranks."""
    return torch.stack([torch.randperm(ep_size * EXPERTS_PER_RANK)[:top_k] for _ in range(num_tokens)])


def doubled(work: Work) -> Tensor:
    """What experts that double their input answer."""
    vectors = work.hidden[work.pair_row.long()] * 2
    if work.header.per_expert:
        return vectors
    sums = torch.zeros_like(work.hidden)
    return sums.index_add_(0, work.pair_row.long(), vectors * work.pair_weight.unsqueeze(1).to(vectors.dtype))


def answer_doubled(port: ExpertPort, work: Work) -> None:
    port.reply(work, doubled(work))


def expected_outputs(exchange: Exchange) -> list[Tensor]:
    """Per rank of the plan, from the exchange alone: twice the token, times the sum of the weights sent there."""
    plan = exchange.plan
    tokens, rows = plan.pair_source // (len(plan.pair_source) // max(len(exchange.hidden), 1) or 1), plan.row_token
    outputs = []
    for ep_rank in plan.ranks:
        pairs = slice(sum(plan.pair_splits[:ep_rank]), sum(plan.pair_splits[: ep_rank + 1]))
        own_rows = rows[sum(plan.row_splits[:ep_rank]) :][: plan.row_splits[ep_rank]]
        if exchange.per_expert:
            outputs.append(exchange.hidden[tokens[pairs]] * 2)
            continue
        weight_of_token = torch.zeros(len(exchange.hidden)).index_add_(0, tokens[pairs], plan.pair_weight[pairs])
        weights = weight_of_token[own_rows].unsqueeze(1).to(exchange.hidden.dtype)
        outputs.append(exchange.hidden[own_rows] * 2 * weights)
    return outputs


def run(port: AttentionPort, exchange: Exchange, timeout_s: float = DEADLINE_S) -> list[Tensor]:
    """Send, receive, drop; the outputs are copies, as they end with the exchange."""
    port.send(exchange)
    try:
        return [output.clone() for output in port.receive(exchange, timeout_s)]
    finally:
        port.drop(exchange)


def assert_doubled(port: AttentionPort, exchange: Exchange) -> None:
    """One whole exchange with doubling experts gives exactly what the exchange alone predicts."""
    outputs, expected = run(port, exchange), expected_outputs(exchange)
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.dtype == wanted.dtype
        assert torch.equal(output, wanted)


def take(port: ExpertPort, num_works: int) -> list[Work]:
    """Exactly this many frames of one rank, in the order received."""
    works: list[Work] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(works) < num_works and time.monotonic() < deadline:
        works += port.receive(deadline - time.monotonic())
    assert len(works) == num_works
    return works


def until(is_true: Callable[[], bool]) -> None:
    """Wait for something that another thread brings about and that has no event of its own."""
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not is_true():
        assert time.monotonic() < deadline, "it never came true"
        pause.wait(0.01)


def renumbered(exchange: Exchange, sequence: int) -> Exchange:
    return replace(exchange, sequence=sequence)


def in_thread(action: Callable[[], object]) -> Callable[[], object]:
    """Start it; the result joins the thread and gives what was returned or raised."""
    outcome: list[object] = []

    def call() -> None:
        try:
            outcome.append(action())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            outcome.append(error)

    thread = threading.Thread(target=call)
    thread.start()

    def result() -> object:
        thread.join(DEADLINE_S)
        assert outcome, "it still waits"
        return outcome[0]

    return result


def _serve(port: ExpertPort, answer: Answer, stop: threading.Event, failures: list[BaseException]) -> None:
    try:
        while not stop.is_set():
            for work in port.receive(SOON_S):
                answer(port, work)
    except TransportError:
        return  # the test closed the port
    except Exception as error:  # noqa: BLE001 - reported by `serving`, on the test's own thread
        failures.append(error)
