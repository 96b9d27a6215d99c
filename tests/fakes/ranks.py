"""Actors without a model, for tests of the machinery around them: they answer with numbers instead of tokens.

A fake attention actor answers a request with `max_tokens` events.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence

from actors.attention.counts import AttentionCounts, ExchangeTotals, StepRecord
from actors.errors import RequestRejected
from actors.expert.refusal import Refusal
from actors.expert.slot_progress import SlotProgress
from actors.messages import FinishReason, GenerateRequest, LoadReport, TokenEvent
from cluster.attention_replica import BuiltAttention
from cluster.expert_replica import BuiltExpert
from routing.experts import ExpertMap
from routing.load.expert_sample import ExpertSample
from routing.load.sample import LoadSample
from routing.transport.endpoint import Endpoint


class FakeExpert:
    """Notes what it is told."""

    def __init__(self, ep_rank: int) -> None:
        self.ep_rank = ep_rank
        self.attention: tuple[Endpoint, ...] = ()
        self.maps: tuple[ExpertMap, ...] = ()
        self.is_started = self.is_closed = False
        self.failure: Exception | None = None

    def start(self) -> None:
        self.is_started = True

    def reconcile(self, attention: Sequence[Endpoint], shards: Mapping[int, Endpoint]) -> None:
        del shards
        self.attention = tuple(attention)

    def follow_maps(self, maps: Sequence[ExpertMap], next_map: ExpertMap | None) -> None:
        self.maps = (*maps, next_map) if next_map is not None else tuple(maps)

    def slot_progress(self) -> SlotProgress:
        """Serves at once whatever it is told to."""
        return SlotProgress(tuple(expert_map.map_epoch for expert_map in self.maps))

    @property
    def layer_ids(self) -> tuple[int, ...]:
        return ()

    def take_sample(self) -> ExpertSample | None:
        return None

    def refusals(self) -> Mapping[Refusal, int]:
        return {}

    def check_health(self) -> None:
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.is_closed = True


class FakeAttention:
    """Ready while it knows every rank. A request of 13 tokens is rejected."""

    def __init__(self, expert_map: ExpertMap) -> None:
        self._ep_size = expert_map.ep_size
        self.adopted_epoch = expert_map.map_epoch
        self.shards: dict[int, Endpoint] = {}
        self.aborted: list[str] = []
        self.drained = threading.Event()
        self.is_closed = False
        self.failure: Exception | None = None

    def start(self) -> None:
        pass

    def reconcile(self, shards: Mapping[int, Endpoint], expert_map: ExpertMap, pairs_per_touch: int) -> None:
        del pairs_per_touch
        self.adopted_epoch = expert_map.map_epoch
        self.shards = dict(shards)

    def take_steps(self) -> tuple[StepRecord, ...]:
        return ()

    def take_recoveries(self) -> tuple[float, ...]:
        return ()

    def take_queue_seconds(self) -> tuple[float, ...]:
        return ()

    def counts(self) -> AttentionCounts:
        return AttentionCounts(
            num_running=0,
            num_waiting=0,
            kv_usage=0.0,
            pools={},
            num_preemptions=0,
            prefix_queries=0,
            prefix_hits=0,
            step_retries=0,
            given_up=0,
            exchanges=ExchangeTotals(0, 0, 0, 0.0, 0.0, {}),
            speculation=None,
        )

    def take_sample(self) -> LoadSample | None:
        return None

    def is_ready(self) -> bool:
        return len(self.shards) == self._ep_size

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        num_tokens, is_finished = request.sampling.max_tokens, False
        if num_tokens == 13:
            raise RequestRejected("13 is not served", "max_tokens")
        try:
            for token_id in range(num_tokens):
                await asyncio.sleep(0)
                is_finished = token_id + 1 == num_tokens
                yield TokenEvent(
                    request.request_id, (token_id,), finish_reason=FinishReason.LENGTH if is_finished else None
                )
        finally:
            if not is_finished:
                self.aborted.append(request.request_id)

    def load_report(self) -> LoadReport:
        return LoadReport(0, 0, 0, 0.0, 0, self.is_ready())

    def check_health(self) -> None:
        if self.failure is not None:
            raise self.failure

    def drain(self, timeout_s: float) -> None:
        del timeout_s
        self.drained.set()

    def close(self) -> None:
        self.is_closed = True


def build_expert(ep_rank: int, expert_map: ExpertMap, transport: str) -> BuiltExpert:
    """As `cluster.tiers.build_expert`, without its first argument."""
    del expert_map
    return BuiltExpert(FakeExpert(ep_rank), Endpoint(transport, f"expert-{ep_rank}", "host"))


def build_attention(expert_map: ExpertMap, transport: str) -> BuiltAttention:
    """As `cluster.tiers.build_attention`, without its first argument."""
    return BuiltAttention(FakeAttention(expert_map), Endpoint(transport, "attention", "host"))
