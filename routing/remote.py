"""The dispatcher over a transport: plans each dispatch, numbers it, and sums what comes back.

Owns sequence numbers and the adopted expert map. Retrying is the caller's: a handle that failed is spent.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from routing.combine import sum_partials, sum_per_expert
from routing.dispatcher import DispatchHandle, ExpertRequest
from routing.experts import ExpertMap
from routing.plan import LayerRouting, layer_routing, planner
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

    def tables_of(self, expert_map: ExpertMap) -> PlanningTables:
        """What planning with a map needs, made ahead on any thread: it takes milliseconds for a large model."""
        layers = [layer_routing(expert_map, idx, self._device) for idx in range(expert_map.num_moe_layers)]
        return PlanningTables(expert_map.map_epoch, layers)

    def adopt(self, tables: PlanningTables) -> None:
        """Plan with this map from the next dispatch on. Handles in flight keep the map they were planned with."""
        self._tables = tables

    @property
    def map_epoch(self) -> int:
        """Of the map that dispatches are planned with; -1 before the first."""
        return self._tables.map_epoch

    def dispatch(self, request: ExpertRequest) -> DispatchHandle:
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
        except BaseException:
            self._port.drop(exchange)
            raise
        return DispatchHandle(request, plan, exchange)

    def combine(self, handle: DispatchHandle) -> Tensor:
        exchange = handle.exchange
        assert isinstance(exchange, Exchange), "the handle comes from another dispatcher"
        try:
            outputs = self._port.receive(exchange, self._timeout_s)
            combine = sum_per_expert if self._is_deterministic else sum_partials
            return combine(outputs, handle.plan, handle.request)
        finally:
            self._port.drop(exchange)

    def abandon(self, handle: DispatchHandle) -> None:
        assert isinstance(handle.exchange, Exchange), "the handle comes from another dispatcher"
        self._port.drop(handle.exchange)
