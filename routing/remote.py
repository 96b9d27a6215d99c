"""The dispatcher over a transport: plans each dispatch, numbers it, and sums what comes back.

Owns sequence numbers and the adopted expert map. Retrying is the caller's: a handle that failed is spent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from routing.combine import sum_partials, sum_per_expert
from routing.dispatcher import DispatchHandle, ExpertRequest
from routing.errors import RoutingError
from routing.exchange_counts import ExchangeCounts
from routing.experts import PAIRS_PER_TOUCH, ExpertMap
from routing.plan import DispatchPlan, LayerRouting, layer_routing, planner
from routing.transport.contract import AttentionPort, Exchange


@dataclass(frozen=True)
class PlanningTables:
    """One map as dispatches read it. layers: one entry per MoE layer."""

    map_epoch: int
    layers: Sequence[LayerRouting]


class RemoteDispatcher:
    """See `dispatcher.Dispatcher`. Used by one thread, the one that steps."""

    def __init__(
        self, port: AttentionPort, *, deterministic: bool, timeout_s: float, device: torch.device | str
    ) -> None:
        """timeout_s: how long one `combine` waits. `adopt` a map before the first dispatch."""
        self._port = port
        self._is_deterministic = deterministic
        self._timeout_s = timeout_s
        self._device = device
        self._plan = planner(device)
        self._sequences = itertools.count(1)
        self._tables = PlanningTables(-1, ())
        self.counts = ExchangeCounts()

    def tables_of(self, expert_map: ExpertMap, pairs_per_touch: int = PAIRS_PER_TOUCH) -> PlanningTables:
        """What planning with a map needs, made ahead on any thread: it takes milliseconds for a large model."""
        layers = [
            layer_routing(expert_map, idx, self._device, pairs_per_touch=pairs_per_touch)
            for idx in range(expert_map.num_moe_layers)
        ]
        return PlanningTables(expert_map.map_epoch, layers)

    def adopt(self, tables: PlanningTables) -> None:
        """Plan with this map from the next dispatch on. Handles in flight keep the map they were planned with."""
        self._tables = tables

    @property
    def map_epoch(self) -> int:
        """Of the map that dispatches are planned with; -1 before the first."""
        return self._tables.map_epoch

    @property
    def waited_s(self) -> float:
        return self.counts.combine_s

    def dispatch(self, request: ExpertRequest) -> DispatchHandle:
        began_at = time.perf_counter()
        plan = self._plan(request.topk_ids, request.topk_weights, self._tables.layers[request.moe_layer_idx])
        exchange = Exchange(
            sequence=next(self._sequences),
            map_epoch=self._tables.map_epoch,
            moe_layer_idx=request.moe_layer_idx,
            microbatch_idx=request.microbatch_idx,
            per_expert=self._is_deterministic,
            hidden=request.hidden,
            plan=plan,
        )
        try:
            self._port.send(exchange)
        except BaseException as error:
            self._failed(exchange, error)
            raise
        self.counts.bytes_sent += _dispatched_bytes(request.hidden, plan)
        self.counts.dispatch_s += time.perf_counter() - began_at
        return DispatchHandle(request, plan, exchange)

    def combine(self, handle: DispatchHandle) -> Tensor:
        exchange = handle.exchange
        assert isinstance(exchange, Exchange), "the handle comes from another dispatcher"
        began_at = time.perf_counter()
        combine = sum_per_expert if self._is_deterministic else sum_partials
        try:
            outputs = self._port.receive(exchange, self._timeout_s)
            combined = combine(outputs, handle.plan, handle.request)
        except BaseException as error:
            self._failed(exchange, error)
            raise
        num_bytes = sum(output.nbytes for output in outputs)
        self._port.drop(exchange)
        self.counts.num_exchanges += 1
        self.counts.bytes_received += num_bytes
        self.counts.combine_s += time.perf_counter() - began_at
        return combined

    def abandon(self, handle: DispatchHandle) -> None:
        assert isinstance(handle.exchange, Exchange), "the handle comes from another dispatcher"
        self._port.drop(handle.exchange)

    def _failed(self, exchange: Exchange, error: BaseException) -> None:
        self._port.drop(exchange)
        if isinstance(error, RoutingError):
            self.counts.failed(error)


def _dispatched_bytes(hidden: Tensor, plan: DispatchPlan) -> int:
    row_bytes = hidden.shape[1] * hidden.element_size()
    pairs = plan.pair_row.nbytes + plan.pair_slot.nbytes + plan.pair_weight.nbytes
    return len(plan.row_token) * row_bytes + pairs
