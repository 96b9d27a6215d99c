"""Both ends of a bundle in one process: frames pass between threads by reference. The plainest form of the contract.

One lock per network guards all of its ports: simple to reason about, and the tensors are never copied under it.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from routing.errors import BundleIncomplete, ExchangeTimeout, FrameError, RankLost, TransportError, refusal
from routing.transport.contract import Endpoint, Exchange, FrameLimits, Work
from routing.transport.frames import (
    check_answer,
    check_dispatch,
    check_exchange,
    combine_header,
    dispatch_header,
    num_output_rows,
)
from routing.wire import Header, unpack_header


@dataclass(frozen=True)
class _Frame:
    """One dispatch on its way: packed header, rows, and the three pair arrays."""

    sequence: int
    header: bytes
    hidden: Tensor
    pairs: tuple[Tensor, Tensor, Tensor]


@dataclass(eq=False)
class _Link:
    """One attention port joined to one expert port. `answers`: outputs, or the sentence of a refusal, by sequence."""

    number: int
    pair: tuple[str, str]
    is_alive: bool = True
    frames: deque[_Frame] = field(default_factory=deque)
    answers: dict[int, tuple[Header, Tensor] | str] = field(default_factory=dict)
    awaited: set[int] = field(default_factory=set)


class LoopbackNetwork:
    """Joins the loopback ports of one process. Whoever builds the ports owns it; it holds nothing once they close."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._attention: dict[str, Mapping[int, Endpoint]] = {}
        self._experts: dict[str, tuple[int, frozenset[str]]] = {}
        self._links: dict[tuple[str, str], _Link] = {}

    def new_endpoint(self) -> Endpoint:
        return Endpoint("loopback", f"loopback-{next(self._numbers)}", f"process-{id(self)}")

    def attach_attention(self, address: str, shards: Mapping[int, Endpoint]) -> None:
        with self.changed:
            self._attention[address] = dict(shards)
            self._relink()

    def attach_expert(self, address: str, ep_rank: int, attention: Iterable[Endpoint]) -> None:
        with self.changed:
            self._experts[address] = (ep_rank, frozenset(endpoint.address for endpoint in attention))
            self._relink()

    def detach(self, address: str) -> None:
        with self.changed:
            self._attention.pop(address, None)
            self._experts.pop(address, None)
            self._relink()

    def links_of_attention(self, address: str) -> dict[int, _Link]:
        """Live links by EP rank. The caller holds `changed`."""
        return {self._experts[link.pair[1]][0]: link for link in self._links.values() if link.pair[0] == address}

    def links_of_expert(self, address: str) -> list[_Link]:
        """Live links of one expert port. The caller holds `changed`."""
        return [link for link in self._links.values() if link.pair[1] == address]

    def _relink(self) -> None:
        """A link lives while both ends want it; wanting it again makes a new one."""
        wanted = set(self._wanted_pairs())
        for pair in self._links.keys() - wanted:
            self._links.pop(pair).is_alive = False
        for pair in wanted - self._links.keys():
            self._links[pair] = _Link(next(self._numbers), pair)
        self.changed.notify_all()

    def _wanted_pairs(self) -> Iterable[tuple[str, str]]:
        for address, shards in self._attention.items():
            for ep_rank, endpoint in shards.items():
                expert = self._experts.get(endpoint.address)
                if expert is not None and expert[0] == ep_rank and address in expert[1]:
                    yield address, endpoint.address


class LoopbackAttentionPort:
    """The attention end; see `contract.AttentionPort`."""

    def __init__(self, network: LoopbackNetwork, *, ep_size: int, limits: FrameLimits) -> None:
        self._network = network
        self._ep_size = ep_size
        self._limits = limits
        self._endpoint = network.new_endpoint()
        self._open: dict[int, dict[int, _Link]] = {}
        self._is_closed = False
        network.attach_attention(self._endpoint.address, {})

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def reconcile(self, shards: Mapping[int, Endpoint]) -> None:
        outside = [ep_rank for ep_rank in shards if not 0 <= ep_rank < self._ep_size]
        if outside:
            raise ValueError(f"ep_ranks {outside} outside ep_size {self._ep_size}")
        if not self._is_closed:
            self._network.attach_attention(self._endpoint.address, shards)

    def connected(self) -> frozenset[int]:
        with self._network.changed:
            return frozenset(self._links())

    def wait_connected(self, ep_ranks: Sequence[int], timeout_s: float) -> None:
        wanted = set(ep_ranks)
        with self._network.changed:
            self._network.changed.wait_for(lambda: self._is_closed or wanted <= set(self._links()), timeout_s)
            missing = wanted - set(self._links())
        if missing:
            raise BundleIncomplete(f"expert ranks {sorted(missing)} are not connected", missing)

    def send(self, exchange: Exchange) -> None:
        check_exchange(exchange, self._limits)
        frames = _split(exchange)
        with self._network.changed:
            assert len(self._open) < self._limits.max_in_flight, "one more exchange than max_in_flight is open"
            links = self._links()
            missing = frames.keys() - links.keys()
            if missing:
                raise BundleIncomplete(f"expert ranks {sorted(missing)} are not connected", missing)
            self._open[exchange.sequence] = {ep_rank: links[ep_rank] for ep_rank in frames}
            for ep_rank, frame in frames.items():
                links[ep_rank].frames.append(frame)
                links[ep_rank].awaited.add(exchange.sequence)
            self._network.changed.notify_all()

    def receive(self, exchange: Exchange, timeout_s: float) -> list[Tensor]:
        links = self._open[exchange.sequence]
        with self._network.changed:
            self._network.changed.wait_for(lambda: _is_settled(links.values(), exchange.sequence), timeout_s)
            answers = {rank: link.answers.get(exchange.sequence) for rank, link in links.items()}
            lost = [rank for rank, link in links.items() if answers[rank] is None and not link.is_alive]
        if lost:
            raise RankLost(f"expert ranks {sorted(lost)} closed their link", lost)
        late = [rank for rank, answer in answers.items() if answer is None]
        if late:
            raise ExchangeTimeout(f"no answer from expert ranks {sorted(late)} in {timeout_s} s", late)
        return [_outputs(exchange, rank, answer) for rank, answer in answers.items()]

    def drop(self, exchange: Exchange) -> None:
        with self._network.changed:
            for link in self._open.pop(exchange.sequence, {}).values():
                link.awaited.discard(exchange.sequence)
                link.answers.pop(exchange.sequence, None)

    def close(self) -> None:
        self._is_closed = True
        self._network.detach(self._endpoint.address)

    def _links(self) -> dict[int, _Link]:
        return self._network.links_of_attention(self._endpoint.address)


class LoopbackExpertPort:
    """The expert end; see `contract.ExpertPort`."""

    def __init__(self, network: LoopbackNetwork, *, ep_rank: int, limits: FrameLimits) -> None:
        self._network = network
        self._ep_rank = ep_rank
        self._limits = limits
        self._endpoint = network.new_endpoint()
        self._is_closed = False
        network.attach_expert(self._endpoint.address, ep_rank, ())

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def reconcile(self, attention: Sequence[Endpoint], shards: Mapping[int, Endpoint]) -> None:
        served = attention if shards.get(self._ep_rank) == self._endpoint else ()
        if not self._is_closed:
            self._network.attach_expert(self._endpoint.address, self._ep_rank, served)

    def receive(self, timeout_s: float) -> list[Work]:
        deadline = time.monotonic() + timeout_s
        works: list[Work] = []
        while not works and (frames := self._take(deadline - time.monotonic())):
            works = [work for link, frame in frames if (work := self._parse(link, frame)) is not None]
        return works

    def reply(self, work: Work, outputs: Tensor) -> None:
        expected = (num_output_rows(work.header), self._limits.hidden_size)
        if tuple(outputs.shape) != expected or outputs.dtype != work.header.dtype:
            raise ValueError(f"outputs {tuple(outputs.shape)} {outputs.dtype}, expected {expected} {work.header.dtype}")
        self._answer(work.bundle, work.header.sequence, (combine_header(work.header), outputs.clone()))

    def refuse(self, work: Work, reason: str) -> None:
        self._answer(work.bundle, work.header.sequence, reason)

    def close(self) -> None:
        self._is_closed = True
        self._network.detach(self._endpoint.address)

    def _take(self, timeout_s: float) -> list[tuple[_Link, _Frame]]:
        with self._network.changed:
            self._network.changed.wait_for(
                lambda: self._is_closed or any(link.frames for link in self._links()), timeout_s
            )
            if self._is_closed:
                raise TransportError("the expert port is closed")
            return [(link, link.frames.popleft()) for link in self._links() for _ in range(len(link.frames))]

    def _parse(self, link: _Link, frame: _Frame) -> Work | None:
        try:
            header = unpack_header(frame.header)
            check_dispatch(header, self._limits)
        except FrameError as error:
            self._answer(link.number, frame.sequence, str(error))
            return None
        pair_row, pair_slot, pair_weight = frame.pairs
        return Work(link.number, header, frame.hidden, pair_row, pair_slot, pair_weight)

    def _answer(self, bundle: int, sequence: int, answer: tuple[Header, Tensor] | str) -> None:
        with self._network.changed:
            for link in self._links():
                # An exchange that was dropped is awaited no more; keeping its answer would leak.
                if link.number == bundle and sequence in link.awaited:
                    link.answers[sequence] = answer
            self._network.changed.notify_all()

    def _links(self) -> list[_Link]:
        return self._network.links_of_expert(self._endpoint.address)


def _split(exchange: Exchange) -> dict[int, _Frame]:
    plan = exchange.plan
    hidden = exchange.hidden.index_select(0, plan.row_token).split(list(plan.row_splits))
    splits = list(plan.pair_splits)
    pairs = zip(plan.pair_row.split(splits), plan.pair_slot.split(splits), plan.pair_weight.split(splits), strict=True)
    parts = zip(hidden, pairs, strict=True)
    return {
        ep_rank: _Frame(exchange.sequence, dispatch_header(exchange, ep_rank).pack(), rows, arrays)
        for ep_rank, (rows, arrays) in enumerate(parts)
        if len(rows)
    }


def _is_settled(links: Iterable[_Link], sequence: int) -> bool:
    unanswered = [link for link in links if sequence not in link.answers]
    return not unanswered or not all(link.is_alive for link in unanswered)


def _outputs(exchange: Exchange, ep_rank: int, answer: tuple[Header, Tensor] | str | None) -> Tensor:
    assert answer is not None, "an unanswered rank is lost or late, and was reported as such"
    if isinstance(answer, str):
        raise refusal(ep_rank, answer)
    check_answer(answer[0], dispatch_header(exchange, ep_rank))
    return answer[1]
