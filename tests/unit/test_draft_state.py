"""DraftState: which rows are true, settled and remembered, against modules played out row by row."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.attention.drafting import MAX_UNSETTLED, DraftItem, draft_items
from actors.attention.sequence import Sequence
from actors.messages import GenerateRequest, SamplingSpec
from actors.speculative.cost import StepCost
from actors.speculative.state import MAX_PARTS, Draft, DraftState

NUM_MODULES = 3
BLOCK_SIZE = 4


def draft_item(sequence: Sequence, num_drafts: int) -> DraftItem | None:
    """Of one sequence alone."""
    (item,) = draft_items([sequence], {sequence: num_drafts}) or [None]
    return item


class Modules:
    """Draft modules whose output at a row is a number made of all that it depends on: the token it reads, the hidden
    state it is given, and its KV of the row before, which stands for all rows before."""

    def __init__(self) -> None:
        self.kv: list[dict[int, int]] = [{} for _ in range(NUM_MODULES)]

    def run(self, module: int, row: int, token_id: int, hidden: int) -> int:
        self.kv[module][row] = hash((module, token_id, hidden, self.kv[module].get(row - 1)))
        return self.kv[module][row]


class Play:
    """One sequence under steps of any size, drafts of any number, and any verdict. Tokens never repeat by chance."""

    def __init__(self, rng: random.Random, num_prompt: int) -> None:
        self.rng = rng
        request = GenerateRequest("a", tuple(range(num_prompt)), SamplingSpec(max_tokens=10**6))
        self.sequence = Sequence(
            request, arrival=0, deadline=1.0, max_model_len=10**6, num_draft_modules=NUM_MODULES
        )  # fmt: skip
        self.modules = Modules()
        self.truth = Modules()  # fed with the tokens that the sequence turned out to have
        self.next_token = num_prompt

    @property
    def state(self) -> DraftState:
        return self.sequence.drafting

    @property
    def num_uncomputed(self) -> int:
        return len(self.sequence.token_ids) - self.state.num_rows

    def fresh_token(self) -> int:
        self.next_token += 1
        return self.next_token

    def trunk(self, row: int) -> int:
        return hash(("trunk", row, self.sequence.token_ids[row]))

    def step(self, max_rows: int, num_drafts: int) -> DraftItem | None:
        """A chunk of known tokens and, behind the last, drafts and their verdict; then the draft pass."""
        num_tokens, num_accepted = min(max_rows, self.num_uncomputed), 0
        if num_tokens == self.num_uncomputed:
            # The scheduler may leave out the last drafts for want of room.
            num_used = self.rng.randint(max(0, len(self.state.drafts) - 1), len(self.state.drafts))
            num_accepted = self.rng.randint(0, num_used)
            self.sequence.token_ids += [draft.token_id for draft in self.state.drafts[:num_accepted]]
            self.sequence.token_ids.append(self.fresh_token())
        self.add_rows(num_tokens, num_accepted)
        return self.draft(num_drafts if self.num_uncomputed == 1 else 0)

    def add_rows(self, num_tokens: int, num_accepted: int) -> None:
        first = self.state.num_rows
        rows = range(first, first + num_tokens + num_accepted)
        self.state.accepted(num_accepted)
        self.state.add_rows(_among_others([self.trunk(row) for row in rows]))

    def draft(self, num_drafts: int) -> DraftItem | None:
        """As the drafter does it, with a drafted token that nobody else has."""
        item = draft_item(self.sequence, num_drafts)
        if item is None:
            return None
        known, drafts = self.sequence.token_ids, list[Draft]()
        for module, rows in enumerate(item.rows):
            ids = [*known, *(draft.token_id for draft in drafts)]
            hidden = _numbers(self.state.kept(module, rows))
            made = [
                self.modules.run(module, row, ids[row + 1 + module], h) for row, h in zip(rows, hidden, strict=True)
            ]
            if made and module < NUM_MODULES - 1:
                self.state.keep(module + 1, rows.start, _among_others(made))
            if module < item.num_drafts:
                drafts.append(Draft(self.fresh_token()))
        for module, rows in enumerate(item.rows):
            self.state.has_run(module, rows.stop, num_known=len(known))
        self.state.drafts = tuple(drafts)
        return item

    def preempt(self) -> None:
        """Lose the KV and begin again, with some blocks that others have left in the prefix cache."""
        num_hit = self.rng.randint(0, min(self.true_rows()) // BLOCK_SIZE) * BLOCK_SIZE
        self.modules = Modules()
        for mine, true in zip(self.modules.kv, self.truth.kv, strict=True):
            mine.update({row: value for row, value in true.items() if row < num_hit})
        self.state.restart(num_hit)
        assert self.state.drafts == ()

    def true_rows(self) -> list[int]:
        """Rows from the beginning for which each module holds what the true tokens make."""
        found = []
        for module in range(NUM_MODULES):
            row = 0
            while self.is_true(module, row):
                row += 1
            found.append(row)
        return found

    def is_true(self, module: int, row: int) -> bool:
        token_ids, true = self.sequence.token_ids, self.truth.kv
        if row + 1 + module >= len(token_ids):
            return False
        if row not in true[module]:
            hidden = self.trunk(row) if module == 0 else true[module - 1][row]
            self.truth.run(module, row, token_ids[row + 1 + module], hidden)
        return self.modules.kv[module].get(row) == true[module][row]

    def check(self) -> None:
        """True and settled rows are exactly those that are; what modules will read of the other rows is there."""
        state, true_rows = self.state, self.true_rows()
        assert [state.true_rows(module) for module in range(NUM_MODULES)] == true_rows
        assert state.num_settled == true_rows[-1] <= state.num_rows
        for module, (first, end) in enumerate(zip(true_rows, [state.num_rows, *true_rows], strict=False)):
            wanted = range(self.rng.randint(first, end), end)
            assert _numbers(state.kept(module, wanted)) == [self.true_input(module, row) for row in wanted]

    def true_input(self, module: int, row: int) -> int:
        return self.trunk(row) if module == 0 else self.truth.kv[module - 1][row]


def _among_others(numbers: list[int]) -> Tensor:
    """Rows of these numbers, [R, 1]: a view of a step with a thousand rows of other sequences."""
    return torch.tensor([0] * 500 + numbers + [0] * 500).unsqueeze(1)[500 : 500 + len(numbers)]


def _numbers(parts: list[Tensor]) -> list[int]:
    return [int(value) for part in parts for value in part[:, 0].tolist()]


def _bytes(state: DraftState) -> int:
    return sum(kept.num_bytes for kept in state._kept)


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_true_and_settled_exactly_when_they_are(seed: int) -> None:
    """Random chunks, 0-3 drafts, verdicts and preemptions: the state always knows what the modules really hold."""
    rng = random.Random(seed)
    num_accepted_rows = 0
    for _ in range(30):
        play = Play(rng, num_prompt=rng.randint(1, 50))
        for _ in range(40):
            num_known = len(play.sequence.token_ids)
            play.step(max_rows=rng.randint(1, 20), num_drafts=rng.randint(0, NUM_MODULES))
            num_accepted_rows += max(0, len(play.sequence.token_ids) - num_known - 1)
            play.check()
            assert play.state.num_rows - play.state.num_settled <= MAX_UNSETTLED
            if rng.random() < 0.03:
                play.preempt()
                play.check()
    assert num_accepted_rows > 100


@pytest.mark.parametrize("num_drafts", range(NUM_MODULES + 1))
def test_few_rows_wait_however_many_are_drafted(num_drafts: int) -> None:
    """With always the same number of drafts, none included, rows are caught up before too many wait."""
    play, most = Play(random.Random(1), num_prompt=5), 0
    for _ in range(150):
        item = play.step(max_rows=64, num_drafts=num_drafts)
        play.check()
        most = max(most, play.state.num_rows - play.state.num_settled)
        assert item is None or all(len(rows) <= MAX_UNSETTLED for rows in item.rows)
        assert len(play.state.drafts) == num_drafts
    assert most <= MAX_UNSETTLED
    # All modules draft: what waits is what the last two drafts were read for. None does: the bound is made use of.
    assert most == {0: MAX_UNSETTLED - NUM_MODULES - 1, 3: NUM_MODULES - 1}.get(num_drafts, most)


@pytest.mark.parametrize("num_drafts", range(NUM_MODULES + 1))
def test_memory_holds_waiting_rows_only(num_drafts: int) -> None:
    """Long prompts, and steps whose tensors hold a thousand rows of others: what is kept is a few rows of our own, and
    a few steps' tensors until those are joined."""
    play = Play(random.Random(2), num_prompt=200)
    row_bytes, step_rows = 8, 1000 + 50
    for num_steps in range(80):
        play.step(max_rows=50, num_drafts=num_drafts)
        if num_steps >= 1:
            rows_of_a_module = MAX_UNSETTLED + 1 + NUM_MODULES + MAX_PARTS * step_rows
            assert _bytes(play.state) <= NUM_MODULES * rows_of_a_module * row_bytes


def test_who_stops_drafting_soon_keeps_nobody_elses_rows_alive() -> None:
    """What the modules made in the last draft pass is copied some steps later, although no pass comes."""
    play = Play(random.Random(2), num_prompt=200)
    for num_drafts in [1, 2, 3, 2, 1] + [0] * (MAX_PARTS + 1):
        play.step(max_rows=200, num_drafts=num_drafts)
    assert _bytes(play.state) <= NUM_MODULES * MAX_UNSETTLED * 8


def test_rows_that_modules_left_out_are_told_from_those_that_await_drafts() -> None:
    """While all modules draft none is left out. Steps without drafts leave out all rows but the last one's; the next
    drafts catch them up."""
    play = Play(random.Random(3), num_prompt=10)
    for _ in range(20):
        play.step(max_rows=64, num_drafts=3)
        assert (play.state.num_left_out, play.state.num_caught_up) == (0, 0)
    for _ in range(10):
        play.step(max_rows=64, num_drafts=0)
    # Those of the last step are a matter of this one, and module j always waits for j rows.
    left_out = [play.state.num_rows - 1 - j - true for j, true in enumerate(play.true_rows())]
    assert min(left_out) >= 8
    for num_drafts in range(NUM_MODULES + 1):
        play.draft(num_drafts)
        assert play.state.num_left_out == sum(left_out[num_drafts:])
        assert play.state.num_caught_up == sum(left_out[:num_drafts])


@pytest.mark.parametrize(
    ("num_accepted", "rows"),
    [
        (3, [range(10, 14), range(10, 14), range(10, 14)]),
        (2, [range(10, 13), range(10, 13), range(10, 13)]),
        (1, [range(10, 12), range(10, 12), range(9, 12)]),
        (0, [range(10, 11), range(9, 11), range(8, 11)]),
    ],
)
def test_the_next_pass_has_the_rows_of_the_specification(num_accepted: int, rows: list[range]) -> None:
    """Table 3.4: of ten rows those that read rejected drafts are run again, then 1 + accepted new ones."""
    sequence = Sequence(
        GenerateRequest("a", tuple(range(11)), SamplingSpec(max_tokens=20)),
        arrival=0, deadline=1.0, max_model_len=64, num_draft_modules=3,
    )  # fmt: skip
    state = sequence.drafting
    state.add_rows(torch.zeros(10, 1))
    first = draft_item(sequence, 3)
    assert first == DraftItem(sequence, (range(10),) * 3, num_drafts=3)
    for module in range(3):
        state.has_run(module, 10, num_known=11)
    state.drafts = (Draft(11), Draft(12), Draft(13))
    sequence.token_ids += [11, 12, 13][:num_accepted] + [50]
    state.accepted(num_accepted)
    state.add_rows(torch.ones(1 + num_accepted, 1))
    item = draft_item(sequence, 3)
    assert item is not None
    assert list(item.rows) == rows


@pytest.mark.parametrize("num_drafts", [1, 2, 3])
def test_the_price_of_drafts_counts_the_rows_that_modules_run(num_drafts: int) -> None:
    """Over a run of any verdicts, `StepCost.module_rows` of the tokens seen is what was run, module by module."""
    play, num_steps = Play(random.Random(7), num_prompt=5), 400
    cost, accepted, num_rows = StepCost(num_experts=8, top_k=2), np.zeros(NUM_MODULES), 0
    cost.observe_left_out(num_caught_up=0, num_dropped=10**9)
    play.step(max_rows=5, num_drafts=num_drafts)
    for _ in range(num_steps):
        num_known = len(play.sequence.token_ids)
        item = play.step(max_rows=64, num_drafts=num_drafts)
        assert item is not None
        accepted[: len(play.sequence.token_ids) - num_known - 1] += 1.0
        num_rows += sum(len(rows) for rows in item.rows[:num_drafts])
    tokens = np.cumsum([1.0, *accepted / num_steps])[None]
    assert num_rows / num_steps == pytest.approx(cost.module_rows(tokens)[0, num_drafts], rel=0.01)


def test_those_that_have_waited_long_come_along() -> None:
    """One sequence must be caught up now; another has waited for more than half as long and comes along; a third, which
    has not, waits on."""
    rng, plays = random.Random(4), []
    for num_waiting in (MAX_UNSETTLED - NUM_MODULES - 1, MAX_UNSETTLED // 2, 5):
        play = Play(rng, num_prompt=5)
        play.step(max_rows=64, num_drafts=0)
        while play.state.num_rows - play.state.num_settled < num_waiting:
            play.step(max_rows=64, num_drafts=0)
        play.add_rows(1, 0)
        play.sequence.token_ids.append(play.fresh_token())
        plays.append(play)
    sequences = [play.sequence for play in plays]
    assert [item.sequence for item in draft_items(sequences, {})] == sequences[:2]
    assert draft_items(sequences[1:], {}) == []


def test_a_chunk_uses_prompt_tokens_and_no_drafts() -> None:
    """After 7 of 20 prompt tokens all modules run all rows; after 18, the last row waits for a third token ahead."""
    play = Play(random.Random(3), num_prompt=20)
    item = play.step(max_rows=7, num_drafts=3)
    assert item == DraftItem(play.sequence, (range(7),) * 3, num_drafts=0)
    item = play.step(max_rows=11, num_drafts=3)
    assert item == DraftItem(play.sequence, (range(7, 18), range(7, 18), range(7, 17)), num_drafts=0)
    assert play.state.num_settled == 17


def test_fewer_drafts_run_fewer_modules_and_leave_the_others_behind() -> None:
    """One draft a step: module 0 sees every row at once, the others alone catch up when more is asked of them."""
    play = Play(random.Random(4), num_prompt=10)
    play.step(max_rows=64, num_drafts=0)
    assert play.true_rows() == [10, 9, 8]
    for _ in range(5):
        play.step(max_rows=64, num_drafts=1)
    num_rows = play.state.num_rows
    assert play.true_rows() == [num_rows, 9, 8]
    item = play.draft(3)
    assert item == DraftItem(play.sequence, (range(num_rows, num_rows), range(9, num_rows), range(8, num_rows)), 3)
    assert play.true_rows() == [num_rows, num_rows - 1, num_rows - 2]


@pytest.mark.parametrize("num_drafts", range(NUM_MODULES + 1))
def test_drafts_are_as_many_as_asked_for_while_all_modules_catch_up(num_drafts: int) -> None:
    """The rows of the others end where the tokens that they read are known."""
    play = Play(random.Random(5), num_prompt=200)
    item = play.step(max_rows=200, num_drafts=num_drafts)
    assert item is not None
    assert [rows.stop for rows in item.rows] == [200 if module < num_drafts else 200 - module for module in range(3)]
    assert len(play.state.drafts) == num_drafts
    play.check()


@pytest.mark.parametrize("num_drafts", [1, 3])
def test_a_pass_that_failed_is_not_asked_for_again(num_drafts: int) -> None:
    """Rows count as seen, and the next pass finds something to read for every row that it runs."""
    play = Play(random.Random(6), num_prompt=12)
    play.step(max_rows=12, num_drafts=0)
    for _ in range(6):
        play.step(max_rows=12, num_drafts=0)
        play.state.skip(len(play.sequence.token_ids))
        num_rows = play.state.num_rows
        assert [play.state.true_rows(module) for module in range(3)] == [num_rows, num_rows - 1, num_rows - 2]
        item = play.step(max_rows=12, num_drafts=num_drafts)
        assert item is not None
        assert [rows.start for rows in item.rows] == [num_rows, num_rows - 1, num_rows - 2][:num_drafts]


def test_a_prefix_hit_counts_as_settled() -> None:
    """Rows that somebody else computed need no hidden states, and drafts of before are gone."""
    state = DraftState(NUM_MODULES)
    state.drafts = (Draft(1),)
    state.restart(16)
    assert (state.num_rows, state.num_settled, len(state.drafts)) == (16, 16, 0)
    state.add_rows(torch.arange(3.0).reshape(3, 1))
    assert _numbers(state.kept(0, range(16, 19))) == [0, 1, 2]


def test_a_sequence_shorter_than_the_modules_look_ahead() -> None:
    """One prompt token and one accepted draft: row 0 of module 2 read the rejected one, so it is not true."""
    play = Play(random.Random(5), num_prompt=1)
    play.step(max_rows=1, num_drafts=3)
    play.sequence.token_ids += [play.state.drafts[0].token_id, play.fresh_token()]
    play.add_rows(1, 1)
    assert [play.state.true_rows(module) for module in range(3)] == [1, 1, 0]
    play.check()
    play.draft(3)
    play.check()


def test_without_modules_every_row_is_settled() -> None:
    """Nobody waits for anything."""
    state = DraftState(0)
    assert state.num_settled == state.num_rows == 0
    state.restart(32)
    assert state.num_settled == 32
