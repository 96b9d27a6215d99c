"""The contract of `routing/transport/contract.py`, on every transport.

Oracles need no second implementation: experts double their input, and payloads follow from the token's index.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from routing.errors import ExchangeTimeout, ExpertRefused
from routing.transport.contract import ExpertPort, FrameLimits, Work
from tests.contract.bundles import (
    DEADLINE_S,
    LIMITS,
    SOON_S,
    Bundles,
    answer_doubled,
    assert_doubled,
    doubled,
    expected_outputs,
    make_exchange,
    random_ids,
    renumbered,
    run,
    take,
)

Opener = Callable[..., Bundles]

# Expert e lives on rank e // 4: token 0 goes to both of two ranks, token 1 to rank 0 only, token 2 to rank 1 only.
BOTH_RANKS = [[0, 1, 4, 5], [0, 1, 2, 3], [4, 5, 6, 7]]
RANK_1_ONLY = [[4, 5, 6, 7], [7, 6, 5, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_expert", [False, True])
def test_doubling_experts(open_bundles: Opener, dtype: torch.dtype, per_expert: bool) -> None:
    """Experts that double their input give exactly twice the weighted sum, for every batch size from 0 on."""
    limits = replace(LIMITS, dtype=dtype)
    bundles = open_bundles(ep_size=3, limits=limits)
    with bundles.serving(answer_doubled):
        for sequence, num_tokens in enumerate([1, 0, 5, 32], start=1):
            ids = random_ids(num_tokens, 3) if num_tokens else []
            exchange = make_exchange(sequence, ids, ep_size=3, limits=limits, per_expert=per_expert)
            assert_doubled(bundles.attention[0], exchange)


def test_frames_arrive_unchanged(open_bundles: Opener) -> None:
    """Epoch, layer, micro-batch, sequence, rows and pairs reach each rank exactly as planned."""
    bundles = open_bundles()
    exchange = replace(make_exchange(5, BOTH_RANKS), map_epoch=2**40 + 3, moe_layer_idx=41, microbatch_idx=1)
    bundles.attention[0].send(exchange)
    plan = exchange.plan
    for ep_rank, expert in enumerate(bundles.experts):
        (work,) = take(expert, 1)
        header = work.header
        assert (header.map_epoch, header.moe_layer_idx, header.microbatch_idx) == (2**40 + 3, 41, 1)
        assert (header.sequence, header.per_expert) == (5, False)
        assert torch.equal(work.hidden, exchange.hidden[plan.row_token.split(plan.row_splits)[ep_rank]])
        assert torch.equal(work.pair_row, plan.pair_row.split(plan.pair_splits)[ep_rank])
        assert torch.equal(work.pair_slot, plan.pair_slot.split(plan.pair_splits)[ep_rank])
        assert torch.equal(work.pair_weight, plan.pair_weight.split(plan.pair_splits)[ep_rank])
        expert.reply(work, doubled(work))
    outputs = bundles.attention[0].receive(exchange, DEADLINE_S)
    assert all(map(torch.equal, outputs, expected_outputs(exchange)))
    bundles.attention[0].drop(exchange)


def test_ranks_without_rows_get_nothing(open_bundles: Opener) -> None:
    """Only the ranks of the plan are bothered and only they answer."""
    bundles = open_bundles()
    exchange = make_exchange(1, RANK_1_ONLY)
    bundles.attention[0].send(exchange)
    (work,) = take(bundles.experts[1], 1)
    assert bundles.experts[0].receive(SOON_S) == []
    bundles.experts[1].reply(work, doubled(work))
    (output,) = bundles.attention[0].receive(exchange, DEADLINE_S)
    assert torch.equal(output, expected_outputs(exchange)[0])
    bundles.attention[0].drop(exchange)


def test_one_rank(open_bundles: Opener) -> None:
    """A bundle of one expert rank is a bundle."""
    bundles = open_bundles(ep_size=1)
    with bundles.serving(answer_doubled):
        assert_doubled(bundles.attention[0], make_exchange(1, random_ids(7, 1), ep_size=1))


def test_largest_frames(open_bundles: Opener) -> None:
    """max_rows tokens, all to one rank, with one vector per pair coming back."""
    limits = FrameLimits(hidden_size=512, top_k=4, dtype=torch.float32, max_rows=128)
    bundles = open_bundles(limits=limits)
    exchange = make_exchange(1, [[4, 5, 6, 7]] * limits.max_rows, limits=limits, per_expert=True)
    with bundles.serving(answer_doubled):
        for sequence in (1, 2, 3):
            assert_doubled(bundles.attention[0], renumbered(exchange, sequence))


def test_more_than_the_largest_frame(open_bundles: Opener) -> None:
    """A batch above max_rows is a mistake of the caller, said before anything is sent."""
    bundles = open_bundles()
    too_many = make_exchange(1, random_ids(LIMITS.max_rows + 1, 2))
    with pytest.raises((ValueError, AssertionError)):
        bundles.attention[0].send(too_many)
    bundles.attention[0].drop(too_many)
    with bundles.serving(answer_doubled):
        assert_doubled(bundles.attention[0], make_exchange(2, BOTH_RANKS))


def test_many_exchanges(open_bundles: Opener) -> None:
    """Buffers are used again and again, with other sizes each time, and never mix."""
    bundles = open_bundles()
    with bundles.serving(answer_doubled):
        for sequence in range(1, 31):
            exchange = make_exchange(sequence, random_ids(1 + sequence % 9, 2), per_expert=sequence % 3 == 0)
            assert_doubled(bundles.attention[0], exchange)


def test_two_in_flight_answered_out_of_order(open_bundles: Opener) -> None:
    """Rank 0 answers the second exchange first, rank 1 the first; each caller gets its own rows."""
    bundles = open_bundles()
    port = bundles.attention[0]
    first, second = make_exchange(1, BOTH_RANKS), make_exchange(2, list(reversed(BOTH_RANKS)))
    port.send(first)
    port.send(second)
    for expert, order in zip(bundles.experts, [(1, 0), (0, 1)], strict=True):
        works = sorted(take(expert, 2), key=lambda work: work.header.sequence)
        for idx in order:
            expert.reply(works[idx], doubled(works[idx]))
    for exchange in (second, first):
        outputs = port.receive(exchange, DEADLINE_S)
        assert all(map(torch.equal, outputs, expected_outputs(exchange)))
    port.drop(first)
    port.drop(second)


def test_outputs_stay_valid_until_drop(open_bundles: Opener) -> None:
    """What one exchange returned is untouched by a later one until it is dropped."""
    bundles = open_bundles()
    port = bundles.attention[0]
    first, second = make_exchange(1, BOTH_RANKS), make_exchange(2, RANK_1_ONLY)
    with bundles.serving(answer_doubled):
        port.send(first)
        outputs = port.receive(first, DEADLINE_S)
        assert_doubled(port, second)
        assert all(map(torch.equal, outputs, expected_outputs(first)))
        port.drop(first)


def test_one_more_than_max_in_flight(open_bundles: Opener) -> None:
    """A third open exchange is a bug of the caller, not a wait."""
    bundles = open_bundles()
    exchanges = [make_exchange(sequence, BOTH_RANKS) for sequence in (1, 2, 3)]
    bundles.attention[0].send(exchanges[0])
    bundles.attention[0].send(exchanges[1])
    with pytest.raises(AssertionError):
        bundles.attention[0].send(exchanges[2])
    for exchange in exchanges[:2]:
        bundles.attention[0].drop(exchange)


def test_several_bundles_on_one_expert_tier(open_bundles: Opener) -> None:
    """Three attention ports at once, each gets the answers to its own rows."""
    bundles = open_bundles(num_attention=3)
    failures: list[BaseException] = []

    def attend(idx: int) -> None:
        try:
            for sequence in range(1, 9):
                ids = torch.roll(torch.tensor(BOTH_RANKS), idx, 0)[: 1 + (sequence + idx) % 3]
                assert_doubled(bundles.attention[idx], make_exchange(sequence, ids))
        except BaseException as error:  # noqa: BLE001 - raised below, on the test's own thread
            failures.append(error)

    with bundles.serving(answer_doubled):
        threads = [threading.Thread(target=attend, args=(idx,)) for idx in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert not failures, failures


def test_receive_takes_all_that_is_ready(open_bundles: Opener) -> None:
    """Frames of several bundles that wait together are handed out together, and told apart by `bundle`."""
    bundles = open_bundles(num_attention=2)
    exchanges = [make_exchange(1, RANK_1_ONLY), make_exchange(1, [[4, 5, 6, 7]])]
    for port, exchange in zip(bundles.attention, exchanges, strict=True):
        port.send(exchange)
    works = take(bundles.experts[1], 2)
    assert len({work.bundle for work in works}) == 2
    for work in reversed(works):
        bundles.experts[1].reply(work, doubled(work))
    for port, exchange in zip(bundles.attention, exchanges, strict=True):
        assert torch.equal(port.receive(exchange, DEADLINE_S)[0], expected_outputs(exchange)[0])
        port.drop(exchange)


def test_deadline_and_late_answer(open_bundles: Opener) -> None:
    """A rank that stays silent is named when the time is over; its late answer disturbs nobody afterwards."""
    bundles = open_bundles()
    port = bundles.attention[0]
    exchange = make_exchange(1, BOTH_RANKS)
    port.send(exchange)
    works = [take(expert, 1)[0] for expert in bundles.experts]
    bundles.experts[0].reply(works[0], doubled(works[0]))
    with pytest.raises(ExchangeTimeout) as caught:
        port.receive(exchange, SOON_S)
    assert 1 in caught.value.ep_ranks
    port.drop(exchange)
    bundles.experts[1].reply(works[1], doubled(works[1]) + 1)
    bundles.wait(port)
    with bundles.serving(answer_doubled):
        for sequence in range(2, 8):
            assert_doubled(port, make_exchange(sequence, BOTH_RANKS))


def test_dropped_unread(open_bundles: Opener) -> None:
    """An exchange that was given up before its answers came leaves the bundle in order."""
    bundles = open_bundles()
    port = bundles.attention[0]
    with bundles.serving(answer_doubled):
        for sequence in range(1, 12, 2):
            given_up = make_exchange(sequence, RANK_1_ONLY, per_expert=True)
            port.send(given_up)
            port.drop(given_up)
            assert_doubled(port, make_exchange(sequence + 1, BOTH_RANKS))


def test_given_up_exchanges_are_not_waited_for(open_bundles: Opener) -> None:
    """Two exchanges dropped unanswered leave room for two more at once, while the experts are still silent."""
    bundles = open_bundles()
    port = bundles.attention[0]
    given_up = [make_exchange(sequence, BOTH_RANKS, per_expert=True) for sequence in (1, 2)]
    for exchange in given_up:
        port.send(exchange)
    late = [(expert, work) for expert in bundles.experts for work in take(expert, 2)]
    for exchange in given_up:
        port.drop(exchange)
    wanted = [make_exchange(sequence, BOTH_RANKS) for sequence in (3, 4)]
    for exchange in wanted:
        port.send(exchange)
    for expert, work in late:
        expert.reply(work, doubled(work))
    with bundles.serving(answer_doubled):
        for exchange in wanted:
            assert all(map(torch.equal, port.receive(exchange, DEADLINE_S), expected_outputs(exchange)))
            port.drop(exchange)


def test_refusal_carries_its_sentence(open_bundles: Opener) -> None:
    """A refusal reaches the caller with rank and reason, and the next exchange works."""
    bundles = open_bundles()
    reason = "map epoch 7 is not held here: é"

    def refuse_once(port: ExpertPort, work: Work) -> None:
        if work.header.sequence == 1 and port is bundles.experts[1]:
            port.refuse(work, reason)
        else:
            answer_doubled(port, work)

    with bundles.serving(refuse_once):
        with pytest.raises(ExpertRefused) as caught:
            run(bundles.attention[0], make_exchange(1, BOTH_RANKS))
        assert (caught.value.ep_rank, caught.value.reason) == (1, reason)
        assert_doubled(bundles.attention[0], make_exchange(2, BOTH_RANKS))


def test_frame_that_does_not_parse(open_bundles: Opener) -> None:
    """A header with an impossible field becomes no Work: it is refused with the reason, and the bundle goes on."""
    bundles = open_bundles()
    seen: list[int] = []

    def note(port: ExpertPort, work: Work) -> None:
        seen.append(work.header.moe_layer_idx)
        answer_doubled(port, work)

    with bundles.serving(note):
        with pytest.raises(ExpertRefused, match="negative"):
            run(bundles.attention[0], replace(make_exchange(1, BOTH_RANKS), moe_layer_idx=-1))
        assert_doubled(bundles.attention[0], make_exchange(2, BOTH_RANKS))
    assert -1 not in seen
