"""Both ports over shared memory, for processes of one host. Rings, doorbells and sockets are native (`_shm`); this file
turns their numbers into tensors and exceptions. Knows nothing of experts or of the meaning of a row.

A tensor handed out is a view of a slot. Views are cached, because making one costs more than a small exchange.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence

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

_ReplyKey = tuple[int, int, int, int]
_RequestKey = tuple[int, int, int, int]


class ShmAttentionPort:
    """AttentionPort over shared memory. Raises ValueError when the limits do not fit the transport."""

    def __init__(self, *, ep_size: int, limits: FrameLimits) -> None:
        self._ep_size = ep_size
        self._limits = limits
        self._endpoint = _new_endpoint()
        self._port = _shm.AttentionPort(self._endpoint.address, _native_limits(limits))
        self._num_open = _OpenExchanges(limits.max_in_flight)
        self._views: dict[_ReplyKey, Tensor] = {}
        self._unreachable: dict[int, str] = {}

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def reconcile(self, shards: Mapping[int, Endpoint]) -> None:
        """As the contract. Raises ValueError for a rank outside the bundle."""
        outside = [rank for rank in shards if not 0 <= rank < self._ep_size]
        if outside:
            raise ValueError(f"expert ranks {outside} do not lie in [0, {self._ep_size})")
        reachable = {rank: endpoint.address for rank, endpoint in shards.items() if _is_reachable(endpoint)}
        self._unreachable = {
            rank: f"its endpoint ({endpoint.kind}) shares no memory with this process"
            for rank, endpoint in shards.items()
            if rank not in reachable
        }
        self._port.reconcile(reachable)

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
        self._num_open.add(exchange.sequence)
        hidden, plan = exchange.hidden, exchange.plan
        ids = (
            exchange.sequence,
            exchange.map_epoch,
            exchange.moe_layer_idx,
            exchange.microbatch_idx,
            exchange.per_expert,
        )
        rows = (hidden.data_ptr(), hidden.shape[0], plan.row_token.data_ptr())
        pairs = (plan.pair_row.data_ptr(), plan.pair_slot.data_ptr(), plan.pair_weight.data_ptr())
        missing = self._port.send(ids, rows, pairs, plan.row_splits, plan.pair_splits)
        if missing:
            self._check_open()
            raise self._incomplete(missing)

    def receive(self, exchange: Exchange, timeout_s: float) -> list[Tensor]:
        deadline = time.monotonic() + timeout_s
        while (replies := self._port.receive(exchange.sequence, _slice_until(deadline))) is None:
            self._check_owing(exchange, is_late=time.monotonic() >= deadline)
        views = self._views
        return [views[key] if key in views else self._open_reply(key, exchange) for key in replies]

    def drop(self, exchange: Exchange) -> None:
        self._port.drop(exchange.sequence)
        self._num_open.discard(exchange.sequence)

    def close(self) -> None:
        self._port.close()
        self._views.clear()
