"""The metrics of an attention replica, from what its actor counts. Read once a report, never on the token path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from actors.attention.counts import AttentionCounts, StepRecord
from actors.speculative.stats import SpeculationCounts
from ops.telemetry.meter import Meter
from routing.exchange_counts import Cause


class AttentionMetrics:
    """Call `record` period by period. transport: kind of the port."""

    def __init__(self, meter: Meter, transport: str) -> None:
        self._meter = meter
        self._transport = transport
        self._step_s = 0.0
        self._seen_drafts = (0, 0)  # verifications and accepted drafts at the last call

    def record(
        self,
        counts: AttentionCounts,
        steps: Iterable[StepRecord],
        recovery_s: Sequence[float],
        queue_s: Sequence[float],
    ) -> None:
        """counts: totals since birth. steps, recovery_s, queue_s: those since the last call."""
        self._record_queues(counts)
        self._record_steps(tuple(steps))
        self._record_exchanges(counts)
        self._meter.histogram("step35_recovery_seconds").record_many(recovery_s)
        self._meter.histogram("step35_queue_time_seconds").record_many(queue_s)
        if counts.speculation is not None:
            self._record_speculation(counts.speculation)

    def _record_queues(self, counts: AttentionCounts) -> None:
        meter = self._meter
        meter.gauge("step35_requests_waiting").set(counts.num_waiting)
        meter.gauge("step35_requests_running").set(counts.num_running)
        meter.gauge("step35_kv_cache_usage_ratio").set(counts.kv_usage)
        for pool, use in counts.pools.items():
            meter.gauge("step35_kv_blocks_used", pool=pool).set(use.num_used)
            meter.gauge("step35_kv_blocks", pool=pool).set(use.num_blocks)
        meter.counter("step35_preemptions_total").raise_to(counts.num_preemptions)
        meter.counter("step35_prefix_cache_query_tokens_total").raise_to(counts.prefix_queries)
        meter.counter("step35_prefix_cache_hit_tokens_total").raise_to(counts.prefix_hits)
        meter.counter("step35_step_retries_total").raise_to(counts.step_retries)
        meter.counter("step35_recoveries_given_up_total").raise_to(counts.given_up)

    def _record_steps(self, steps: tuple[StepRecord, ...]) -> None:
        meter = self._meter
        meter.histogram("step35_step_seconds").record_many([step.seconds for step in steps])
        meter.histogram("step35_step_rows").record_many([float(step.num_rows) for step in steps])
        for step in steps:
            meter.counter("step35_steps_total", microbatches=step.num_microbatches).add()
        self._step_s += sum(step.seconds for step in steps)

    def _record_exchanges(self, counts: AttentionCounts) -> None:
        meter, exchanges = self._meter, counts.exchanges
        meter.counter("step35_exchanges_total", transport=self._transport).raise_to(exchanges.num_exchanges)
        meter.counter("step35_exchange_bytes_total", direction="sent").raise_to(exchanges.bytes_sent)
        meter.counter("step35_exchange_bytes_total", direction="received").raise_to(exchanges.bytes_received)
        for cause in get_args(Cause):  # those that never happened too: alerts ask by how much one has grown
            meter.counter("step35_exchange_failures_total", cause=cause).raise_to(exchanges.failures.get(cause, 0))
        draft_s = 0.0 if counts.speculation is None else counts.speculation.draft_s
        parts = {"dispatch": exchanges.dispatch_s, "combine_wait": exchanges.combine_s, "draft": draft_s}
        # What is left of the steps; steps of the warm-up are in the parts alone, so it may lag behind at first.
        parts["attention"] = max(0.0, self._step_s - sum(parts.values()))
        for part, seconds in parts.items():
            meter.counter("step35_step_part_seconds_total", part=part).raise_to(seconds)

    def _record_speculation(self, counts: SpeculationCounts) -> None:
        meter, drafts = self._meter, counts.drafts
        meter.counter("step35_verifications_total").raise_to(drafts.num_steps)
        for position, (drafted, accepted) in enumerate(zip(drafts.drafted, drafts.accepted, strict=True)):
            meter.counter("step35_draft_tokens_total", position=position).raise_to(drafted)
            meter.counter("step35_accepted_tokens_total", position=position).raise_to(accepted)
        for length, number in counts.lengths.items():
            meter.counter("step35_draft_length_choices_total", length=length).raise_to(number)
        for reason, number in counts.reasons.items():
            meter.counter("step35_draft_length_reasons_total", reason=reason).raise_to(number)
        self._record_acceptance_length(drafts.num_steps, sum(drafts.accepted))

    def _record_acceptance_length(self, num_verified: int, num_accepted: int) -> None:
        """Over the last report interval; what an idle actor would show is not known."""
        verified, accepted = num_verified - self._seen_drafts[0], num_accepted - self._seen_drafts[1]
        self._seen_drafts = num_verified, num_accepted
        length = 1.0 + accepted / verified if verified else None
        self._meter.gauge("step35_mean_acceptance_length_tokens").set(length)
