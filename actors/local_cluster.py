"""LocalCluster: the whole split in one process and one thread, without Ray. For debugging, and the oracle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from actors.attention.config import AttentionConfig
from actors.attention.engine import load_engine
from actors.expert.actor import load_shard
from actors.expert.config import ExpertConfig
from actors.messages import GenerateRequest, TokenEvent
from actors.weights.check import read_model_config
from routing.experts import ExpertMap, linear_expert_map
from routing.local import LocalDispatcher


class LocalCluster:
    """One attention rank and every EP rank. Time stands still: deadlines never pass."""

    def __init__(
        self,
        checkpoint: Path,
        config: AttentionConfig,
        *,
        ep_size: int = 8,
        expert_map: ExpertMap | None = None,
    ) -> None:
        """Loads both tiers. Raises CheckpointError. The default map is linear without redundant experts."""
        model = read_model_config(checkpoint)
        if expert_map is None:
            expert_map = linear_expert_map(len(model.moe_layers), model.num_experts, ep_size)
        experts = ExpertConfig(
            device=config.device,
            param_dtype=config.param_dtype,
            kernels=config.kernels,
            deterministic=config.deterministic,
        )
        shards = [load_shard(experts, checkpoint, expert_map, ep_rank) for ep_rank in range(expert_map.ep_size)]
        dispatcher = LocalDispatcher(expert_map, shards, deterministic=config.deterministic, device=config.device)
        self.engine = load_engine(config, checkpoint, expert_map.ep_size, dispatcher)

    def generate(self, requests: Iterable[GenerateRequest]) -> dict[str, list[TokenEvent]]:
        """Run requests to the end together; every event of each, by request id."""
        events: dict[str, list[TokenEvent]] = {}
        for request in requests:
            self.engine.add(request, now=0.0)
            events[request.request_id] = []
        while self.engine.scheduler.has_work:
            self.engine.run()
            for event in self.engine.take_events():
                events[event.request_id].append(event)
        return events


def tokens_of(events: Sequence[TokenEvent]) -> list[int]:
    """The completion that a run of events tells."""
    return [token_id for event in events for token_id in event.token_ids]
