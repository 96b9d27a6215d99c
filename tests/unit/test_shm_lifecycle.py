"""Late answers, stuck ranks, closing under a waiter, and what a port leaves behind: nothing."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from routing.errors import BundleIncomplete, ExchangeTimeout, TransportError
from routing.transport.shm import _MAX_CACHED_VIEWS
from tests.unit.shm_bundle import LIMITS, SHORT_S, TIMEOUT_S, bundle, double, exchange, receive_one


def test_late_answer_is_discarded() -> None:
    """An answer to a dropped exchange never shows up in a later one."""
    with bundle(ep_size=1) as (attention, (expert,)):
        late = exchange(0, ep_size=1)
        attention.send(late)
        work = receive_one(expert)
        with pytest.raises(ExchangeTimeout) as error:
            attention.receive(late, SHORT_S)
        assert error.value.ep_ranks == (0,)
        attention.drop(late)
        following = exchange(1, ep_size=1)
        attention.send(following)
        expert.reply(work, work.hidden * 100)
        double(expert)
        assert torch.equal(attention.receive(following, TIMEOUT_S)[0], following.hidden * 2)


def test_request_nobody_took_is_taken_back() -> None:
    """A dropped request that still waits is never served, and time-outs without end cost no slot."""
    with bundle(ep_size=1) as (attention, (expert,)):
        for sequence in range(10):
            unread = exchange(sequence, ep_size=1)
            attention.send(unread)
            with pytest.raises(ExchangeTimeout):
                attention.receive(unread, 0.001)
            attention.drop(unread)
        assert expert.receive(SHORT_S) == []


def test_rank_that_hoards_requests_is_not_connected_until_it_answers() -> None:
    """A rank that owes an answer in every slot gets no more rows, instead of a time-out each; it recovers."""
    with bundle(ep_size=1) as (attention, (expert,)):
        hoard = []
        for sequence in range(LIMITS.max_in_flight + 2):
            sent = exchange(sequence, ep_size=1)
            attention.send(sent)
            hoard.append(receive_one(expert))
            attention.drop(sent)
        assert attention.connected() == frozenset()
        with pytest.raises(BundleIncomplete, match="owes answers"):
            attention.send(exchange(90, ep_size=1))
        expert.reply(hoard[2], hoard[2].hidden)
        assert attention.connected() == {0}
        sent = exchange(91, ep_size=1)
        attention.send(sent)
        double(expert)
        assert torch.equal(attention.receive(sent, TIMEOUT_S)[0], sent.hidden * 2)


def test_requests_arrive_in_order_whatever_slot_they_use() -> None:
    """Slots are reused out of order; requests still come oldest first."""
    with bundle(ep_size=1) as (attention, (expert,)):
        first, second = exchange(0, ep_size=1), exchange(1, ep_size=1)
        attention.send(first)
        attention.send(second)
        double_first = expert.receive(TIMEOUT_S)
        expert.reply(double_first[0], double_first[0].hidden)
        attention.receive(first, TIMEOUT_S)
        attention.drop(first)
        third = exchange(2, ep_size=1)  # takes slot 0 again
        attention.drop(second)
        attention.send(third)
        fourth = exchange(3, ep_size=1)
        attention.send(fourth)
        assert [work.header.sequence for work in expert.receive(TIMEOUT_S)] == [2, 3]


def test_more_than_max_in_flight_is_a_bug() -> None:
    """The third open exchange is an AssertionError, never a wait."""
    with bundle() as (attention, _):
        attention.send(exchange(0))
        attention.send(exchange(1))
        with pytest.raises(AssertionError, match="max_in_flight"):
            attention.send(exchange(2))
        attention.drop(exchange(0))
        attention.send(exchange(2))


def _raised_by(call: Callable[[], object], then: Callable[[], None]) -> BaseException | None:
    """What `call` raises on a thread of its own when `then` runs meanwhile."""
    caught: list[BaseException] = []
    started = threading.Event()

    def target() -> None:
        started.set()
        try:
            call()
        except TransportError as error:
            caught.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    started.wait(TIMEOUT_S)
    then()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive(), "the waiter was not woken"
    return caught[0] if caught else None


def test_close_wakes_who_waits() -> None:
    """Waiters on both sides end with a TransportError; closing again is harmless."""
    with bundle() as (attention, (expert, other)):
        sent = exchange(0)
        attention.send(sent)
        expert.receive(TIMEOUT_S)
        assert "closed" in str(_raised_by(lambda: expert.receive(TIMEOUT_S), expert.close))
        other.receive(TIMEOUT_S)
        assert _raised_by(lambda: attention.receive(sent, TIMEOUT_S), attention.close) is not None
        assert _raised_by(lambda: attention.wait_connected([0], TIMEOUT_S), attention.close) is not None
        attention.close()
        with pytest.raises(TransportError):
            attention.send(exchange(1))


def _num_resources() -> tuple[int, int, int]:
    """Open descriptors, mappings of our memfds, threads."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return len(os.listdir("/proc/self/fd")), maps.count("memfd:step35"), len(os.listdir("/proc/self/task"))


def test_nothing_is_left_behind() -> None:
    """Thirty bundles opened, used, and closed with an exchange still open leave no descriptor, mapping or thread."""
    gc.collect()
    before = _num_resources()
    for _ in range(30):
        with bundle() as (attention, experts):
            sent = exchange(0)
            attention.send(sent)
            for expert in experts:
                double(expert)
            attention.receive(sent, TIMEOUT_S)
        del attention, experts, expert
    gc.collect()
    assert _num_resources() == before


def test_leaving_bundle_frees_its_memory_at_the_expert() -> None:
    """An idle expert rank drops the views, and with them the memory, of a bundle that went away."""
    with bundle(ep_size=1) as (attention, (expert,)):
        sent = exchange(0, ep_size=1)
        attention.send(sent)
        double(expert)
        attention.close()
        deadline = time.monotonic() + TIMEOUT_S
        while expert._views and time.monotonic() < deadline:
            expert.receive(SHORT_S)
        assert not expert._views


def test_cached_views_are_bounded() -> None:
    """Ever new shapes do not grow the cache without end."""
    with bundle(ep_size=1) as (_, (expert,)):
        (link,) = expert._port.link_ids()
        for num_pairs in range(2):
            expert._views[(link, 0, 1, num_pairs)]
        views = expert._views[(link, 0, 1, 0)]
        for idx in range(_MAX_CACHED_VIEWS):
            expert._views.keep((link, 0, 1, idx), views, [link])
        expert._views[(link, 1, 1, 1)]
        assert len(expert._views) <= _MAX_CACHED_VIEWS


def test_views_outlive_the_port() -> None:
    """A tensor kept too long reads stale numbers, never unmapped memory."""
    with bundle(ep_size=1) as (attention, (expert,)):
        sent = exchange(0, ep_size=1)
        attention.send(sent)
        double(expert)
        (kept,) = attention.receive(sent, TIMEOUT_S)
        attention.drop(sent)
    del attention, expert
    gc.collect()
    assert torch.equal(kept, sent.hidden * 2)


def test_idle_ports_use_no_processor() -> None:
    """Waiting threads sleep: over an idle second a bundle uses a small part of it."""
    with bundle() as (_, experts):
        before = time.process_time()
        assert experts[0].receive(1.0) == []
        assert time.process_time() - before < 0.1
