"""No KV block is lost while sequences draft, get rejected, are cancelled, late or preempted, or share beginnings."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actors.attention.config import AttentionConfig, MtpConfig
from actors.attention.step import EngineStep
from actors.local_cluster import LocalCluster
from actors.messages import GenerateRequest, SamplingSpec
from tests.fakes.configs import tiny_config
from tests.fakes.drafting import draft_by_chance, write_drafting_checkpoint

NUM_REQUESTS = 1000
VOCAB = 16
TIGHT = AttentionConfig(
    param_dtype="float32",
    block_size=4,
    max_running=8,
    max_waiting=16,
    max_step_tokens=24,
    max_model_len=40,
    kv_cache_tokens=48,
    cached_windows=2,
)
SMALLEST = {"vocab_size": VOCAB, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
SMALLEST |= {"moe_num_experts": 4, "moe_top_k": 2, "moe_intermediate_size": 8, "share_expert_dim": 8}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drafting_checkpoint(tmp_path_factory.mktemp("smallest"), tiny_config(**SMALLEST), seed=1)


class Crowd:
    """Random requests that come, go and give up, a step at a time. Time is the number of steps."""

    def __init__(self, engine: EngineStep, seed: int) -> None:
        self._engine, self._random = engine, random.Random(seed)
        self.num_added = self.num_aborted = self.num_late = 0

    def step(self) -> None:
        """Add some requests, cancel some, and let the engine run."""
        while self.num_added < NUM_REQUESTS and self._engine.scheduler.num_waiting < self._random.randrange(16):
            self._engine.add(self._request(), now=float(self.num_added))
            self.num_added += 1
        for sequence in self._engine.scheduler.sequences():
            if self._random.random() < 0.02:
                self._engine.abort(sequence.request_id)
                self.num_aborted += 1
        self._engine.expire(now=float(self.num_added))
        self._engine.run()
        self.num_late += sum(event.error is not None for event in self._engine.take_events())

    def _request(self) -> GenerateRequest:
        rng = self._random
        beginning = [7, 3, 9, 1, 4, 4, 8, 2, 5, 12, 6, 11, 10][: rng.randrange(13)]
        prompt = (*beginning, *rng.choices(range(VOCAB), k=rng.randrange(1, 8)))
        spec = SamplingSpec(max_tokens=rng.randrange(1, 26), temperature=rng.choice((0.0, 0.5)), seed=rng.randrange(50))
        deadline_s = rng.choice((5.0, 20.0, 1e6, 1e6))
        return GenerateRequest(f"r{self.num_added}", prompt, spec, rng.randrange(3), deadline_s)


@pytest.mark.parametrize("seed", range(10))
def test_a_crowd_leaves_no_block_behind(checkpoint: Path, seed: int) -> None:
    """A thousand requests in a pool of 12 blocks: the books agree after every step, and in the end all is free."""
    mtp = MtpConfig(mode="adaptive" if seed == 9 else "fixed", sample_drafts=bool(seed % 2))
    engine = LocalCluster(checkpoint, TIGHT.model_copy(update={"mtp": mtp}), ep_size=1).engine
    if mtp.mode == "fixed":
        draft_by_chance(engine, seed)
    crowd = Crowd(engine, seed)
    while crowd.num_added < NUM_REQUESTS or engine.scheduler.has_work:
        crowd.step()
        engine.scheduler.check()
    assert engine.scheduler.kv_usage == 0.0
    # How often depends on how many drafts pay, and so on the machine.
    assert min(crowd.num_aborted, crowd.num_late, engine.scheduler.num_preemptions_total) > 5
    assert engine._speculation is not None
    counts = engine._speculation.stats.counts
    assert 0 < counts.accepted[2] < counts.drafted[2]
