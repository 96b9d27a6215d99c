"""From a checkpoint folder to a rank: progress in the log, one thread for exact bits, no memory for what is off."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from actors.attention.config import AttentionConfig
from actors.attention.engine import kv_pool_sizes, load_engine
from actors.cache.blocks import KvLayout
from actors.expert.actor import load_shard
from actors.expert.config import ExpertConfig
from actors.model.config import parse_model_config
from actors.weights import progress
from actors.weights.check import check_checkpoint
from routing.experts import linear_expert_map
from routing.local import LocalDispatcher
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.clock import ManualClock
from tests.fakes.configs import real_config, tiny_config

MAP = linear_expert_map(4, 16, 2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config())


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def load_experts(checkpoint: Path, *, deterministic: bool) -> None:
    load_shard(ExpertConfig(deterministic=deterministic), checkpoint, MAP, 1)


def load_attention(checkpoint: Path, *, deterministic: bool) -> None:
    shards = [load_shard(ExpertConfig(), checkpoint, MAP, ep_rank) for ep_rank in range(2)]
    dispatcher = LocalDispatcher(MAP, shards, deterministic=deterministic, device="cpu")
    load_engine(AttentionConfig(deterministic=deterministic), checkpoint, 2, dispatcher)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("load", [load_experts, load_attention])
def test_a_deterministic_rank_computes_with_one_thread(checkpoint: Path, load: Callable[..., None]) -> None:
    """Loading sets it for its process; without deterministic mode the threads are the operator's."""
    load(checkpoint, deterministic=False)
    assert torch.get_num_threads() == 2
    load(checkpoint, deterministic=True)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(("load", "who"), [(load_experts, "EP rank 1"), (load_attention, "attention rank")])
def test_loading_ends_with_all_bytes_in_the_log(
    checkpoint: Path, load: Callable[..., None], who: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The total is what `check` says a rank reads, draft modules included, so the last line says 100 %."""
    caplog.set_level(logging.INFO, logger="actors")
    load(checkpoint, deterministic=False)
    summary = check_checkpoint(checkpoint, 2)
    num_bytes = summary.rank_bytes[1] if "EP" in who else summary.attention_bytes + summary.mtp_bytes
    size = f"{num_bytes / 2**30:.2f}"
    assert caplog.messages[-1] == f"{who}: 100 % loaded, {size} of {size} GiB"


def test_progress_is_told_every_five_seconds_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """A read each second for 13 s: lines at 5 s and 10 s, and the last one."""
    caplog.set_level(logging.INFO, logger="actors")
    clock = ManualClock()
    log = progress.ProgressLog("EP rank 3", clock=clock)
    for second in range(1, 14):
        clock.advance(1.0)
        log(second * 2**30, 13 * 2**30)
    assert caplog.messages == [
        "EP rank 3: 38 % loaded, 5.00 of 13.00 GiB",
        "EP rank 3: 76 % loaded, 10.00 of 13.00 GiB",
        "EP rank 3: 100 % loaded, 13.00 of 13.00 GiB",
    ]


def test_windows_for_idle_prefixes_cost_nothing_without_a_prefix_cache() -> None:
    """The published model with 32 cached windows: over 2 GiB of sliding blocks that nothing would ever use."""
    model, layout = parse_model_config(real_config()), KvLayout(16, 512)
    config = AttentionConfig(cached_windows=32)
    sizes = [
        kv_pool_sizes(config.model_copy(update=change), model, layout, torch.bfloat16).sliding_blocks
        for change in ({}, {"enable_prefix_cache": False}, {"cached_windows": 0})
    ]
    assert sizes[0] > sizes[1] == sizes[2]
