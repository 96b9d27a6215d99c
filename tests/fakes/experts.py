"""An expert tier for tests of what an operator sees and orders: status of any size, a control in memory, its server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from cluster.admin.app import create_admin_app
from cluster.admin.control import ExpertControl
from cluster.admin.server import AdminServer
from cluster.errors import InvalidOrder
from cluster.experts_status import (
    BalancerStatus,
    ExpertStatus,
    ExpertTierStatus,
    LayerStatus,
    Outcome,
    Phase,
    Proposal,
    RebalanceRecord,
)

FIRST_MOE_LAYER = 3
NUM_LOGICAL_EXPERTS = 288
TOKEN = "operators-token"
BEARER = {"authorization": f"Bearer {TOKEN}"}


def layer_status(layer_id: int, ep_size: int, rng: np.random.Generator, **fields: Any) -> LayerStatus:
    """One layer with random load."""
    pairs = rng.gamma(12.0, 10.0, ep_size)
    values: dict[str, Any] = {
        "layer_id": layer_id,
        "rank_pairs": tuple(pairs.tolist()),
        "rank_experts": tuple(rng.uniform(8.0, 30.0, ep_size).tolist()),
        "balancedness": float(pairs.mean() / pairs.max()),
        "num_copies": int(rng.integers(0, ep_size)),
        "mass": float(rng.uniform(0.1, 0.7)),
        "entropy": float(rng.uniform(0.4, 0.9)),
        "margin": float(rng.uniform(0.001, 0.05)),
        "norm_low": 0.42,
        "norm_high": 2.31,
        "is_drifting": False,
    }
    return LayerStatus(**{**values, **fields})


def record(**fields: Any) -> RebalanceRecord:
    """A rebalance that was finished, on 28 November 2026 at 03:04:05 UTC."""
    values: dict[str, Any] = {
        "started_at": 1_795_835_045.0,
        "trigger": "load",
        "num_moves": 17,
        "num_stages": 3,
        "seconds": 4.21,
        "gain": 0.123,
        "balancedness_before": 0.71,
        "balancedness_planned": 0.95,
        "balancedness_after": 0.93,
        "outcome": Outcome.DONE,
        "reason": "",
    }
    return RebalanceRecord(**{**values, **fields})


def balancer_status(**fields: Any) -> BalancerStatus:
    """A balancer at rest after one rebalance."""
    values: dict[str, Any] = {
        "mode": "auto",
        "is_paused": False,
        "phase": Phase.IDLE,
        "phase_seconds": 0.0,
        "stage": 0,
        "num_stages": 0,
        "progress": (0, 0),
        "is_stalled": False,
        "last_decision": "gain too small: 1.2 % of the tier's time, at least 3.0 % is asked for",
        "history": (record(),),
    }
    return BalancerStatus(**{**values, **fields})


def tier_status(num_layers: int = 6, ep_size: int = 8, **fields: Any) -> ExpertTierStatus:
    """A tier that serves. The same sizes make the same values."""
    rng = np.random.default_rng(num_layers * 1000 + ep_size)
    layers = tuple(layer_status(FIRST_MOE_LAYER + idx, ep_size, rng) for idx in range(num_layers))
    hottest = tuple(
        ExpertStatus(
            layer_id=int(rng.integers(FIRST_MOE_LAYER, FIRST_MOE_LAYER + num_layers)),
            logical_id=int(rng.integers(0, NUM_LOGICAL_EXPERTS)),
            load=9.5 - 0.6 * place,
            ep_ranks=tuple(sorted(rng.choice(ep_size, size=min(1 + place % 3, ep_size), replace=False).tolist())),
            is_pinned=place == 4,
        )
        for place in range(12)
    )
    values: dict[str, Any] = {
        "map_epoch": 7,
        "ep_size": ep_size,
        "slots_per_rank": NUM_LOGICAL_EXPERTS // ep_size + 1,
        "num_free_slots": 21,
        "num_redundant": 27,
        "window_steps": 5312.4,
        "window_tokens": 48_211.9,
        "step_p50_ms": 12.34,
        "step_p99_ms": 31.4,
        "balancedness": float(np.mean([layer.balancedness for layer in layers])),
        "per_expert_us": 16.3,
        "per_pair_us": 0.981,
        "predicted_us": 2345.6,
        "best_us": 1987.6,
        "drift": "",
        "layers": layers,
        "hottest": hottest,
        "pinned": tuple(expert for expert in hottest if expert.is_pinned),
        "balancer": balancer_status(),
    }
    return ExpertTierStatus(**{**values, **fields})


class ScriptedControl:
    """`ExpertControl` in memory. Keeps the orders it was given; refuses layers, experts and ranks that are none.

    entered: released by each call. gate: what calls wait for; open unless a test clears it. error: what they raise.
    """

    def __init__(self, status: ExpertTierStatus | None = None) -> None:
        self.status = status or tier_status()
        self.orders: list[tuple[Any, ...]] = []
        self.num_cancelled = 0
        self.error: Exception | None = None
        self.entered = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.gate.set()

    async def expert_status(self) -> ExpertTierStatus:
        await self._enter("status")
        return self.status

    async def operator_state(self) -> dict[str, Any]:
        await self._enter("state")
        return {"experts": self.status.to_dict()}

    async def map_document(self) -> dict[str, Any]:
        await self._enter("map")
        return {"map_epoch": self.status.map_epoch}

    async def rebalance(self, *, is_dry_run: bool) -> Proposal:
        await self._enter("rebalance", is_dry_run)
        return Proposal(
            is_accepted=True,
            is_dry_run=is_dry_run,
            reason="ordered by the operator",
            num_moves=12,
            num_stages=3,
            seconds_per_step=0.00032,
            gain=0.123,
            cost_s=0.06,
            balancedness_before=0.71,
            balancedness_after=0.95,
        )

    async def pin(self, layer_id: int, logical_id: int, ep_ranks: tuple[int, ...] | None) -> ExpertStatus:
        await self._enter("pin", layer_id, logical_id, ep_ranks)
        self._check(layer_id, logical_id, ep_ranks or ())
        return ExpertStatus(layer_id, logical_id, 3.2, ep_ranks or (1,), is_pinned=True)

    async def unpin(self, layer_id: int, logical_id: int) -> ExpertStatus:
        await self._enter("unpin", layer_id, logical_id)
        self._check(layer_id, logical_id, ())
        return ExpertStatus(layer_id, logical_id, 3.2, (1,), is_pinned=False)

    async def set_paused(self, *, is_paused: bool) -> BalancerStatus:
        await self._enter("paused", is_paused)
        return replace(self.status.balancer, is_paused=is_paused)

    async def _enter(self, *order: Any) -> None:
        self.orders.append(order)
        self.entered.release()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.error is not None:
            raise self.error

    def _check(self, layer_id: int, logical_id: int, ep_ranks: tuple[int, ...]) -> None:
        """Raises InvalidOrder."""
        if layer_id not in [layer.layer_id for layer in self.status.layers]:
            raise InvalidOrder(f"Layer {layer_id} has no experts; {self.status.layers[0].layer_id} is the first.")
        if logical_id >= NUM_LOGICAL_EXPERTS:
            raise InvalidOrder(f"Expert {logical_id} is outside 0..{NUM_LOGICAL_EXPERTS - 1}.")
        if any(ep_rank >= self.status.ep_size for ep_rank in ep_ranks):
            raise InvalidOrder(f"EP rank {max(ep_ranks)} is outside 0..{self.status.ep_size - 1}.")


def write_token(path: Path, text: str = TOKEN) -> None:
    """A token file that differs from the one before in what the server looks at."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text + "\n")
    path.chmod(0o600)
    os.utime(path, ns=(0, before + 10**9))


@asynccontextmanager
async def admin_server(control: ExpertControl, token_file: Path) -> AsyncIterator[AdminServer]:
    """A server on a free port of this machine, closed at the end. Writes the token."""
    write_token(token_file)
    server = AdminServer(create_admin_app(control, token_file), "127.0.0.1", 0)
    server.start()
    try:
        yield server
    finally:
        await server.close()


def admin_client(server: AdminServer, **headers: str) -> httpx.AsyncClient:
    """A client that knows the token."""
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", headers={**BEARER, **headers}, timeout=15)
