"""Ports that come, go, are replaced and close, on every transport: the part of the contract about membership."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from routing.errors import BundleIncomplete, RankLost, TransportError
from tests.contract.bundles import (
    SOON_S,
    Bundles,
    answer_doubled,
    assert_doubled,
    doubled,
    in_thread,
    make_exchange,
    take,
    until,
)

Opener = Callable[..., Bundles]

# Expert e lives on rank e // 4.
BOTH_RANKS = [[0, 1, 4, 5], [0, 1, 2, 3], [4, 5, 6, 7]]
RANK_1_ONLY = [[4, 5, 6, 7], [7, 6, 5, 4]]


def test_expert_closes_while_it_owes_an_answer(open_bundles: Opener) -> None:
    """The loss is noticed at once, long before the deadline, and named."""
    bundles = open_bundles()
    exchange = make_exchange(1, BOTH_RANKS)
    bundles.attention[0].send(exchange)
    take(bundles.experts[1], 1)
    bundles.experts[1].close()
    with pytest.raises(RankLost) as caught:
        bundles.attention[0].receive(exchange, 60.0)
    assert 1 in caught.value.ep_ranks
    bundles.attention[0].drop(exchange)


def test_idle_expert_closes(open_bundles: Opener) -> None:
    """Without any traffic a lost rank leaves `connected`, and rows for it are refused before anything is sent."""
    bundles = open_bundles()
    port = bundles.attention[0]
    bundles.experts[1].close()
    until(lambda: 1 not in port.connected())
    exchange = make_exchange(1, RANK_1_ONLY)
    with pytest.raises(BundleIncomplete) as caught:
        port.send(exchange)
    assert 1 in caught.value.ep_ranks
    with pytest.raises(BundleIncomplete) as caught:
        port.wait_connected([0, 1], SOON_S)
    assert 1 in caught.value.ep_ranks


def test_replaced_expert(open_bundles: Opener) -> None:
    """A new process for a rank joins by reconciling, and the bundle works with it."""
    bundles = open_bundles()
    bundles.experts[1].close()
    bundles.experts[1] = bundles.open_expert(1)
    bundles.connect()
    with bundles.serving(answer_doubled):
        assert_doubled(bundles.attention[0], make_exchange(1, BOTH_RANKS))


def test_attention_port_leaves(open_bundles: Opener) -> None:
    """An attention port that closes takes only its own bundle with it, answers to it are ignored."""
    bundles = open_bundles(num_attention=2)
    leaving, staying = bundles.attention
    leaving.send(make_exchange(1, RANK_1_ONLY))
    (work,) = take(bundles.experts[1], 1)
    leaving.close()
    bundles.experts[1].reply(work, doubled(work))
    with bundles.serving(answer_doubled):
        assert_doubled(staying, make_exchange(1, BOTH_RANKS))


def test_reconciled_away_and_back(open_bundles: Opener) -> None:
    """Dropping all ranks empties `connected`; wanting them again connects them again."""
    bundles = open_bundles()
    port = bundles.attention[0]
    port.reconcile({})
    assert port.connected() == frozenset()
    port.reconcile(bundles.shards)
    bundles.wait(port)
    assert port.connected() == {0, 1}
    with bundles.serving(answer_doubled):
        assert_doubled(port, make_exchange(1, BOTH_RANKS))


def test_rank_outside_the_bundle(open_bundles: Opener) -> None:
    """Reconciling with a rank that ep_size does not have is a ValueError with the number."""
    bundles = open_bundles()
    with pytest.raises(ValueError, match="2"):
        bundles.attention[0].reconcile({2: bundles.experts[0].endpoint})


def test_attention_closes_while_waiting(open_bundles: Opener) -> None:
    """Closing the port wakes whoever waits for an answer."""
    bundles = open_bundles()
    port = bundles.attention[0]
    exchange = make_exchange(1, BOTH_RANKS)
    port.send(exchange)
    outcome = in_thread(lambda: port.receive(exchange, 60.0))
    take(bundles.experts[0], 1)
    port.close()
    assert isinstance(outcome(), TransportError)


def test_expert_closes_while_waiting(open_bundles: Opener) -> None:
    """Closing the port wakes whoever waits for rows."""
    bundles = open_bundles()
    outcome = in_thread(lambda: bundles.experts[0].receive(60.0))
    bundles.experts[0].close()
    assert isinstance(outcome(), TransportError)


def test_close_twice(open_bundles: Opener) -> None:
    """Closing again is nothing; a closed port is connected to nobody."""
    bundles = open_bundles()
    bundles.close()
    bundles.close()
    assert bundles.attention[0].connected() == frozenset()


def test_nobody_there(open_bundles: Opener) -> None:
    """Before any reconcile, waiting names all missing ranks when the time is over."""
    bundles = open_bundles()
    lonely = bundles.open_attention()
    with pytest.raises(BundleIncomplete) as caught:
        lonely.wait_connected([0, 1], SOON_S)
    lonely.close()
    assert caught.value.ep_ranks == (0, 1)
