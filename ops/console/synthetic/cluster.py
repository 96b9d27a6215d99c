"""A made-up cluster, second by second, with everything that the admin port shows of one, and it takes orders. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np

from ops.console.synthetic import balancer as balancing
from ops.console.synthetic.balancer import Balancer
from ops.console.synthetic.load import CHANGE_AT_S, CHANGE_WIDTH_S, DriftingLoad, FloatArray, topic_share
from ops.console.synthetic.processes import (
    Member,
    Second,
    count_attention,
    count_coordinator,
    count_expert,
    count_gateway,
    members_of,
)
from ops.console.synthetic.shape import Shape

START_TIME = 1764320000.0
NUM_HOTTEST = 12
MAX_EVENTS = 200
DRIFT_BEGINS_S = int(CHANGE_AT_S - CHANGE_WIDTH_S)
FADE = 0.9  # of the load window, each second


class InvalidOrder(Exception):
    """The order cannot be followed. Its text says why."""


class SyntheticCluster:
    """Begins at second 0; `tick` is the only thing that changes it but orders."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.second = 0
        self._source = DriftingLoad(shape)
        self._load = self._source.pairs(0)
        self._balancer = Balancer(shape, START_TIME, self._load)
        self._members = members_of(shape)
        self._drift_ended: int | None = None
        self._count()

    def tick(self) -> None:
        """One second later."""
        self.second += 1
        self._load = FADE * self._load + (1.0 - FADE) * self._source.pairs(self.second)
        was_busy = self._balancer.is_busy
        self._balancer.tick(self.second, self._load)
        if was_busy and not self._balancer.is_busy:
            self._drift_ended = self.second  # experts are placed for this load
        self._count()

    def state(self) -> dict[str, Any]:
        """What `GET /admin/state` answers."""
        shape = self.shape
        return {
            "time": START_TIME + self.second,
            "model": {
                "name": f"{shape.name} (made-up data)",
                "layer_ids": list(shape.layer_ids),
                "num_logical_experts": shape.num_logical_experts,
                "ep_size": shape.ep_size,
            },
            "experts": self._experts(),
            "load": [[float(f"{value:.3g}") for value in layer] for layer in self._load],
            "members": [self._member(idx, member) for idx, member in enumerate(self._members)],
            "events": self._events(),
        }

    def map(self) -> dict[str, Any]:
        """What `GET /admin/map` answers."""
        slots = self._balancer.slots.reshape(self.shape.num_layers, -1)
        return {
            "map_epoch": self._balancer.map_epoch,
            "slots_per_rank": self.shape.slots_per_rank,
            "physical_to_logical": slots.tolist(),
        }

    def rebalance(self, *, is_dry_run: bool) -> dict[str, Any]:
        """A proposal; begins it unless it is a dry run."""
        return self._balancer.order(self._load, is_dry_run=is_dry_run)

    def pin(self, layer_id: int, logical_id: int, ep_ranks: list[int] | None) -> dict[str, Any]:
        """Raises InvalidOrder."""
        self._check(layer_id, logical_id)
        ranks = self._ranks(layer_id, logical_id) if ep_ranks is None else tuple(sorted(ep_ranks))
        if any(rank >= self.shape.ep_size for rank in ranks):
            raise InvalidOrder(f"There are EP ranks 0 to {self.shape.ep_size - 1}, and no other.")
        self._balancer.pins[layer_id, logical_id] = ranks
        return self._expert(layer_id, logical_id)

    def unpin(self, layer_id: int, logical_id: int) -> dict[str, Any]:
        """Raises InvalidOrder."""
        self._check(layer_id, logical_id)
        if self._balancer.pins.pop((layer_id, logical_id), None) is None:
            raise InvalidOrder(f"Expert {logical_id} of layer {layer_id} is not pinned.")
        return self._expert(layer_id, logical_id)

    def set_paused(self, *, is_paused: bool) -> dict[str, Any]:
        """The balancer's status."""
        self._balancer.is_paused = is_paused
        return self._balancer.status()

    def _check(self, layer_id: int, logical_id: int) -> None:
        if layer_id not in self.shape.layer_ids or not 0 <= logical_id < self.shape.num_logical_experts:
            raise InvalidOrder(f"There is no expert {logical_id} of layer {layer_id}.")

    def _count(self) -> None:
        slots, load = self._balancer.slots, self._load
        busy_s = 1e-6 * balancing.predicted_us(slots, load)
        second = self._second(busy_s)
        pairs = balancing.rank_pairs(slots, load)
        experts = balancing.rank_experts(slots, load)
        rank_s = 1e-6 * (balancing.PER_EXPERT_US * experts + balancing.PER_PAIR_US * pairs).sum(axis=0)
        for salt, member in enumerate(self._members):
            if member.role == "gateway":
                count_gateway(member.recorder, second, salt)
            elif member.role == "attention":
                count_attention(member.recorder, second, salt)
            elif member.ep_rank is not None:
                rank = member.ep_rank
                count_expert(member.recorder, second, self.shape.layer_ids, pairs[:, rank], float(rank_s[rank]))
            else:
                state = (self._balancer.is_paused, self._balancer.map_epoch)
                count_coordinator(member.recorder, self.shape, second, state)

    def _second(self, expert_s: float) -> Second:
        attention_s = 0.0004 * self.shape.num_layers
        is_preparing = self._balancer.status()["phase"] == "preparing"
        step_s = attention_s + 1.15 * expert_s + (0.0015 if is_preparing else 0.0)
        return Second(self.second, step_s, attention_s, expert_s, self.shape.num_rows, is_preparing)

    def _experts(self) -> dict[str, Any]:
        slots, load, shape = self._balancer.slots, self._load, self.shape
        layers = self._layers()
        step_s = self._second(1e-6 * balancing.predicted_us(slots, load)).step_s
        return {
            "map_epoch": self._balancer.map_epoch,
            "ep_size": shape.ep_size,
            "slots_per_rank": shape.slots_per_rank,
            "num_free_slots": int((slots < 0).sum()),
            "num_redundant": shape.num_layers * shape.num_redundant,
            "window_steps": float(min(900, 30 * (self.second + 1))),
            "window_tokens": float(min(900, 30 * (self.second + 1)) * shape.num_rows),
            "step_p50_ms": 1e3 * step_s,
            "step_p99_ms": 1e3 * step_s * (1.38 if self._balancer.is_busy else 1.24),
            "balancedness": float(np.mean([layer["balancedness"] for layer in layers])),
            "per_expert_us": balancing.PER_EXPERT_US,
            "per_pair_us": balancing.PER_PAIR_US,
            "predicted_us": balancing.predicted_us(slots, load),
            "best_us": balancing.best_us(slots, load),
            "drift": self._drift(),
            "layers": layers,
            "hottest": self._hottest(),
            "pinned": [self._expert(*place) for place in self._balancer.pins],
            "balancer": self._balancer.status(),
        }

    def _layers(self) -> list[dict[str, Any]]:
        slots, load = self._balancer.slots, self._load
        pairs, experts = balancing.rank_pairs(slots, load), balancing.rank_experts(slots, load)
        balanced = balancing.balancedness(slots, load)
        mass, entropy, margin = self._source.confidence(self.second)
        norms = 1.0 + np.random.default_rng(7).gamma(2.0, 0.4, self.shape.num_layers)
        return [
            {
                "layer_id": layer_id,
                "rank_pairs": pairs[idx].round(2).tolist(),
                "rank_experts": experts[idx].round(2).tolist(),
                "balancedness": float(balanced[idx]),
                "num_copies": self.shape.num_redundant,
                "mass": float(mass[idx]),
                "entropy": float(entropy[idx]),
                "margin": float(margin[idx]),
                "norm_low": float(0.8 / norms[idx]) if self.second > 2 else None,
                "norm_high": float(1.4 * norms[idx]) if self.second > 2 else None,
                "is_drifting": bool(self._is_drifting() and idx % 3 != 0),
            }
            for idx, layer_id in enumerate(self.shape.layer_ids)
        ]

    def _is_drifting(self) -> bool:
        return self._drift_ended is None and self.second >= DRIFT_BEGINS_S

    def _drift(self) -> str:
        if not self._is_drifting():
            return ""
        number = sum(idx % 3 != 0 for idx in range(self.shape.num_layers))
        return f"the load of {number} of {self.shape.num_layers} layers is not what experts were placed for"

    def _hottest(self) -> list[dict[str, Any]]:
        relative = self._load / self._load.mean(axis=1, keepdims=True)
        order = np.argsort(-relative, axis=None, kind="stable")[:NUM_HOTTEST]
        places = (divmod(int(flat), self.shape.num_logical_experts) for flat in order)
        return [self._expert(self.shape.layer_ids[idx], logical_id) for idx, logical_id in places]

    def _expert(self, layer_id: int, logical_id: int) -> dict[str, Any]:
        layer: FloatArray = self._load[self.shape.layer_ids.index(layer_id)]
        return {
            "layer_id": layer_id,
            "logical_id": logical_id,
            "load": float(layer[logical_id] / layer.mean()),
            "ep_ranks": list(self._ranks(layer_id, logical_id)),
            "is_pinned": (layer_id, logical_id) in self._balancer.pins,
        }

    def _ranks(self, layer_id: int, logical_id: int) -> tuple[int, ...]:
        layer = self._balancer.slots[self.shape.layer_ids.index(layer_id)]
        return tuple(int(rank) for rank in np.flatnonzero((layer == logical_id).any(axis=1)))

    def _member(self, idx: int, member: Member) -> dict[str, Any]:
        return {
            "member": member.member,
            "role": member.role,
            "ep_rank": member.ep_rank,
            "host": member.host,
            "is_ready": True,
            "age_s": round(0.1 + 0.8 * ((7 * idx + 3 * self.second) % 10) / 10.0, 2),
            "metrics": member.recorder.to_json(),
        }

    def _events(self) -> list[dict[str, Any]]:
        number = self.shape.num_attention_actors
        told = [
            (-1260, "rank_lost", "EP rank 1 lost its member: its report is 3 s late."),
            (-1245, "rank_leased", "EP rank 1 is held by another member, which reads its experts."),
            (-620, "autoscaler", f"attention: {number} replicas stay, 11 of 16 streams each."),
        ]
        told += [(DRIFT_BEGINS_S, "drift", "Traffic is not what experts were placed for.")] * self._has_drifted()
        told += self._balancer.events
        plain = [{"time": START_TIME + at, "kind": kind, "text": text, "member": None} for at, kind, text in told]
        return plain[-MAX_EVENTS:]

    def _has_drifted(self) -> bool:
        return self.second >= DRIFT_BEGINS_S and topic_share(self.second) > 0.0
