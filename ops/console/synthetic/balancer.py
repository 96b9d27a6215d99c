"""A made-up balancer: a rebalance when enough is to be gained, stage by stage, one second at a time. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ops.console.synthetic.load import FloatArray
from ops.console.synthetic.placement import IntArray, first_placement, num_moves, rebalanced, slot_loads
from ops.console.synthetic.shape import Shape

INTERVAL_S = 70
LEAST_GAIN = 0.015
PREPARE_S, ADOPT_S = 6, 2
MEASURED_AFTER_S = 15
PER_EXPERT_US, PER_PAIR_US = 2.1, 0.92
MOVE_S = 0.004  # of serving, that a move costs


@dataclass(frozen=True)
class Plan:
    """A rebalance that could begin. slots: [L, rank, slot]."""

    slots: IntArray
    moves: int
    gain: float
    saved_us: float
    before: float
    planned: float


@dataclass
class _Running:
    plan: Plan
    trigger: str
    started: int
    stage: int = 1
    phase: str = "preparing"
    phase_seconds: int = 0


@dataclass
class Balancer:
    """Owns the map, the pins, and what was done. start_time: of second 0, since the epoch."""

    shape: Shape
    start_time: float
    first_load: FloatArray
    map_epoch: int = 7
    is_paused: bool = False
    pins: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    last_decision: str = "nothing has been decided yet"
    events: list[tuple[int, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = self.shape
        self.slots: IntArray = np.stack(
            [first_placement(load, shape.ep_size, shape.slots_per_rank) for load in self.first_load]
        )
        self.history = _earlier(self.start_time)
        self._running: _Running | None = None
        self._second = 0

    @property
    def is_busy(self) -> bool:
        return self._running is not None

    def tick(self, second: int, load: FloatArray) -> None:
        """One second later."""
        self._second = second
        if self._running is not None:
            self._go_on(self._running, load)
        elif second % INTERVAL_S == 0 and not self.is_paused:
            plan = self.plan(load)
            self._decide(plan)
            if plan.gain > LEAST_GAIN:
                self._begin(plan, "drift")
        last = self.history[-1]
        ended = last["started_at"] + last["seconds"] - self.start_time
        if last["outcome"] == "done" and last["balancedness_after"] is None and second >= ended + MEASURED_AFTER_S:
            self.history[-1] = {**last, "balancedness_after": round(float(balancedness(self.slots, load).mean()), 4)}

    def plan(self, load: FloatArray) -> Plan:
        """The rebalance that this load asks for."""
        slots = np.stack([rebalanced(layer, load[idx]) for idx, layer in enumerate(self.slots)])
        now, then = predicted_us(self.slots, load), predicted_us(slots, load)
        before, planned = (float(balancedness(each, load).mean()) for each in (self.slots, slots))
        return Plan(slots, num_moves(self.slots, slots), max(0.0, 1.0 - then / now), now - then, before, planned)

    def order(self, load: FloatArray, *, is_dry_run: bool) -> dict[str, Any]:
        """A proposal. Begins it, too, unless it is a dry run."""
        plan = self.plan(load)
        is_accepted = plan.gain > LEAST_GAIN / 10.0 and not self.is_busy
        if is_accepted and not is_dry_run:
            self._begin(plan, "manual")
        reason = "a rebalance is under way" if self.is_busy and not is_accepted else _sentence(plan)
        return {
            "is_accepted": is_accepted,
            "is_dry_run": is_dry_run,
            "reason": reason,
            "num_moves": plan.moves,
            "num_stages": self.shape.num_stages,
            "seconds_per_step": 1e-6 * plan.saved_us,
            "gain": plan.gain,
            "cost_s": MOVE_S * plan.moves,
            "balancedness_before": plan.before,
            "balancedness_after": plan.planned,
        }

    def status(self) -> dict[str, Any]:
        """As the coordinator shows its own."""
        run = self._running
        total = 0 if run is None else max(1, run.plan.moves // self.shape.num_stages)
        loaded = 0 if run is None else total
        if run is not None and run.phase == "preparing":
            loaded = total * run.phase_seconds // PREPARE_S
        return {
            "mode": "auto",
            "is_paused": self.is_paused,
            "phase": "idle" if run is None else run.phase,
            "phase_seconds": 0.0 if run is None else float(run.phase_seconds),
            "stage": 0 if run is None else run.stage,
            "num_stages": 0 if run is None else self.shape.num_stages,
            "progress": [loaded, total],
            "is_stalled": False,
            "last_decision": self.last_decision,
            "history": self.history,
        }

    def _decide(self, plan: Plan) -> None:
        verb = "rebalance" if plan.gain > LEAST_GAIN else "keep the map"
        self.last_decision = f"{verb}: {_sentence(plan)}"

    def _begin(self, plan: Plan, trigger: str) -> None:
        self._running = _Running(plan, trigger, self._second)
        self._say(f"A rebalance begins ({trigger}): {plan.moves} moves in {self.shape.num_stages} stages.")

    def _go_on(self, run: _Running, load: FloatArray) -> None:
        run.phase_seconds += 1
        if run.phase == "preparing" and run.phase_seconds >= PREPARE_S:
            run.phase, run.phase_seconds = "adopting", 0
            self._adopt(run)
        elif run.phase == "adopting" and run.phase_seconds >= ADOPT_S:
            self._end_stage(run, load)

    def _adopt(self, run: _Running) -> None:
        """The layers of this stage take their new places."""
        bounds = np.linspace(0, self.shape.num_layers, self.shape.num_stages + 1).astype(int)
        part = slice(int(bounds[run.stage - 1]), int(bounds[run.stage]))
        self.slots = self.slots.copy()
        self.slots[part] = run.plan.slots[part]
        self.map_epoch += 1

    def _end_stage(self, run: _Running, load: FloatArray) -> None:
        if run.stage < self.shape.num_stages:
            self._running = replace(run, stage=run.stage + 1, phase="preparing", phase_seconds=0)
            return
        self._running = None
        seconds, plan = float(self._second - run.started), run.plan
        done = {"num_stages": self.shape.num_stages, "seconds": seconds, "trigger": run.trigger, "outcome": "done"}
        known = {"num_moves": plan.moves, "gain": plan.gain, "reason": "", "balancedness_after": None}
        before = {"balancedness_before": plan.before, "balancedness_planned": plan.planned}
        self.history.append({"started_at": self.start_time + run.started, **done, **known, **before})
        after = float(balancedness(self.slots, load).mean())
        self._say(f"The rebalance is done: {plan.moves} moves in {seconds:.0f} s, balancedness {after:.2f}.")

    def _say(self, text: str) -> None:
        self.events.append((self._second, "rebalance", text))


def rank_pairs(slots: IntArray, load: FloatArray) -> FloatArray:
    """[L, rank]."""
    return np.stack([slot_loads(layer, load[idx]).sum(axis=1) for idx, layer in enumerate(slots)])


def rank_experts(slots: IntArray, load: FloatArray) -> FloatArray:
    """Distinct experts that a step touches [L, rank]: a slot is touched unless chance spares it."""
    return np.stack([(1.0 - np.exp(-slot_loads(layer, load[idx]))).sum(axis=1) for idx, layer in enumerate(slots)])


def balancedness(slots: IntArray, load: FloatArray) -> FloatArray:
    """[L]."""
    pairs = rank_pairs(slots, load)
    return np.asarray(pairs.mean(axis=1) / pairs.max(axis=1))


def predicted_us(slots: IntArray, load: FloatArray) -> float:
    """Time of a step in the expert tier: the slowest rank of each layer."""
    return float(_rank_us(slots, load).max(axis=1).sum())


def best_us(slots: IntArray, load: FloatArray) -> float:
    """The same if every rank had as much to do as any other."""
    return float(_rank_us(slots, load).mean(axis=1).sum())


def _rank_us(slots: IntArray, load: FloatArray) -> FloatArray:
    return PER_EXPERT_US * rank_experts(slots, load) + PER_PAIR_US * rank_pairs(slots, load)


def _sentence(plan: Plan) -> str:
    return (
        f"{plan.moves} moves would save {100 * plan.gain:.1f} % of the expert tier's time, "
        f"{1e-3 * plan.saved_us:.2f} ms a step, at a cost of {MOVE_S * plan.moves:.2f} s of serving"
    )


def _earlier(start_time: float) -> list[dict[str, Any]]:
    """Two rebalances before the first second, so that the table shows how each outcome looks."""
    done = {
        "started_at": start_time - 5400.0,
        "trigger": "load",
        "num_moves": 188,
        "num_stages": 4,
        "seconds": 37.0,
        "gain": 0.094,
        "balancedness_before": 0.874,
        "balancedness_planned": 0.971,
        "balancedness_after": 0.968,
        "outcome": "done",
        "reason": "",
    }
    lost = {"started_at": start_time - 1260.0, "num_moves": 64, "seconds": 121.0, "gain": 0.031, "outcome": "abandoned"}
    values = {"balancedness_before": 0.93, "balancedness_planned": 0.97, "balancedness_after": None, "num_stages": 1}
    return [done, {**done, **lost, **values, "reason": "EP rank 1 left while it was preparing"}]
