"""The overview: does it serve, what do users feel, where does it queue. The first board to open."""

from __future__ import annotations

from ops.dashboards.panels import (
    GREEN_FROM_1,
    RED_FROM_1,
    Board,
    Query,
    Row,
    Unit,
    as_share,
    lines,
    percentiles,
    red_from,
    sized,
    stacked,
    stat,
)
from ops.dashboards.promql import mean, over, quantile, rate, ratio, select, share_of_all, total_rate
from ops.dashboards.scaling import wanted_and_ready

TTFT = "step35_time_to_first_token_seconds"
SHED = "step35_requests_shed_total"
FINISHED = "step35_requests_finished_total"

SHARE_SHED = ratio(total_rate(SHED), f"{total_rate(SHED)} + {total_rate(FINISHED)}")
SHARE_FAILED = ratio(total_rate(FINISHED, 'reason="error"'), total_rate(FINISHED))
PREFIX_HITS = ratio(rate("step35_prefix_cache_hit_tokens_total"), rate("step35_prefix_cache_query_tokens_total"))

NOW = Row(
    "Does it serve",
    (
        stat(
            "Attention actors ready",
            "Attention actors that serve. At 0 every request is refused.",
            Unit.PLAIN,
            over("max", select("step35_members_ready", 'tier="attention"')),
            *GREEN_FROM_1,
        ),
        stat(
            "EP ranks without a holder",
            "While one is missing no step can finish, and no token is produced.",
            Unit.PLAIN,
            over("max", select("step35_leases_free")),
            *RED_FROM_1,
        ),
        stat(
            "Tokens a second",
            "Tokens produced for clients, all gateways together.",
            Unit.TOKENS_PER_SECOND,
            rate("step35_completion_tokens_total"),
        ),
        stat(
            "Demand turned away",
            "Share of all demand, finished and shed, that was sent away although it would work later.",
            Unit.SHARE,
            SHARE_SHED,
            *red_from(0.01, 0.05),
        ),
        stat(
            "Answers that failed",
            "Share of sequences that ended with an error.",
            Unit.SHARE,
            SHARE_FAILED,
            *red_from(0.005, 0.02),
        ),
        stat(
            "TTFT p99",
            "99 of 100 requests got their first token within this time.",
            Unit.SECONDS,
            quantile(0.99, TTFT),
            *red_from(5.0, 10.0),
        ),
    ),
)

REQUESTS = Row(
    "Requests",
    (
        stacked(
            "Demand",
            "Sequences that ended, by reason, and requests that were shed. What is shed is demand although no queue "
            "shows it: read capacity from this panel, not from the queues.",
            Unit.REQUESTS_PER_SECOND,
            Query(rate(FINISHED, by=("reason",)), "{{reason}}"),
            Query(rate(SHED, by=("reason",)), "shed: {{reason}}"),
        ),
        lines(
            "Open, running, waiting",
            "Requests that are being answered; sequences that hold KV blocks; sequences that wait for a turn.",
            Unit.NUMBER,
            Query(over("sum", select("step35_requests_open")), "open"),
            Query(over("sum", select("step35_requests_running")), "running"),
            Query(over("sum", select("step35_requests_waiting")), "waiting"),
        ),
        stacked(
            "HTTP answers",
            "By class of status. 4xx: clients and keys; 5xx: us.",
            Unit.REQUESTS_PER_SECOND,
            Query(rate("step35_http_responses_total", by=("status",)), "{{status}}"),
        ),
        lines(
            "Refused at the door",
            "Requests that can never work, without a known key, or with a body past a limit; and clients that left.",
            Unit.REQUESTS_PER_SECOND,
            Query(rate("step35_requests_rejected_total", by=("reason",)), "rejected: {{reason}}"),
            Query(rate("step35_auth_failures_total", by=("reason",)), "key {{reason}}"),
            Query(rate("step35_bodies_refused_total", by=("reason",)), "body {{reason}}"),
            Query(rate("step35_client_disconnects_total"), "client left"),
        ),
        sized(
            percentiles(
                "Queue time",
                "From a sequence's arrival at its attention actor to its first step.",
                "step35_queue_time_seconds",
            ),
            8,
        ),
        lines(
            "Tokens",
            "Prompt tokens of accepted requests, cached ones included, and tokens produced.",
            Unit.TOKENS_PER_SECOND,
            Query(rate("step35_prompt_tokens_total"), "prompt"),
            Query(rate("step35_completion_tokens_total"), "completion"),
        ),
    ),
)

LATENCY = Row(
    "Latency",
    (
        sized(percentiles("Time to first token", "From a request's arrival to its first token with content.", TTFT), 6),
        sized(
            percentiles(
                "Time per output token",
                "Of a request: its time after the first token over its tokens after the first.",
                "step35_time_per_output_token_seconds",
            ),
            6,
        ),
        sized(
            percentiles(
                "Inter-token latency",
                "Between two events of a stream. With drafts an event may carry several tokens, so this is longer than "
                "the time per output token.",
                "step35_inter_token_latency_seconds",
            ),
            6,
        ),
        sized(
            percentiles(
                "Whole request",
                "From a request's arrival to its last token; grows with what clients ask for.",
                "step35_request_latency_seconds",
            ),
            6,
        ),
    ),
)

ENGINE = Row(
    "Engine",
    (
        percentiles("Step", "Duration of an engine step, all attention actors.", "step35_step_seconds"),
        stacked(
            "Where the seconds of steps go",
            "Share of step time by part. combine_wait is waiting for the expert tier that nothing else hid.",
            Unit.SHARE,
            Query(
                share_of_all(
                    rate("step35_step_part_seconds_total", by=("part",)), rate("step35_step_part_seconds_total")
                ),
                "{{part}}",
            ),
        ),
        lines(
            "Tokens in a step",
            "Mean of tokens computed in an engine step, prefill and drafts included.",
            Unit.TOKENS,
            Query(mean("step35_step_rows"), "tokens"),
        ),
        as_share(
            lines(
                "KV cache in use",
                "Of the fuller pool, by attention actor. Near 1 sequences are preempted.",
                Unit.SHARE,
                Query(over("max", select("step35_kv_cache_usage_ratio"), "member"), "{{member}}"),
            )
        ),
        as_share(
            lines(
                "Prefix cache hits",
                "Prompt tokens found over prompt tokens looked up.",
                Unit.SHARE,
                Query(PREFIX_HITS, "hits"),
            )
        ),
        lines(
            "Preemptions",
            "Sequences whose blocks were taken; their tokens are computed again.",
            Unit.PER_SECOND,
            Query(rate("step35_preemptions_total", by=("member",)), "{{member}}"),
        ),
    ),
)

CAPACITY = Row(
    "Capacity",
    (
        sized(
            wanted_and_ready("Autoscaler: asked for and there"),
            12,
        ),
        sized(
            lines(
                "Members: registered and ready",
                "Members of each tier in the cluster view, and those that serve.",
                Unit.PLAIN,
                Query(over("max", select("step35_members"), "tier"), "{{tier}} registered"),
                Query(over("max", select("step35_members_ready"), "tier"), "{{tier}} ready"),
            ),
            12,
        ),
    ),
)

OVERVIEW = Board(
    name="overview",
    title="Overview",
    description="Does the cluster serve, what do its users feel, and where does it queue.",
    rows=(NOW, REQUESTS, LATENCY, ENGINE, CAPACITY),
)
