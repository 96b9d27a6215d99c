"""The figures that a glance at the cluster is for, made of its last states. Pure. None: not known, shown as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.cluster_state import ClusterState
from cluster.state_window import Quantile, Window


@dataclass(frozen=True)
class Latency:
    """Of one histogram, in seconds."""

    p50: Quantile | None
    p99: Quantile | None


@dataclass(frozen=True)
class Numbers:
    """seconds: that rates and latencies are of. kv_usage: of the fullest actor. rows: tokens of a step, on average.

    shed_per_s: requests sent away. num_failed: answers with a 5xx status. acceptance: accepted over drafted tokens by
    position. acceptance_length: tokens of a verification. parts: shares of the steps' time.
    """

    seconds: float
    running: float | None
    waiting: float | None
    kv_usage: float | None
    finished_per_s: float | None
    shed_per_s: float | None
    num_failed: float | None
    completion_tokens_per_s: float | None
    prompt_tokens_per_s: float | None
    steps_per_s: float | None
    rows: float | None
    first_token: Latency
    between_tokens: Latency
    acceptance: tuple[float | None, ...]
    acceptance_length: float | None
    parts: Mapping[str, float]


def numbers_of(states: Sequence[ClusterState]) -> Numbers:
    """states: oldest first, at least one; without a second one only gauges are known."""
    window = Window(states)
    return Numbers(
        seconds=window.seconds,
        running=_sum(window, "step35_requests_running"),
        waiting=_sum(window, "step35_requests_waiting"),
        kv_usage=max(window.gauges("step35_kv_cache_usage_ratio"), default=None),
        finished_per_s=window.rate("step35_requests_finished_total"),
        shed_per_s=window.rate("step35_requests_shed_total"),
        num_failed=_num_failed(window),
        completion_tokens_per_s=window.rate("step35_completion_tokens_total"),
        prompt_tokens_per_s=window.rate("step35_prompt_tokens_total"),
        steps_per_s=window.rate("step35_steps_total"),
        rows=_mean(window, "step35_step_rows"),
        first_token=_latency(window, "step35_time_to_first_token_seconds"),
        between_tokens=_latency(window, "step35_inter_token_latency_seconds"),
        acceptance=_acceptance(window),
        acceptance_length=_acceptance_length(window),
        parts=_parts(window),
    )


def _sum(window: Window, name: str) -> float | None:
    values = window.gauges(name)
    return sum(values) if values else None


def _latency(window: Window, name: str) -> Latency:
    return Latency(window.quantile(name, 0.5), window.quantile(name, 0.99))


def _mean(window: Window, name: str) -> float | None:
    found = window.histogram(name)
    if found is None or not any(found.counts):
        return None
    return found.total / sum(found.counts)


def _num_failed(window: Window) -> float | None:
    responses = window.increases("step35_http_responses_total")
    return None if responses is None else responses.get(("5xx",), 0.0)


def _acceptance(window: Window) -> tuple[float | None, ...]:
    """None for a position that nothing was drafted at."""
    drafted = window.increases("step35_draft_tokens_total") or {}
    accepted = window.increases("step35_accepted_tokens_total") or {}
    places = sorted(drafted, key=lambda labels: int(labels[0]))
    return tuple(accepted.get(place, 0.0) / drafted[place] if drafted[place] else None for place in places)


def _acceptance_length(window: Window) -> float | None:
    verified = window.increase("step35_verifications_total")
    accepted = window.increase("step35_accepted_tokens_total")
    return 1.0 + (accepted or 0.0) / verified if verified else None


def _parts(window: Window) -> dict[str, float]:
    """Empty where no step was made."""
    parts = window.increases("step35_step_part_seconds_total") or {}
    total = sum(parts.values())
    return {labels[0]: seconds / total for labels, seconds in parts.items()} if total else {}
