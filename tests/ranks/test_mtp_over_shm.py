"""The nano model with drafts, its experts in processes of their own, answers as one process without drafts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.attention.config import AttentionConfig, MtpConfig
from actors.local_cluster import LocalCluster
from actors.messages import NO_DRAFTS, FinishReason, GenerateRequest, SamplingSpec, TokenEvent
from actors.weights.check import read_model_config
from ops.bench.domains import mixed_prompts
from routing.experts import linear_expert_map
from tests.ranks.split import Split, collect, opened

CHECKPOINT = Path(__file__).parents[2] / "ops" / "nano" / "checkpoint"
EP_SIZE = 4
PLAIN = AttentionConfig(
    deterministic=True, max_running=8, max_step_tokens=96, max_model_len=768, mtp=MtpConfig(mode="off")
)
DRAFTING = PLAIN.model_copy(update={"mtp": MtpConfig(mode="fixed", max_drafts=3)})

Answers = dict[str, tuple[tuple[int, ...], FinishReason | None]]


@pytest.fixture(scope="module")
def requests() -> list[GenerateRequest]:
    """Twice every kind of prompt, and two more; one in three is sampled."""
    specs = [SamplingSpec(max_tokens=24, temperature=0.0 if idx % 3 else 1.0, seed=idx) for idx in range(24)]
    prompts = mixed_prompts(CHECKPOINT, len(specs))
    return [
        GenerateRequest(f"r{idx}", tuple(prompt), spec)
        for idx, (prompt, spec) in enumerate(zip(prompts, specs, strict=True))
    ]


def _answers(runs: list[list[TokenEvent]]) -> Answers:
    return {
        run[0].request_id: (tuple(token_id for event in run for token_id in event.token_ids), run[-1].finish_reason)
        for run in runs
    }


async def test_two_attention_actors_with_drafts_equal_one_process_without(requests: list[GenerateRequest]) -> None:
    """Drafts of both actors meet in the experts' batches, some are right and some wrong, and no token tells."""
    model = read_model_config(CHECKPOINT)
    expert_map = linear_expert_map(len(model.moe_layers), model.num_experts, EP_SIZE)
    async with opened(Split(CHECKPOINT, DRAFTING, expert_map, "shm"), num_attention=2) as split:
        runs = await asyncio.gather(
            *(collect(split.attention[idx % 2], request) for idx, request in enumerate(requests))
        )
    alone = LocalCluster(CHECKPOINT, PLAIN, ep_size=EP_SIZE).generate(requests)
    assert _answers(runs) == _answers(list(alone.values()))
    counts = sum((event.draft_counts for run in runs for event in run), NO_DRAFTS)
    assert 0 < sum(counts.accepted) < sum(counts.drafted)
