"""Expert ranks in processes of their own give, bit for bit, what one process gives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.attention.config import AttentionConfig
from actors.local_cluster import LocalCluster, tokens_of
from actors.messages import GenerateRequest, SamplingSpec, TokenEvent
from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, linear_expert_map
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.ranks.split import Split, collect, opened

EP_SIZE, MOE_LAYERS, EXPERTS = 8, 4, 16
CONFIG = AttentionConfig(
    param_dtype="float32", deterministic=True, block_size=4, max_running=8, max_step_tokens=32, max_model_len=128
)


def _redundant_map(shift: int) -> ExpertMap:
    """Two own experts per rank, a copy of somebody else's (another for every shift), and a slot that stays empty."""
    row: list[int] = []
    for ep_rank in range(EP_SIZE):
        copy = (2 * ep_rank + 2 + shift) % EXPERTS
        row += [(2 * ep_rank + 1) % EXPERTS, copy, 2 * ep_rank, EMPTY_SLOT]
    return expert_map_from_rows([row] * MOE_LAYERS, EXPERTS, EP_SIZE)


MAPS = {
    "linear": linear_expert_map(MOE_LAYERS, EXPERTS, EP_SIZE),
    "copies next door": _redundant_map(0),
    "copies far away": _redundant_map(7),
}


def _requests() -> list[GenerateRequest]:
    requests = []
    for idx in range(6):
        spec = SamplingSpec(
            max_tokens=6 + idx, temperature=0.0 if idx % 2 else 0.8, seed=idx, ignore_eos=True, logprobs=1
        )
        prompt = tuple((31 * idx + 5 * position) % 500 for position in range(2 + 11 * (idx % 4)))
        requests.append(GenerateRequest(f"r{idx}", prompt, spec))
    return requests


def _answer(events: list[TokenEvent]) -> tuple[list[int], list[object]]:
    return tokens_of(events), [entry for event in events for entry in event.logprobs]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(moe_num_experts=EXPERTS), seed=9)


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> dict[str, tuple[list[int], list[object]]]:
    """What one process answers, each request alone."""
    cluster = LocalCluster(checkpoint, CONFIG, ep_size=1)
    return {request.request_id: _answer(cluster.generate([request])[request.request_id]) for request in _requests()}


@pytest.mark.parametrize("transport", ["shm", "gloo"])
@pytest.mark.parametrize("name", MAPS)
async def test_processes_equal_one_process(
    name: str, transport: str, checkpoint: Path, expected: dict[str, tuple[list[int], list[object]]]
) -> None:
    """Eight expert processes, requests in one batch, several maps: tokens and logprobs equal to the last bit."""
    async with opened(Split(checkpoint, CONFIG, MAPS[name], transport)) as split:
        events = await asyncio.gather(*(collect(split.attention[0], request) for request in _requests()))
    assert {news[0].request_id: _answer(news) for news in events} == expected


async def test_two_attention_actors_share_the_experts(
    checkpoint: Path, expected: dict[str, tuple[list[int], list[object]]]
) -> None:
    """Rows of two bundles meet in one grouped product; nobody's bits change."""
    async with opened(Split(checkpoint, CONFIG, MAPS["copies next door"], "shm"), num_attention=2) as split:
        events = await asyncio.gather(
            *(collect(split.attention[idx % 2], request) for idx, request in enumerate(_requests()))
        )
    assert {news[0].request_id: _answer(news) for news in events} == expected
