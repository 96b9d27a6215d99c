"""What counts as healthy, as worth a look, and as broken; the worst is told first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from cluster.cluster_state import ClusterState
from cluster.experts_status import Outcome, Phase
from cluster.state_health import Health, Level, judge
from cluster.state_numbers import numbers_of
from tests.fakes.experts import balancer_status, record, tier_status
from tests.fakes.states import START, attention_metrics, cluster_state, gateway_metrics, member, members


def health(**fields: Any) -> Health:
    """Of a state ten seconds old with these fields, without a state before it."""
    state = ClusterState.from_dict(cluster_state(10.0, **fields))
    return judge(state, numbers_of([state]))


def between(before: dict[str, Any], after: dict[str, Any], seconds: float = 10.0) -> Health:
    """With one gateway and one attention actor that counted this at the beginning and at the end."""
    states = [
        ClusterState.from_dict(
            cluster_state(
                at,
                ep_size=2,
                members=[
                    member("gateway", "gateway", metrics=metrics),
                    member("attention", "attention"),
                    member("e0", "expert", ep_rank=0),
                    member("e1", "expert", ep_rank=1),
                ],
            )
        )
        for at, metrics in ((0.0, before), (seconds, after))
    ]
    return judge(states[-1], numbers_of(states))


def experts(**fields: Any) -> dict[str, Any]:
    return tier_status(10, 8, balancer=balancer_status(**fields)).to_dict()


def changed(name: str, **fields: Any) -> list[dict[str, Any]]:
    return [{**each, **(fields if each["member"] == name else {})} for each in members(10.0, 8)]


def without(*names: str) -> list[dict[str, Any]]:
    return [each for each in members(10.0, 8) if each["member"] not in names]


def test_a_healthy_cluster() -> None:
    """Who is ready, and nothing else."""
    found = health()
    assert (found.level, found.problems) == (Level.HEALTHY, ())
    assert found.sentence == "8/8 expert ranks, 1/1 attention actor, 1/1 gateway ready"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (without("expert-3", "expert-5"), "no ready member holds EP rank 3, 5"),
        (changed("expert-3", is_ready=False), "no ready member holds EP rank 3"),
        (without("attention-a"), "no attention actor is ready"),
        (changed("gateway-a", is_ready=False), "no gateway is ready"),
    ],
)
def test_without_which_nothing_is_served(given: list[dict[str, Any]], told: str) -> None:
    """Broken: a rank, the attention tier or the front door is missing."""
    found = health(members=given)
    assert found.level is Level.BROKEN
    assert told in found.problems[0].text


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([*members(10.0, 8), member("attention-b", "attention", is_ready=False)], "1 of 2 attention actors not ready"),
        (changed("expert-3", age_s=7.0), "EP rank 3 last reported 7 s ago"),
        (changed("gateway-a", age_s=7.0), "gateway gateway-a last reported 7 s ago"),
    ],
)
def test_worth_a_look(given: list[dict[str, Any]], told: str) -> None:
    """One of several is not ready, or one is silent."""
    found = health(members=given)
    assert found.level is Level.WARNING
    assert [told in problem.text for problem in found.problems] == [True]


@pytest.mark.parametrize(
    ("fields", "level", "told"),
    [
        (
            {"is_stalled": True, "phase": Phase.PREPARING, "phase_seconds": 133.0},
            Level.BROKEN,
            "stalled: preparing for 133 s",
        ),
        ({"is_paused": True}, Level.WARNING, "the balancer is paused"),
        (
            {"history": (record(outcome=Outcome.ABANDONED, reason="rank 3 was lost", started_at=START),)},
            Level.WARNING,
            "the last rebalance was abandoned: rank 3 was lost",
        ),
    ],
)
def test_the_balancer(fields: dict[str, Any], level: Level, told: str) -> None:
    """A stalled rebalance is broken; a paused balancer and an abandoned rebalance are worth a look."""
    found = health(experts=experts(**fields))
    assert (found.level, len(found.problems)) == (level, 1)
    assert told in found.problems[0].text


def test_old_news_is_none() -> None:
    """A rebalance that was abandoned an hour ago."""
    old = record(outcome=Outcome.ABANDONED, reason="rank 3 was lost", started_at=START - 3600.0)
    assert health(experts=experts(history=(old,))).level is Level.HEALTHY


def test_drift() -> None:
    """In the words of the detector."""
    found = health(experts=tier_status(10, 8, drift="layer 5 has moved by 0.31").to_dict())
    assert [problem.text for problem in found.problems] == ["drift: layer 5 has moved by 0.31"]


def test_traffic_that_is_lost() -> None:
    """Requests sent away, failed answers, full KV blocks."""
    after = {
        **gateway_metrics(10.0),
        **attention_metrics(10.0),
        "step35_requests_shed_total": [[["overloaded"], 24.0]],
        "step35_http_responses_total": [[["2xx"], 910.0], [["5xx"], 3.0]],
        "step35_kv_cache_usage_ratio": [[[], 0.97]],
    }
    found = between({**gateway_metrics(0.0), **attention_metrics(0.0)}, after)
    assert found.level is Level.WARNING
    assert [problem.text for problem in found.problems] == [
        "requests are sent away: 2.0 a second",
        "1 answer failed (5xx) in the last 10 s",
        "KV blocks run out: 97 % in use",
    ]


def test_sequences_that_do_not_move() -> None:
    """Running sequences and no step for long: broken. For a moment, or without sequences, it says nothing."""
    stuck = attention_metrics(3.0)
    assert between(stuck, stuck).problems[0].text == "12 sequences running, but no step was made for 10 s"
    assert between(stuck, stuck).level is Level.BROKEN
    assert between(stuck, stuck, seconds=2.0).level is Level.HEALTHY
    idle = {**stuck, "step35_requests_running": [[[], 0.0]]}
    assert between(idle, idle).level is Level.HEALTHY


def test_the_worst_comes_first() -> None:
    """Whatever the order in which problems are found."""
    found = health(members=changed("gateway-a", age_s=9.0), experts=experts(is_stalled=True, is_paused=True))
    assert [problem.level for problem in found.problems] == [Level.BROKEN, Level.WARNING, Level.WARNING]
    assert asdict(found)["problems"][0]["text"].startswith("the rebalance is stalled")
