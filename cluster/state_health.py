"""Is the cluster healthy? One word, one sentence, and what is wrong in the order in which it matters. Pure.

The operator's page judges by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from cluster.cluster_state import ClusterState, MemberState
from cluster.experts_status import Outcome
from cluster.state_numbers import Numbers

SILENT_S = 5.0
KV_FULL = 0.95
RECENT_S = 900.0  # an abandoned rebalance is news for so long
STUCK_S = 8.0  # steps are much shorter; a window must be so long before their absence says something
TIERS = (("attention", "attention actor"), ("gateway", "gateway"))


class Level(IntEnum):
    """How bad it is. Its name is the word for it."""

    HEALTHY = 0
    WARNING = 1
    BROKEN = 2


@dataclass(frozen=True)
class Problem:
    level: Level
    text: str


@dataclass(frozen=True)
class Health:
    """sentence: who is ready. problems: the worst first."""

    sentence: str
    problems: tuple[Problem, ...]

    @property
    def level(self) -> Level:
        return max((problem.level for problem in self.problems), default=Level.HEALTHY)


def judge(state: ClusterState, numbers: Numbers) -> Health:
    """numbers: of the states up to this one."""
    found = (*_tiers(state), *_silent(state), *_balancer(state), *_traffic(numbers))
    return Health(_sentence(state), tuple(sorted(found, key=lambda problem: -problem.level)))


def _sentence(state: ClusterState) -> str:
    tiers = [(len(_ready_ranks(state)), state.ep_size, "expert rank")]
    tiers += [(*_ready(state, role), name) for role, name in TIERS]
    return ", ".join(f"{ready}/{_many(total, name)}" for ready, total, name in tiers) + " ready"


def _ready_ranks(state: ClusterState) -> set[int]:
    held = (member.ep_rank for member in state.of_role("expert") if member.is_ready)
    return {ep_rank for ep_rank in held if ep_rank is not None and ep_rank < state.ep_size}


def _ready(state: ClusterState, role: str) -> tuple[int, int]:
    """How many are ready, and how many there are."""
    members = state.of_role(role)
    return sum(member.is_ready for member in members), len(members)


def _tiers(state: ClusterState) -> Iterator[Problem]:
    missing = sorted(set(range(state.ep_size)) - _ready_ranks(state))
    if missing:
        ranks = ", ".join(map(str, missing))
        yield Problem(Level.BROKEN, f"no ready member holds EP rank {ranks}: steps wait until one does")
    for role, name in TIERS:
        ready, total = _ready(state, role)
        if ready == 0:
            yield Problem(Level.BROKEN, f"no {name} is ready: no request is answered")
        elif ready < total:
            yield Problem(Level.WARNING, f"{total - ready} of {_many(total, name)} not ready")


def _silent(state: ClusterState) -> Iterator[Problem]:
    for member in state.members:
        if member.age_s > SILENT_S:
            yield Problem(Level.WARNING, f"{_named(member)} last reported {member.age_s:.0f} s ago")


def _balancer(state: ClusterState) -> Iterator[Problem]:
    balancer = state.experts.balancer
    if balancer.is_stalled:
        since = f"{balancer.phase.value} for {balancer.phase_seconds:.0f} s"
        yield Problem(Level.BROKEN, f"the rebalance is stalled: {since}; look at the expert ranks' logs")
    last = balancer.history[-1] if balancer.history else None
    if last and last.outcome is Outcome.ABANDONED and state.time - last.started_at - last.seconds < RECENT_S:
        yield Problem(Level.WARNING, f"the last rebalance was abandoned: {last.reason}")
    if state.experts.drift:
        yield Problem(Level.WARNING, f"drift: {state.experts.drift}")
    if balancer.is_paused:
        yield Problem(Level.WARNING, "the balancer is paused: step35 experts resume lets it go on")


def _traffic(numbers: Numbers) -> Iterator[Problem]:
    if numbers.running and numbers.steps_per_s == 0.0 and numbers.seconds >= STUCK_S:
        running = _many(round(numbers.running), "sequence")
        yield Problem(Level.BROKEN, f"{running} running, but no step was made for {numbers.seconds:.0f} s")
    if numbers.shed_per_s:
        yield Problem(Level.WARNING, f"requests are sent away: {numbers.shed_per_s:.1f} a second")
    if numbers.num_failed:
        failed = _many(round(numbers.num_failed), "answer")
        yield Problem(Level.WARNING, f"{failed} failed (5xx) in the last {numbers.seconds:.0f} s")
    if numbers.kv_usage is not None and numbers.kv_usage > KV_FULL:
        yield Problem(Level.WARNING, f"KV blocks run out: {100 * numbers.kv_usage:.0f} % in use")


def _named(member: MemberState) -> str:
    return f"EP rank {member.ep_rank}" if member.ep_rank is not None else f"{member.role} {member.member}"


def _many(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
