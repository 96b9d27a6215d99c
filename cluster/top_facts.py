"""What `step35 top` says of the cluster in a line each, from the most to the least urgent. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, tzinfo

from cluster.cluster_state import ClusterState
from cluster.experts_status import ExpertStatus, ExpertTierStatus, RebalanceRecord
from cluster.experts_table import balancer_line
from cluster.state_numbers import Latency, Numbers
from cluster.state_window import Quantile

UNKNOWN = "-"
FULL_BAR, EMPTY_BAR = "█", "░"
BAR_WIDTH = 20
PARTS = {"attention": "attention", "draft": "drafts", "dispatch": "dispatch", "combine_wait": "waiting for experts"}
GAP = "  "


def facts(
    state: ClusterState, numbers: Numbers, width: int, *, zone: tzinfo | None, is_ascii: bool
) -> Iterator[tuple[str, str]]:
    """(name, text) of each line. width: lists end before it. zone: of the times, by default this machine's."""
    experts = state.experts
    yield "steps", _steps(experts, numbers)
    yield "requests", _requests(numbers)
    yield (
        "tokens",
        f"{rate(numbers.completion_tokens_per_s)} completion{GAP}{rate(numbers.prompt_tokens_per_s)} prompt",
    )
    yield "latency", _latencies(numbers)
    yield "KV", _kv(numbers.kv_usage, is_ascii=is_ascii)
    yield "drafts", _drafts(numbers)
    yield "pipeline", _pipeline(numbers)
    yield "balance", _balance(experts)
    yield "balancer", f"{balancer_line(experts.balancer)}{GAP}{experts.balancer.last_decision}"
    yield "last", _last(experts, zone)
    yield "hottest", _hottest(experts, width)


def seconds(value: float) -> str:
    """Three digits, in the unit that suits."""
    if value < 0.001:
        return f"{1e6 * value:.0f} us"
    if value < 1.0:
        return f"{1e3 * value:.{1 if value < 0.1 else 0}f} ms"
    return f"{value:.{2 if value < 10.0 else 0}f} s"


def rate(value: float | None) -> str:
    """Of something a second."""
    if value is None:
        return f"{UNKNOWN}/s"
    return f"{value:,.{1 if 0.0 < value < 100.0 else 0}f}/s"


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.0f}%"


def count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def clock(at: float, zone: tzinfo | None) -> str:
    return f"{datetime.fromtimestamp(at, zone):%H:%M:%S}"


def _steps(experts: ExpertTierStatus, numbers: Numbers) -> str:
    p50, p99 = (seconds(ms / 1e3) if ms > 0.0 else UNKNOWN for ms in (experts.step_p50_ms, experts.step_p99_ms))
    return f"p50 {p50}{GAP}p99 {p99}{GAP}{rate(numbers.steps_per_s)} of {count(numbers.rows)} rows"


def _requests(numbers: Numbers) -> str:
    return GAP.join(
        (
            f"{count(numbers.running)} running",
            f"{count(numbers.waiting)} waiting",
            f"{rate(numbers.finished_per_s)} finished",
            f"{rate(numbers.shed_per_s)} sent away",
        )
    )


def _latencies(numbers: Numbers) -> str:
    first, between = _latency(numbers.first_token), _latency(numbers.between_tokens)
    return f"p50/p99: first token {first}{GAP}between tokens {between}"


def _latency(latency: Latency) -> str:
    return f"{_quantile(latency.p50)}/{_quantile(latency.p99)}"


def _quantile(found: Quantile | None) -> str:
    if found is None:
        return UNKNOWN
    return f">{seconds(found.value)}" if found.is_above else seconds(found.value)


def _kv(usage: float | None, *, is_ascii: bool) -> str:
    if usage is None:
        return UNKNOWN
    full, empty = ("#", ".") if is_ascii else (FULL_BAR, EMPTY_BAR)
    num_full = round(BAR_WIDTH * min(max(usage, 0.0), 1.0))
    return f"{num_full * full}{(BAR_WIDTH - num_full) * empty} {percent(usage)} of the fullest actor's blocks"


def _drafts(numbers: Numbers) -> str:
    length = UNKNOWN if numbers.acceptance_length is None else f"{numbers.acceptance_length:.2f}"
    places = "  ".join(f"#{place} {percent(share)}" for place, share in enumerate(numbers.acceptance, start=1))
    return f"{length} tokens a verification{GAP}accepted {places or UNKNOWN}"


def _pipeline(numbers: Numbers) -> str:
    known = [(name, numbers.parts[part]) for part, name in PARTS.items() if part in numbers.parts]
    return GAP.join(f"{name} {percent(share)}" for name, share in known) or UNKNOWN


def _balance(experts: ExpertTierStatus) -> str:
    if experts.window_tokens <= 0.0:
        return f"{UNKNOWN}{GAP}no load has been measured yet"
    worst = min(experts.layers, key=lambda layer: layer.balancedness)
    over = experts.predicted_us / experts.best_us - 1.0 if experts.best_us else None
    return (
        f"{experts.balancedness:.2f}{GAP}least {worst.balancedness:.2f} in layer {worst.layer_id}{GAP}"
        f"expert time {percent(over)} above the best"
    )


def _last(experts: ExpertTierStatus, zone: tzinfo | None) -> str:
    history = experts.balancer.history
    return _record(history[-1], zone) if history else "no rebalance yet"


def _record(record: RebalanceRecord, zone: tzinfo | None) -> str:
    values = (record.balancedness_before, record.balancedness_planned, record.balancedness_after)
    balance = " > ".join(UNKNOWN if value is None else f"{value:.2f}" for value in values)
    why = f": {record.reason}" if record.reason else ""
    return (
        f"rebalance {clock(record.started_at, zone)} ({record.trigger}){GAP}{record.num_moves} moves in "
        f"{record.seconds:.1f} s{GAP}{balance}{GAP}{record.outcome.value}{why}"
    )


def _hottest(experts: ExpertTierStatus, width: int) -> str:
    """As many as there is room for; the layer comes first, as `step35 experts pin` takes them."""
    if experts.window_tokens <= 0.0:
        return UNKNOWN
    texts = list(map(_expert, experts.hottest))
    while len(GAP.join(texts)) > width:
        texts.pop()
    return GAP.join(texts)


def _expert(expert: ExpertStatus) -> str:
    return f"{expert.layer_id}/{expert.logical_id} {expert.load:.1f}x@{','.join(map(str, expert.ep_ranks))}"
