"""The expert tier on a terminal: what an operator must see first, in the order of asking. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cluster.experts_status import ExpertStatus, ExpertTierStatus, LayerStatus, Proposal, RebalanceRecord

MAX_RANK_COLUMNS = 8  # more ranks are summarised by the least and the most busy
WARM, HOT = 1.15, 1.35  # of the layer's mean load, from where a rank is coloured
NUM_RECORDS = 5


def experts_view(status: ExpertTierStatus) -> Iterator[RenderableType]:
    """Everything, from the summary to the history."""
    yield from _summary(status)
    yield _layers_table(status)
    yield _experts_line("hottest", status.hottest)
    if status.pinned:
        yield _experts_line("pinned", status.pinned)
    if status.balancer.history:
        yield _history_table(status.balancer.history[-NUM_RECORDS:])
    else:
        yield Text("no rebalance yet")


def proposal_line(proposal: Proposal) -> str:
    """What was ordered, or would be."""
    if not proposal.is_accepted:
        return f"nothing to do: {proposal.reason}"
    begins = "would begin" if proposal.is_dry_run else "begins"
    return (
        f"a rebalance {begins}: {proposal.num_moves} moves in {proposal.num_stages} stages, balancedness "
        f"{proposal.balancedness_before:.3f} to {proposal.balancedness_after:.3f} as predicted\n{proposal.reason}"
    )


def expert_line(expert: ExpertStatus) -> str:
    """One expert with its copies."""
    ranks = ", ".join(map(str, expert.ep_ranks))
    pinned = ", pinned" if expert.is_pinned else ""
    return f"expert {expert.logical_id} of layer {expert.layer_id}: on ranks {ranks}, {expert.load:.1f} x load{pinned}"


def _summary(status: ExpertTierStatus) -> Iterator[Text]:
    balancer = status.balancer
    over = status.predicted_us / status.best_us - 1.0 if status.best_us else 0.0
    yield Text(
        f"balancedness {status.balancedness:.3f}   "
        f"step p50 {status.step_p50_ms:.1f} ms, p99 {status.step_p99_ms:.1f} ms   "
        f"map {status.map_epoch}   {status.num_redundant} copies, {status.num_free_slots} free slots"
    )
    yield Text(
        f"expert time of a step {status.predicted_us:.0f} us, {100 * over:.0f} % above the least possible "
        f"({status.per_expert_us:.1f} us for each expert, {status.per_pair_us:.2f} us for each pair; "
        f"{status.window_tokens:.0f} tokens seen)"
    )
    state = "paused" if balancer.is_paused else balancer.mode
    text = Text(f"balancer {state}, {balancer.phase.value}")
    if balancer.num_stages:
        loaded, total = balancer.progress
        text.append(
            f", stage {balancer.stage} of {balancer.num_stages} for {balancer.phase_seconds:.0f} s, "
            f"{loaded} of {total} loaded"
        )
    if balancer.is_stalled:
        text.append("  STALLED", style="bold red")
    yield text.append(f"; {balancer.last_decision}")
    if status.drift:
        yield Text(f"ROUTER DRIFT: {status.drift}", style="bold yellow")


def _layers_table(status: ExpertTierStatus) -> Table:
    """Loads of ranks over the layer's mean, with the distinct experts that a step touches behind the slash."""
    num_ranks = status.ep_size
    ranks = [f"rank {rank}" for rank in range(num_ranks)] if num_ranks <= MAX_RANK_COLUMNS else ["least", "most"]
    table = Table(title="load over mean / experts touched", pad_edge=False, box=None, header_style="bold")
    for name in ("layer", *ranks, "bal.", "copies", "mass", "entr.", "norms"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in status.layers:
        table.add_row(*_layer_cells(layer, is_short=num_ranks > MAX_RANK_COLUMNS))
    return table


def _layer_cells(layer: LayerStatus, *, is_short: bool) -> Iterator[Text]:
    yield Text(f"{layer.layer_id}{'!' if layer.is_drifting else ''}", style="yellow" if layer.is_drifting else "")
    mean = sum(layer.rank_pairs) / len(layer.rank_pairs)
    ranks = [
        (pairs / mean if mean else 0.0, experts)
        for pairs, experts in zip(layer.rank_pairs, layer.rank_experts, strict=True)
    ]
    for load, experts in (min(ranks), max(ranks)) if is_short else ranks:
        yield Text(f"{load:.2f}/{experts:.0f}", style="red" if load >= HOT else "yellow" if load >= WARM else "")
    yield Text(f"{layer.balancedness:.2f}")
    yield Text(str(layer.num_copies))
    yield Text(f"{100 * layer.mass:.0f}%")
    yield Text(f"{layer.entropy:.2f}")
    low, high = layer.norm_low, layer.norm_high
    yield Text("-" if low is None or high is None else f"{low:.1f}-{high:.1f}")


def _experts_line(title: str, experts: Sequence[ExpertStatus]) -> Text:
    """layer.expert, load over the layer's mean, and the ranks of its copies."""
    parts = (
        f"{expert.layer_id}.{expert.logical_id} {expert.load:.1f}x on {','.join(map(str, expert.ep_ranks))}"
        for expert in experts
    )
    return Text(f"{title} (layer.expert): " + "; ".join(parts))


def _history_table(records: Sequence[RebalanceRecord]) -> Table:
    table = Table(title="last rebalances", pad_edge=False, box=None, header_style="bold")
    for name in ("at", "why", "moves", "took", "gain", "balancedness", "ended"):
        table.add_column(name, justify="left" if name in ("why", "ended") else "right")
    for record in records:
        steps = (record.balancedness_before, record.balancedness_planned, record.balancedness_after)
        table.add_row(
            f"{datetime.fromtimestamp(record.started_at):%H:%M:%S}",
            record.trigger,
            f"{record.num_moves} in {record.num_stages}",
            f"{record.seconds:.1f} s",
            "?" if record.gain is None else f"{100 * record.gain:.1f} %",
            " > ".join("?" if value is None else f"{value:.2f}" for value in steps),
            record.outcome.value + (f": {record.reason}" if record.reason else ""),
        )
    return table
