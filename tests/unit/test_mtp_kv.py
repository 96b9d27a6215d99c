"""Keys and values of draft modules: what true tokens make of them, whatever was drafted, rejected or shared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from actors.attention.config import AttentionConfig, MtpConfig
from actors.local_cluster import LocalCluster
from actors.messages import GenerateRequest, SamplingSpec
from actors.speculative.cost import StepCost
from actors.speculative.draft_length import Choice, DraftLengths
from tests.fakes.configs import tiny_config
from tests.fakes.drafting import KvRecord, TrueKv, draft_by_chance, write_drafting_checkpoint

VOCAB = 48
EXACT = AttentionConfig(
    param_dtype="float32",
    deterministic=True,
    block_size=4,
    max_running=6,
    max_step_tokens=24,
    max_model_len=96,
    mtp=MtpConfig(mode="fixed"),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafting")
    return write_drafting_checkpoint(folder, tiny_config(vocab_size=VOCAB, num_hidden_layers=4), seed=3)


def _request(name: str, prompt: tuple[int, ...], max_tokens: int, *, temperature: float = 0.7) -> GenerateRequest:
    spec = SamplingSpec(max_tokens=max_tokens, temperature=temperature, ignore_eos=True, seed=sum(map(ord, name)))
    return GenerateRequest(name, prompt, spec)


def _tokens(seed: int, num: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(VOCAB), k=num))


def _run(cluster: LocalCluster, record: KvRecord, *, max_steps: int = 10**6) -> None:
    engine = cluster.engine
    while engine.scheduler.has_work and max_steps:
        engine.run()
        engine.take_events()
        engine.scheduler.check()
        record.take()
        max_steps -= 1


@pytest.mark.parametrize("kernels", ["native", "reference"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"max_step_tokens": 7, "enable_prefix_cache": False},
        {"kv_cache_tokens": 96, "max_step_tokens": 16},
        {"num_microbatches": 2, "block_size": 5},
        {"mtp": MtpConfig(mode="fixed", sample_drafts=True)},
    ],
    ids=["plain", "small chunks", "preemption", "micro-batches", "sampled drafts"],
)
def test_rows_are_what_true_tokens_make_of_them(checkpoint: Path, kernels: str, change: dict[str, object]) -> None:
    """After every step of a run that drafts 0 to 3 tokens by chance, bit for bit, in the trunk and each module."""
    config = EXACT.model_copy(update={"kernels": (kernels, "reference"), **change})
    cluster = LocalCluster(checkpoint, config, ep_size=2)
    draft_by_chance(cluster.engine)
    record = KvRecord(cluster.engine)
    for idx in range(7):
        cluster.engine.add(_request(f"r{idx}", _tokens(idx, 2 + 7 * idx), 30, temperature=0.7 * (idx % 2)), now=0.0)
    _run(cluster, record)
    assert record.num_rows > 10_000
    assert record.wrong(TrueKv(checkpoint, cluster.engine, kernels=kernels)) == []
    assert not change.get("kv_cache_tokens") or cluster.engine.scheduler.num_preemptions_total


@pytest.mark.parametrize("num_shared", [8, 9, 10, 11, 12, 13, 15, 16])
@pytest.mark.parametrize("is_first_done", [False, True], ids=["owner still decodes", "owner is done"])
def test_a_prefix_hit_brings_the_rows_of_the_newcomer(checkpoint: Path, is_first_done: bool, num_shared: int) -> None:
    """Rows of a shared block depend on tokens behind it, so a block counts only if these are the same too."""
    cluster = LocalCluster(checkpoint, EXACT, ep_size=2)
    draft_by_chance(cluster.engine, seed=num_shared)
    record = KvRecord(cluster.engine)
    shared = _tokens(0, num_shared)
    cluster.engine.add(_request("owner", shared + _tokens(1, 7), 40), now=0.0)
    _run(cluster, record, max_steps=10**6 if is_first_done else 8)
    for idx in range(2, 5):
        cluster.engine.add(_request(f"other{idx}", shared + _tokens(idx, 9), 12), now=0.0)
    _run(cluster, record, max_steps=4)
    # The second block of some of them is another one's; the first was published before.
    cluster.engine.add(_request("late", shared + _tokens(3, 9) + _tokens(9, 4), 12), now=0.0)
    _run(cluster, record)
    assert record.wrong(TrueKv(checkpoint, cluster.engine, kernels="native")) == []


class Idle(DraftLengths):
    """Nobody drafts."""

    def __init__(self, *, rests: bool, reason: Literal["kept", "probe"] = "kept") -> None:
        """rests: may say that nothing changes. reason: why nobody does."""
        super().__init__("adaptive", 3, StepCost(num_experts=16, top_k=4))
        self._rests, self._reason, self.num_asked = rests, reason, 0

    def stays(self, num_sequences: int) -> bool:
        return self._rests

    def without_rates(self, limits: Sequence[int], last: Sequence[int | None]) -> Choice:
        self.num_asked += 1
        return Choice((0,) * len(limits), self._reason)


def test_a_batch_at_rest_does_in_time_what_it_would_have_done(checkpoint: Path) -> None:
    """Steps that are cut short draft nothing, count the same, catch up at the same steps, and leave the same rows: with
    three sequences that come and go, one of them preempted, and hundreds of tokens without drafts."""
    config = EXACT.model_copy(update={"max_model_len": 400, "kv_cache_tokens": 600})
    num_asked, num_waiting, counts = [], list[list[int]](), []
    for rests in (False, True):
        cluster = LocalCluster(checkpoint, config, ep_size=2)
        engine, lengths, record = cluster.engine, Idle(rests=rests), KvRecord(cluster.engine)
        assert engine._speculation is not None
        engine._speculation._lengths = lengths
        for idx, num_tokens in enumerate((340, 60, 300)):
            engine.scheduler.add(_request(f"r{idx}", _tokens(idx, 5 + 9 * idx), num_tokens), now=0.0)
        waiting = list[int]()
        while engine.scheduler.has_work:
            engine.run()
            engine.take_events()
            engine.scheduler.check()
            waiting += [
                sequence.drafting.num_rows - sequence.drafting.num_settled for sequence in engine.scheduler.sequences()
            ]
            if engine.step_id % 50 == 0:
                record.take()
        assert record.wrong(TrueKv(checkpoint, engine, kernels="native")) == []
        num_asked.append(lengths.num_asked)
        num_waiting.append(waiting)
        counts.append(engine.speculation_counts)
        assert engine.scheduler.num_preemptions_total
    assert num_waiting[0] == num_waiting[1]
    assert counts[0].lengths == counts[1].lengths
    assert counts[0].reasons == counts[1].reasons
    assert num_asked[1] < num_asked[0] / 10


def test_a_try_without_drafts_is_no_rest(checkpoint: Path) -> None:
    """It is for one step; the next one must decide anew."""
    cluster = LocalCluster(checkpoint, EXACT, ep_size=2)
    lengths = Idle(rests=True, reason="probe")
    assert cluster.engine._speculation is not None
    cluster.engine._speculation._lengths = lengths
    cluster.generate([_request("one", _tokens(1, 9), 20)])
    assert lengths.num_asked == cluster.engine.step_id - 1  # all but the last, after which nobody is left


def test_a_prefix_of_generated_tokens_is_shared_too(checkpoint: Path) -> None:
    """A second turn repeats prompt and answer of the first; no row that saw rejected drafts is among those shared."""
    cluster = LocalCluster(checkpoint, EXACT, ep_size=2)
    draft_by_chance(cluster.engine, seed=5)
    record = KvRecord(cluster.engine)
    first = cluster.engine.scheduler.add(_request("first", _tokens(0, 11), 40), now=0.0)
    _run(cluster, record, max_steps=18)
    assert not first.is_finished
    turns = [
        cluster.engine.scheduler.add(_request(f"turn{cut}", tuple(first.token_ids[:cut]) + _tokens(cut, 5), 8), now=0.0)
        for cut in range(14, len(first.token_ids), 3)
    ]
    _run(cluster, record)
    assert sum(turn.num_cached_tokens for turn in turns) > 0, "nobody has hit the cache"
    assert record.wrong(TrueKv(checkpoint, cluster.engine, kernels="native")) == []
