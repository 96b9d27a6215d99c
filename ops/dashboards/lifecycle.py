"""Lifecycle: who is there, who came and went, what was carried over, and what telemetry says of itself."""

from __future__ import annotations

from ops.dashboards.panels import (
    GREEN_FROM_1,
    RED_FROM_1,
    Board,
    Query,
    Row,
    Unit,
    lines,
    percentiles,
    sized,
    stacked,
    stat,
)
from ops.dashboards.promql import increase, over, rate, select
from ops.dashboards.scaling import wanted_and_ready

PROCESSES = select("step35_telemetry_scrapes_total")
# By member: the labels of an expert process change when it takes an EP rank.
GONE = f"group by (role, member) (last_over_time({PROCESSES}[15m]) unless on (member) {PROCESSES})"

NOW = Row(
    "Now",
    (
        stat(
            "Coordinator",
            "1 while a coordinator answers scrapes. Without one, requests go on and nothing that dies is replaced.",
            Unit.PLAIN,
            f"count({select('step35_view_id')}) or vector(0)",
            *GREEN_FROM_1,
        ),
        stat(
            "View",
            "Number of the cluster view. Grows with each change.",
            Unit.PLAIN,
            over("max", select("step35_view_id")),
        ),
        stat("EP ranks held", "EP ranks that a member holds.", Unit.PLAIN, over("max", select("step35_leases_held"))),
        stat(
            "EP ranks without a holder",
            "While one is missing no step can finish.",
            Unit.PLAIN,
            over("max", select("step35_leases_free")),
            *RED_FROM_1,
        ),
        stat(
            "Gone in 15 minutes",
            "Processes that answered a scrape in the last 15 minutes and do not now. After an upgrade that is all of "
            "them.",
            Unit.PLAIN,
            f"count({GONE}) or vector(0)",
            *RED_FROM_1,
        ),
        stat(
            "Map epoch", "Epoch of the expert map that is served.", Unit.PLAIN, over("max", select("step35_map_epoch"))
        ),
    ),
)

MEMBERS = Row(
    "Members",
    (
        lines(
            "Registered and ready",
            "Members in the cluster view and those that serve, by tier. A gap that stays is a member that cannot "
            "become ready.",
            Unit.PLAIN,
            Query(over("max", select("step35_members"), "tier"), "{{tier}} registered"),
            Query(over("max", select("step35_members_ready"), "tier"), "{{tier}} ready"),
        ),
        lines(
            "Processes that answer scrapes",
            "By role.",
            Unit.PLAIN,
            Query(over("count", PROCESSES, "role"), "{{role}}"),
        ),
        lines(
            "Processes gone in 15 minutes",
            "By role: those that answered a scrape in the last 15 minutes and did not then. A staircase is a crash "
            "loop.",
            Unit.PLAIN,
            Query(over("count", GONE, "role"), "{{role}}"),
        ),
        lines(
            "EP ranks",
            "Ranks that are held and ranks that nobody holds.",
            Unit.PLAIN,
            Query(over("max", select("step35_leases_held")), "held"),
            Query(over("max", select("step35_leases_free")), "free"),
        ),
        lines(
            "Leases expired, in an hour",
            "Leases that ended because their holder fell silent.",
            Unit.NUMBER,
            Query(increase("step35_leases_expired_total", "1h"), "expired"),
        ),
        lines(
            "View, map epoch, coordinator",
            "The view's number and the map's epoch only grow. A new coordinator that took over an earlier view shows "
            "as a new line.",
            Unit.PLAIN,
            Query(over("max", select("step35_view_id")), "view"),
            Query(over("max", select("step35_map_epoch")), "map epoch"),
            Query(over("max", select("step35_coordinator_restarts_total"), "member"), "take-overs of {{member}}"),
        ),
    ),
)

SURVIVAL = Row(
    "Streams that outlived their actor",
    (
        sized(
            stacked(
                "Continuations, in an hour",
                "Streams whose attention actor was lost, and whether another one went on.",
                Unit.NUMBER,
                Query(increase("step35_continuations_total", "1h", by=("outcome",)), "{{outcome}}"),
            ),
            12,
        ),
        sized(
            percentiles(
                "Gap",
                "From the loss of an attention actor to the next token of a stream.",
                "step35_continuation_seconds",
            ),
            12,
        ),
    ),
)

SCALING = Row(
    "Scaling",
    (
        sized(
            wanted_and_ready("Asked for and there"),
            12,
        ),
        sized(
            stacked(
                "Decisions, in an hour",
                "By tier. hold is a decision too.",
                Unit.NUMBER,
                Query(
                    increase("step35_autoscaler_decisions_total", "1h", by=("tier", "decision")),
                    "{{tier}}: {{decision}}",
                ),
            ),
            12,
        ),
    ),
)

TELEMETRY = Row(
    "Telemetry itself",
    (
        lines(
            "Reports",
            "Reports of members to the coordinator, by tier. None for a while means that load and readiness are old.",
            Unit.PER_SECOND,
            Query(rate("step35_reports_total", by=("tier",)), "{{tier}}"),
        ),
        lines(
            "Scrapes",
            "Answered and failed, by role.",
            Unit.PER_SECOND,
            Query(rate("step35_telemetry_scrapes_total", by=("role",)), "{{role}}"),
            Query(rate("step35_telemetry_scrapes_failed_total", by=("role",)), "{{role}} failed"),
        ),
        lines(
            "Label sets dropped, in an hour",
            "Numbers past a metric's bound, recorded nowhere. Anything but 0 is a bug.",
            Unit.NUMBER,
            Query(increase("step35_telemetry_dropped_total", "1h", by=("role",)), "{{role}}"),
        ),
    ),
)

LIFECYCLE = Board(
    name="lifecycle",
    title="Lifecycle",
    description="Who is there, who came and went, what was carried over, and what telemetry says of itself.",
    rows=(NOW, MEMBERS, SURVIVAL, SCALING, TELEMETRY),
)
