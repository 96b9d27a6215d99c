"""A fault that makes one request's numbers NaN passes: the same prompt is served when it comes again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.attention.config import AttentionConfig, MtpConfig
from actors.local_cluster import LocalCluster, tokens_of
from actors.messages import FinishReason, GenerateRequest, SamplingSpec
from routing.dispatcher import DispatchHandle
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config

PROMPT = tuple(range(5, 45))
FIXED = MtpConfig(mode="fixed")  # all modules in every step, so that no row waits for them and stays unshared


@pytest.mark.parametrize("kernels", [("native", "reference"), ("reference",)], ids=["native", "reference"])
@pytest.mark.parametrize("failing_call", [0, 5], ids=["first chunk", "second chunk"])
def test_one_transient_nan_fails_one_request(tmp_path: Path, failing_call: int, kernels: tuple[str, ...]) -> None:
    """An expert answers NaN once. That request ends with an error; the next two get what a sound engine gives."""
    write_checkpoint(tmp_path, tiny_config(), seed=3)
    config = AttentionConfig(
        block_size=4, max_running=4, max_step_tokens=24, max_model_len=64, kernels=kernels, mtp=FIXED
    )
    spec = SamplingSpec(max_tokens=6, temperature=0.0, ignore_eos=True)
    expected = LocalCluster(tmp_path, config, ep_size=2).generate([GenerateRequest("sound", PROMPT, spec)])["sound"]
    cluster = LocalCluster(tmp_path, config, ep_size=2)
    dispatcher, calls = cluster.engine._dispatcher, iter(range(10**6))
    combine = dispatcher.combine

    def combine_once_wrong(handle: DispatchHandle) -> Tensor:
        result = combine(handle)
        return torch.full_like(result, torch.nan) if next(calls) == failing_call else result

    dispatcher.combine = combine_once_wrong  # type: ignore[method-assign]
    for name, reason in (("hit", FinishReason.ERROR), ("again", FinishReason.LENGTH), ("third", FinishReason.LENGTH)):
        events = cluster.generate([GenerateRequest(name, PROMPT, spec)])[name]
        assert events[-1].finish_reason is reason
        assert events[0].num_cached_tokens == (36 if name == "third" else 0)
        assert reason is FinishReason.ERROR or tokens_of(events) == tokens_of(expected)
