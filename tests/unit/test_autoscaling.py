"""The autoscaling policy: its arithmetic by hand, its promises on random loads, and that no constant load moves it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
from pydantic import ValidationError

from cluster.autoscaling import (
    AutoscalerState,
    AutoscalingConfig,
    Decision,
    GatewayLoad,
    Observation,
    ReplicaLoad,
    decide,
)

CONFIG = AutoscalingConfig(
    max_replicas=8, target_sequences=10, itl_target_s=0.05, upscale_delay_s=30, downscale_delay_s=300
)
QUIET = GatewayLoad(0.0, 0)


def load(running: float, waiting: float = 0, *, kv: float = 0.1, rate: float = 1.0, age: float = 0) -> ReplicaLoad:
    return ReplicaLoad(running, waiting, kv, rate, age)


def seen(
    now: float, *loads: ReplicaLoad, present: int | None = None, gateways: GatewayLoad | None = QUIET
) -> Observation:
    """Gateways that are heard now, unless they were told as None."""
    heard = replace(gateways, at=now) if gateways else None
    return Observation(now, len(loads), len(loads) if present is None else present, loads, heard, 1, 8)


class Run:
    """Decisions one after another, second by second if they are alike."""

    def __init__(self, config: AutoscalingConfig = CONFIG) -> None:
        self.config = config
        self.state = AutoscalerState()

    def at(self, observation: Observation) -> Decision:
        decision, self.state = decide(self.config, self.state, observation)
        return decision

    def during(self, start: int, end: int, *loads: ReplicaLoad, **rest: object) -> Decision:
        """The first decision that is not to hold, or the last one."""
        for now in range(start, end + 1):
            decision = self.at(seen(now, *loads, **rest))  # type: ignore[arg-type]
            if decision.change != "hold":
                break
        return decision


def test_more_after_the_short_delay() -> None:
    """14 sequences at 10 each need two replicas, after 30 seconds and not before."""
    run = Run()
    assert run.during(0, 29, load(9, 5)).replicas == 1
    decision = run.at(seen(30, load(9, 5)))
    assert (decision.replicas, decision.change) == (2, "up")
    assert decision.why == (
        "up from 1 to 2: 1.40 replicas are needed: 1.40 by sequences (9 running, 5 waiting, 0.0 shed, at 10 each), "
        "0.12 by KV, 0.00 by latency"
    )


def test_one_calm_look_begins_the_delay_anew() -> None:
    """And what is taken in the end is the least that was wanted all the time."""
    run = Run()
    run.during(0, 20, load(9, 20))
    run.at(seen(21, load(9)))
    assert run.during(22, 51, load(9, 5)).change == "hold"
    run = Run()
    run.during(0, 20, load(20), load(20), load(20))
    assert run.during(21, 40, load(12), load(12), load(12)).replicas == 4


def test_at_most_twice_the_present_in_one_decision() -> None:
    """A flood of 75 on one replica: 2, then 4, then all 8, each after its delay."""
    run, present, seconds = Run(), 1, []
    for now in range(120):
        decision = run.at(seen(now, load(10, 65), present=present))
        if decision.replicas != present:
            assert decision.replicas == 2 * present
            present = decision.replicas
            seconds.append(now)
    assert (present, seconds) == (8, [30, 61, 92])


def test_fewer_after_the_long_delay() -> None:
    """Three replicas with 12 sequences: two leave room, one would not."""
    run = Run()
    assert run.during(0, 299, load(4), load(4), load(4)).replicas == 3
    decision = run.at(seen(300, load(4), load(4), load(4)))
    assert (decision.replicas, decision.change) == (2, "down")


def test_at_most_half_goes_at_once() -> None:
    """Eight idle replicas become four."""
    assert Run().during(0, 400, *[load(0)] * 8).replicas == 4


def test_room_must_be_left() -> None:
    """17 sequences fit two replicas at 10 each, but not with a fifth of room: three stay."""
    assert Run().during(0, 2000, load(6), load(6), load(5)).change == "hold"


def test_the_busiest_moment_of_the_delay_counts() -> None:
    """Once in the delay two replicas were needed, so two are left of four."""
    run = Run()
    run.during(0, 150, *[load(1)] * 4)
    run.at(seen(151, *[load(3)] * 4))
    assert run.during(152, 400, *[load(1)] * 4).replicas == 2


def test_nobody_may_wait_at_the_end() -> None:
    """One waiting sequence holds up the decision, not the delay."""
    run = Run()
    decision = run.during(0, 310, load(1), load(1, 1))
    assert decision.change == "hold"
    assert decision.why.endswith("; somebody waits")
    assert run.at(seen(311, load(1), load(1))).replicas == 1


def test_shed_requests_are_demand() -> None:
    """Half a request per second for 8 seconds each is four more sequences: a second replica for one that is full. The
    rate is known after ten seconds, and the delay is thirty."""
    run = Run()
    for now in range(40):
        decision = run.at(seen(now, load(9), gateways=GatewayLoad(0, now / 2, request_s=8.0)))
    assert decision.replicas == 1
    assert "1.40 by sequences (9 running, 0 waiting, 4.0 shed, at 10 each)" in decision.why
    assert run.at(seen(40, load(9), gateways=GatewayLoad(0, 20, request_s=8.0))).replicas == 2


def test_looks_between_two_reports_see_a_steady_flow() -> None:
    """Five requests are shed every five seconds; most looks find the count unchanged, and none of them is a break."""
    run = Run()
    for now in range(45):
        decision = run.at(seen(now, load(9), gateways=GatewayLoad(0, now // 5 * 5, request_s=8.0)))
        if decision.change == "up":
            break
    assert (now, decision.replicas) == (40, 2)


def test_shed_with_empty_queues_grows() -> None:
    """Nothing runs, nothing waits, everything is sent away: twice as many, whatever a storm of retries pretends. A
    few requests sent away ask for one more."""
    for rate, expected in ((100, 4), (0.01, 3)):
        run = Run()
        for now in range(50):
            decision = run.at(seen(now, load(0), load(0), gateways=GatewayLoad(0, rate * now)))
            if decision.change == "up":
                break
        assert decision.replicas == expected


def test_nothing_goes_for_a_whole_delay_after_shedding() -> None:
    """One request shed begins the long delay anew."""
    run = Run()
    for now in range(600):
        total = 1 if now >= 250 else 0
        decision = run.at(seen(now, load(1), load(1), gateways=GatewayLoad(0, total)))
        if decision.change != "hold":
            break
    assert (now, decision.replicas) == (560, 1)


def test_a_counter_that_restarts_is_no_demand() -> None:
    """Nor is what was shed before the first look."""
    run = Run()
    for count, total in enumerate((5000, 5000, 3, 3)):
        assert "0.0 shed" in run.at(seen(10 * count, load(5), gateways=GatewayLoad(0, total))).why


def test_kv_counts_as_sequences_do() -> None:
    """Few long sequences: two replicas of 0.9 need 2.25 at 0.8 each."""
    assert Run().during(0, 31, load(2, kv=0.9), load(2, kv=0.9)).replicas == 3


def test_latency_counts_while_more_replicas_would_help() -> None:
    """Half again the target, on replicas that are more than half full: three for two. Not on idle ones, and not while
    another one is starting."""
    slow = GatewayLoad(0, 0, itl_p99_s=0.075)
    assert Run().during(0, 31, load(6), load(6), gateways=slow).replicas == 3
    assert Run().during(0, 200, load(4), load(4), gateways=slow).change == "hold"
    assert Run().during(0, 200, load(6), load(6), present=3, gateways=slow).change == "hold"
    without = CONFIG.model_copy(update={"itl_target_s": None})
    assert Run(without).during(0, 200, load(6), load(6), gateways=slow).change == "hold"


def test_stale_reports_hold() -> None:
    """All of them old: nothing changes, and delays begin anew when they return."""
    run = Run()
    run.during(0, 25, load(9, 9))
    decision = run.during(26, 500, load(9, 9, age=46))
    assert decision.change == "hold"
    assert decision.why == "hold 1: none of 1 ready replicas has reported in the last 45 s"
    assert run.during(501, 530, load(9, 9)).change == "hold"
    assert run.at(seen(531, load(9, 9))).change == "up"


def test_a_silent_replica_can_only_be_missed_upwards() -> None:
    """What the others say is a lower bound: enough to grow, never to shrink."""
    assert Run().during(0, 31, load(25), load(0, age=99)).replicas == 3
    decision = Run().during(0, 900, load(0), load(0, age=99))
    assert decision.change == "hold"
    assert "1 of 2 ready replicas are silent" in decision.why


@pytest.mark.parametrize("gateways", [None, GatewayLoad(-100, 0)])
def test_without_the_gateways_nothing_goes(gateways: GatewayLoad | None) -> None:
    """Never heard, or long ago: they may be shedding."""
    run = Run()
    for now in range(900):
        observation = replace(seen(now, load(0), load(0)), gateways=gateways)
        decision = run.at(observation)
        assert decision.change == "hold"
    assert decision.why.endswith("what the gateways shed is not known")


def test_bounds_hold_at_once() -> None:
    """Also when they are changed under a running cluster, and when nothing is known."""
    for loads in ((load(0),) * 3, (load(50),) * 3, ()):
        for least, most, expected in ((5, 8, 5), (1, 2, 2)):
            observation = replace(seen(0, *loads, present=3), min_replicas=least, max_replicas=most)
            assert Run().at(observation).replicas == expected


def test_a_refuted_downscale_is_not_repeated() -> None:
    """Two replicas with 7 sequences become one, which is then too few for no more requests. It is tried again only
    after fewer requests came for a whole delay."""
    run = Run()
    assert run.during(0, 300, load(4), load(3)).replicas == 1
    assert run.during(301, 340, load(10, 4, rate=2.0)).replicas == 2
    assert run.during(341, 2000, load(4), load(3)).change == "hold"
    assert run.at(seen(2001, load(4), load(3))).why.endswith("1 were too few for no more requests")
    less = load(3, rate=0.5)
    assert run.during(2002, 2302, less, less).change == "hold"
    assert run.during(2303, 2400, less, less).replicas == 1


def test_a_downscale_is_not_refuted_by_more_requests() -> None:
    """The load has really grown, so the next quiet hour may be served by one replica again."""
    run = Run()
    run.during(0, 300, load(4), load(3))
    assert run.during(301, 400, load(10, 4, rate=5.0)).replicas == 2
    assert run.during(401, 800, load(4), load(3)).replicas == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_replicas": 0}, "max_replicas"),
        ({"target_sequences": 0}, "target_sequences"),
        ({"target_kv_usage": 1.5}, "target_kv_usage"),
        ({"itl_target_s": 0}, "itl_target_s"),
        ({"hysteresis": 0.0}, "hysteresis"),
        ({"stale_after_s": 10}, "stale_after_s"),
        ({"request_s": float("inf")}, "request_s"),
        ({"upscale_delay_s": 60, "downscale_delay_s": 59}, "upscale_delay_s 60.0 must be at most downscale_delay_s 59"),
        ({"min_replicas": 1}, "min_replicas"),
    ],
)
def test_wrong_settings_are_named(fields: dict[str, float], message: str) -> None:
    """Out of range, contradictory, or not a field of this section."""
    with pytest.raises(ValidationError, match=message):
        AutoscalingConfig.model_validate(fields)


def test_promises_on_random_loads() -> None:
    """Whatever is reported: within the bounds, at most twice and at least half the present; never fewer while somebody
    waits, something is silent, or something was shed in the last delay."""
    rng, run, present, shed_total, shed_at = random.Random(5), Run(), 2, 0, -1
    num_changes = 0
    for now in range(0, 60_000, 5):
        level = 12 * (1 + (now // 6000) % 3) if (now // 3000) % 2 else 2
        loads = [
            load(
                rng.uniform(0, level),
                3 * (level > 2 and rng.random() < 0.25),
                kv=rng.uniform(0, level / 60),
                rate=level / present,
                age=60 * (rng.random() < 0.0005),
            )
            for _ in range(present)
        ]
        if rng.random() < 0.001:
            shed_total, shed_at = shed_total + 5, now
        decision = run.at(seen(now, *loads, gateways=GatewayLoad(0, shed_total)))
        assert 1 <= decision.replicas <= 8
        assert present / 2 <= decision.replicas <= 2 * present
        if decision.change == "down":
            assert not any(replica.num_waiting or replica.age_s > 45 for replica in loads)
            assert now - shed_at >= CONFIG.downscale_delay_s
        num_changes += decision.replicas != present
        present = decision.replicas
    assert num_changes > 20, "the loads were too dull to prove anything"


@dataclass
class FluidTier:
    """Attention actors under a constant flow of requests: open sequences share the steps, whose time grows with them.

    Convex: near its capacity a replica less is felt far more than in proportion, which makes simple rules oscillate.
    """

    requests_per_s: float
    tokens: float
    step_s: float
    sequence_s: float
    max_running: int = 32
    max_waiting: int = 64
    load_s: int = 120
    num_open: float = 0.0
    shed_total: float = 0.0

    def advance(self, seconds: int, num_ready: int) -> tuple[float, float, float]:
        """Returns (running, waiting, accepted per second)."""
        running = min(self.num_open, num_ready * self.max_running)
        served = running / (self.step_s + self.sequence_s * running / num_ready) / self.tokens
        self.num_open += (self.requests_per_s - served) * seconds
        room = num_ready * (self.max_running + self.max_waiting)
        shed = max(self.num_open - room, 0.0)
        self.num_open = min(max(self.num_open, 0.0), room)
        self.shed_total += shed
        running = min(self.num_open, num_ready * self.max_running)
        return running, self.num_open - running, self.requests_per_s - shed / seconds


def settle(tier: FluidTier, config: AutoscalingConfig, seconds: int, start: int) -> list[tuple[int, int]]:
    """(second, replicas) of every change. Reports are 10 s old and come every 5 s."""
    run, present, ready_at, changes = Run(config), start, [0] * start, []
    for now in range(0, seconds, 5):
        num_ready = sum(at <= now for at in ready_at)
        running, waiting, accepted = tier.advance(5, num_ready)
        share = [
            load(running / num_ready, waiting / num_ready, rate=accepted / num_ready, age=10) for _ in range(num_ready)
        ]
        latency = tier.step_s + tier.sequence_s * running / num_ready
        gateways = GatewayLoad(0, tier.shed_total, tier.tokens * latency, latency)
        decision = run.at(seen(now, *share, present=present, gateways=gateways))
        assert decision.replicas <= 2 * present
        ready_at = sorted(ready_at)[: decision.replicas]
        ready_at += [now + tier.load_s] * (decision.replicas - len(ready_at))
        if decision.replicas != present:
            present = decision.replicas
            changes.append((now, present))
    return changes


def refuted(changes: list[tuple[int, int]]) -> list[int]:
    """The numbers that were reached downwards and left upwards."""
    numbers = [replicas for _, replicas in changes]
    return [n for before, n, after in zip(numbers, numbers[1:], numbers[2:], strict=False) if before > n < after]


@pytest.mark.parametrize("seed", range(6))
def test_a_constant_load_comes_to_rest(seed: int) -> None:
    """Random machines, loads from idle to far too much, from few and from many replicas: after a finite number of
    changes there are no more. A number of replicas that a downscale tried and that was too few is never tried again,
    nor is a smaller one, so there can be no more ups and downs than replicas."""
    rng = random.Random(seed)
    for _ in range(6):
        step_s, sequence_s = rng.uniform(0.005, 0.04), rng.uniform(0.0, 0.004)
        tokens = rng.uniform(50, 600)
        capacity = 32 / (step_s + sequence_s * 32) / tokens
        tier = FluidTier(capacity * rng.uniform(0.02, 9), tokens, step_s, sequence_s)
        config = CONFIG.model_copy(
            update={"target_sequences": rng.uniform(8, 30), "itl_target_s": rng.choice((None, rng.uniform(0.02, 0.2)))}
        )
        changes = settle(tier, config, 5 * 3600, start=rng.choice((1, 3, 8)))
        assert all(second < 3 * 3600 for second, _ in changes), (tier, changes)
        tried = refuted(changes)
        assert tried == sorted(set(tried)), (tier, changes)


def test_without_memory_the_same_load_would_oscillate() -> None:
    """The tier of this test makes a rule of thresholds go up and down for ever: the memory is needed."""
    tier = FluidTier(requests_per_s=2.4, tokens=200, step_s=0.004, sequence_s=0.0018)
    config = CONFIG.model_copy(update={"itl_target_s": None})
    forgetful, present, ready_at, num_changes = Run(config), 2, [0, 0], 0
    for now in range(0, 6 * 3600, 5):
        num_ready = sum(at <= now for at in ready_at)
        running, waiting, accepted = tier.advance(5, num_ready)
        share = [load(running / num_ready, waiting / num_ready, rate=accepted / num_ready)] * num_ready
        decision = forgetful.at(seen(now, *share, present=present, gateways=GatewayLoad(0, tier.shed_total, 9.0)))
        forgetful.state = replace(forgetful.state, judged=None)
        ready_at = ready_at[: decision.replicas] + [now + 120] * (decision.replicas - len(ready_at))
        num_changes += decision.replicas != present
        present = decision.replicas
    assert num_changes > 20
    remembering = FluidTier(requests_per_s=2.4, tokens=200, step_s=0.004, sequence_s=0.0018)
    assert len(settle(remembering, config, 6 * 3600, start=2)) <= 4
