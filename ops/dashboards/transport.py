"""Transport: exchanges between attention actors and expert ranks, what they cost, and how they fail and recover."""

from __future__ import annotations

from ops.dashboards.panels import Board, Query, Row, Unit, lines, percentiles, red_from, sized, stacked, stat
from ops.dashboards.promql import increase, over, rate, ratio, select, share_of_all, total_rate

EXCHANGES = "step35_exchanges_total"
EXCHANGE_BYTES = "step35_exchange_bytes_total"
FAILURES = "step35_exchange_failures_total"
PARTS = "step35_step_part_seconds_total"

SHARE_FAILED = ratio(total_rate(FAILURES), f"{total_rate(FAILURES)} + {total_rate(EXCHANGES)}")
WAIT_SHARE = ratio(rate(PARTS, 'part="combine_wait"'), rate(PARTS))

NOW = Row(
    "Now",
    (
        sized(
            stat(
                "Exchanges a second",
                "Dispatches to the expert ranks that were answered, all attention actors together.",
                Unit.PER_SECOND,
                rate(EXCHANGES),
            ),
            6,
        ),
        sized(
            stat(
                "Exchanges that failed",
                "Share of exchanges. Frames of a map that a rank does not serve any more are part of a rebalance.",
                Unit.SHARE,
                SHARE_FAILED,
                *red_from(0.001, 0.01),
            ),
            6,
        ),
        sized(
            stat(
                "Waiting for experts",
                "Share of step time spent waiting for the slowest rank, which nothing else hid.",
                Unit.SHARE,
                WAIT_SHARE,
                *red_from(0.4, 0.6),
            ),
            6,
        ),
        sized(
            stat(
                "EP ranks without a holder",
                "While one is missing, exchanges fail and steps are repeated.",
                Unit.PLAIN,
                over("max", select("step35_leases_free")),
                *red_from(1.0, 2.0),
            ),
            6,
        ),
    ),
)

TRAFFIC = Row(
    "Traffic",
    (
        lines(
            "Exchanges",
            "Answered dispatches by transport. Each MoE layer of each micro-batch is one.",
            Unit.PER_SECOND,
            Query(rate(EXCHANGES, by=("transport",)), "{{transport}}"),
        ),
        lines(
            "Bytes",
            "Rows, pairs and outputs exchanged with the expert ranks.",
            Unit.BYTES_PER_SECOND,
            Query(rate(EXCHANGE_BYTES, by=("direction",)), "{{direction}}"),
        ),
        lines(
            "Bytes of an exchange",
            "Bytes over exchanges. Grows with tokens in a step and with ranks that a token visits.",
            Unit.BYTES,
            Query(
                share_of_all(rate(EXCHANGE_BYTES, by=("direction",)), rate(EXCHANGES)),
                "{{direction}}",
            ),
        ),
    ),
)

WAITING = Row(
    "Waiting",
    (
        stacked(
            "Where the seconds of steps go",
            "Share of step time. dispatch: planning and sending; combine_wait: until the slowest rank has answered.",
            Unit.SHARE,
            Query(share_of_all(rate(PARTS, by=("part",)), rate(PARTS)), "{{part}}"),
        ),
        lines(
            "Seconds for an exchange",
            "Seconds of dispatch and of combine_wait over exchanges.",
            Unit.SECONDS,
            Query(
                share_of_all(rate(PARTS, 'part=~"dispatch|combine_wait"', by=("part",)), rate(EXCHANGES)), "{{part}}"
            ),
        ),
        percentiles("Step", "Duration of an engine step.", "step35_step_seconds"),
        sized(
            lines(
                "Waiting by attention actor",
                "Share of an actor's step time spent in combine_wait. One above the others has a slow path to a rank.",
                Unit.SHARE,
                Query(
                    ratio(rate(PARTS, 'part="combine_wait"', by=("member",)), rate(PARTS, by=("member",))), "{{member}}"
                ),
            ),
            12,
        ),
        sized(
            lines(
                "Busy ranks",
                "Share of time that the products of a rank's experts take. Waiting with idle ranks is the network's, "
                "with a busy one the placement's.",
                Unit.SHARE,
                Query(rate("step35_expert_busy_seconds_total", by=("ep_rank",)), "rank {{ep_rank}}"),
            ),
            12,
        ),
    ),
)

FAULTS = Row(
    "Faults and recovery",
    (
        stacked(
            "Failed exchanges",
            "By cause. timeout: a rank did not answer in time; map_not_served: part of a rebalance.",
            Unit.PER_SECOND,
            Query(rate(FAILURES, by=("cause",)), "{{cause}}"),
        ),
        lines(
            "Refused frames",
            "Frames that ranks refused, by kind and rank. bad_frame or kernel on one rank points at that rank.",
            Unit.PER_SECOND,
            Query(rate("step35_frames_refused_total", by=("kind", "ep_rank")), "{{kind}}, rank {{ep_rank}}"),
        ),
        lines(
            "Repeated steps",
            "Steps that failed at the expert tier and were computed again.",
            Unit.PER_SECOND,
            Query(rate("step35_step_retries_total", by=("member",)), "{{member}}"),
        ),
        sized(
            percentiles(
                "Recovery",
                "From the first failed step of a run to the next that succeeded: how long streams stood still.",
                "step35_recovery_seconds",
            ),
            12,
        ),
        sized(
            lines(
                "Given up, in an hour",
                "Runs of failed steps that outlasted the deadline: their requests ended with an error.",
                Unit.NUMBER,
                Query(increase("step35_recoveries_given_up_total", "1h"), "given up"),
            ),
            12,
        ),
    ),
)

TRANSPORT = Board(
    name="transport",
    title="Transport",
    description="Exchanges between attention actors and expert ranks: traffic, waiting, failures and recovery.",
    rows=(NOW, TRAFFIC, WAITING, FAULTS),
)
