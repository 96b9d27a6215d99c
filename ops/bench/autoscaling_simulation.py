"""A simulated attention tier for autoscaling policies: gateway, replicas, and the way that load reports travel.

Discrete time, one second a step. Knows nothing of how a policy decides: a policy is a function of a `Picture`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RECORD_S, PUSH_S = 6, 10  # Serve's: a replica records its numbers every 6 s and sends them every 10 s
LATELY_S = 60  # what a gateway's latencies cover
RATE_S = 30  # what a replica's requests per second cover
RETRIES = 0.5  # share of the requests sent away that come again
RETRY_S = 5


@dataclass(frozen=True)
class Plant:
    """What the simulated machines can do.

    A step of b sequences takes step_s + sequence_s x b and gives each a token. gateway_places: open requests that the
    gateway lets in for each ready replica.
    """

    step_s: float = 0.020
    sequence_s: float = 0.001
    max_running: int = 32
    max_waiting: int = 64
    kv_tokens: int = 64_000
    prompt_tokens: int = 1000
    completion_tokens: float = 200.0  # mean of an exponential distribution
    load_s: int = 120
    gateway_places: int = 80

    def inter_token_s(self, num_running: int) -> float:
        return self.step_s + self.sequence_s * num_running


@dataclass(frozen=True)
class Trace:
    """rate: requests per second offered at a second. silent: reports are lost from the first second to the other."""

    name: str
    seconds: int
    rate: Callable[[int], float]
    plant: Plant = field(default_factory=Plant)
    silent: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Report:
    """One replica's numbers, and what the gateways had told by then."""

    at: int
    num_running: int
    num_waiting: int
    kv_usage: float
    requests_per_s: float
    shed_total: int
    request_s: float | None
    itl_p99_s: float | None


@dataclass(frozen=True)
class Picture:
    """What a policy is shown. reports: the newest that arrived of each ready replica."""

    now: int
    num_ready: int
    num_present: int
    reports: tuple[Report, ...]


Policy = Callable[[Picture], int]


@dataclass
class Course:
    """What happened, second by second. waits: of requests that were let in, from arrival to the first step."""

    offered: list[float] = field(default_factory=list)
    desired: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    held: list[int] = field(default_factory=list)  # those that load or drain included
    queued: list[int] = field(default_factory=list)
    shed: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    itl_s: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    @property
    def share_shed(self) -> float:
        return sum(self.shed) / max(sum(self.asked), 1)

    @property
    def replica_hours(self) -> float:
        return sum(self.held) / 3600

    @property
    def wait_p99_s(self) -> float:
        return float(np.percentile(self.waits, 99)) if self.waits else 0.0

    @property
    def num_changes(self) -> int:
        return sum(after != before for before, after in zip(self.desired, self.desired[1:], strict=False))


class Replica:
    """One attention actor: a batch, a queue, and what it has told."""

    def __init__(self, plant: Plant, ready_at: int) -> None:
        self.plant = plant
        self.ready_at = ready_at
        self.is_draining = False
        self.waiting: deque[tuple[int, float]] = deque()  # (arrival, completion tokens)
        self.remaining: NDArray[np.float64] = np.empty(0)
        self.arrivals: NDArray[np.float64] = np.empty(0)
        self.accepted: deque[int] = deque()  # seconds of arrival, of the last RATE_S
        self.pending: Report | None = None
        self.arrived: Report | None = None

    @property
    def num_open(self) -> int:
        return len(self.remaining) + len(self.waiting)

    @property
    def kv_usage(self) -> float:
        return len(self.remaining) * self._sequence_tokens / self.plant.kv_tokens

    @property
    def _sequence_tokens(self) -> float:
        return self.plant.prompt_tokens + self.plant.completion_tokens

    def accept(self, now: int, tokens: float) -> None:
        self.waiting.append((now, tokens))
        self.accepted.append(now)

    def run(self, now: int) -> tuple[list[float], list[float]]:
        """One second. Returns the waits of sequences that began and the durations of requests that ended."""
        places = min(self.plant.max_running, int(self.plant.kv_tokens / self._sequence_tokens)) - len(self.remaining)
        begun = [self.waiting.popleft() for _ in range(min(places, len(self.waiting)))]
        if begun:
            self.arrivals = np.concatenate((self.arrivals, [arrival for arrival, _ in begun]))
            self.remaining = np.concatenate((self.remaining, [tokens for _, tokens in begun]))
        self.remaining -= 1.0 / self.plant.inter_token_s(len(self.remaining))
        is_done = self.remaining <= 0
        durations = (now + 1 - self.arrivals[is_done]).tolist()
        self.remaining, self.arrivals = self.remaining[~is_done], self.arrivals[~is_done]
        return [float(now - arrival) for arrival, _ in begun], durations


class Gateway:
    """Sends requests on or away, and keeps what it tells of them."""

    def __init__(self, plant: Plant, rng: np.random.Generator) -> None:
        self._plant = plant
        self._rng = rng
        self._retries: deque[int] = deque([0] * RETRY_S)
        self._lately: deque[tuple[list[float], list[tuple[float, int]]]] = deque(maxlen=LATELY_S)
        self.shed_total = 0

    def arrive(self, now: int, rate: float, ready: list[Replica]) -> tuple[int, int]:
        """One second's requests: (asked, sent away)."""
        asked = int(self._rng.poisson(rate)) + self._retries.popleft()
        places = self._plant.gateway_places * len(ready) - sum(replica.num_open for replica in ready)
        num_shed = max(asked - places, 0)
        for tokens in self._rng.exponential(self._plant.completion_tokens, asked - num_shed):
            chosen = min(ready, key=lambda replica: replica.num_open)
            if len(chosen.waiting) >= self._plant.max_waiting:
                num_shed += 1
            else:
                chosen.accept(now, max(tokens, 1.0))
        self.shed_total += num_shed
        self._retries.append(int(self._rng.binomial(num_shed, RETRIES)))
        return asked, num_shed

    def note(self, durations: list[float], gaps: list[tuple[float, int]]) -> None:
        """gaps: (inter-token seconds, sequences) of each replica."""
        self._lately.append((durations, gaps))

    @property
    def request_s(self) -> float | None:
        durations = [value for second, _ in self._lately for value in second]
        return float(np.mean(durations)) if durations else None

    @property
    def itl_p99_s(self) -> float | None:
        gaps = sorted(pair for _, second in self._lately for pair in second)
        left = 0.01 * sum(weight for _, weight in gaps)
        for gap, weight in reversed(gaps):
            left -= weight
            if left <= 0 and weight:
                return gap
        return None


class Simulation:
    """One trace under one policy."""

    def __init__(self, trace: Trace, policy: Policy, *, least: int, most: int, seed: int = 0) -> None:
        self._trace = trace
        self._policy = policy
        self._bounds = least, most
        rng = np.random.default_rng(seed)
        self._gateway = Gateway(trace.plant, rng)
        self._replicas = [Replica(trace.plant, ready_at=0) for _ in range(least)]
        self._desired = least
        self.course = Course()

    def run(self) -> Course:
        for now in range(self._trace.seconds):
            self._second(now)
        return self.course

    def _second(self, now: int) -> None:
        ready = [r for r in self._replicas if r.ready_at <= now and not r.is_draining]
        rate = self._trace.rate(now)
        asked, num_shed = self._gateway.arrive(now, rate, ready)
        gaps = [(r.plant.inter_token_s(len(r.remaining)), len(r.remaining)) for r in ready]
        durations: list[float] = []
        for replica in self._replicas:
            waits, ended = replica.run(now)
            self.course.waits.extend(waits)
            durations.extend(ended)
        self._gateway.note(durations, gaps)
        self._tell(now, ready)
        self._note(rate, asked, num_shed, ready)
        self._scale(now, ready)

    def _tell(self, now: int, ready: list[Replica]) -> None:
        for replica in ready:
            while replica.accepted and replica.accepted[0] <= now - RATE_S:
                replica.accepted.popleft()
            since = now - replica.ready_at
            if since % RECORD_S == 0:
                replica.pending = self._report(now, replica)
            is_silent = self._trace.silent[0] <= now < self._trace.silent[1]
            if since % PUSH_S == 0 and not is_silent:
                replica.arrived = replica.pending

    def _report(self, now: int, replica: Replica) -> Report:
        return Report(
            at=now,
            num_running=len(replica.remaining),
            num_waiting=len(replica.waiting),
            kv_usage=replica.kv_usage,
            requests_per_s=len(replica.accepted) / RATE_S,
            shed_total=self._gateway.shed_total,
            request_s=self._gateway.request_s,
            itl_p99_s=self._gateway.itl_p99_s,
        )

    def _note(self, rate: float, asked: int, num_shed: int, ready: list[Replica]) -> None:
        course = self.course
        course.offered.append(rate)
        course.asked.append(asked)
        course.shed.append(num_shed)
        course.desired.append(self._desired)
        course.ready.append(len(ready))
        course.held.append(len(self._replicas))
        course.queued.append(sum(len(replica.waiting) for replica in self._replicas))
        course.itl_s.append(self._gateway.itl_p99_s or math.nan)

    def _scale(self, now: int, ready: list[Replica]) -> None:
        reports = tuple(replica.arrived for replica in ready if replica.arrived is not None)
        wanted = self._policy(Picture(now, len(ready), self._desired, reports))
        self._desired = min(max(wanted, self._bounds[0]), self._bounds[1])
        self._replicas = [r for r in self._replicas if not (r.is_draining and r.num_open == 0)]
        staying = [r for r in self._replicas if not r.is_draining]
        for _ in range(self._desired - len(staying)):
            self._replicas.append(Replica(self._trace.plant, now + self._trace.plant.load_s))
        # The newest go first, so those that still load before those that serve; a stream runs to its end.
        for replica in sorted(staying, key=lambda r: -r.ready_at)[: max(len(staying) - self._desired, 0)]:
            replica.is_draining = True
