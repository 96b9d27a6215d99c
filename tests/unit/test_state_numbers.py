"""Figures from differences of states: by hand, over restarts, silences and metrics that nobody records."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cluster.cluster_state import ClusterState
from cluster.state_numbers import numbers_of
from cluster.state_window import WINDOW_S, Quantile, StateHistory, Window, quantile
from ops.telemetry.metrics import METRICS
from tests.fakes.states import (
    ACCEPTED_PER_S,
    COMPLETION_PER_S,
    DRAFTED_PER_S,
    FINISHED_PER_S,
    PARTS,
    PROMPT_PER_S,
    STEPS_PER_S,
    VERIFIED_PER_S,
    attention_metrics,
    cluster_state,
    gateway_metrics,
    member,
)

TOKENS = "step35_completion_tokens_total"
FIRST_TOKEN = "step35_time_to_first_token_seconds"


def read(seconds: float = 0.0, **fields: Any) -> ClusterState:
    return ClusterState.from_dict(cluster_state(seconds, **fields))


def tokens(seconds: float, total: float, *, name: str = "gateway-a", age_s: float = 0.0) -> ClusterState:
    """A state in which one gateway has counted so many tokens."""
    return with_metrics(seconds, {TOKENS: [[[], total]]}, name=name, age_s=age_s)


def with_metrics(
    seconds: float, metrics: dict[str, Any], *, name: str = "gateway-a", age_s: float = 0.0
) -> ClusterState:
    return read(seconds, members=[member(name, "gateway", metrics=metrics, age_s=age_s)])


def rate(*states: ClusterState) -> float | None:
    return Window(states).rate(TOKENS)


@pytest.mark.parametrize(("num_layers", "ep_size"), [(10, 8), (42, 8), (42, 288)])
def test_every_figure_of_two_states(num_layers: int, ep_size: int) -> None:
    """Rates as they were made; gauges as they are; what was there before the first state is in none of them."""
    shape = {"num_layers": num_layers, "ep_size": ep_size}
    numbers = numbers_of([read(2.0, **shape), read(6.0, **shape)])
    assert numbers.seconds == 4.0
    assert (numbers.running, numbers.waiting, numbers.kv_usage) == (12.0, 0.0, 0.46)
    assert numbers.completion_tokens_per_s == pytest.approx(COMPLETION_PER_S)
    assert numbers.prompt_tokens_per_s == pytest.approx(PROMPT_PER_S)
    assert numbers.finished_per_s == pytest.approx(FINISHED_PER_S)
    assert numbers.steps_per_s == pytest.approx(STEPS_PER_S)
    assert (numbers.shed_per_s, numbers.num_failed) == (0.0, 0.0)
    assert numbers.rows == pytest.approx(24.0)
    shares = [accepted / drafted for accepted, drafted in zip(ACCEPTED_PER_S, DRAFTED_PER_S, strict=True)]
    assert numbers.acceptance == pytest.approx(shares)
    assert numbers.acceptance_length == pytest.approx(1.0 + sum(ACCEPTED_PER_S) / VERIFIED_PER_S)
    assert numbers.parts == pytest.approx(PARTS)
    assert numbers.first_token.p50 == Quantile(0.1)
    # 98 % of the upper half, which lies between 1 and 2.5 s
    assert numbers.first_token.p99 is not None
    assert numbers.first_token.p99.value == pytest.approx(1.0 + 1.5 * 0.98)
    assert numbers.between_tokens.p50 is not None
    assert numbers.between_tokens.p50.value == pytest.approx(0.0125)


def test_one_state_has_gauges_and_nothing_else() -> None:
    """What needs a difference is not known, and not 0."""
    numbers = numbers_of([read(5.0)])
    assert (numbers.running, numbers.kv_usage) == (12.0, 0.46)
    assert numbers.completion_tokens_per_s is None
    assert numbers.first_token.p50 is None
    assert numbers.acceptance == ()
    assert numbers.acceptance_length is None
    assert numbers.parts == {}


def test_what_nobody_records_is_not_known() -> None:
    """Members without metrics: no figure at all."""
    numbers = numbers_of([read(t, members=[member("a", "attention")]) for t in (0.0, 1.0)])
    assert (numbers.running, numbers.waiting, numbers.kv_usage, numbers.num_failed) == (None,) * 4
    assert (numbers.shed_per_s, numbers.steps_per_s, numbers.rows) == (None,) * 3


def test_nothing_happened_is_zero_for_rates_and_unknown_for_latencies() -> None:
    """A cluster at rest: 0 tokens a second, but no latency, acceptance or share."""
    metrics = {**gateway_metrics(3.0), **attention_metrics(3.0)}
    numbers = numbers_of([with_metrics(t, metrics) for t in (3.0, 5.0)])
    assert (numbers.completion_tokens_per_s, numbers.steps_per_s) == (0.0, 0.0)
    assert (numbers.first_token.p99, numbers.rows, numbers.acceptance_length) == (None,) * 3
    assert numbers.acceptance == (None,) * 3
    assert numbers.parts == {}


def test_a_rate_is_over_the_time_between_reports() -> None:
    """A member reports when it reports: 100 tokens between reports 2 s apart, seen 1 s apart, are 50 a second."""
    assert rate(tokens(10.0, 0.0, age_s=1.2), tokens(11.0, 100.0, age_s=0.2)) == pytest.approx(50.0)
    assert rate(tokens(10.0, 7.0, age_s=0.2), tokens(11.0, 7.0, age_s=1.2)) is None


def test_a_member_that_restarted() -> None:
    """Its new name begins anew: what it counted before it was first seen is not a rise, and the old one is gone."""
    states = [tokens(0.0, 5000.0), tokens(1.0, 40.0, name="gateway-b"), tokens(3.0, 100.0, name="gateway-b")]
    assert rate(*states[:2]) is None
    assert rate(*states) == pytest.approx(30.0)


def test_a_total_that_fell_was_begun_anew() -> None:
    """A coordinator that restarts keeps its name."""
    assert rate(tokens(0.0, 5000.0), tokens(2.0, 60.0)) == pytest.approx(30.0)
    many, few = ({FIRST_TOKEN: gateway_metrics(seconds)[FIRST_TOKEN]} for seconds in (50.0, 2.0))
    found = Window([with_metrics(0.0, many), with_metrics(1.0, few)]).histogram(FIRST_TOKEN)
    assert found is not None
    assert list(found.counts) == few[FIRST_TOKEN][0][1]["counts"]


def test_a_member_known_before_its_first_report() -> None:
    """Its first totals are since its birth, and are no rise."""
    silent = with_metrics(0.0, {})
    assert rate(silent, tokens(1.0, 9000.0)) is None
    assert rate(silent, tokens(1.0, 9000.0), tokens(2.0, 9010.0)) == pytest.approx(10.0)


def test_labels_that_appear_began_at_nothing() -> None:
    """The first request of its kind."""
    name = "step35_requests_shed_total"
    states = [
        with_metrics(0.0, {name: [[["overloaded"], 3.0]]}),
        with_metrics(1.0, {name: [[["overloaded"], 4.0], [["not_ready"], 2.0]]}),
    ]
    assert Window(states).increases(name) == {("overloaded",): 1.0, ("not_ready",): 2.0}


def test_members_are_added_up() -> None:
    """Rates of two gateways whose reports are of different length; the fullest actor's blocks."""
    states = [
        read(t, members=[
            member("a", "gateway", age_s=0.0, metrics={TOKENS: [[[], 10.0 * t]]}),
            member("b", "gateway", age_s=0.5, metrics={TOKENS: [[[], 20.0 * t]]}),
            member("c", "attention", metrics={"step35_kv_cache_usage_ratio": [[[], 0.2]]}),
            member("d", "attention", metrics={"step35_kv_cache_usage_ratio": [[[], 0.7]]}),
        ])
        for t in (0.0, 4.0)
    ]  # fmt: skip
    assert rate(*states) == pytest.approx(30.0)
    assert numbers_of(states).kv_usage == 0.7


def test_buckets_of_another_version() -> None:
    """A histogram with other buckets than ours says nothing; it is not guessed at."""
    states = [with_metrics(t, {FIRST_TOKEN: [[[], {"counts": [t, t], "total": 1.0}]]}) for t in (1, 2)]
    assert Window(states).quantile(FIRST_TOKEN, 0.5) is None


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0], 0.5, None),
        ([4, 0, 0], 0.5, Quantile(0.5)),
        ([0, 4, 0], 0.5, Quantile(2.0)),
        ([2, 2, 0], 0.5, Quantile(1.0)),
        ([1, 0, 1], 0.99, Quantile(3.0, is_above=True)),
        ([0, 0, 9], 0.01, Quantile(3.0, is_above=True)),
    ],
)
def test_quantiles_by_hand(counts: list[int], share: float, expected: Quantile | None) -> None:
    """Bounds 1 and 3: linear within a bucket; past the last bound only the bound is known."""
    assert quantile((1.0, 3.0), counts, share) == expected


def test_the_history_is_as_long_as_the_window() -> None:
    """One look a second for a minute: the oldest is WINDOW_S old."""
    history = StateHistory()
    for second in range(60):
        history.push(read(float(second)))
    times = [state.time for state in history.states]
    assert times[-1] - times[0] == WINDOW_S
    assert times == sorted(times)


def test_the_history_across_a_silence() -> None:
    """After a gap the last state before it is kept, so that there is a rate at once."""
    history = StateHistory()
    for second in (0.0, 1.0, 2.0, 100.0):
        history.push(read(second))
    assert numbers_of(history.states).completion_tokens_per_s == pytest.approx(COMPLETION_PER_S)
    assert history.states[-1].time - history.states[0].time == 98.0


def test_clocks_that_stand_still_or_go_back() -> None:
    """The same state again adds nothing; an earlier one is another coordinator's and comes alone."""
    history = StateHistory()
    for second in (5.0, 6.0, 6.0):
        history.push(read(second))
    assert len(history.states) == 2
    history.push(read(1.0))
    assert len(history.states) == 1


def test_a_name_that_is_no_metric_is_a_bug() -> None:
    """Every name asked for is in the registry: `numbers_of` asks for all it ever does."""
    with pytest.raises(AssertionError, match="step35_nonsense is not a metric"):
        Window([read()]).rate("step35_nonsense")
    recorded = {name for each in cluster_state()["members"] for name in each["metrics"]}
    assert recorded <= METRICS.keys()
    assert not math.isnan(numbers_of([read(0.0), read(1.0)]).completion_tokens_per_s or math.nan)


@pytest.mark.parametrize("missing", ["time", "model", "experts", "members", "events"])
def test_an_answer_of_another_version(missing: str) -> None:
    """A field that is not there is told by name."""
    fields = cluster_state()
    del fields[missing]
    with pytest.raises(KeyError, match=missing):
        ClusterState.from_dict(fields)
