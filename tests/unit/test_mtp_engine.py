"""Speculation loses nothing: an engine that drafts answers as one that does not, whatever befalls it meanwhile."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.attention.config import AttentionConfig, MtpConfig
from actors.attention.scheduler import Schedule
from actors.attention.step import Computed, EngineStep
from actors.local_cluster import LocalCluster, tokens_of
from actors.messages import FinishReason, GenerateRequest, SamplingSpec, TokenEvent
from routing.dispatcher import DispatchHandle
from routing.errors import RankLost
from tests.fakes.configs import tiny_config
from tests.fakes.drafting import draft_by_chance, write_drafting_checkpoint

VOCAB = 48
OFF, FIXED, ADAPTIVE = MtpConfig(mode="off"), MtpConfig(mode="fixed"), MtpConfig(mode="adaptive")
EXACT = AttentionConfig(
    param_dtype="float32", deterministic=True, block_size=4, max_running=8, max_step_tokens=48, max_model_len=64
)
PROMPT = (5, 9, 13, 17, 21)

Answers = dict[str, tuple[list[int], list[float], FinishReason | None]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drafting")
    return write_drafting_checkpoint(folder, tiny_config(vocab_size=VOCAB, num_hidden_layers=4), seed=3)


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Answers:
    """What an engine without drafts answers."""
    return _answers(_cluster(checkpoint, OFF).generate(_requests()))


def _cluster(checkpoint: Path, mtp: MtpConfig, **change: object) -> LocalCluster:
    return LocalCluster(checkpoint, EXACT.model_copy(update={"mtp": mtp, **change}), ep_size=2)


def _requests(num: int = 12) -> list[GenerateRequest]:
    """A mix: greedy and sampled, filters, penalties, bias, masks, stop tokens; shared beginnings; one pair of twins."""
    requests, beginning = [], tuple(random.Random(0).choices(range(3, VOCAB), k=14))
    for idx in range(num):
        spec = SamplingSpec(
            max_tokens=9 + 4 * (idx % 5),
            temperature=0.0 if idx % 2 else 0.5,
            top_p=0.9 if idx % 3 else 1.0,
            top_k=8 if idx % 5 == 4 else 0,
            min_p=0.05 if idx % 7 == 6 else 0.0,
            frequency_penalty=0.5 if idx % 4 == 3 else 0.0,
            logit_bias=((7, 1.5),) if idx % 6 == 2 else (),
            min_tokens=6 if idx % 3 == 1 else 0,
            stop_token_ids=(22, 30) if idx % 3 == 1 else (),
            ignore_eos=idx % 3 != 1,
            seed=idx,
            logprobs=2,
        )
        own = tuple(random.Random(idx).choices(range(VOCAB), k=1 + 5 * (idx % 4)))
        prompt = beginning + own if idx % 2 else own
        requests.append(GenerateRequest(f"r{idx}", prompt, spec, priority=idx % 2))
    return [*requests, replace(requests[4], request_id="twin")]


def _answers(events: dict[str, list[TokenEvent]]) -> Answers:
    """Tokens, the exact bits of their logprobs, and why each ended."""
    for news in (news for run in events.values() for news in run):
        assert [entry.token_id for entry in news.logprobs] in ([], list(news.token_ids))
    return {
        name: (tokens_of(run), [entry.logprob for news in run for entry in news.logprobs], run[-1].finish_reason)
        for name, run in events.items()
    }


def _greedy(name: str, max_tokens: int, *stop_token_ids: int) -> GenerateRequest:
    spec = SamplingSpec(max_tokens, temperature=0.0, stop_token_ids=stop_token_ids, ignore_eos=True)
    return GenerateRequest(name, PROMPT, spec)


@pytest.mark.parametrize("is_by_chance", [False, True], ids=["fixed", "by chance"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"max_running": 1},
        {"max_running": 32},
        {"max_step_tokens": 7, "max_running": 6},
        {"num_microbatches": 2},
        {"kv_cache_tokens": 64, "max_step_tokens": 16},
        {"enable_prefix_cache": False, "block_size": 16},
    ],
    ids=["batch of 8", "batch of 1", "batch of 32", "small chunks", "micro-batches", "preemption", "no prefix cache"],
)
def test_no_bit_of_an_answer_shows_the_drafts(
    checkpoint: Path, plain: Answers, change: dict[str, object], is_by_chance: bool
) -> None:
    """Tokens, logprobs and ends are those without drafts, sampled requests included: drafts are no matter of chance."""
    cluster = _cluster(checkpoint, FIXED, **change)
    if is_by_chance:
        draft_by_chance(cluster.engine)
    assert _answers(cluster.generate(_requests())) == plain
    assert not change.get("kv_cache_tokens") or cluster.engine.scheduler.num_preemptions_total
    cluster.engine.scheduler.check()
    assert cluster.engine.scheduler.kv_usage == 0.0


def test_the_reference_kernels_show_no_drafts_either(checkpoint: Path) -> None:
    """Their bits differ from the native ones', so they are compared with themselves."""
    expected = _answers(_cluster(checkpoint, OFF, kernels=("reference",)).generate(_requests()))
    cluster = _cluster(checkpoint, FIXED, kernels=("reference",))
    draft_by_chance(cluster.engine)
    assert _answers(cluster.generate(_requests())) == expected


@pytest.mark.parametrize("mtp", [ADAPTIVE, *(MtpConfig(mode="fixed", max_drafts=num) for num in (1, 2, 8))], ids=str)
def test_no_length_changes_an_answer(checkpoint: Path, plain: Answers, mtp: MtpConfig) -> None:
    """Fewer modules than there are, more than there are, and as many drafts as pay."""
    assert _answers(_cluster(checkpoint, mtp).generate(_requests())) == plain


def test_twins_agree_and_every_length_is_accepted(checkpoint: Path) -> None:
    """The cases above say something: 0, 1, 2 and 3 drafts of three get accepted. Equal seeds give equal tokens."""
    cluster = _cluster(checkpoint, FIXED)
    answers = _answers(cluster.generate(_requests()))
    assert answers["twin"] == answers["r4"]
    assert cluster.engine._speculation is not None
    stats = cluster.engine._speculation.stats
    kept = [stats.counts.drafted[0], *stats.counts.accepted, 0]
    assert all(more > fewer for more, fewer in zip(kept[:-1], kept[1:], strict=True)), kept


def test_an_end_inside_a_step_cuts_what_was_accepted_behind_it(checkpoint: Path) -> None:
    """max_tokens or a stop token may fall on any of a step's tokens: nothing follows it, and the reason is told."""
    told = tokens_of(_cluster(checkpoint, OFF).generate([_greedy("all", 40)])["all"])
    lengths = {f"length{num}": num for num in range(1, 32)}
    stops = {f"stop{token}": told.index(token) + 1 for token in sorted(set(told))}
    requests = [_greedy(name, num) for name, num in lengths.items()]
    requests += [_greedy(name, 40, told[num - 1]) for name, num in stops.items()]
    events = _cluster(checkpoint, FIXED, max_running=16).generate(requests)
    for name, num in {**lengths, **stops}.items():
        reason = FinishReason.LENGTH if name in lengths else FinishReason.STOP
        assert (tokens_of(events[name]), events[name][-1].finish_reason) == (told[:num], reason), name
    for names in (lengths, stops):
        assert any(len(events[name][-1].token_ids) in (2, 3) for name in names), "no end fell inside a step"


def test_drafts_drawn_by_chance_leave_greedy_requests_alone(checkpoint: Path, plain: Answers) -> None:
    """With sample_drafts only requests that sample get other tokens for a seed; each still gets a whole answer."""
    mtp = MtpConfig(mode="fixed", sample_drafts=True)
    answers = _answers(_cluster(checkpoint, mtp).generate(_requests()))
    greedy = {request.request_id for request in _requests() if request.sampling.temperature == 0.0}
    assert {name: answers[name] for name in greedy} == {name: plain[name] for name in greedy}
    assert answers != plain
    assert all(len(tokens) == len(logprobs) > 0 for tokens, logprobs, _ in answers.values())


def _drafts_by_place(engine: EngineStep) -> dict[tuple[str, int], list[int]]:
    """Fills up as the engine runs: what was drafted for each request after so many known tokens."""
    places: dict[tuple[str, int], list[int]] = {}
    forward = engine._forward

    def noted(schedule: Schedule) -> Computed:
        for item in schedule.items:
            if item.drafts:
                places[item.sequence.request_id, item.first_position] = item.draft_ids
        return forward(schedule)

    engine._forward = noted  # type: ignore[method-assign]
    return places


def test_lengths_by_chance_do_not_lower_acceptance(checkpoint: Path) -> None:
    """What is drafted at a place does not depend on how much was drafted, or rejected, before; nor do the rates."""
    spec = SamplingSpec(max_tokens=40, temperature=0.4, ignore_eos=True)
    requests = [GenerateRequest(f"r{idx}", (idx, idx + 3), replace(spec, seed=idx)) for idx in range(24)]
    places, stats = [], []
    for is_by_chance in (False, True):
        engine = (cluster := _cluster(checkpoint, FIXED, max_running=24)).engine
        assert engine._speculation is not None
        if is_by_chance:
            draft_by_chance(engine)
        places.append(_drafts_by_place(engine))
        cluster.generate(requests)
        stats.append(engine._speculation.stats.counts)
    common = [(places[0][place], places[1][place]) for place in places[0].keys() & places[1].keys()]
    assert len(common) > 100
    assert all(a[: len(b)] == b[: len(a)] for a, b in common)
    for position in range(3):
        (a, na), (b, nb) = ((s.accepted[position], s.drafted[position]) for s in stats)
        mean = (a + b) / (na + nb)
        assert abs(a / na - b / nb) < 4.0 * (mean * (1 - mean) * (1 / na + 1 / nb)) ** 0.5


def test_sampled_drafts_leave_the_distribution_as_it_is(checkpoint: Path) -> None:
    """Triples of tokens from one prompt, drafts drawn by chance against no drafts: chi-square, 700 runs each."""
    counts: list[dict[tuple[int, ...], int]] = []
    for mtp, first_seed in ((OFF, 0), (MtpConfig(mode="fixed", sample_drafts=True), 10_000)):
        spec = SamplingSpec(max_tokens=4, temperature=1.0, top_k=3, top_p=0.95, ignore_eos=True)
        requests = [GenerateRequest(f"r{idx}", PROMPT, replace(spec, seed=first_seed + idx)) for idx in range(700)]
        seen: dict[tuple[int, ...], int] = defaultdict(int)
        for events in _cluster(checkpoint, mtp, max_running=48, max_waiting=1000).generate(requests).values():
            seen[tuple(tokens_of(events)[1:])] += 1
        counts.append(seen)
    assert _chi_square_z(*counts) < 4.0


def _chi_square_z(first: dict[tuple[int, ...], int], second: dict[tuple[int, ...], int]) -> float:
    """Standard deviations above the mean of the two-sample statistic; rare outcomes are counted together."""
    keys = sorted(first.keys() | second.keys())
    often = [key for key in keys if first.get(key, 0) + second.get(key, 0) >= 10]
    pairs = [(first.get(key, 0), second.get(key, 0)) for key in often]
    pairs.append((sum(first.values()) - sum(a for a, _ in pairs), sum(second.values()) - sum(b for _, b in pairs)))
    statistic = sum((a - b) ** 2 / (a + b) for a, b in pairs if a + b)
    degrees = len(pairs) - 1
    return (statistic - degrees) / math.sqrt(2.0 * degrees)


class Fault:
    """Replaces a function that returns a tensor; at some calls it does something else."""

    def __init__(self, function: Callable[..., Tensor], calls: Sequence[int], error: Exception | None) -> None:
        """error: what is raised at `calls`; None: the result is NaN."""
        self._function, self._calls, self._error = function, set(calls), error
        self._numbers: Iterator[int] = iter(range(10**6))

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        result = self._function(*args, **kwargs)
        if next(self._numbers) not in self._calls:
            return result
        if self._error is not None:
            raise self._error
        return torch.full_like(result, torch.nan)


@pytest.mark.parametrize("sample_drafts", [False, True], ids=["likeliest", "sampled"])
@pytest.mark.parametrize("error", [None, RuntimeError("kernel")], ids=["NaN", "raises"])
@pytest.mark.parametrize("where", ["run", "logits"])
def test_a_module_that_fails_costs_drafts_only(
    checkpoint: Path, plain: Answers, where: str, error: Exception | None, sample_drafts: bool
) -> None:
    """Modules that raise or compute NaN now and then, also in what they store: every request ends as it should."""
    cluster = _cluster(checkpoint, MtpConfig(mode="fixed", sample_drafts=sample_drafts))
    assert cluster.engine._speculation is not None
    modules = cluster.engine._speculation._drafter._modules
    setattr(modules, where, Fault(getattr(modules, where), (0, 5, 7, 20, 33), error))
    answers = _answers(cluster.generate(_requests()))
    greedy = {request.request_id for request in _requests() if request.sampling.temperature == 0.0}
    for name in greedy if sample_drafts else plain:
        assert answers[name] == plain[name]
    assert all(reason is not FinishReason.ERROR for _, _, reason in answers.values())
    cluster.engine.scheduler.check()


@pytest.mark.parametrize("sample_drafts", [False, True], ids=["likeliest", "sampled"])
def test_a_step_that_lost_a_rank_verifies_the_same_drafts_again(checkpoint: Path, sample_drafts: bool) -> None:
    """The repeated step has the same rows, and the answers are those of an engine that lost nobody."""
    mtp = MtpConfig(mode="fixed", sample_drafts=sample_drafts)
    expected = _answers(_cluster(checkpoint, mtp).generate(_requests()))
    cluster = _cluster(checkpoint, mtp)
    engine, dispatcher = cluster.engine, cluster.engine._dispatcher
    combine: Callable[[DispatchHandle], Tensor] = dispatcher.combine
    dispatcher.combine = Fault(combine, (4, 21, 22, 40), RankLost("gone", [1]))  # type: ignore[method-assign]
    schedules = _schedules(engine)
    events: dict[str, list[TokenEvent]] = defaultdict(list)
    for request in _requests():
        engine.add(request, now=0.0)
    repeated = []
    while engine.scheduler.has_work:
        try:
            engine.run()
        except RankLost:
            repeated.append(len(schedules))
        for event in engine.take_events():
            events[event.request_id].append(event)
    assert _answers(events) == expected
    assert len(repeated) == 4
    assert all(schedules[idx] == schedules[idx - 1] for idx in repeated)
    assert any(drafts for idx in repeated for _, _, drafts in schedules[idx]), "no repeated step had drafts"


def _schedules(engine: EngineStep) -> list[list[tuple[str, int, tuple[int, ...]]]]:
    """Fills up as the engine runs: request, first position and drafts of every item of every step tried."""
    tried: list[list[tuple[str, int, tuple[int, ...]]]] = []
    schedule = engine.scheduler.schedule

    def noted() -> Schedule:
        made = schedule()
        tried.append([(i.sequence.request_id, i.first_position, tuple(i.draft_ids)) for i in made.items])
        return made

    engine.scheduler.schedule = noted  # type: ignore[method-assign]
    return tried
