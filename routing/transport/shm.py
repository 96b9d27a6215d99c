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

from routing.errors import BundleIncomplete, ExchangeTimeout, FrameError, RankLost, TransportError, refusal
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
        self._format = _row_format(limits)
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
        assert len(self._open) < self._limits.max_in_flight, "more exchanges open than max_in_flight: drop one first"
        plan = exchange.plan
        missing = self._port.send(
            self._format,
            (
                exchange.sequence,
                exchange.map_epoch,
                exchange.moe_layer_idx,
                exchange.microbatch_idx,
                exchange.per_expert,
            ),
            (exchange.hidden, plan.row_token, plan.pair_row, plan.pair_slot, plan.pair_weight),
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
            raise refusal(ep_rank, text.decode(errors="replace"))
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
        self._format = _row_format(limits)
        self._maker = _shm.WorkMaker(Work, Header, FrameKind.DISPATCH, limits.dtype)
        self._views = _RequestViews(self._port, limits)

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
        while not (works := self._port.receive(slice_s, self._maker, self._views)):
            if self._port.is_closed:
                raise TransportError("the port is closed")
            self._views.keep_links(self._port.link_ids())
            slice_s = _slice_until(deadline)
            if slice_s == 0:
                return []
        return works

    def reply(self, work: Work, outputs: Tensor) -> None:
        """As the contract. Raises ValueError when the outputs have another shape or dtype than the Work asks for."""
        # Asking the tensor itself, every time, costs more than the rest of this method.
        if not self._port.reply(self._format, work.bundle, work.header.sequence, outputs):
            self._port.reply(self._format, work.bundle, work.header.sequence, outputs.contiguous())

    def refuse(self, work: Work, reason: str) -> None:
        self._port.refuse(work.bundle, work.header.sequence, reason)

    def close(self) -> None:
        self._port.close()
        self._views.keep_links([])


class _ViewCache(dict[tuple[int, ...], _View]):
    """Views by (link, slot, ...). A view keeps its link's memory mapped, so those of a link that left are dropped."""

    def keep(self, key: tuple[int, ...], view: _View, links: Sequence[int]) -> None:
        self.keep_links(links if len(self) < _MAX_CACHED_VIEWS else [])
        self[key] = view

    def keep_links(self, links: Sequence[int]) -> None:
        """Safe beside a reader on another thread: a view it misses is made again."""
        for key in [key for key in list(self) if key[0] not in links]:
            self.pop(key, None)


class _RequestViews(_ViewCache[tuple[Tensor, ...]]):
    """The four tensors of a request slot by (link, slot, num_rows, num_pairs), made when first asked for."""

    def __init__(self, port: _shm.ExpertPort, limits: FrameLimits) -> None:
        super().__init__()
        self._port = port
        self._limits = limits

    def __missing__(self, key: tuple[int, int, int, int]) -> tuple[Tensor, ...]:
        link, slot, num_rows, num_pairs = key
        frame = torch.from_numpy(self._port.request_frame(link, slot))
        views = _arrays(frame, _header(FrameKind.DISPATCH, self._limits, num_rows, num_pairs))
        self.keep(key, views, self._port.link_ids())
        return views


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


def _row_format(limits: FrameLimits) -> _shm.RowFormat:
    sample = torch.empty((0, limits.hidden_size), dtype=limits.dtype)
    return _shm.RowFormat(torch.Tensor.__dlpack_c_exchange_api__, sample)


def _arrays(frame: Tensor, header: Header) -> tuple[Tensor, ...]:
    """Typed views of the arrays behind a header. frame: uint8 [frame_bytes]."""
    return tuple(
        frame[spec.offset : spec.offset + spec.num_bytes].view(spec.dtype).view(spec.shape)
        for spec in frame_layout(header)
    )
