"""An expert process dies in the middle of a request: a pause when it is replaced, a clear error when it is not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors.attention.config import AttentionConfig
from actors.local_cluster import LocalCluster, tokens_of
from actors.messages import ErrorKind, GenerateRequest, SamplingSpec
from routing.experts import linear_expert_map
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.ranks.split import Split, opened

EP_SIZE = 2
MAP = linear_expert_map(4, 16, EP_SIZE)
CONFIG = AttentionConfig(
    param_dtype="float32",
    deterministic=True,
    max_running=4,
    max_step_tokens=32,
    max_model_len=256,
    exchange_timeout_s=3.0,
    recovery_timeout_s=60.0,
)
REQUEST = GenerateRequest("r", (3, 1, 4, 1, 5), SamplingSpec(max_tokens=120, temperature=0.7, seed=1, ignore_eos=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(moe_num_experts=16), seed=4)


@pytest.mark.parametrize("transport", ["shm", "gloo"])
async def test_a_replaced_expert_process_loses_nothing(transport: str, checkpoint: Path) -> None:
    """SIGKILL in mid-request, a new process for the rank: the tokens are those of an undisturbed run."""
    expected = tokens_of(LocalCluster(checkpoint, CONFIG, ep_size=EP_SIZE).generate([REQUEST])["r"])
    async with opened(Split(checkpoint, CONFIG, MAP, transport)) as split:
        stream = split.attention[0].generate(REQUEST)
        events = [await anext(stream)]
        split.experts[1].kill()
        replacement = split.start_expert(1)
        await asyncio.to_thread(replacement.await_endpoint)
        split.reconcile()
        async with asyncio.timeout(90):
            events += [event async for event in stream]
    assert tokens_of(events) == expected


async def test_an_expert_process_that_stays_dead_is_a_clear_error(checkpoint: Path) -> None:
    """Without a replacement the request ends with UNAVAILABLE after the recovery time-out; it does not hang."""
    config = CONFIG.model_copy(update={"exchange_timeout_s": 1.0, "recovery_timeout_s": 2.0})
    async with opened(Split(checkpoint, config, MAP, "shm")) as split:
        stream = split.attention[0].generate(REQUEST)
        await anext(stream)
        split.experts[0].kill()
        async with asyncio.timeout(30):
            events = [event async for event in stream]
    error = events[-1].error
    assert error is not None
    assert error.kind is ErrorKind.UNAVAILABLE
