"""How many drafts pay: the choice against brute force, prices learnt from steps, and acceptance worked by hand."""

import itertools
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest

from actors.speculative.acceptance import (
    PRIOR_RATE,
    PRIOR_WEIGHT,
    AcceptanceRate,
    global_acceptance,
    request_acceptance,
)
from actors.speculative.cost import AT_ONCE, ENOUGH, PASSES_AT_ONCE, LinearCost, StepCost, distinct_experts
from actors.speculative.draft_length import (
    CURIOSITY,
    DECIDE_EVERY,
    HYSTERESIS,
    LEARNING_STEPS,
    PROBE_AT_MOST_EVERY,
    PROBE_EVERY,
    WORTH_A_FULL_TRY,
    WORTH_DRAFTING,
    Choice,
    Drafting,
    DraftLengths,
    Outlook,
)
from actors.speculative.stats import SpeculationStats

MAX_DRAFTS = 3
NUM_EXPERTS, TOP_K = 32, 4


class Machine:
    """Step times of a made-up machine, in milliseconds, and a StepCost that has seen some."""

    def __init__(self, base: float, row: float, expert: float, draft_base: float = 0.0, draft_row: float = 0.0) -> None:
        self.base, self.row, self.expert = base, row, expert
        self.draft_base, self.draft_row = draft_base, draft_row
        self.cost = StepCost(NUM_EXPERTS, TOP_K)

    def step_seconds(self, num_rows: int) -> float:
        experts = distinct_experts(num_rows, NUM_EXPERTS, TOP_K)
        return 1e-3 * (self.base + self.row * num_rows + self.expert * experts)

    def expert_seconds(self, num_rows: int) -> float:
        return 1e-3 * self.expert * distinct_experts(num_rows, NUM_EXPERTS, TOP_K)

    def observe_split(self, num_sequences: int, num_rows: int, busy: float) -> None:
        """A step whose experts take `busy` times as long as they should."""
        expert_s = busy * self.expert_seconds(num_rows)
        attention_s = self.step_seconds(num_rows) - self.expert_seconds(num_rows)
        self.cost.observe_step(num_sequences, num_rows, attention_s + expert_s, expert_s)

    def learnt(self, num_sequences: int, rounds: int = 15, noise: float = 0.0) -> StepCost:
        """Every length in turn, for as many sequences."""
        rng = random.Random(0)
        for length in list(range(MAX_DRAFTS + 1)) * rounds:
            num_rows = num_sequences * (1 + length)
            self.cost.observe_step(num_sequences, num_rows, self.step_seconds(num_rows) * (1 + rng.gauss(0, noise)))
            if length:
                module_rows = num_sequences * _module_rows(length)
                seconds = 1e-3 * (self.draft_base * length + self.draft_row * module_rows)
                self.cost.observe_drafting(length, module_rows, num_sequences * length, seconds)
        return self.cost


def _module_rows(num_drafts: int) -> int:
    """About one draft is accepted, whatever comes after it."""
    return [0, 2, 5, 8][num_drafts]


def _drafting_seconds(cost: StepCost, lengths: Sequence[int]) -> float:
    return cost.drafting_seconds(max(lengths), float(sum(map(_module_rows, lengths))), float(sum(lengths)))


def _sequence(*rates: float, limit: int = MAX_DRAFTS, last: int | None = None, num_waiting: int = 0) -> Drafting:
    return Drafting(rates, limit, last, num_waiting)


def _brute_force(sequences: Sequence[Drafting], cost: StepCost) -> tuple[int, ...]:
    every = itertools.product(*(range(s.limit + 1) for s in sequences))
    return max(every, key=Outlook(sequences, cost).tokens_per_second)


def _step(chooser: DraftLengths, sequences: Sequence[Drafting]) -> Choice:
    """What the engine does each step."""
    choice = chooser.without_rates([s.limit for s in sequences], [s.last for s in sequences])
    return chooser.choose(sequences) if choice is None else choice


def _decide(chooser: DraftLengths, sequences: Sequence[Drafting]) -> Choice:
    """Steps up to the next one that decides."""
    limits, last = [s.limit for s in sequences], [s.last for s in sequences]
    for _ in range(DECIDE_EVERY * PROBE_AT_MOST_EVERY):
        if chooser.without_rates(limits, last) is None:
            return chooser.choose(sequences)
    raise AssertionError("no decision")


def _past_learning(cost: StepCost, num_sequences: int = 1) -> DraftLengths:
    chooser = DraftLengths("adaptive", MAX_DRAFTS, cost)
    batch = [_sequence(0.5, 0.5, 0.5)] * num_sequences
    for _ in range(LEARNING_STEPS):
        assert _step(chooser, batch).reason == "learning"
    return chooser


# --- The best lengths ------------------------------------------------------------------------------------------------


def _random_batch(rng: random.Random) -> list[Drafting]:
    return [
        _sequence(*(rng.uniform(0.3, 1.0) for _ in range(MAX_DRAFTS)), limit=rng.randint(0, MAX_DRAFTS))
        for _ in range(rng.randint(1, 4))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_no_other_lengths_of_a_small_batch_are_faster(seed: int) -> None:
    """Where drafting costs the same however deep, one pass over the drafts finds the best of up to 256 choices."""
    rng, seen = random.Random(seed), set[int]()
    for _ in range(12):
        sequences = _random_batch(rng)
        machine = Machine(*(rng.uniform(0.05, high) for high in (30, 3, 0.5, 1)))
        cost = machine.learnt(len(sequences), rounds=4)
        found, best = Outlook(sequences, cost).best_lengths(), _brute_force(sequences, cost)
        rates = list(map(Outlook(sequences, cost).tokens_per_second, (found, best)))
        # Drafts that the fit prices at nothing but rounding may still make a deeper one a hair dearer.
        assert rates[0] >= rates[1] * (1 - 1e-3)
        seen.update(found)
    assert len(seen) >= 3


@pytest.mark.parametrize("seed", range(4))
def test_dear_modules_cost_less_than_the_hysteresis(seed: int) -> None:
    """The order of drafts leaves out that deeper ones run more module rows: it is wrong by less than is ignored."""
    rng = random.Random(seed)
    for _ in range(12):
        sequences = _random_batch(rng)
        machine = Machine(*(rng.uniform(0.1, high) for high in (10, 2, 0.5, 3, 0.5)))
        cost = machine.learnt(len(sequences), rounds=4)
        found, best = Outlook(sequences, cost).best_lengths(), _brute_force(sequences, cost)
        best_rate, found_rate = map(Outlook(sequences, cost).tokens_per_second, (best, found))
        ratio = best_rate / found_rate
        assert 1.0 <= ratio < HYSTERESIS


def test_tokens_per_second_by_hand() -> None:
    """Two sequences, 1 and 2 drafts: 1 + 0.5 and 1 + 0.8 + 0.4 tokens for a step of five rows and a draft pass, so a
    token of each takes 1 / 1.5 and 1 / 2.2 steps. Three modules see each token sooner or later, and module 1 sees the
    second sequence's last row again whenever its first draft is rejected."""
    machine = Machine(4.0, 1.0, 0.0, 0.5, 0.25)
    machine.learnt(4)
    cost = machine.learnt(2)
    sequences = [_sequence(0.5, 0.9, 0.9), _sequence(0.8, 0.5, 0.9)]
    tokens, seconds = (
        2 * 2 / (1 / 1.5 + 1 / 2.2),
        (4.0 + 5 * 1.0) * 1e-3 + (2 * 0.5 + 0.25 * (3 * (1.5 + 2.2) + 0.2)) * 1e-3,
    )
    assert Outlook(sequences, cost).tokens_per_second((1, 2)) == pytest.approx(tokens / seconds, rel=0.01)


def test_a_long_wait_is_shared_and_dear_rows_are_not_bought() -> None:
    """Where rows are free all drafts pay; where rows are all that costs, none do; a hopeless sequence gets none."""
    hopeful, hopeless = _sequence(0.9, 0.9, 0.9), _sequence(0.05, 0.05, 0.05)
    assert Outlook([hopeful] * 2, Machine(10.0, 0.01, 0.0, 0.1, 0.01).learnt(2)).best_lengths() == (3, 3)
    assert Outlook([hopeful] * 2, Machine(0.01, 5.0, 0.0, 0.1, 0.01).learnt(2)).best_lengths() == (0, 0)
    assert Outlook([hopeful, hopeless], Machine(10.0, 1.0, 0.0, 0.1, 0.01).learnt(2)).best_lengths() == (2, 0)


def test_a_slow_sequence_is_helped_before_a_quick_one_gets_more() -> None:
    """Both have as many tokens to come, and the batch is done when both are: 1 / 1.9 + 1 / 1.4 steps for one of each
    are fewer than 1 / 2.71 + 1, though a step of the latter has more tokens."""
    outlook = Outlook([_sequence(0.9, 0.9, 0.9), _sequence(0.4, 0.4, 0.4)], Machine(10.0, 1.0, 0.0, 0.0, 0.0).learnt(2))
    assert outlook.tokens[0, 2] + outlook.tokens[1, 0] > outlook.tokens[:, 1].sum()
    assert outlook.tokens_per_second((1, 1)) > outlook.tokens_per_second((2, 0))


def test_module_rows_by_hand() -> None:
    """Half of all drafts are right. Of three modules each runs the 1.875 new rows; the second runs its last row again
    where the first draft was rejected, the third its last two, or one where only the second draft was."""
    cost = StepCost(NUM_EXPERTS, TOP_K)
    for _ in range(10_000):
        cost.observe_left_out(num_caught_up=0, num_dropped=1)
    rows = cost.module_rows(np.array([[1.0, 1.5, 1.75, 1.875]]))
    assert rows[0].tolist() == pytest.approx([0.0, 1.5, 2 * 1.75 + 0.5, 3 * 1.875 + 0.5 + (0.5 + 0.75)], abs=1e-3)


def test_a_length_pays_for_the_rows_that_it_leaves_to_others() -> None:
    """Modules that are left out see every token all the same, later. So where drafts are always right a token costs as
    many module rows whoever drafts it."""
    cost = Machine(10.0, 0.1, 0.0, 0.1, 0.5).learnt(4)
    tokens = np.array([[1.0, 2.0, 3.0, 4.0]])
    assert (cost.module_rows(tokens) / tokens).tolist() == [pytest.approx([3.0] * 4)]
    assert Outlook([_sequence(1.0, 1.0, 1.0)] * 4, cost).best_lengths() == (3, 3, 3, 3)


def test_rows_that_nobody_will_see_cost_nothing() -> None:
    """Sequences end before modules catch up with what they have left out: its price is the share that they do see."""
    cost = Machine(10.0, 0.1, 0.0, 0.1, 0.5).learnt(4)
    tokens = np.array([[1.0, 2.0, 3.0, 4.0]])
    for _ in range(400):
        cost.observe_left_out(num_caught_up=10, num_dropped=30)
    expected = [0.25 * 3.0, 2.0 + 0.25 * 2 * 2.0, 2 * 3.0 + 0.25 * 3.0, 3 * 4.0]
    assert cost.module_rows(tokens)[0].tolist() == pytest.approx(expected, rel=0.01)


# --- The choice of a step --------------------------------------------------------------------------------------------


def test_a_fixed_number_is_limited_by_what_a_sequence_can_use() -> None:
    """Nothing is learnt or weighed."""
    chooser = DraftLengths("fixed", MAX_DRAFTS, StepCost(NUM_EXPERTS, TOP_K))
    choice = _step(chooser, [_sequence(0, 0, 0, limit=3), _sequence(1, 1, 1, limit=1), _sequence(1, 1, 1, limit=0)])
    assert (choice.lengths, choice.reason) == ((3, 1, 0), "fixed")


def test_learning_tries_every_length_within_limits() -> None:
    """Each length as often, for all alike; and learning goes on while too little was seen to compare."""
    chooser = DraftLengths("adaptive", MAX_DRAFTS, StepCost(NUM_EXPERTS, TOP_K))
    batch = [_sequence(1, 1, 1), _sequence(1, 1, 1, limit=1)]
    choices = [_step(chooser, batch) for _ in range(2 * LEARNING_STEPS)]
    assert {choice.reason for choice in choices} == {"learning"}
    lengths = [choice.lengths[0] for choice in choices]
    assert [lengths.count(length) for length in range(4)] == [LEARNING_STEPS // 2] * 4
    assert all(choice.lengths[1] == min(choice.lengths[0], 1) for choice in choices)


def test_a_batch_of_another_size_is_learnt_anew() -> None:
    """Prices of one sequence say little of eight: every length is tried again, and then known for nine too."""
    chooser = _past_learning(Machine(10.0, 0.5, 0.0, 0.1, 0.01).learnt(1))
    assert _decide(chooser, [_sequence(0.5, 0.5, 0.5)]).reason != "learning"
    eight = [_sequence(0.5, 0.5, 0.5, last=0)] * 8
    assert [_step(chooser, eight).reason for _ in range(LEARNING_STEPS + 1)][-2:] == ["learning", "kept"]
    assert _step(chooser, [*eight, _sequence(0.5, 0.5, 0.5, last=0)]).reason != "learning"


def test_drafts_that_gain_little_are_not_worth_it() -> None:
    """Drafts begin when they promise 3 % more."""
    cost = Machine(10.0, 1.0, 0.0, 0.1, 0.01).learnt(1)
    for rate in np.linspace(0.02, 0.4, 60).tolist():
        outlook = Outlook([_sequence(rate, 0.0, 0.0)], cost, CURIOSITY)
        best = outlook.best_lengths()
        gain = outlook.tokens_per_second(best) / outlook.tokens_per_second((0,))
        choice = _step(_past_learning(cost), [_sequence(rate, 0.0, 0.0)])
        expected = (0,) if gain < WORTH_DRAFTING else best
        assert choice.lengths == expected
    assert expected == (1,)


def test_drafts_that_gain_nothing_end_at_once() -> None:
    """To draft nothing is the certain choice: it need not promise more than what is drafted now."""
    cost = Machine(10.0, 1.0, 0.0, 0.1, 0.01).learnt(1)
    for rate in np.linspace(0.02, 0.4, 60).tolist():
        sequence = _sequence(rate, 0.0, 0.0, last=1)
        one_rate, plain_rate = map(Outlook([sequence], cost).tokens_per_second, ((1,), (0,)))
        choice = _decide(_past_learning(cost), [sequence])
        assert choice.lengths == ((0,) if plain_rate >= one_rate else (1,))
    assert choice.lengths == (1,)


def test_a_little_faster_is_not_worth_a_change() -> None:
    """The last lengths stay until others promise 2 % more."""
    cost = Machine(10.0, 1.0, 0.0, 0.1, 0.01).learnt(1)
    for rate in np.linspace(0.05, 0.95, 60).tolist():
        sequence = _sequence(0.9, rate, 0.0, last=1)
        one, best = (1,), Outlook([sequence], cost).best_lengths()
        best_rate, one_rate = map(Outlook([sequence], cost).tokens_per_second, (best, one))
        gain = best_rate / one_rate
        choice = _decide(_past_learning(cost), [sequence])
        expected = (one, "kept") if gain < HYSTERESIS else (best, "faster")
        assert (choice.lengths, choice.reason) == expected
    assert expected == ((2,), "faster")


def test_newcomers_get_the_best_length_while_others_keep_theirs() -> None:
    """A newcomer has nothing to stick to; a sequence that nears its end keeps no more than it can use."""
    cost = Machine(10.0, 0.5, 0.0, 0.1, 0.01).learnt(3)
    rates = (0.9, 0.9, 0.9)
    batch = [_sequence(*rates, last=3), _sequence(*rates, last=None), _sequence(*rates, last=3, limit=1)]
    choice = _step(_past_learning(cost, len(batch)), batch)
    assert (choice.lengths, choice.reason) == ((3, 3, 1), "kept")


def test_now_and_then_another_length_is_tried() -> None:
    """Each in turn, within limits, and ever more rarely; no drafts, which promises least, most rarely. Else a length
    once given up never returns, and a price once wrong stays wrong."""
    machine = Machine(10.0, 0.5, 0.0, 0.1, 0.01)
    cost = machine.learnt(2)
    for num_rows in [3, 5] * 10:
        cost.observe_step(2, num_rows, machine.step_seconds(num_rows))
    batch = [_sequence(0.9, 0.5, 0.01, last=2), _sequence(0.3, 0.3, 0.3, last=0, limit=0)]
    chooser = _past_learning(cost, len(batch))
    choices = [_decide(chooser, batch) for _ in range(94)]
    probes = [(idx + 1, choice.lengths) for idx, choice in enumerate(choices) if choice.reason == "probe"]
    assert probes == [(4, (1, 0)), (12, (3, 0)), (28, (0, 0)), (60, (1, 0)), (76, (3, 0)), (92, (0, 0))]
    assert {choice.lengths for choice in choices if choice.reason != "probe"} == {(2, 0)}


def test_longer_drafts_are_tried_by_few() -> None:
    """By those with the fewest rows to catch up; who drafts more at present tries the shorter length in any case."""
    cost = Machine(10.0, 2.0, 0.0, 0.1, 0.01).learnt(8)
    rates = (0.01, 0.01, 0.01)
    idle = [_sequence(*rates, last=0, num_waiting=waiting) for waiting in (70, 60, 5, 80, 90, 50, 4)]
    batch = [*idle, _sequence(*rates, last=2, num_waiting=99)]
    chooser = _past_learning(cost, len(batch))
    probes = [choice.lengths for choice in (_decide(chooser, batch) for _ in range(8)) if choice.reason == "probe"]
    assert probes == [(0, 0, 1, 0, 0, 0, 1, 1)]


def test_what_promises_nearly_as_much_is_tried_by_all() -> None:
    """A step with drafts for few says little of one with drafts for all. It costs little, if the price is right; if it
    is wrong, only this tells."""
    cost = Machine(10.0, 0.4, 0.0, 0.1, 0.01).learnt(8)
    batch = [_sequence(0.28, 0.01, 0.01, last=0)] * 8
    outlook = Outlook(batch, cost, CURIOSITY)
    promise = outlook.tokens_per_second((1,) * 8) / outlook.tokens_per_second((0,) * 8)
    assert WORTH_A_FULL_TRY <= promise < WORTH_DRAFTING
    chooser = _past_learning(cost, len(batch))
    probes = [choice.lengths for choice in (_decide(chooser, batch) for _ in range(8)) if choice.reason == "probe"]
    assert probes[0] == (1,) * 8


def test_a_try_that_went_better_than_expected_is_soon_repeated() -> None:
    """Its drafts were accepted although nobody thought so: the next decision tries them again."""
    cost = Machine(10.0, 2.0, 0.0, 0.1, 0.01).learnt(1)
    chooser = _past_learning(cost)
    assert _decide(chooser, [_sequence(0.01, 0.01, 0.01, last=0)]).reason == "probe"
    hopeful = _sequence(0.1, 0.01, 0.01, last=0)
    assert [_decide(chooser, [hopeful]).reason for _ in range(2)] == ["probe", "kept"]


def test_who_drafts_nothing_decides_for_tries_alone() -> None:
    """There is nothing to learn between them."""
    chooser = _past_learning(Machine(10.0, 2.0, 0.0, 0.1, 0.01).learnt(1))
    idle = [_sequence(0.01, 0.01, 0.01, last=0)]
    decided = [chooser.without_rates([3], [0]) is None and chooser.choose(idle).reason for _ in range(110)]
    tries = [idx for idx, reason in enumerate(decided) if reason == "probe"]
    assert tries[0] <= DECIDE_EVERY * PROBE_EVERY
    assert [idx for idx, reason in enumerate(decided) if reason == "kept"] == [each + DECIDE_EVERY for each in tries]


def test_between_decisions_lengths_stay_without_a_look_at_rates() -> None:
    """Within what a sequence can still use; a newcomer makes the step decide."""
    chooser = _past_learning(Machine(10.0, 0.5, 0.0, 0.1, 0.01).learnt(1))
    assert chooser.without_rates([1], [2]) == Choice((1,), "kept")
    assert chooser.without_rates([3], [None]) is None


def test_a_batch_at_rest_decides_as_often_as_one_that_is_asked() -> None:
    """`stays` counts as the choices that it stands for, and says so only between decisions, when nothing is learnt."""
    asked, resting = (_past_learning(Machine(10.0, 2.0, 0.0, 0.1, 0.01).learnt(1)) for _ in range(2))
    idle = [_sequence(0.01, 0.01, 0.01, last=0)]
    expected = [_step(asked, idle) for _ in range(110)]
    found = [Choice((0,), "kept") if resting.stays(1) else _step(resting, idle) for _ in range(110)]
    assert found == expected
    assert "probe" in {choice.reason for choice in found}


@pytest.mark.parametrize("mode", ["adaptive", "fixed"])
def test_nothing_stays_while_learning_or_with_fixed_drafts(mode: Literal["adaptive", "fixed"]) -> None:
    """There the next choice may be another one."""
    assert not DraftLengths(mode, MAX_DRAFTS, StepCost(NUM_EXPERTS, TOP_K)).stays(1)


def test_prices_learnt_in_a_bad_moment_are_put_right() -> None:
    """While lengths were learnt, steps with few rows happened to be slow, so drafts seemed free. They are not: the
    chooser gives them up after some probes."""
    machine = Machine(1.0, 5.0, 0.0, 0.1, 0.1)
    for length in list(range(MAX_DRAFTS + 1)) * 6:
        machine.cost.observe_step(1, 1 + length, 0.030)
        if length:
            machine.cost.observe_drafting(length, _module_rows(length), length, 1e-4)
    chooser = _past_learning(machine.cost)
    last, lengths = 3, []
    for _ in range(400 * DECIDE_EVERY):
        choice = _step(chooser, [_sequence(0.3, 0.3, 0.3, last=last)])
        length = choice.lengths[0]
        last = last if choice.reason == "probe" else length
        lengths.append(length)
        machine.cost.observe_step(1, 1 + length, machine.step_seconds(1 + length))
        if length:
            machine.cost.observe_drafting(length, _module_rows(length), length, 1e-4)
    assert lengths[0] == 3
    assert last == 0


def test_lengths_never_pass_the_limits() -> None:
    """Random batches, any history: 0 <= length <= limit, one for each sequence."""
    rng = random.Random(1)
    chooser = _past_learning(Machine(5.0, 1.0, 0.3, 0.5, 0.2).learnt(4))
    for _ in range(200):
        batch = [
            _sequence(*(rng.random() for _ in range(3)), limit=rng.randint(0, 3), last=rng.choice([None, 0, 1, 2, 3]))
            for _ in range(rng.randint(1, 6))
        ]
        lengths = _step(chooser, batch).lengths
        assert len(lengths) == len(batch)
        assert all(0 <= length <= s.limit for length, s in zip(lengths, batch, strict=True))


# --- What steps cost -------------------------------------------------------------------------------------------------


def test_distinct_experts_by_hand() -> None:
    """One row touches its top-k; two rows of 2 in 4 touch 4 (1 - 1 / 4); many rows touch all."""
    assert distinct_experts(1, 288, 8) == pytest.approx(8.0)
    assert distinct_experts(2, 4, 2) == pytest.approx(3.0)
    assert distinct_experts(1000, 32, 4) == pytest.approx(32.0)


@pytest.mark.parametrize("num_sequences", [1, 8, 32])
def test_prices_of_a_known_machine_are_learnt(num_sequences: int) -> None:
    """From exact times, steps and draft passes of every length are predicted to a fraction of a per cent."""
    machine = Machine(10.0, 0.1, 0.3, 1.0, 0.1)
    cost = machine.learnt(num_sequences)
    for length in range(MAX_DRAFTS + 1):
        num_rows = num_sequences * (1 + length)
        assert cost.step_seconds(num_sequences, num_rows) == pytest.approx(machine.step_seconds(num_rows), rel=0.005)
    for length in range(1, MAX_DRAFTS + 1):
        expected = 1e-3 * (length * 1.0 + 0.1 * num_sequences * _module_rows(length))
        assert _drafting_seconds(cost, [length] * num_sequences) == pytest.approx(expected, rel=0.05)
    assert _drafting_seconds(cost, [0] * num_sequences) == 0.0


@pytest.mark.parametrize("num_sequences", [1, 8, 32])
def test_noise_of_a_busy_machine_is_averaged(num_sequences: int) -> None:
    """With times that scatter by 10 %, predictions are within 8 %."""
    machine = Machine(10.0, 0.1, 0.3)
    cost = machine.learnt(num_sequences, noise=0.1)
    for length in range(MAX_DRAFTS + 1):
        num_rows = num_sequences * (1 + length)
        assert cost.step_seconds(num_sequences, num_rows) == pytest.approx(machine.step_seconds(num_rows), rel=0.08)


@pytest.mark.parametrize("num_sequences", [1, 8, 32])
def test_steps_all_alike_do_not_wash_away_what_others_cost(num_sequences: int) -> None:
    """After a thousand steps with three drafts, a step with none still has its price: else it would look cheap."""
    machine = Machine(10.0, 0.1, 0.3)
    cost = machine.learnt(num_sequences)
    for _ in range(1000):
        cost.observe_step(num_sequences, num_sequences * 4, machine.step_seconds(num_sequences * 4))
    for length in range(MAX_DRAFTS + 1):
        num_rows = num_sequences * (1 + length)
        assert cost.step_seconds(num_sequences, num_rows) == pytest.approx(machine.step_seconds(num_rows), rel=0.01)


def test_a_slow_moment_does_not_make_the_present_size_look_dear() -> None:
    """The machine becomes half as slow again while steps of eight rows run: twenty steps later most of it is laid to
    the machine. Laid to that size alone, the others would look a third too cheap."""
    machine = Machine(10.0, 0.5, 0.3)
    cost = machine.learnt(8)
    for _ in range(20):
        cost.observe_step(8, 8, 1.5 * machine.step_seconds(8))
    for num_rows in (8, 16, 24, 32):
        assert cost.step_seconds(8, num_rows) == pytest.approx(1.5 * machine.step_seconds(num_rows), rel=0.15)


def test_a_busy_expert_tier_makes_drafts_dearer_before_any_was_tried() -> None:
    """Others come to use the experts, who then take four times as long. Eighty steps without drafts tell what steps
    with drafts cost now, though none was seen: they pay no more, while all that is no expert's costs what it did."""
    machine = Machine(10.0, 0.0, 0.3, 0.5, 0.05)
    for length in [0, 1, 2, 3] * 30:
        num_rows = 4 * (1 + length)
        machine.observe_split(4, num_rows, busy=1.0)
        if length:
            machine.cost.observe_drafting(length, 4 * _module_rows(length), 4 * length, 1e-3 * length)
    batch, passes_s = [_sequence(0.3, 0.3, 0.3)] * 4, _drafting_seconds(machine.cost, [3] * 4)
    assert Outlook(batch, machine.cost).best_lengths() == (1, 1, 1, 1)
    for _ in range(80):
        machine.observe_split(4, 4, busy=4.0)
    for num_rows in (4, 8, 12, 16):
        expected = machine.step_seconds(num_rows) + 3.0 * machine.expert_seconds(num_rows)
        assert machine.cost.step_seconds(4, num_rows) == pytest.approx(expected, rel=0.05)
    assert Outlook(batch, machine.cost).best_lengths() == (0, 0, 0, 0)
    assert _drafting_seconds(machine.cost, [3] * 4) == pytest.approx(passes_s, rel=0.05)


def test_as_many_rows_of_more_sequences_have_a_price_of_their_own() -> None:
    """32 rows of 8 sequences take 20 ms, of 32 sequences 25 ms: who has seen one knows the other no worse, in whatever
    order they came. Else 32 sequences would think it cheap to draft nothing."""
    cost = StepCost(NUM_EXPERTS, TOP_K)
    milliseconds = {(8, 8): 10, (8, 16): 14, (8, 32): 20, (32, 32): 25, (32, 64): 36, (32, 128): 55}
    for sequences in (8, 32, 8):
        for _ in range(40):
            for (num_sequences, num_rows), took_ms in milliseconds.items():
                if num_sequences == sequences:
                    cost.observe_step(num_sequences, num_rows, 1e-3 * took_ms)
    for num_sequences in (8, 32):
        expected = [ms for (number, _), ms in milliseconds.items() if number == num_sequences]
        rows = [rows for number, rows in milliseconds if number == num_sequences]
        seconds = [cost.step_seconds(num_sequences, num_rows) for num_rows in rows]
        assert [s / seconds[0] for s in seconds] == pytest.approx([ms / expected[0] for ms in expected], rel=0.02)


def test_dearer_steps_do_not_make_draft_passes_look_dearer() -> None:
    """Sequences with much context come, and steps of all sizes take half as long again; passes take what they took. So
    does a batch that drafts nothing know; after the first pass that took longer most of it is known."""
    machine = Machine(10.0, 0.1, 0.3, 1.0, 0.1)
    cost = machine.learnt(8)
    passes_s = _drafting_seconds(cost, [2] * 8)
    for _ in range(200):
        cost.observe_step(8, 8, 1.5 * machine.step_seconds(8))
    assert cost.step_seconds(8, 16) == pytest.approx(1.5 * machine.step_seconds(16), rel=0.05)
    assert _drafting_seconds(cost, [2] * 8) == pytest.approx(passes_s)
    for _ in range(PASSES_AT_ONCE):
        cost.observe_drafting(2, 8 * _module_rows(2), 16, 1.5 * passes_s)
    assert _drafting_seconds(cost, [2] * 8) == pytest.approx(1.5 * passes_s, rel=0.1)


def test_a_size_that_does_not_follow_the_formula_is_known_by_itself() -> None:
    """Steps of 16 rows take a third longer than a line through the others says (a kernel's tile is full)."""
    machine = Machine(10.0, 0.5, 0.0)
    cost = machine.learnt(8)
    for _ in range(80):
        for num_rows in (8, 16, 24):
            cost.observe_step(8, num_rows, machine.step_seconds(num_rows) * (1.33 if num_rows == 16 else 1.0))
    assert cost.step_seconds(8, 16) / cost.step_seconds(8, 8) == pytest.approx(1.33 * 18 / 14, rel=0.05)
    assert cost.step_seconds(8, 24) / cost.step_seconds(8, 8) == pytest.approx(22 / 14, rel=0.05)


def test_a_size_that_became_dearer_by_itself_is_put_right() -> None:
    """By a fifth, after a thousand steps of another size: thirty steps of it, one in nine, leave less than 5 %."""
    machine = Machine(10.0, 0.5, 0.3)
    cost = machine.learnt(8)
    for _ in range(1000):
        cost.observe_step(8, 8, machine.step_seconds(8))
    for _ in range(30):
        for num_rows in [8] * 8 + [16]:
            cost.observe_step(8, num_rows, machine.step_seconds(num_rows) * (1.2 if num_rows == 16 else 1.0))
    ratio = 1.2 * machine.step_seconds(16) / machine.step_seconds(8)
    assert cost.step_seconds(8, 16) / cost.step_seconds(8, 8) == pytest.approx(ratio, rel=0.05)


def test_a_size_that_was_not_seen_for_long_may_have_become_cheaper() -> None:
    """To the curious it looks cheaper the longer nobody looks, within bounds; a look tells."""
    machine = Machine(10.0, 0.5, 0.3)
    cost, promised = machine.learnt(8), list[float]()
    for num_steps in (0, 100, 1000, 50_000, 50_000):
        for _ in range(num_steps):
            cost.observe_step(8, 8, machine.step_seconds(8))
        expected, hopeful = (cost.steps_seconds(8, 32, curiosity)[-1] for curiosity in (0.0, 1.0))
        promised.append(hopeful / expected)
    assert 1.0 > promised[0] > promised[1] > promised[2] > promised[3] == promised[4] > 0.8
    for num_rows in [8, 32] * 40:
        cost.observe_step(8, num_rows, machine.step_seconds(num_rows))
    expected, hopeful = (cost.steps_seconds(8, 32, curiosity)[-1] for curiosity in (0.0, 1.0))
    assert hopeful / expected > promised[0]


def test_sizes_between_those_seen_lie_on_a_line() -> None:
    """Over the logarithm of rows: a line through two sizes meets a machine's straight one within a per cent."""
    machine = Machine(10.0, 0.5, 0.0)
    cost = machine.learnt(8, rounds=40)
    for num_rows in (10, 12, 20, 28):
        assert cost.step_seconds(8, num_rows) == pytest.approx(machine.step_seconds(num_rows), rel=0.02)


def test_coefficients_are_recovered_from_varied_steps() -> None:
    """Three unknowns, features of different size: each is found."""
    rng, fit, true = random.Random(2), LinearCost(3), np.array([5e-3, 2e-4, 7e-4])
    for _ in range(400):
        features = [1.0, rng.uniform(1, 200), rng.uniform(1, 30)]
        fit.observe(features, float(np.array(features) @ true))
    assert fit.coefficients == pytest.approx(tuple(true), rel=0.01)
    assert fit.num_observed == 400


def test_no_coefficient_is_negative() -> None:
    """Times that fall with rows: the slope is 0, not below, and no prediction is 0 or less."""
    fit, cost = LinearCost(2), StepCost(NUM_EXPERTS, TOP_K)
    for num_rows in list(range(1, 30)) * 5:
        fit.observe([1.0, float(num_rows)], 1e-3 * (40 - num_rows))
        cost.observe_step(1, num_rows, 1e-3 * (40 - num_rows))
    assert fit.seconds([0.0, 1.0]) == 0.0
    assert fit.seconds([1.0, 0.0]) > 0.0
    assert all(cost.step_seconds(1, num_rows) > 0.0 for num_rows in range(1, 1000))


def test_random_times_never_break_the_fit() -> None:
    """Whatever is measured, zeros and outliers too, coefficients stay finite and not negative."""
    rng, fit = random.Random(3), LinearCost(3)
    for _ in range(2000):
        num_rows = rng.choice([1, 1, 4, 32, 128])
        fit.observe([1.0, num_rows, distinct_experts(num_rows, 32, 4)], rng.choice([0.0, 1e-3, 0.1, 5.0]))
        assert np.isfinite(fit.coefficients).all()
        assert min(fit.coefficients) >= 0.0


def test_an_unknown_price_is_never_zero() -> None:
    """One can divide by it before anything was seen."""
    cost = StepCost(NUM_EXPERTS, TOP_K)
    assert cost.step_seconds(1, 1) > 0.0
    assert not cost.is_known


def test_old_times_are_forgotten() -> None:
    """A machine that becomes three times as slow is known to be so after some rounds of lengths."""
    machine = Machine(10.0, 0.1, 0.3)
    machine.learnt(4)
    slow = Machine(30.0, 0.3, 0.9)
    slow.cost = machine.cost
    cost = slow.learnt(4, rounds=60)
    for num_rows in (4, 8, 12, 16):
        assert cost.step_seconds(4, num_rows) == pytest.approx(slow.step_seconds(num_rows), rel=0.05)


def test_prices_are_known_after_enough_of_both() -> None:
    """Steps alone say nothing of draft passes."""
    cost = StepCost(NUM_EXPERTS, TOP_K)
    for _ in range(ENOUGH * AT_ONCE):
        assert not cost.is_known
        cost.observe_step(1, 1, 1e-3)
    for _ in range(ENOUGH):
        assert not cost.is_known
        cost.observe_drafting(1, 2, 1, 1e-3)
    assert cost.is_known


def test_steps_alike_are_learnt_from_together() -> None:
    """So many of a size, or fewer where another size follows: the mean of their times."""
    together, alone = (StepCost(NUM_EXPERTS, TOP_K) for _ in range(2))
    for seconds in (1e-3, 3e-3) * (AT_ONCE // 2):
        together.observe_step(8, 8, seconds)
        alone.observe_step(8, 8, 2e-3)
    for seconds in (4e-3, 6e-3):
        together.observe_step(8, 16, seconds)
        alone.observe_step(8, 16, 5e-3)
    before = together.step_seconds(8, 16)
    for cost in (together, alone):
        cost.observe_step(8, 8, 2e-3)
    assert together.step_seconds(8, 16) == pytest.approx(alone.step_seconds(8, 16))
    assert together.step_seconds(8, 16) > before


# --- What is accepted ------------------------------------------------------------------------------------------------


def test_acceptance_by_hand() -> None:
    """Memory 2 halves what was before; a position is looked at only if those before it were accepted."""
    acceptance = AcceptanceRate(3, memory=2.0)
    acceptance.observe(3, 3)  # accepted 1 1 1 of 1 1 1
    acceptance.forget()
    acceptance.observe(3, 1)  # accepted 1.5 0.5 0.5 of 1.5 1.5 0.5
    acceptance.forget()
    acceptance.observe(1, 0)  # accepted 0.75 0.25 0.25 of 1.75 0.75 0.25
    assert acceptance.rates([0.0] * 3, 1e-12) == pytest.approx([0.75 / 1.75, 0.25 / 0.75, 1.0])
    assert acceptance.rates([0.6, 0.4, 0.2], 2.0) == pytest.approx([1.95 / 3.75, 1.05 / 2.75, 0.65 / 2.25])
    first = (0.75 + PRIOR_WEIGHT * PRIOR_RATE) / (1.75 + PRIOR_WEIGHT)
    second = (0.25 + PRIOR_WEIGHT * first) / (0.75 + PRIOR_WEIGHT)
    third = (0.25 + PRIOR_WEIGHT * second) / (0.25 + PRIOR_WEIGHT)
    assert acceptance.chained_rates() == pytest.approx([first, second, third])


def test_late_drafts_that_nobody_tries_any_more_are_expected_to_be_as_early_ones() -> None:
    """All were right; then first drafts alone are tried, and most are wrong: the others are not remembered as good."""
    acceptance = global_acceptance(3)
    for _ in range(50):
        acceptance.forget()
        acceptance.observe(3, 3)
    assert min(acceptance.chained_rates()) > 0.9
    for idx in range(600):
        acceptance.forget()
        acceptance.observe(1, int(idx % 4 == 0))
    assert acceptance.chained_rates() == pytest.approx([0.25, 0.25, 0.25], abs=0.1)


def test_what_was_not_drafted_is_not_judged() -> None:
    """No drafts, and positions after a rejected one or beyond the last, leave the prior as it is."""
    acceptance = request_acceptance(3)
    acceptance.observe(0, 0)
    assert acceptance.rates([0.6, 0.5, 0.4], 6.0) == pytest.approx([0.6, 0.5, 0.4])
    acceptance.observe(2, 0)
    rates = acceptance.rates([0.6, 0.5, 0.4], 6.0)
    assert rates[0] < 0.6
    assert rates[1:] == pytest.approx([0.5, 0.4])


def test_acceptance_approaches_the_truth_and_forgets_it() -> None:
    """Everybody's average of conditional rates 0.9, 0.5, 0.2; then all are rejected, and one request notices sooner."""
    rng, true = random.Random(4), (0.9, 0.5, 0.2)
    everybody, one = global_acceptance(3), request_acceptance(3)
    for _ in range(2000):
        one.forget()
        everybody.forget()
        for _ in range(8):
            num_accepted = next((idx for idx, rate in enumerate(true) if rng.random() >= rate), 3)
            everybody.observe(3, num_accepted)
        one.observe(3, num_accepted)
    assert everybody.chained_rates() == pytest.approx(true, abs=0.05)
    for _ in range(30):
        for acceptance in (everybody, one):
            acceptance.forget()
            acceptance.observe(3, 0)
    assert one.rates([0.0] * 3, 1e-9)[0] < 0.3
    assert everybody.chained_rates()[0] > 0.7


def test_few_sequences_soon_outweigh_what_many_did() -> None:
    """64 sequences whose drafts are all right, then one whose drafts are all wrong: 150 steps turn the average."""
    acceptance = global_acceptance(1)
    for _ in range(300):
        acceptance.forget()
        for _ in range(64):
            acceptance.observe(1, 1)
    for _ in range(150):
        acceptance.forget()
        acceptance.observe(1, 0)
    assert acceptance.chained_rates()[0] < 0.4


def test_counters_by_hand() -> None:
    """Three verifications with 3, 2 and no drafts, of which 2, 0 and none were right: 5 tokens of the trunk's steps."""
    stats = SpeculationStats()
    assert stats.counts.mean_acceptance_length == 0.0
    for num_drafts, num_accepted in ((3, 2), (2, 0), (0, 0)):
        stats.observe(num_drafts, num_accepted)
    stats.chose((3, 2, 0), "faster")
    assert (stats.counts.drafted, stats.counts.accepted) == ((2, 2, 1), (1, 1, 0))
    assert stats.counts.mean_acceptance_length == pytest.approx(5 / 3)
    assert (dict(stats.lengths), dict(stats.reasons)) == ({3: 1, 2: 1, 0: 1}, {"faster": 1})
