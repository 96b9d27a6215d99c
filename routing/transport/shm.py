"""Both ports over shared memory, for processes of one host. Slots, doorbells and sockets are native (`_shm`); this file
turns their numbers into tensors and exceptions. Knows nothing of experts or of the meaning of a row.

A tensor handed out is a view of a slot. Views are cached, because making one costs more than a small exchange.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from routing.errors import BundleIncomplete, ExchangeTimeout, ExpertRefused, FrameError, RankLost, TransportError
from routing.transport import _shm
from routing.transport.contract import Endpoint, Exchange, FrameLimits, Work
from routing.transport.host import host_id
from routing.wire import HEADER_BYTES, FrameKind, Header, frame_layout

_KIND = "shm"
# A native wait is cut into slices, so that signals reach Python. One wake-up per slice is what idling costs.
_SLICE_S = 0.2
_MAX_CACHED_VIEWS = 4096

_View = TypeVar("_View")


class ShmAttentionPort:
    """AttentionPort over shared memory. Raises ValueError when the limits do not fit the transport."""

    def __init__(self, *, ep_size: int, limits: FrameLimits) -> None:
        self._ep_size = ep_size
        self._limits = limits
        self._endpoint = _new_endpoint()
        self._port = _shm.AttentionPort(self._endpoint.address, _native_limits(limits))
        self._open: set[int] = set()
        self._views: _ViewCache[Tensor] = _ViewCache()
        self._unreachable: dict[int, str] = {}

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def reconcile(self, shards: Mapping[int, Endpoint]) -> None:
        """As the contract. Raises ValueError for a rank outside the bundle."""
        outside = [ep_rank for ep_rank in shards if not 0 <= ep_rank < self._ep_size]
        if outside:
            raise ValueError(f"expert ranks {outside} do not lie in [0, {self._ep_size})")
        reachable = {ep_rank: endpoint.address for ep_rank, endpoint in shards.items() if _is_reachable(endpoint)}
        self._unreachable = {
            ep_rank: f"its {endpoint.kind} endpoint shares no memory with this process"
            for ep_rank, endpoint in shards.items()
            if ep_rank not in reachable
        }
        self._port.reconcile(reachable)
        self._views.keep_links(self._port.link_ids())

    def connected(self) -> frozenset[int]:
        return frozenset(self._port.connected())

    def wait_connected(self, ep_ranks: Sequence[int], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while missing := self._port.wait_connected(ep_ranks, _slice_until(deadline)):
            self._check_open()
            if time.monotonic() >= deadline:
                raise self._incomplete(missing)

    def send(self, exchange: Exchange) -> None:
        _check_exchange(exchange, self._limits)
        assert len(self._open) < self._limits.max_in_flight, "more exchanges open than max_in_flight: drop one first"
        hidden, plan = exchange.hidden, exchange.plan
        missing = self._port.send(
            (
                exchange.sequence,
                exchange.map_epoch,
                exchange.moe_layer_idx,
                exchange.microbatch_idx,
                exchange.per_expert,
            ),
            (hidden.data_ptr(), hidden.shape[0], plan.row_token.data_ptr()),
            (plan.pair_row.data_ptr(), plan.pair_slot.data_ptr(), plan.pair_weight.data_ptr()),
            plan.row_splits,
            plan.pair_splits,
        )
        if missing:
            self._check_open()
            raise self._incomplete(missing)
        self._open.add(exchange.sequence)

    def receive(self, exchange: Exchange, timeout_s: float) -> list[Tensor]:
        deadline = time.monotonic() + timeout_s
        slice_s = min(timeout_s, _SLICE_S)
        while (replies := self._port.receive(exchange.sequence, slice_s)) is None:
            self._check_owing(exchange, is_late=time.monotonic() >= deadline)
            slice_s = _slice_until(deadline)
        views = self._views
        try:
            return [views[reply] for reply in replies]
        except KeyError:
            ranks = exchange.plan.ranks
            return [self._view(ep_rank, *reply) for ep_rank, reply in zip(ranks, replies, strict=True)]

    def drop(self, exchange: Exchange) -> None:
        self._port.drop(exchange.sequence)
        self._open.discard(exchange.sequence)

    def close(self) -> None:
        self._port.close()
        self._views.keep_links([])

    def _view(self, ep_rank: int, link: int, slot: int, outcome: int, num_vectors: int) -> Tensor:
        """The outputs in a reply slot, [num_vectors, H]. Raises when the slot holds something else."""
        frame = torch.from_numpy(self._port.reply_frame(link, slot))
        if outcome == _shm.REFUSAL:
            text = bytes(frame[HEADER_BYTES : HEADER_BYTES + num_vectors].tolist())
            raise ExpertRefused(ep_rank, text.decode(errors="replace"))
        if outcome != _shm.OUTPUTS:
            raise FrameError(f"the reply of expert rank {ep_rank} does not match the rows it was sent")
        (outputs,) = _arrays(frame, _header(FrameKind.COMBINE, self._limits, num_vectors, 0))
        self._views.keep((link, slot, outcome, num_vectors), outputs, self._port.link_ids())
        return outputs

    def _check_owing(self, exchange: Exchange, *, is_late: bool) -> None:
        self._check_open()
        lost, late = self._port.owing(exchange.sequence)
        if lost:
            raise RankLost(f"expert ranks {lost} went away while they owed an answer", lost)
        if late and is_late:
            raise ExchangeTimeout(f"expert ranks {late} did not answer exchange {exchange.sequence} in time", late)

    def _check_open(self) -> None:
        if self._port.is_closed:
            raise TransportError("the port is closed")

    def _incomplete(self, missing: Sequence[int]) -> BundleIncomplete:
        reasons = (f"{ep_rank}: {self._unreachable.get(ep_rank) or self._port.status(ep_rank)}" for ep_rank in missing)
        return BundleIncomplete(f"expert ranks cannot take rows ({'; '.join(reasons)})", missing)


class ShmExpertPort:
    """ExpertPort over shared memory. Raises ValueError when the limits do not fit the transport."""

    def __init__(self, *, ep_rank: int, limits: FrameLimits) -> None:
        self._limits = limits
        self._endpoint = _new_endpoint()
        self._port = _shm.ExpertPort(self._endpoint.address, ep_rank, _native_limits(limits))
        self._views: _ViewCache[tuple[Tensor, ...]] = _ViewCache()

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def reconcile(self, attention: Sequence[Endpoint], shards: Mapping[int, Endpoint]) -> None:
        """As the contract; `shards` tells this transport nothing. A bundle not listed yet waits at the door."""
        self._port.reconcile({endpoint.address for endpoint in attention if _is_reachable(endpoint)})

    def receive(self, timeout_s: float) -> list[Work]:
        """As the contract. Raises TransportError when the port is closed."""
        deadline = time.monotonic() + timeout_s
        slice_s = min(timeout_s, _SLICE_S)
        while not (requests := self._port.receive(slice_s)):
            if self._port.is_closed:
                raise TransportError("the port is closed")
            self._views.keep_links(self._port.link_ids())
            slice_s = _slice_until(deadline)
            if slice_s == 0:
                return []
        return [self._work(*request) for request in requests]

    def reply(self, work: Work, outputs: Tensor) -> None:
        limits = self._limits
        assert outputs.dtype is limits.dtype, f"outputs must be {limits.dtype}"
        assert outputs.is_cpu, "outputs must lie in host memory"
        num_vectors, hidden_size = outputs.shape
        assert hidden_size == limits.hidden_size, f"outputs must be {limits.hidden_size} wide"
        outputs = outputs.contiguous()
        self._port.reply(work.bundle, work.header.sequence, outputs.data_ptr(), num_vectors)

    def refuse(self, work: Work, reason: str) -> None:
        self._port.refuse(work.bundle, work.header.sequence, reason)

    def close(self) -> None:
        self._port.close()
        self._views.keep_links([])

    def _work(
        self,
        link: int,
        slot: int,
        num_rows: int,
        num_pairs: int,
        per_expert: bool,
        map_epoch: int,
        sequence: int,
        moe_layer_idx: int,
        microbatch_idx: int,
    ) -> Work:
        key = (link, slot, num_rows, num_pairs)
        views = self._views.get(key) or self._view(key)
        header = Header(
            FrameKind.DISPATCH,
            per_expert,
            self._limits.dtype,
            map_epoch,
            sequence,
            moe_layer_idx,
            microbatch_idx,
            num_rows,
            num_pairs,
            self._limits.hidden_size,
        )
        return Work(link, header, *views)

    def _view(self, key: tuple[int, int, int, int]) -> tuple[Tensor, ...]:
        link, slot, num_rows, num_pairs = key
        frame = torch.from_numpy(self._port.request_frame(link, slot))
        views = _arrays(frame, _header(FrameKind.DISPATCH, self._limits, num_rows, num_pairs))
        self._views.keep(key, views, self._port.link_ids())
        return views


class _ViewCache(dict[tuple[int, ...], _View]):
    """Views by (link, slot, ...). A view keeps its link's memory mapped, so those of a link that left are dropped."""

    def keep(self, key: tuple[int, ...], view: _View, links: Sequence[int]) -> None:
        self.keep_links(links if len(self) < _MAX_CACHED_VIEWS else [])
        self[key] = view

    def keep_links(self, links: Sequence[int]) -> None:
        """Safe beside a reader on another thread: a view it misses is made again."""
        for key in [key for key in list(self) if key[0] not in links]:
            self.pop(key, None)


def _new_endpoint() -> Endpoint:
    # Unguessable, so that only who is told by the view can connect.
    return Endpoint(_KIND, f"step35-{secrets.token_hex(16)}", host_id())


def _is_reachable(endpoint: Endpoint) -> bool:
    return endpoint.kind == _KIND and endpoint.host_id == host_id()


def _slice_until(deadline: float) -> float:
    return min(max(deadline - time.monotonic(), 0.0), _SLICE_S)


def _header(kind: FrameKind, limits: FrameLimits, num_rows: int, num_pairs: int) -> Header:
    """A header that describes sizes only."""
    return Header(kind, False, limits.dtype, 0, 0, 0, 0, num_rows, num_pairs, limits.hidden_size)


def _native_limits(limits: FrameLimits) -> _shm.Limits:
    """Magic, version and dtype code reach the native side inside a header, so that wire.py alone defines them."""
    largest = _header(FrameKind.DISPATCH, limits, limits.max_rows, limits.max_rows * limits.top_k)
    return _shm.Limits(
        largest_header=largest.pack(),
        item_bytes=limits.dtype.itemsize,
        max_in_flight=limits.max_in_flight,
        frame_bytes=limits.max_frame_bytes,
    )


def _arrays(frame: Tensor, header: Header) -> tuple[Tensor, ...]:
    """Typed views of the arrays behind a header. frame: uint8 [frame_bytes]."""
    return tuple(
        frame[spec.offset : spec.offset + spec.num_bytes].view(spec.dtype).view(spec.shape)
        for spec in frame_layout(header)
    )


def _check_exchange(exchange: Exchange, limits: FrameLimits) -> None:
    """What the native copy relies on: it is given addresses, not tensors."""
    hidden, plan = exchange.hidden, exchange.plan
    assert hidden.shape[1] == limits.hidden_size, f"hidden must be {limits.hidden_size} wide"
    assert plan.row_token.numel() >= sum(plan.row_splits), "row_token is shorter than its splits"
    num_pairs = sum(plan.pair_splits)
    for tensor, dtype in (
        (hidden, limits.dtype),
        (plan.row_token, torch.int64),
        (plan.pair_row, torch.int32),
        (plan.pair_slot, torch.int32),
        (plan.pair_weight, torch.float32),
    ):
        assert tensor.dtype is dtype, f"{tensor.dtype} given where the frame has {dtype}"
        assert tensor.is_cpu and tensor.is_contiguous(), "the rows of an exchange are read in place: contiguous, on CPU"
    for pairs in (plan.pair_row, plan.pair_slot, plan.pair_weight):
        assert pairs.numel() >= num_pairs, "pair arrays are shorter than their splits"
