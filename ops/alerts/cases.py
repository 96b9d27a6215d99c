"""Cases: for each alert, series under which it fires and series under which it does not. Pure.

Values are promtool's: `0+3x40` is 0 and then 40 times 3 more, one value every 30 seconds; `stale`: the series ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

JOB = "demo"
Series = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Case:
    """alert: without the prefix. at: when it is asked. labels: beside severity. says: the description, filled in."""

    alert: str
    at: str
    fires: Series
    quiet: Series
    says: str
    labels: Mapping[str, str] = field(default_factory=lambda: {"job": JOB})


def of(metric: str, **labels: object) -> str:
    """One series of the cluster."""
    pairs = (f'{name}="{value}"' for name, value in {"job": JOB, **labels}.items())
    return f"{metric}{{{', '.join(pairs)}}}"


def attention(metric: str, **labels: object) -> str:
    """One series of the attention actor a."""
    return of(metric, instance="h:1", role="attention", member="a", **labels)


def expert(metric: str, ep_rank: int, **labels: object) -> str:
    """One series of the holder of an EP rank."""
    return of(metric, instance=f"h:{ep_rank + 2}", role="expert", member=f"e{ep_rank}", ep_rank=ep_rank, **labels)


def process(instance: str, role: str, member: str, **labels: object) -> str:
    """What every process has."""
    return of("step35_telemetry_scrapes_total", instance=instance, role=role, member=member, **labels)


_BORN, _DIED = "0+1x30", "0+1x4 stale"

AVAILABILITY = (
    Case(
        alert="ClusterDown",
        at="5m",
        fires={
            of("up", instance="h:1"): "1x4 0x20",
            of("up", instance="h:2"): "1x4 0x20",
            process("h:1", "attention", "a"): _DIED,
        },
        quiet={
            of("up", instance="h:1"): "1x4 0x20",
            of("up", instance="h:2"): "1x25",
            process("h:1", "attention", "a"): _DIED,
        },
        says="None of the processes of demo answers a scrape, and some did within the last hour.",
    ),
    Case(
        alert="CoordinatorDown",
        at="8m",
        fires={process("h:1", "attention", "a"): _BORN, of("step35_view_id", role="coordinator"): "7x4 stale"},
        quiet={process("h:1", "attention", "a"): _BORN, of("step35_view_id", role="coordinator"): "7x30"},
        says="Processes of demo answer, and none of them is a coordinator. Requests go on; what dies now is not "
        "replaced.",
    ),
    Case(
        alert="AttentionNotReady",
        at="6m",
        fires={of("step35_members_ready", tier="attention"): "1x3 0x20"},
        quiet={of("step35_members_ready", tier="attention"): "1x3 0x3 1x20"},
        says="No attention actor of demo has been ready for three minutes.",
    ),
    Case(
        alert="ExpertRanksMissing",
        at="6m",
        fires={of("step35_leases_free"): "0x3 2x20"},
        quiet={of("step35_leases_free"): "0x3 2x3 0x20"},
        says="EP ranks of demo that nobody holds: 2.",
    ),
    Case(
        alert="MembersNotReady",
        at="12m",
        fires={of("step35_members", tier="expert"): "8x30", of("step35_members_ready", tier="expert"): "7x30"},
        quiet={of("step35_members", tier="expert"): "8x30", of("step35_members_ready", tier="expert"): "8x30"},
        labels={"job": JOB, "tier": "expert"},
        says="Members of the expert tier of demo that have not been ready for ten minutes: 1.",
    ),
    Case(
        alert="ProcessDown",
        at="6m",
        fires={process("h:1", "gateway", "g"): _DIED, of("up", instance="h:1"): "1x4 0x20"},
        # Ours is up again; what is down never was one of ours.
        quiet={
            process("h:1", "gateway", "g"): "0+1x4 stale 0+1x20",
            of("up", instance="h:1"): "1x4 0 1x20",
            of("up", instance="h:99"): "0x25",
        },
        labels={"job": JOB, "instance": "h:1", "role": "gateway"},
        says="The gateway process at h:1 of demo does not answer any more.",
    ),
    Case(
        alert="ProcessRestartLoop",
        at="10m",
        fires={
            process("h:1", "expert", "x1", ep_rank=3): "0+1x4 stale",
            process("h:1", "expert", "x2", ep_rank=3): "_x5 0+1x4 stale",
            process("h:1", "expert", "x3", ep_rank=3): "_x10 0+1x4 stale",
            process("h:1", "expert", "x4", ep_rank=3): "_x16 0+1x20",
        },
        # An upgrade: each of three processes is replaced once.
        quiet={
            process("h:1", "attention", "a1"): "0+1x4 stale",
            process("h:2", "attention", "a2"): "0+1x6 stale",
            process("h:3", "attention", "a3"): "0+1x8 stale",
            process("h:1", "attention", "b1"): "_x5 0+1x30",
            process("h:2", "attention", "b2"): "_x7 0+1x30",
            process("h:3", "attention", "b3"): "_x9 0+1x30",
        },
        labels={"job": JOB, "role": "expert", "ep_rank": "3"},
        says="Processes of role expert with EP rank 3 of demo that ended within 15 minutes: 3.",
    ),
    Case(
        alert="ProcessRestartLoop",
        at="10m",
        fires={process("h:1", "attention", f"a{number}"): f"_x{3 * number} 0+1x2 stale" for number in range(4)},
        # A start: processes without a rank take one.
        quiet={
            **{process(f"h:{rank}", "expert", f"e{rank}"): "0+1x4 stale" for rank in range(4)},
            **{process(f"h:{rank}", "expert", f"e{rank}", ep_rank=rank): "_x5 5+1x30" for rank in range(4)},
        },
        labels={"job": JOB, "role": "attention"},
        says="Processes of role attention of demo that ended within 15 minutes: 4.",
    ),
)


def _slow(histogram: str, fast: str, slow: str, bounds: tuple[str, str]) -> Series:
    """So many below the first bound and so many between the two, in every 30 s."""
    both = int(fast) + int(slow)
    return {
        of(f"{histogram}_bucket", le=bounds[0]): f"0+{fast}x60",
        of(f"{histogram}_bucket", le=bounds[1]): f"0+{both}x60",
        of(f"{histogram}_bucket", le="+Inf"): f"0+{both}x60",
        of(f"{histogram}_count"): f"0+{both}x60",
    }


_FINISHED, _SHED = "step35_requests_finished_total", "step35_requests_shed_total"
_TTFT, _TPOT = "step35_time_to_first_token_seconds", "step35_time_per_output_token_seconds"

REQUESTS = (
    Case(
        alert="RequestsShed",
        at="15m",
        fires={of(_FINISHED, reason="stop"): "0+27x60", of(_SHED, reason="overloaded"): "0+3x60"},
        quiet={of(_FINISHED, reason="stop"): "0+99x60", of(_SHED, reason="overloaded"): "0+1x60"},
        says="10% of the demand on demo is shed.",
    ),
    Case(
        alert="RequestsShed",
        at="15m",
        # Nothing was ever finished.
        fires={of(_SHED, reason="not_ready"): "0+3x60"},
        quiet={of(_SHED, reason="not_ready"): "3x60"},
        says="100% of the demand on demo is shed.",
    ),
    Case(
        alert="RequestsFailing",
        at="15m",
        fires={of(_FINISHED, reason="stop"): "0+19x60", of(_FINISHED, reason="error"): "0+1x60"},
        quiet={of(_FINISHED, reason="stop"): "0+99x60", of(_FINISHED, reason="error"): "0+1x60"},
        says="5% of the sequences of demo end with an error.",
    ),
    Case(
        alert="EngineStalled",
        at="8m",
        fires={attention("step35_requests_running"): "3x30", attention("step35_step_seconds_count"): "0+9x4 36x30"},
        quiet={attention("step35_requests_running"): "3x30", attention("step35_step_seconds_count"): "0+1x30"},
        labels={"job": JOB, "instance": "h:1", "role": "attention", "member": "a"},
        says="a of demo has finished no step for two minutes. Sequences it holds: 3.",
    ),
    Case(
        alert="EngineStalled",
        at="8m",
        # It has never finished one.
        fires={attention("step35_requests_running"): "1x30"},
        quiet={attention("step35_requests_running"): "0x30"},
        labels={"job": JOB, "instance": "h:1", "role": "attention", "member": "a"},
        says="a of demo has finished no step for two minutes. Sequences it holds: 1.",
    ),
    Case(
        alert="NoTokens",
        at="12m",
        fires={attention("step35_requests_running"): "2x30", of("step35_completion_tokens_total"): "0+50x4 200x30"},
        quiet={attention("step35_requests_running"): "2x30", of("step35_completion_tokens_total"): "0+1x30"},
        says="demo has produced no token for five minutes. Sequences it holds: 2.",
    ),
    Case(
        alert="TTFTHigh",
        at="25m",
        fires=_slow(_TTFT, "0", "30", ("10.0", "20.0")),
        quiet=_slow(_TTFT, "30", "0", ("10.0", "20.0")),
        says="One request in a hundred to demo waits longer than 19.9s for its first token.",
    ),
    Case(
        alert="TTFTHigh",
        at="25m",
        fires=_slow(_TTFT, "2", "2", ("10.0", "20.0")),
        # As slow, and two requests a minute.
        quiet=_slow(_TTFT, "0", "1", ("10.0", "20.0")),
        says="One request in a hundred to demo waits longer than 19.8s for its first token.",
    ),
    Case(
        alert="TPOTHigh",
        at="25m",
        fires=_slow(_TPOT, "0", "30", ("0.2", "0.3")),
        quiet=_slow(_TPOT, "30", "0", ("0.2", "0.3")),
        says="One request in a hundred to demo gets a token every 299ms or slower.",
    ),
    Case(
        alert="QueueGrowing",
        at="40m",
        fires={attention("step35_requests_waiting"): "0+1x100"},
        quiet={attention("step35_requests_waiting"): "50x100"},
        says="75 sequences of demo wait, and 15 minutes ago there were fewer.",
    ),
    Case(
        alert="AuthFailuresHigh",
        at="20m",
        fires={of("step35_auth_failures_total", reason="unknown"): "0+60x60"},
        quiet={of("step35_auth_failures_total", reason="unknown"): "0+20x60"},
        says="demo turns away 2 requests a second for want of a known key.",
    ),
)

MEMORY = (
    Case(
        alert="KVNearlyFull",
        at="20m",
        fires={attention("step35_kv_cache_usage_ratio"): "0.98x60", attention("step35_requests_waiting"): "4x60"},
        # Full, and nobody waits: that is what the memory is for.
        quiet={attention("step35_kv_cache_usage_ratio"): "0.98x60", attention("step35_requests_waiting"): "0x60"},
        labels={"job": JOB, "instance": "h:1", "role": "attention", "member": "a"},
        says="a of demo uses 98% of its KV blocks.",
    ),
    Case(
        alert="PreemptionsHigh",
        at="25m",
        fires={attention("step35_preemptions_total"): "0+10x60", of(_FINISHED, reason="stop"): "0+20x60"},
        quiet={attention("step35_preemptions_total"): "0+1x60", of(_FINISHED, reason="stop"): "0+20x60"},
        says="demo preempts 0.50 times for each sequence that ends.",
    ),
)
