"""The decoder's hook: every gate of each micro-batch is seen, the answer is the same, a failure leaks no handle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actors.attention.config import AttentionConfig, MtpConfig
from actors.kernels.contract import GateOutput
from actors.local_cluster import LocalCluster, tokens_of
from actors.messages import FinishReason, GenerateRequest, SamplingSpec
from routing.load.monitor import LoadMonitor
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config

CONFIG = AttentionConfig(
    param_dtype="float32",
    deterministic=True,
    block_size=4,
    max_running=6,
    max_step_tokens=24,
    max_model_len=96,
    mtp=MtpConfig(mode="off"),  # the rows of drafts that fail load experts too
)
REQUESTS = [
    GenerateRequest(f"r{idx}", (idx, idx + 1, idx + 2), SamplingSpec(max_tokens=5, temperature=0.0, ignore_eos=True))
    for idx in range(4)
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5)


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_every_token_is_counted_once(checkpoint: Path, num_microbatches: int) -> None:
    """Four prompts of three tokens and four more steps each, whatever the micro-batches; and the same answers."""
    config = CONFIG.model_copy(update={"num_microbatches": num_microbatches})
    expected = {name: tokens_of(news) for name, news in LocalCluster(checkpoint, config).generate(REQUESTS).items()}
    cluster, monitor = LocalCluster(checkpoint, config), LoadMonitor(4, 16)
    cluster.engine._decoder._observe = monitor.observe
    engine, answers = cluster.engine, {request.request_id: [] for request in REQUESTS}
    for request in REQUESTS:
        engine.add(request, now=0.0)
    num_steps = 0
    while engine.scheduler.has_work:
        engine.run()
        monitor.end_step()
        num_steps += 1
        for event in engine.take_events():
            answers[event.request_id].extend(event.token_ids)
    sample = monitor.take()
    assert sample is not None
    assert answers == expected
    assert (sample.num_steps, sample.num_tokens) == (num_steps, 4 * (3 + 4))
    top_k = cluster.engine._decoder._config.top_k
    assert sample.tokens.sum(axis=1).tolist() == [sample.num_tokens * top_k] * 4
    np.testing.assert_allclose(sample.gate_mass.sum(axis=1), sample.num_tokens, rtol=1e-6)
    assert (sample.mean("mass") > top_k / 16).all()
    assert (sample.mean("entropy") <= 1.0).all()


def test_an_observer_that_fails_leaks_no_handle(checkpoint: Path) -> None:
    """Its rows are already sent; the step ends with the error and nothing stays in flight."""
    cluster = LocalCluster(checkpoint, CONFIG)
    abandoned: list[object] = []

    def fail(moe_layer_idx: int, gate: GateOutput) -> None:
        raise RuntimeError("observer")

    cluster.engine._decoder._observe = fail
    cluster.engine._dispatcher.abandon = abandoned.append  # type: ignore[method-assign]
    events = cluster.generate(REQUESTS[:1])
    assert events["r0"][-1].finish_reason is FinishReason.ERROR
    assert abandoned
