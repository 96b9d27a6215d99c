"""A run of the scaling benchmark: changes of the number of attention replicas, and what streams felt of each. Pure.

A change lasts from the policy's decision until the cluster has so many ready replicas. It is compared with the minute
before it, but without what came before the last change of the load or of the replicas: a difference then has no other
cause. Times are those of time.monotonic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from ops.bench.traffic import Answer, percentile

SETTLE_S = 60.0  # the minute before a change
LEAST_S = 5.0  # that a change is looked at: of a second there would be no percentile
LOAD_SETTLE_S = 5.0  # for the prompts of streams that come together, and the ends of those that go
DECISION = re.compile(r"^INFO (\S+ \S+) .*attention autoscaling: (?:up|down) from (\d+) to (\d+): (.*)$", re.MULTILINE)
SHED = 429  # Too Many Requests: come back later
LOG_TIME = "%Y-%m-%d %H:%M:%S,%f"


@dataclass(frozen=True)
class Look:
    """The admin route's answer at one moment. ready: names of the attention replicas that are."""

    at: float
    ready: frozenset[str]


@dataclass(frozen=True)
class Decision:
    """What the policy said in the log of Serve's controller. before, after: replicas."""

    at: float
    before: int
    after: int
    why: str


@dataclass(frozen=True)
class Change:
    """A decision that was carried out."""

    decision: Decision
    end: float

    @property
    def start(self) -> float:
        return self.decision.at


@dataclass(frozen=True)
class Felt:
    """By streams, in a span of time. Seconds. first_token: the longest wait for one, of requests sent in it."""

    gap_p50: float
    gap_p99: float
    longest_gap: float
    first_token: float


@dataclass(frozen=True)
class Effect:
    """quiet_s: length of the time before, which nothing else changed in."""

    change: Change
    quiet_s: float
    before: Felt
    during: Felt

    @property
    def ratio(self) -> float:
        return self.during.gap_p99 / self.before.gap_p99


@dataclass
class Run:
    """One cluster's life. offered: since when so many streams were open. problem: why it was broken off."""

    offered: list[tuple[float, int]] = field(default_factory=list)
    staying: list[Answer] = field(default_factory=list)
    coming: list[Answer] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    problem: str | None = None

    @property
    def began_at(self) -> float:
        return self.offered[0][0]

    @property
    def answers(self) -> list[Answer]:
        return self.staying + self.coming

    @property
    def num_shed(self) -> int:
        return sum(answer.status == SHED for answer in self.answers)

    @property
    def failures(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.error is not None and answer.status != SHED]

    @property
    def changes(self) -> list[Change]:
        """One that was not carried out before the next decision, or the last look, is left out."""
        ends = [decision.at for decision in self.decisions[1:]] + [float("inf")]
        found = (_change(decision, self.looks, until) for decision, until in zip(self.decisions, ends, strict=False))
        return [change for change in found if change is not None]

    @property
    def effects(self) -> list[Effect]:
        """Of each change, on the streams that stay."""
        return [self._effect(change) for change in self.changes]

    def _effect(self, change: Change) -> Effect:
        disturbed_until = [other.end for other in self.changes if other.end <= change.start]
        disturbed_until += [at + LOAD_SETTLE_S for at, _ in self.offered[1:] if at <= change.start]
        begin = min(max([change.start - SETTLE_S, *disturbed_until]), change.start)
        end = max(change.end, change.start + LEAST_S)
        before, during = felt(self.staying, begin, change.start), felt(self.staying, change.start, end)
        return Effect(change, change.start - begin, before, during)


def look_of(at: float, state: Mapping[str, Any]) -> Look:
    """From the answer of /admin/state."""
    members = (member for member in state["members"] if member["role"] == "attention" and member["is_ready"])
    return Look(at, frozenset(member["member"] for member in members))


def decisions_in(log: str, monotonic_of: Callable[[float], float]) -> list[Decision]:
    """In their order. monotonic_of: a moment of seconds since the epoch, by the other clock."""
    return [
        Decision(monotonic_of(datetime.strptime(when, LOG_TIME).timestamp()), int(before), int(after), why)
        for when, before, after, why in DECISION.findall(log)
    ]


def _change(decision: Decision, looks: Sequence[Look], until: float) -> Change | None:
    ends = (look.at for look in looks if decision.at < look.at <= until and len(look.ready) == decision.after)
    end = next(ends, None)
    return None if end is None else Change(decision, end)


def felt(answers: Sequence[Answer], start: float, end: float) -> Felt:
    """A gap belongs to the moment of its end. NaN of nothing."""
    gaps = [gap for answer in answers for at, gap in answer.gaps if start <= at < end]
    waits = (answer.times[0] - answer.sent_at for answer in answers if answer.times and start <= answer.sent_at < end)
    nothing = float("nan")
    return Felt(percentile(gaps, 0.5), percentile(gaps, 0.99), max(gaps, default=nothing), max(waits, default=nothing))


def lives(looks: Sequence[Look]) -> Iterator[tuple[str, float, float | None]]:
    """(name, when it was first seen ready, when it was first seen no longer so) of each replica, the eldest first."""
    seen = [Look(float("-inf"), frozenset()), *looks]
    left = {name: after.at for before, after in pairwise(seen) for name in before.ready - after.ready}
    for before, after in pairwise(seen):
        for name in sorted(after.ready - before.ready):
            yield name, after.at, left.get(name)
