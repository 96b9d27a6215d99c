"""Cases of the alerts about the expert tier, the way to it, and what depends on both. Pure."""

from __future__ import annotations

from ops.alerts.cases import AVAILABILITY, JOB, MEMORY, REQUESTS, Case, Series, attention, expert, of


def _batches(pairs: int, balancedness: float) -> Series:
    """One layer; so many pairs in each of ten batches in 30 s."""
    return {
        of("step35_balancedness_ratio", layer="3"): f"{balancedness}x120",
        expert("step35_expert_pairs_total", 0, layer="3"): f"0+{10 * pairs}x120",
        expert("step35_expert_batches_total", 0, layer="3"): "0+10x120",
    }


def _ranks(*busy: float) -> Series:
    """Busy seconds of each rank in 30 s, for 1000 pairs each."""
    times = {expert("step35_expert_busy_seconds_total", rank): f"0+{seconds}x80" for rank, seconds in enumerate(busy)}
    return {**times, **{expert("step35_expert_pairs_total", rank, layer="3"): "0+1000x80" for rank in range(len(busy))}}


_REBALANCES, _REBALANCE_S = "step35_rebalances_total", "step35_rebalance_seconds_bucket"

EXPERTS = (
    Case(
        alert="ImbalanceHigh",
        at="50m",
        fires=_batches(pairs=40, balancedness=0.5),
        # As uneven, and a handful of pairs.
        quiet=_batches(pairs=4, balancedness=0.5),
        says="Balancedness of demo is 0.50 as a mean over layers: the slowest rank has more than 1.5 times the mean.",
    ),
    Case(
        alert="RebalanceTooOften",
        at="20m",
        fires={of(_REBALANCES, outcome="done", trigger="load"): "0+0.4x60"},
        # As often, by an operator's order.
        quiet={of(_REBALANCES, outcome="done", trigger="manual"): "0+0.4x60"},
        says="demo began 16 rebalances by itself within an hour.",
    ),
    Case(
        alert="RebalanceSlow",
        at="20m",
        fires={
            of(_REBALANCE_S, le="300.0"): "0x60",
            of(_REBALANCE_S, le="600.0"): "0+1x60",
            of(_REBALANCE_S, le="+Inf"): "0+1x60",
        },
        quiet={
            of(_REBALANCE_S, le="300.0"): "0+1x60",
            of(_REBALANCE_S, le="600.0"): "0+1x60",
            of(_REBALANCE_S, le="+Inf"): "0+1x60",
        },
        says="Rebalances of demo take up to 9m 30s.",
    ),
    Case(
        alert="BalancerStalled",
        at="5m",
        fires={of("step35_balancer_stalled"): "0x3 1x20"},
        quiet={of("step35_balancer_stalled"): "0x3 1 0x20"},
        says="A phase of a rebalance of demo takes longer than its watchdog allows.",
    ),
    Case(
        alert="RebalancesAbandoned",
        at="20m",
        fires={of(_REBALANCES, outcome="abandoned", trigger="load"): "0+0.075x60"},
        quiet={of(_REBALANCES, outcome="done", trigger="load"): "0+0.075x60"},
        says="demo abandoned 3 rebalances within two hours.",
    ),
    Case(
        alert="RoutingDrift",
        at="40m",
        fires={of("step35_layer_drifting", layer="3"): "1x100", of("step35_layer_drifting", layer="4"): "1x100"},
        quiet={of("step35_layer_drifting", layer="3"): "1x9 0x100", of("step35_layer_drifting", layer="4"): "0x110"},
        says="Layers of demo in which the gate's confidence has left its usual range: 2.",
    ),
    Case(
        alert="StragglerRank",
        at="35m",
        fires=_ranks(5, 5, 15),
        quiet=_ranks(5, 5, 7),
        labels={"job": JOB, "ep_rank": "2"},
        says="EP rank 2 of demo takes 15ms for a pair, more than twice the median.",
    ),
    Case(
        alert="StragglerRank",
        at="35m",
        fires=_ranks(20, 4, 4, 4),
        # As slow, and idle.
        quiet=_ranks(1, 0.2, 0.2, 0.2),
        labels={"job": JOB, "ep_rank": "0"},
        says="EP rank 0 of demo takes 20ms for a pair, more than twice the median.",
    ),
)

_FAILURES, _EXCHANGES = "step35_exchange_failures_total", "step35_exchanges_total"

TRANSPORT = (
    Case(
        alert="ExchangeTimeouts",
        at="10m",
        fires={attention(_FAILURES, cause="timeout"): "0+1x30"},
        quiet={attention(_FAILURES, cause="timeout"): "4x30", attention(_FAILURES, cause="rank_lost"): "0+1x30"},
        says="10 exchanges of demo timed out within five minutes.",
    ),
    Case(
        alert="ExchangesFailing",
        at="20m",
        fires={attention(_FAILURES, cause="bad_frame"): "0+5x60", attention(_EXCHANGES, transport="shm"): "0+95x60"},
        # As many, of maps that were left behind in a rebalance.
        quiet={
            attention(_FAILURES, cause="map_not_served"): "0+5x60",
            attention(_FAILURES, cause="bad_frame"): "0x60",
            attention(_EXCHANGES, transport="shm"): "0+95x60",
        },
        says="5% of the exchanges of demo fail; steps are repeated.",
    ),
    Case(
        alert="RecoveriesGivenUp",
        at="15m",
        fires={attention("step35_recoveries_given_up_total"): "0+0.1x60"},
        quiet={attention("step35_recoveries_given_up_total"): "2x60"},
        says="Attention actors of demo gave up 2 times within ten minutes.",
    ),
)


def _drafts(before: int, now: int) -> Series:
    """Drafts of 100 that are taken in 30 s, for an hour and then for another. A day would take promtool a minute."""
    return {
        attention("step35_draft_tokens_total", position="0"): "0+100x260",
        attention("step35_accepted_tokens_total", position="0"): f"0+{before}x119 {before * 120}+{now}x140",
    }


SERVICE = (
    Case(
        alert="AcceptanceDropped",
        at="2h",
        fires=_drafts(before=80, now=40),
        quiet=_drafts(before=80, now=70),
        says="The target of demo takes 40% of first drafts, a fifth less than over the day before.",
    ),
    Case(
        alert="ContinuationsFailing",
        at="15m",
        fires={of("step35_continuations_total", outcome="failed"): "0+1x60"},
        quiet={of("step35_continuations_total", outcome="continued"): "0+1x60"},
        says="20 streams of demo broke off within ten minutes.",
    ),
    Case(
        alert="AutoscalerStuck",
        at="15m",
        fires={
            of("step35_autoscaler_desired_replicas", tier="attention"): "3x60",
            of("step35_autoscaler_replicas", tier="attention"): "2x60",
        },
        quiet={
            of("step35_autoscaler_desired_replicas", tier="attention"): "3x60",
            of("step35_autoscaler_replicas", tier="attention"): "2x9 3x60",
        },
        labels={"job": JOB, "tier": "attention"},
        says="For ten minutes the autoscaler has asked for 3 replicas of the attention tier of demo, and there is "
        "another number.",
    ),
    Case(
        alert="MetricsDropped",
        at="20m",
        fires={attention("step35_telemetry_dropped_total"): "0+2x60"},
        quiet={attention("step35_telemetry_dropped_total"): "7x60"},
        labels={"job": JOB, "role": "attention"},
        says="Processes of role attention of demo dropped 60 records within 15 minutes.",
    ),
)

CASES = (*AVAILABILITY, *REQUESTS, *MEMORY, *EXPERTS, *TRANSPORT, *SERVICE)
