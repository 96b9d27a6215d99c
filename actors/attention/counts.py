"""AttentionCounts: what one attention actor has done since birth, and what it holds now. Frozen plain numbers.

The engine counts as it goes; whoever exports numbers reads them once in a while, off the token path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.cache.blocks import PoolName, PoolUse
from actors.speculative.stats import SpeculationCounts
from routing.exchange_counts import Cause


@dataclass(frozen=True)
class StepRecord:
    """One engine step. seconds: its duration. num_microbatches: those in flight together."""

    seconds: float
    num_rows: int
    num_microbatches: int


@dataclass(frozen=True)
class ExchangeTotals:
    """`routing.exchange_counts.ExchangeCounts` at one moment."""

    num_exchanges: int
    bytes_sent: int
    bytes_received: int
    dispatch_s: float
    combine_s: float
    failures: Mapping[Cause, int]


@dataclass(frozen=True)
class AttentionCounts:
    """Totals since birth, but for the first four, which are now. pools: blocks in use and there. prefix_queries,
    prefix_hits: prompt tokens looked up and found. step_retries: steps that failed at the expert tier and were
    repeated. given_up: outages that outlasted the deadline. speculation: None without draft modules."""

    num_running: int
    num_waiting: int
    kv_usage: float
    pools: Mapping[PoolName, PoolUse]
    num_preemptions: int
    prefix_queries: int
    prefix_hits: int
    step_retries: int
    given_up: int
    exchanges: ExchangeTotals
    speculation: SpeculationCounts | None
