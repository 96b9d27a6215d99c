"""Judging drafts: whatever they are drawn from, what is emitted has the target's distribution."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.attention.sequence import Sequence
from actors.messages import GenerateRequest, SamplingSpec
from actors.sampling.penalties import PenaltyCounts
from actors.sampling.rng import Purpose, uniform
from actors.sampling.sampler import SampledToken, Sampler, SamplingRow, probabilities
from actors.speculative.state import Draft
from actors.speculative.verify import verified_token

NUM_DRAWS = 100_000
Z = 3.719  # 99.99th percentile of a standard normal

Floats = NDArray[np.float64]


def _chi_square_limit(freedom: int) -> float:
    """99.99th percentile of chi-square (Wilson and Hilferty, 1931)."""
    return float(freedom * (1 - 2 / (9 * freedom) + Z * (2 / (9 * freedom)) ** 0.5) ** 3)


def _chi_square(counts: Floats, expected: Floats) -> tuple[float, int]:
    """Statistic and degrees of freedom; cells expected less than 5 times count as one."""
    assert counts[expected == 0].sum() == 0, "something impossible happened"
    common = expected >= 5
    cells = [(float(c), float(e)) for c, e in zip(counts[common], expected[common], strict=True)]
    rest = float(counts[~common].sum()), float(expected[~common].sum())
    if rest[1] >= 5:
        cells.append(rest)
    else:
        assert rest[0] <= rest[1] + Z * rest[1] ** 0.5 + 3, "what is rare happens too often"
    return sum((c - e) ** 2 / e for c, e in cells), len(cells) - 1


def _check_distribution(counts: Floats, chances: Floats) -> None:
    statistic, freedom = _chi_square(counts, chances * counts.sum())
    assert freedom == 0 or statistic < _chi_square_limit(freedom), f"chi-square {statistic:.1f} of {freedom} degrees"


# --- The rule, by itself ---------------------------------------------------------------------------------------------


def _made_by(seed: int = 5, tokens: tuple[int, ...] = (), **fields: object) -> tuple[float, ...]:
    """What sampling parameters make of random logits of eight tokens after `tokens` of a completion."""
    logits = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    spec = SamplingSpec(max_tokens=10, **fields)  # type: ignore[arg-type]
    counts = PenaltyCounts([0, 1])
    for token_id in tokens:
        counts.add(token_id)
    return tuple(probabilities(logits, SamplingRow(spec, 0, 0, len(tokens), counts=counts), 8).tolist())


TINY = 1e-7
# What the target makes of a row, and what the draft was drawn from.
CASES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "equal": ((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)),
    "opposite": ((0.1, 0.2, 0.3, 0.4), (0.4, 0.3, 0.2, 0.1)),
    "disjoint": ((0.0, 0.0, 0.25, 0.75), (0.5, 0.5, 0.0, 0.0)),
    "target-forbids-a-draft": ((0.0, 0.5, 0.3, 0.2), (0.7, 0.1, 0.1, 0.1)),
    "proposal-lacks-a-token": ((0.4, 0.3, 0.2, 0.1), (0.0, 0.2, 0.3, 0.5)),
    "target-nearly-certain": ((1 - 3e-3, 1e-3, 1e-3, 1e-3), (0.25, 0.25, 0.25, 0.25)),
    "proposal-nearly-certain": ((0.25, 0.25, 0.25, 0.25), (1 - 3 * TINY, TINY, TINY, TINY)),
    "top-p-and-top-k": (_made_by(top_p=0.8, top_k=5), _made_by(6, temperature=0.7)),
    "both-filtered": (_made_by(top_p=0.7, min_p=0.1), _made_by(6, top_p=0.7, min_p=0.1)),
    "penalties": (
        _made_by(tokens=(2, 2, 5), repetition_penalty=1.8, frequency_penalty=0.7, presence_penalty=0.5),
        _made_by(repetition_penalty=1.8, frequency_penalty=0.7, presence_penalty=0.5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_verified_tokens_have_the_target_distribution(name: str) -> None:
    """10^5 drafts from q, judged against p: the tokens follow p, and a draft survives as often as min(p, q) allows."""
    target, proposal = (np.array(side) for side in CASES[name])
    p, q = torch.from_numpy(target), torch.from_numpy(proposal)
    rng = np.random.default_rng(list(CASES).index(name))
    drafts = rng.choice(len(proposal), size=NUM_DRAWS, p=proposal / proposal.sum()).tolist()
    numbers = rng.random((NUM_DRAWS, 2)).tolist()
    tokens = np.array([verified_token(p, d, q, u, v) for d, (u, v) in zip(drafts, numbers, strict=True)])
    _check_distribution(np.bincount(tokens, minlength=len(target)).astype(np.float64), target / target.sum())
    overlap = float(np.minimum(target, proposal).sum())
    spread = (NUM_DRAWS * overlap * max(0.0, 1 - overlap)) ** 0.5
    assert abs(int((tokens == drafts).sum()) - NUM_DRAWS * overlap) <= Z * spread + 1e-6


def test_a_draft_is_taken_below_the_ratio_and_replaced_from_the_rest_above() -> None:
    """p / q is 0.5 at the draft; of the positive part of p - q, (0, 0.2, 0.3), the number picks the token."""
    p, q = torch.tensor([0.5, 0.2, 0.3]).double(), torch.tensor([1.0, 0.0, 0.0]).double()
    assert verified_token(p, 0, q, 0.499, 0.9) == 0
    assert verified_token(p, 0, q, 0.501, 0.39) == 1
    assert verified_token(p, 0, q, 0.501, 0.41) == 2
    assert p.tolist() == torch.tensor([0.5, 0.2, 0.3]).double().tolist()
    assert q.tolist() == [1.0, 0.0, 0.0]


def test_a_draft_the_target_forbids_is_never_taken() -> None:
    """Not even by the smallest number, 0."""
    p, q = torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 0.0]).double()
    assert verified_token(p, 0, q, 0.0, 0.0) == 1


def test_rounding_that_leaves_no_rest_falls_back_to_the_target() -> None:
    """q is above p where they should be equal: the draft can be rejected, but p - q has no positive part."""
    p, q = torch.tensor([[0.5, 0.5], [0.5 + 1e-12, 0.5]], dtype=torch.float64)
    almost_one = 1 - 2.0**-53
    assert [verified_token(p, 0, q, almost_one, u) for u in (0.1, 0.9)] == [0, 1]


def test_a_proposal_that_is_not_a_number_costs_only_the_draft() -> None:
    """NaN from a draft module rejects the draft, and the token comes from the target."""
    p, q = torch.tensor([0.25, 0.75]).double(), torch.full((2,), torch.nan).double()
    assert [verified_token(p, 0, q, 0.0, u) for u in (0.1, 0.3)] == [0, 1]


# --- Through the sampler, four rows a step ---------------------------------------------------------------------------

VOCAB_SIZE = 5
PROMPT = (0, 3)
NUM_TOKENS = 4
ENDED = VOCAB_SIZE  # stands for every token after a stop token
NUM_CHAINS = 1_500


def _logits_after(seed: int) -> Tensor:
    """float32 [previous token, V + 1]: the last one is padding, and would be chosen if it could."""
    logits = 1.2 * torch.randn((VOCAB_SIZE, VOCAB_SIZE + 1), generator=torch.Generator().manual_seed(seed))
    logits[:, VOCAB_SIZE] = 9.0
    return logits


TARGET = _logits_after(1)
MODULES = TARGET + 0.8 * _logits_after(2)
SAMPLER = Sampler(VOCAB_SIZE)

SPECS = {
    "temperature-and-top-k": SamplingSpec(max_tokens=9, temperature=0.8, top_k=3),
    "top-p-and-min-p": SamplingSpec(max_tokens=9, temperature=1.3, top_p=0.85, min_p=0.12),
    "penalties": SamplingSpec(max_tokens=9, repetition_penalty=1.6, frequency_penalty=0.6, presence_penalty=0.4),
    "bias-stop-and-min-tokens": SamplingSpec(
        max_tokens=9, min_tokens=2, stop_token_ids=(2,), logit_bias=((4, 0.9), (1, -2.0))
    ),
    "everything": SamplingSpec(
        max_tokens=9, min_tokens=1, stop_token_ids=(0,), logit_bias=((0, 0.7),), temperature=0.9, top_k=4, top_p=0.95,
        min_p=0.02, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=-0.2,
    ),
}  # fmt: skip


def _step(sequence: Sequence, *, is_sampled: bool) -> int:
    """Draft three tokens and judge them as an engine step does. Returns the drafts accepted."""
    last = sequence.token_ids[-1]
    drafts: list[Draft] = []
    for module in range(3):
        logits = MODULES[drafts[-1].token_id if drafts else last][None]
        drafts += SAMPLER.draft(logits, [sequence.sampling_row()], module, is_sampled=is_sampled)
    rows = SAMPLER.open(TARGET[[last, *(draft.token_id for draft in drafts)]])
    for idx, draft in enumerate([*drafts, None]):
        result = rows.token(idx, sequence.sampling_row(), draft)
        assert isinstance(result, SampledToken)
        has_ended = sequence.append_token(result.token_id) is not None
        if draft is None or has_ended or result.token_id != draft.token_id:
            return idx
    raise AssertionError("the last row has no draft")


def _sequence(spec: SamplingSpec, seed: int) -> Sequence:
    sequence = Sequence(GenerateRequest("a", PROMPT, spec), arrival=0, deadline=1.0, max_model_len=64)
    sequence.seed = seed
    return sequence


def _emitted(spec: SamplingSpec, seed: int, accepted: Counter[int]) -> tuple[int, ...]:
    """The first four tokens of a completion, some of them `ENDED`."""
    sequence = _sequence(spec, seed)
    while sequence.num_completion_tokens < NUM_TOKENS:
        accepted[_step(sequence, is_sampled=True)] += 1
        if sequence.token_ids[-1] in spec.stop_token_ids and sequence.num_completion_tokens > spec.min_tokens:
            break
    tokens = sequence.completion_token_ids[:NUM_TOKENS]
    return (*tokens, *[ENDED] * (NUM_TOKENS - len(tokens)))


def _chances(spec: SamplingSpec, completion: tuple[int, ...]) -> list[float]:
    """Chance of each token and of `ENDED` after `completion`, without drafts."""
    if ENDED in completion or (completion and completion[-1] in spec.stop_token_ids):
        return [0.0] * VOCAB_SIZE + [1.0]
    counts = PenaltyCounts(PROMPT)
    for token_id in completion:
        counts.add(token_id)
    row = SamplingRow(spec, 0, 0, len(completion), spec.stop_token_ids, counts)
    previous = (*PROMPT, *completion)[-1]
    return [*probabilities(TARGET[previous], row, VOCAB_SIZE)[:VOCAB_SIZE].tolist(), 0.0]


def _joint(spec: SamplingSpec) -> Floats:
    """float64 [V + 1] * 4: the chance of every beginning of a completion, token by token from the target alone."""
    joint = np.ones((1,))
    for length in range(NUM_TOKENS):
        beginnings = itertools.product(range(VOCAB_SIZE + 1), repeat=length)
        rows = np.array([_chances(spec, beginning) for beginning in beginnings])
        joint = (joint.reshape(-1, 1) * rows).reshape(-1)
    return joint.reshape([VOCAB_SIZE + 1] * NUM_TOKENS)


@pytest.mark.parametrize("name", SPECS)
def test_tokens_of_a_chain_have_the_joint_distribution_of_the_target(name: str) -> None:
    """Every pair of the first four tokens, and all four together, follow the chain that samples without drafts."""
    spec, accepted = SPECS[name], Counter[int]()
    seeds = range(10_000 * list(SPECS).index(name), 10_000 * list(SPECS).index(name) + NUM_CHAINS)
    counts = np.zeros([VOCAB_SIZE + 1] * NUM_TOKENS)
    for seed in seeds:
        counts[_emitted(spec, seed, accepted)] += 1
    joint = _joint(spec)
    assert joint.sum() == pytest.approx(1.0)
    for pair in itertools.combinations(range(NUM_TOKENS), 2):
        others = tuple(set(range(NUM_TOKENS)) - set(pair))
        _check_distribution(counts.sum(axis=others).ravel(), joint.sum(axis=others).ravel())
    _check_distribution(counts.ravel(), joint.ravel())
    assert min(accepted[num] for num in range(4)) >= NUM_CHAINS / 100, f"a row is not tried enough: {accepted}"


@pytest.mark.parametrize("name", SPECS)
def test_likeliest_drafts_leave_a_seed_its_tokens(name: str) -> None:
    """With drafts that were no matter of chance, a completion is token for token the one without drafts."""
    accepted = 0
    for seed in range(40):
        drafted, alone = _sequence(SPECS[name], seed), _sequence(SPECS[name], seed)
        while drafted.num_completion_tokens < NUM_TOKENS and drafted.num_left:
            accepted += _step(drafted, is_sampled=False)
            if drafted.token_ids[-1] in SPECS[name].stop_token_ids:
                break
        while alone.num_completion_tokens < drafted.num_completion_tokens:
            result = SAMPLER.sample(TARGET[alone.token_ids[-1]][None], [alone.sampling_row()])[0]
            assert isinstance(result, SampledToken)
            alone.append_token(result.token_id)
        assert drafted.token_ids == alone.token_ids
    assert accepted > 0


@pytest.mark.parametrize("name", SPECS)
def test_no_certain_draft_moves_a_token(name: str) -> None:
    """Whatever token is proposed without chance, right or wrong, possible or masked, the row's token is the same."""
    for seed in range(20):
        row, rows = _sequence(SPECS[name], seed).sampling_row(), SAMPLER.open(TARGET)
        for idx in range(VOCAB_SIZE):
            expected = rows.token(idx, row)
            assert all(rows.token(idx, row, Draft(proposed)) == expected for proposed in range(VOCAB_SIZE + 1))


def test_greedy_requests_are_drafted_and_judged_by_the_likeliest_token() -> None:
    """Sampling drafts changes nothing for temperature 0: no proposal is kept, and the argmax is the token."""
    for spec in (SamplingSpec(max_tokens=9, temperature=0.0), SamplingSpec(max_tokens=9, temperature=0.0, logprobs=0)):
        row = _sequence(spec, 1).sampling_row()
        drafts = SAMPLER.draft(MODULES, [row] * VOCAB_SIZE, 0, is_sampled=True)
        assert [draft.token_id for draft in drafts] == MODULES[:, :VOCAB_SIZE].argmax(dim=-1).tolist()
        assert all(draft.probabilities is None for draft in drafts)
        tokens = [SAMPLER.open(TARGET).token(idx, row, draft) for idx, draft in enumerate(drafts)]
        assert [t.token_id for t in tokens if isinstance(t, SampledToken)] == TARGET[:, :VOCAB_SIZE].argmax(-1).tolist()


def test_drafts_are_drawn_from_the_distribution_that_they_report() -> None:
    """Over seeds, drafts follow their own probabilities, which are those that the request's parameters make."""
    spec = SPECS["top-p-and-min-p"]
    row = _sequence(spec, 0).sampling_row()
    rows = [SamplingRow(spec, seed, row.position, 0) for seed in range(4_000)]
    drafts = SAMPLER.draft(MODULES[:1].expand(len(rows), -1), rows, 2, is_sampled=True)
    expected = probabilities(MODULES[0], row, VOCAB_SIZE)
    assert all(draft.probabilities is not None and torch.equal(draft.probabilities, expected) for draft in drafts)
    counts = np.bincount([draft.token_id for draft in drafts], minlength=VOCAB_SIZE + 1)
    _check_distribution(counts.astype(np.float64), expected.numpy())


# --- The numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(Purpose, 2)))
def test_numbers_of_two_purposes_are_independent(first: Purpose, second: Purpose, shift: int) -> None:
    """At one position, and at neighbours, as a draft and its judgement are: 8 by 8 cells, all equally likely."""
    counts = np.zeros((8, 8))
    for seed, position in itertools.product(range(40), range(80)):
        one, other = uniform(seed, position, first), uniform(seed, position + shift, second)
        counts[int(8 * one), int(8 * other)] += 1
    _check_distribution(counts.ravel(), np.full(64, 1 / 64))


def test_the_checks_notice_a_wrong_distribution() -> None:
    """Drawing anew from the whole target after a rejection, the usual mistake, fails the check."""
    target, proposal = (np.array(side) for side in CASES["opposite"])
    kept = np.minimum(target, proposal)
    wrong = kept + (1 - kept.sum()) * target
    with pytest.raises(AssertionError, match="chi-square"):
        _check_distribution(np.round(NUM_DRAWS * wrong), target)
