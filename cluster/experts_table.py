"""The expert tier on a terminal, in the order of an operator's questions: is something wrong, what does the balancer
do, which ranks and experts are hot, what did it do before. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, tzinfo

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cluster.experts_layers import LEGEND, LayersTable
from cluster.experts_status import (
    BalancerStatus,
    ExpertStatus,
    ExpertTierStatus,
    Outcome,
    Phase,
    Proposal,
    RebalanceRecord,
)

MAX_EXPERTS = 12
MAX_RECORDS = 5
ALARM, WARNING = "bold red", "bold yellow"


def experts_view(status: ExpertTierStatus, *, show_all: bool = False, zone: tzinfo | None = None) -> RenderableType:
    """Everything. show_all: every layer, expert and record. zone: of the times, by default this machine's."""
    return Group(*_parts(status, show_all=show_all, zone=zone))


def proposal_text(proposal: Proposal) -> str:
    """What a rebalance would do or begins to do, or why there is none."""
    if not proposal.is_accepted:
        return f"nothing to do: {proposal.reason}"
    begins = "would begin" if proposal.is_dry_run else "begins"
    return (
        f"a rebalance {begins}: {proposal.num_moves} moves in {proposal.num_stages} stages\n"
        f"gain: {100 * proposal.gain:.1f} % of the expert tier's time, "
        f"{1e3 * proposal.seconds_per_step:.2f} ms a step; cost: {proposal.cost_s:.2f} s of serving\n"
        f"balancedness: {proposal.balancedness_before:.2f}, then {proposal.balancedness_after:.2f} as predicted\n"
        f"{proposal.reason}"
    )


def expert_line(expert: ExpertStatus) -> str:
    """One expert with its copies."""
    plural = "s" if len(expert.ep_ranks) > 1 else ""
    state = "pinned" if expert.is_pinned else "not pinned"
    return (
        f"expert {expert.logical_id} of layer {expert.layer_id}: {state}; now on EP rank{plural} {_ranks(expert)}, "
        f"{expert.load:.1f} x its layer's mean load"
    )


def _parts(status: ExpertTierStatus, *, show_all: bool, zone: tzinfo | None) -> Iterator[RenderableType]:
    yield from _alarms(status)
    yield _summary(status)
    if status.window_tokens > 0.0:
        yield Padding(LayersTable(status, show_all=show_all), (1, 0))
        yield from _experts("hottest: layer expert, load over its layer's mean, @ ranks of its copies", status.hottest)
    else:
        yield Text("no load has been measured yet: send some requests", style=WARNING)
    if status.pinned:
        shown = status.pinned if show_all else status.pinned[:MAX_EXPERTS]
        num_more = len(status.pinned) - len(shown)
        yield from _experts(f"pinned: and {num_more} more, --all shows each" if num_more else "pinned", shown)
    yield _history(status.balancer.history, show_all=show_all, zone=zone)
    if status.window_tokens > 0.0:
        yield Text(LEGEND, style="dim")


def _alarms(status: ExpertTierStatus) -> Iterator[Text]:
    """What somebody should know or act on, first."""
    balancer = status.balancer
    if balancer.is_stalled:
        since = f"{balancer.phase.value} for {balancer.phase_seconds:.0f} s"
        yield Text(f"STALLED: {since}. Look at the expert ranks' logs; serving goes on with the map it has.", ALARM)
    if balancer.history and balancer.history[-1].outcome is Outcome.ABANDONED:
        yield Text(f"ABANDONED: the last rebalance. {balancer.history[-1].reason}", ALARM)
    if status.drift:
        yield Text(f"DRIFT: the router no longer chooses as it did. {status.drift}", WARNING)
    if balancer.is_paused:
        yield Text("PAUSED: no rebalance begins by itself; step35 experts resume lets it go on.", WARNING)


def _summary(status: ExpertTierStatus) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in _facts(status):
        table.add_row(name, Text(text))
    return table


def _facts(status: ExpertTierStatus) -> Iterator[tuple[str, str]]:
    if status.window_tokens > 0.0:
        yield from _measured(status)
    yield (
        "map",
        f"epoch {status.map_epoch}; {status.ep_size} ranks x {status.slots_per_rank} slots in each layer; "
        f"{status.num_redundant} redundant copies, {status.num_free_slots} slots free",
    )
    yield "balancer", balancer_line(status.balancer)
    yield "decided", status.balancer.last_decision


def _measured(status: ExpertTierStatus) -> Iterator[tuple[str, str]]:
    """What means nothing before the first request."""
    worst = min(status.layers, key=lambda layer: layer.balancedness)
    yield (
        "balancedness",
        f"{status.balancedness:.2f} (1 is perfect; least {worst.balancedness:.2f} in layer {worst.layer_id})",
    )
    has_steps = status.step_p99_ms > 0.0
    times = f"p50 {status.step_p50_ms:.1f} ms, p99 {status.step_p99_ms:.1f} ms"
    yield "steps", times if has_steps else "none in the last seconds"
    over = status.predicted_us / status.best_us - 1.0 if status.best_us else 0.0
    yield (
        "time",
        f"{status.predicted_us:,.0f} us of a step in the expert tier, as predicted; {100 * over:.0f} % above the best "
        f"({status.best_us:,.0f} us)",
    )
    yield "cost", f"{status.per_expert_us:.2f} us to touch an expert, {status.per_pair_us:.3f} us a pair, as fitted"
    yield "window", f"{status.window_steps:,.0f} steps, {status.window_tokens:,.0f} tokens"


def balancer_line(balancer: BalancerStatus) -> str:
    state = f"{balancer.mode}, paused" if balancer.is_paused else balancer.mode
    if balancer.phase is Phase.IDLE:
        return f"{state}, idle"
    loaded, total = balancer.progress
    # Of a rebalance that a restarted coordinator found under way the stages are not known.
    stage = f" stage {balancer.stage} of {balancer.num_stages}" if balancer.num_stages else ""
    return (
        f"{state}, {balancer.phase.value}{stage} for {balancer.phase_seconds:.0f} s, {loaded} of {total} slots loaded"
    )


def _experts(title: str, experts: Sequence[ExpertStatus]) -> Iterator[RenderableType]:
    yield Text(title, style="bold")
    yield Columns(map(_expert, experts), padding=(0, 3), column_first=True)


def _expert(expert: ExpertStatus) -> Text:
    pinned = " pinned" if expert.is_pinned else ""
    return Text(f"{expert.layer_id:2} {expert.logical_id:3}  {expert.load:.1f}x @ {_ranks(expert)}{pinned}")


def _ranks(expert: ExpertStatus) -> str:
    return ",".join(map(str, expert.ep_ranks))


def _history(records: Sequence[RebalanceRecord], *, show_all: bool, zone: tzinfo | None) -> RenderableType:
    if not records:
        return Text("no rebalance yet", style="bold")
    shown = records if show_all else records[-MAX_RECORDS:]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", title_justify="left")
    table.title = f"rebalances: the last {len(shown)} of {len(records)}"
    for name in ("began", "why", "moves", "stages", "took", "gain", "balancedness", "ended"):
        is_text = name in ("began", "why", "balancedness", "ended")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name != "ended")
    for record in shown:
        table.add_row(*_record_cells(record, zone))
    return table


def _record_cells(record: RebalanceRecord, zone: tzinfo | None) -> Iterator[Text]:
    yield Text(f"{datetime.fromtimestamp(record.started_at, zone):%m-%d %H:%M:%S}")
    yield Text(record.trigger)
    yield Text(str(record.num_moves))
    yield Text(str(record.num_stages))
    yield Text(f"{record.seconds:.1f} s")
    yield Text("?" if record.gain is None else f"{100 * record.gain:.1f}%")
    # Measured, promised, measured again.
    values = (record.balancedness_before, record.balancedness_planned, record.balancedness_after)
    yield Text(">".join("?" if value is None else f"{value:.2f}" for value in values))
    is_done = record.outcome is Outcome.DONE
    yield Text(record.outcome.value, style="" if is_done else ALARM) + Text(
        f": {record.reason}" if record.reason else ""
    )
