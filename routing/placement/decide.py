"""Whether a candidate map is worth its moves. Pure: time is an argument.

A gain counts over a horizon, a move costs the time that loading it disturbs serving. Balance alone is no reason: a
better balanced tier can be slower, and a rebalance has a price. An operator's order needs neither gain nor interval;
but what breaks a pin is never adopted.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from routing.experts import ExpertMap
from routing.placement.contract import Pin, PlacementProblem
from routing.placement.holders import held_of
from routing.placement.score import balancedness, layer_seconds, rank_pairs


class Verdict(StrEnum):
    """Why a candidate is adopted or not."""

    PAYS = "pays"
    ORDERED = "ordered"
    NO_MOVES = "no moves"
    TOO_SOON = "too soon"
    TOO_SMALL = "gain too small"
    TOO_DEAR = "moves too dear"
    ILLEGAL = "not legal"


@dataclass(frozen=True)
class DecisionSettings:
    """horizon_s: time over which a gain counts. min_gain: least share of the tier's time to be gained. interval_s:
    least time between two. move_s: seconds of serving that one move is worth, averaged over the tier."""

    horizon_s: float
    min_gain: float
    interval_s: float
    move_s: float


# While an expert is copied at the rate limit, its rank reads weights for serving that much slower: the copy takes part
# of the memory bandwidth, and a rank that others wait for slows all of them. A guess on the careful side, not measured.
DISTURBANCE = 0.1


def move_seconds(expert_bytes: int, bytes_per_s: float, disturbance: float = DISTURBANCE) -> float:
    """Seconds of serving that one move is worth, for DecisionSettings.move_s. bytes_per_s: the rate limit of copying.

    disturbance: what share of the time that a copy takes is lost to serving.
    """
    if expert_bytes < 0 or bytes_per_s <= 0.0 or not 0.0 <= disturbance <= 1.0:
        raise ValueError(f"cannot price {expert_bytes} bytes at {bytes_per_s} bytes/s, {disturbance} of it lost")
    return expert_bytes / bytes_per_s * disturbance


@dataclass(frozen=True)
class Pace:
    """How the tier is used. steps_per_s: of all attention actors. since_last_s: seconds since the last rebalance ended,
    None if there was none. is_ordered: an operator wants it, whatever it gains."""

    steps_per_s: float
    since_last_s: float | None
    is_ordered: bool = False


@dataclass(frozen=True)
class Decision:
    """seconds_per_step: predicted gain of one step, all layers. gain: the same as a share. cost_s: of all moves."""

    verdict: Verdict
    reason: str
    num_moves: int
    seconds_per_step: float
    gain: float
    cost_s: float
    balancedness_before: float
    balancedness_after: float

    @property
    def should_rebalance(self) -> bool:
        return self.verdict in (Verdict.PAYS, Verdict.ORDERED)


def decide(
    problem: PlacementProblem, candidate: ExpertMap, num_moves: int, settings: DecisionSettings, pace: Pace
) -> Decision:
    """Judge a candidate against the map that is. num_moves: of the migration to it.

    A dry run is the same: a decision does nothing. Raises ValueError for a candidate of another shape.
    """
    current = problem.expert_map
    if (candidate.ep_size, candidate.physical_to_logical.shape) != (current.ep_size, current.physical_to_logical.shape):
        raise ValueError("the candidate must have the layers, ranks and slots of the current map")
    now = float(layer_seconds(problem.expert_map, problem.load, problem.cost).sum())
    then = float(layer_seconds(candidate, problem.load, problem.cost).sum())
    gain = (now - then) / now if now > 0.0 else 0.0
    cost_s = num_moves * settings.move_s
    worth_s = (now - then) * pace.steps_per_s * settings.horizon_s
    verdict = (
        Verdict.ILLEGAL
        if _broken_pins(problem, candidate)
        else _verdict(gain, worth_s, cost_s, num_moves, settings, pace)
    )
    return Decision(
        verdict=verdict,
        reason=_reason(verdict, gain, worth_s, cost_s, num_moves, settings),
        num_moves=num_moves,
        seconds_per_step=now - then,
        gain=gain,
        cost_s=cost_s,
        balancedness_before=_balance(problem.expert_map, problem),
        balancedness_after=_balance(candidate, problem),
    )


def _verdict(
    gain: float, worth_s: float, cost_s: float, num_moves: int, settings: DecisionSettings, pace: Pace
) -> Verdict:
    if num_moves == 0:
        return Verdict.NO_MOVES
    if pace.is_ordered:
        return Verdict.ORDERED
    if pace.since_last_s is not None and pace.since_last_s < settings.interval_s:
        return Verdict.TOO_SOON
    if gain < settings.min_gain:
        return Verdict.TOO_SMALL
    return Verdict.PAYS if worth_s > cost_s else Verdict.TOO_DEAR


def _reason(
    verdict: Verdict, gain: float, worth_s: float, cost_s: float, num_moves: int, settings: DecisionSettings
) -> str:
    figures = f"{num_moves} moves would save {100 * gain:.1f} % of the expert tier's time"
    paid = f"{worth_s:.3g} s within {settings.horizon_s:.0f} s for a price of {cost_s:.3g} s"
    return {
        Verdict.PAYS: f"{figures}, {paid}",
        Verdict.ORDERED: f"ordered: {figures}",
        Verdict.NO_MOVES: "experts are where they should be",
        Verdict.TOO_SOON: f"{figures}, but the last rebalance is less than {settings.interval_s:.0f} s ago",
        Verdict.TOO_SMALL: f"{figures}, less than the {100 * settings.min_gain:.1f} % that are worth a rebalance",
        Verdict.TOO_DEAR: f"{figures}, but that is {paid}",
        Verdict.ILLEGAL: f"{figures}, but a pinned expert would not be on its ranks",
    }[verdict]


def _broken_pins(problem: PlacementProblem, candidate: ExpertMap) -> list[Pin]:
    """Pins that the candidate does not keep."""
    held = held_of(candidate)
    return [
        pin
        for pin in problem.pins
        if np.flatnonzero(held[pin.moe_layer_idx, :, pin.logical_id]).tolist() != sorted(pin.ep_ranks)
    ]


def _balance(expert_map: ExpertMap, problem: PlacementProblem) -> float:
    return float(balancedness(rank_pairs(expert_map, problem.load)).mean())
