"""Every alert: when it fires, how bad that is, and what it says. Frozen data, of names in the registry only.

Series are aggregated by `job`, which is one cluster. Thresholds of seconds are bounds of buckets: others would be
interpolated. There are no recording rules: dashboards and alerts work without each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PREFIX = "Step35"
RUNBOOKS = "ops/runbooks"  # of this repository


class Severity(StrEnum):
    """Who is told."""

    CRITICAL = "critical"  # users feel it now or at the next fault: wakes somebody
    WARNING = "warning"  # for working hours


@dataclass(frozen=True, kw_only=True)
class Alert:
    """name: without the prefix. duration: how long the expression must hold. description: with the value in it."""

    name: str
    expression: str
    duration: str
    severity: Severity
    summary: str
    description: str

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def runbook(self) -> str:
        return f"{RUNBOOKS}/{self.full_name}.md"


@dataclass(frozen=True)
class Group:
    """Alerts that are evaluated together."""

    name: str
    alerts: tuple[Alert, ...]


def _critical(name: str, duration: str, expression: str, summary: str, description: str) -> Alert:
    return Alert(
        name=name,
        expression=expression,
        duration=duration,
        severity=Severity.CRITICAL,
        summary=summary,
        description=description,
    )


def _warning(name: str, duration: str, expression: str, summary: str, description: str) -> Alert:
    return Alert(
        name=name,
        expression=expression,
        duration=duration,
        severity=Severity.WARNING,
        summary=summary,
        description=description,
    )


# Every process has this one, and it is there from the first scrape: whose targets are ours, and which process is gone.
_PROCESS = "step35_telemetry_scrapes_total"
# An expert process without a rank is one that starts: its series ends, though not the process, when it takes a lease.
_SEEN = f'(last_over_time({_PROCESS}{{role!="expert"}}[15m]) or last_over_time({_PROCESS}{{ep_rank!=""}}[15m]))'
_GONE = f"count by (job, role, ep_rank) ({_SEEN} unless on (job, member) {_PROCESS})"
_THERE = f"count by (job, role, ep_rank) ({_PROCESS})"

AVAILABILITY = Group(
    "step35-availability",
    (
        _critical(
            "ClusterDown",
            "1m",
            f"sum by (job) (up) == 0\nand on (job) last_over_time({_PROCESS}[1h])",
            "No process of the cluster answers.",
            "None of the processes of {{ $labels.job }} answers a scrape, and some did within the last hour.",
        ),
        _critical(
            "CoordinatorDown",
            "3m",
            f"count by (job) ({_PROCESS})\nunless on (job) step35_view_id",
            "No coordinator answers.",
            "Processes of {{ $labels.job }} answer, and none of them is a coordinator. Requests go on; what dies now "
            "is not replaced.",
        ),
        _critical(
            "AttentionNotReady",
            "3m",
            'max by (job) (step35_members_ready{tier="attention"}) == 0',
            "No attention actor is ready: every request is refused.",
            "No attention actor of {{ $labels.job }} has been ready for three minutes.",
        ),
        _critical(
            "ExpertRanksMissing",
            "3m",
            "max by (job) (step35_leases_free) > 0",
            "An EP rank has no holder: no token can be produced.",
            "EP ranks of {{ $labels.job }} that nobody holds: {{ $value }}.",
        ),
        _warning(
            "MembersNotReady",
            "10m",
            "max by (job, tier) (step35_members) - max by (job, tier) (step35_members_ready) > 0",
            "A member is registered and does not become ready.",
            "Members of the {{ $labels.tier }} tier of {{ $labels.job }} that have not been ready for ten minutes: "
            "{{ $value }}.",
        ),
        _warning(
            "ProcessDown",
            "2m",
            f"group by (job, instance, role) (last_over_time({_PROCESS}[1h]))\nand on (job, instance) up == 0",
            "A process stopped answering scrapes.",
            "The {{ $labels.role }} process at {{ $labels.instance }} of {{ $labels.job }} does not answer any more.",
        ),
        _warning(
            "ProcessRestartLoop",
            "0m",
            f"{_GONE} > 2\nunless on (job, role, ep_rank) {_GONE} <= on (job, role, ep_rank) {_THERE}",
            "A process dies again and again.",
            "Processes of role {{ $labels.role }}{{ with $labels.ep_rank }} with EP rank {{ . }}{{ end }} of "
            "{{ $labels.job }} that ended within 15 minutes: {{ $value }}.",
        ),
    ),
)

_SHED = "sum by (job) (rate(step35_requests_shed_total[5m]))"
_FINISHED = "sum by (job) (rate(step35_requests_finished_total[5m]))"
_WAITING = "sum by (job) (avg_over_time(step35_requests_waiting[5m]{offset}))"


def _p99_above(histogram: str, seconds: float) -> str:
    """The second line: of fewer than a request in ten seconds, the slowest one is not a percentile."""
    return (
        f"histogram_quantile(0.99, sum by (job, le) (rate({histogram}_bucket[10m]))) > {seconds}\n"
        f"and on (job) sum by (job) (rate({histogram}_count[10m])) > 0.1"
    )


REQUESTS = Group(
    "step35-requests",
    (
        _critical(
            "RequestsShed",
            "5m",
            # What was never counted has no series, and must not make the sum vanish.
            f"{_SHED}\n/ ({_SHED} + ({_FINISHED} or 0 * {_SHED}))\n> 0.05",
            "Requests are sent away: the demand is more than the cluster takes.",
            "{{ $value | humanizePercentage }} of the demand on {{ $labels.job }} is shed.",
        ),
        _critical(
            "RequestsFailing",
            "5m",
            f'sum by (job) (rate(step35_requests_finished_total{{reason="error"}}[5m]))\n/ {_FINISHED}\n> 0.02',
            "Answers end with an error.",
            "{{ $value | humanizePercentage }} of the sequences of {{ $labels.job }} end with an error.",
        ),
        _critical(
            "EngineStalled",
            "1m",
            "min_over_time(step35_requests_running[2m]) > 0\n"
            "unless on (job, instance) increase(step35_step_seconds_count[2m]) > 0",
            "An attention actor holds sequences and finishes no step.",
            "{{ $labels.member }} of {{ $labels.job }} has finished no step for two minutes. Sequences it holds: "
            "{{ $value }}.",
        ),
        _critical(
            "NoTokens",
            "1m",
            "sum by (job) (min_over_time(step35_requests_running[5m])) > 0\n"
            "unless on (job) sum by (job) (rate(step35_completion_tokens_total[5m])) > 0",
            "Sequences run and no token comes out.",
            "{{ $labels.job }} has produced no token for five minutes. Sequences it holds: {{ $value }}.",
        ),
        _warning(
            "TTFTHigh",
            "10m",
            _p99_above("step35_time_to_first_token_seconds", 10),
            "First tokens come late.",
            "One request in a hundred to {{ $labels.job }} waits longer than {{ $value | humanizeDuration }} for its "
            "first token.",
        ),
        _warning(
            "TPOTHigh",
            "10m",
            _p99_above("step35_time_per_output_token_seconds", 0.2),
            "Streams are slow.",
            "One request in a hundred to {{ $labels.job }} gets a token every {{ $value | humanizeDuration }} or "
            "slower.",
        ),
        _warning(
            "QueueGrowing",
            "10m",
            f"{_WAITING.format(offset='')} > 10\n"
            f"and {_WAITING.format(offset='')} > 1.2 * {_WAITING.format(offset=' offset 15m')}",
            "More sequences arrive than are finished.",
            '{{ $value | printf "%.0f" }} sequences of {{ $labels.job }} wait, and 15 minutes ago there were fewer.',
        ),
        _warning(
            "AuthFailuresHigh",
            "10m",
            "sum by (job) (rate(step35_auth_failures_total[5m])) > 1",
            "Many requests come without a known key.",
            "{{ $labels.job }} turns away {{ $value | humanize }} requests a second for want of a known key.",
        ),
    ),
)

MEMORY = Group(
    "step35-memory",
    (
        _warning(
            "KVNearlyFull",
            "10m",
            "avg_over_time(step35_kv_cache_usage_ratio[5m]) > 0.95\n"
            "and on (job, instance) avg_over_time(step35_requests_waiting[5m]) > 0",
            "KV blocks are used up and sequences wait.",
            "{{ $labels.member }} of {{ $labels.job }} uses {{ $value | humanizePercentage }} of its KV blocks.",
        ),
        _warning(
            "PreemptionsHigh",
            "10m",
            "sum by (job) (rate(step35_preemptions_total[10m]))\n"
            "/ sum by (job) (rate(step35_requests_finished_total[10m]))\n> 0.1",
            "Sequences lose their blocks and are computed again.",
            '{{ $labels.job }} preempts {{ $value | printf "%.2f" }} times for each sequence that ends.',
        ),
    ),
)

_BUSY = "sum by (job, ep_rank) (rate(step35_expert_busy_seconds_total[10m]))"
_PER_PAIR = f"{_BUSY} / sum by (job, ep_rank) (rate(step35_expert_pairs_total[10m]))"

EXPERTS = Group(
    "step35-experts",
    (
        _warning(
            "ImbalanceHigh",
            "30m",
            # Of a few pairs some rank always has most: no map can mend that, so it is no alert.
            "avg by (job) (step35_balancedness_ratio) < 0.67\n"
            "and on (job) sum by (job) (rate(step35_expert_pairs_total[15m]))\n"
            "/ sum by (job) (rate(step35_expert_batches_total[15m])) > 16",
            "Expert ranks are loaded unevenly, and rebalancing does not mend it.",
            'Balancedness of {{ $labels.job }} is {{ $value | printf "%.2f" }} as a mean over layers: the slowest rank '
            "has more than 1.5 times the mean.",
        ),
        _warning(
            "RebalanceTooOften",
            "0m",
            'sum by (job) (increase(step35_rebalances_total{trigger=~"load|drift"}[1h])) > 12',
            "Experts are moved again and again.",
            '{{ $labels.job }} began {{ $value | printf "%.0f" }} rebalances by itself within an hour.',
        ),
        _warning(
            "RebalanceSlow",
            "0m",
            "histogram_quantile(0.9, sum by (job, le) (increase(step35_rebalance_seconds_bucket[1h]))) > 300",
            "Rebalances take minutes.",
            "Rebalances of {{ $labels.job }} take up to {{ $value | humanizeDuration }}.",
        ),
        _warning(
            "BalancerStalled",
            "1m",
            "max by (job) (step35_balancer_stalled) == 1",
            "A rebalance does not go on.",
            "A phase of a rebalance of {{ $labels.job }} takes longer than its watchdog allows.",
        ),
        _warning(
            "RebalancesAbandoned",
            "0m",
            'sum by (job) (increase(step35_rebalances_total{outcome="abandoned"}[2h])) > 1.5',
            "Rebalances are begun and given up.",
            '{{ $labels.job }} abandoned {{ $value | printf "%.0f" }} rebalances within two hours.',
        ),
        _warning(
            "RoutingDrift",
            "30m",
            "sum by (job) (step35_layer_drifting) > 0",
            "Gates are less sure of their experts than they were.",
            "Layers of {{ $labels.job }} in which the gate's confidence has left its usual range: {{ $value }}.",
        ),
        _warning(
            "StragglerRank",
            "15m",
            f"{_PER_PAIR}\n> on (job) group_left () 2 * quantile by (job) (0.5, {_PER_PAIR})\n"
            f"and on (job, ep_rank) {_BUSY} > 0.05",
            "One expert rank is slower than the others for the same work.",
            "EP rank {{ $labels.ep_rank }} of {{ $labels.job }} takes {{ $value | humanizeDuration }} for a pair, more "
            "than twice the median.",
        ),
    ),
)

_FAILED = 'sum by (job) (rate(step35_exchange_failures_total{cause!="map_not_served"}[10m]))'
_EXCHANGED = "sum by (job) (rate(step35_exchanges_total[10m]))"

TRANSPORT = Group(
    "step35-transport",
    (
        _critical(
            "ExchangeTimeouts",
            "0m",
            'sum by (job) (increase(step35_exchange_failures_total{cause="timeout"}[5m])) > 3',
            "Expert ranks do not answer in time: streams stand still.",
            '{{ $value | printf "%.0f" }} exchanges of {{ $labels.job }} timed out within five minutes.',
        ),
        _warning(
            "ExchangesFailing",
            "5m",
            f"{_FAILED}\n/ ({_FAILED} + {_EXCHANGED})\n> 0.01",
            "Exchanges with the expert tier fail.",
            "{{ $value | humanizePercentage }} of the exchanges of {{ $labels.job }} fail; steps are repeated.",
        ),
        _critical(
            "RecoveriesGivenUp",
            "0m",
            "sum by (job) (increase(step35_recoveries_given_up_total[10m])) > 0",
            "Requests ended because the expert tier did not come back in time.",
            'Attention actors of {{ $labels.job }} gave up {{ $value | printf "%.0f" }} times within ten minutes.',
        ),
    ),
)


def _acceptance(window: str, offset: str = "") -> str:
    """Of the first draft, the one that every sequence with drafts has."""
    accepted, drafted = (
        f'sum by (job) (rate(step35_{kind}_tokens_total{{position="0"}}[{window}]{offset}))'
        for kind in ("accepted", "draft")
    )
    return f"({accepted} / {drafted})"


SERVICE = Group(
    "step35-service",
    (
        _warning(
            "AcceptanceDropped",
            "30m",
            f"{_acceptance('30m')}\n< 0.8 * {_acceptance('1d', ' offset 1h')}\n"
            'and on (job) sum by (job) (rate(step35_draft_tokens_total{position="0"}[30m])) > 1',
            "Drafts are taken less often than a day before: tokens cost more.",
            "The target of {{ $labels.job }} takes {{ $value | humanizePercentage }} of first drafts, a fifth less "
            "than over the day before.",
        ),
        _warning(
            "ContinuationsFailing",
            "0m",
            'sum by (job) (increase(step35_continuations_total{outcome="failed"}[10m])) > 3',
            "Streams whose attention actor was lost could not go on elsewhere.",
            '{{ $value | printf "%.0f" }} streams of {{ $labels.job }} broke off within ten minutes.',
        ),
        _warning(
            "AutoscalerStuck",
            "10m",
            "max by (job, tier) (step35_autoscaler_desired_replicas)\n"
            "!= max by (job, tier) (step35_autoscaler_replicas)",
            "Replicas that were asked for do not come, or do not go.",
            "For ten minutes the autoscaler has asked for {{ $value }} replicas of the {{ $labels.tier }} tier of "
            "{{ $labels.job }}, and there is another number.",
        ),
        _warning(
            "MetricsDropped",
            "0m",
            "sum by (job, role) (increase(step35_telemetry_dropped_total[15m])) > 0",
            "Numbers are recorded nowhere: a metric has more label sets than its bound.",
            'Processes of role {{ $labels.role }} of {{ $labels.job }} dropped {{ $value | printf "%.0f" }} records '
            "within 15 minutes.",
        ),
    ),
)

GROUPS = (AVAILABILITY, REQUESTS, MEMORY, EXPERTS, TRANSPORT, SERVICE)
ALERTS = tuple(alert for group in GROUPS for alert in group.alerts)
