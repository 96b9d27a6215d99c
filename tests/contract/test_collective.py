"""What is particular to the `torch.distributed` transport, run on gloo: padding, terms, hostile and dying peers."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch

from routing.errors import BundleIncomplete, ExpertRefused, FrameError, RankLost, TransportError
from routing.transport.collective import CollectiveOptions, PayloadFormat
from routing.transport.contract import Endpoint, Work
from routing.transport.frames import dispatch_header
from routing.transport.group import BundleGroup
from routing.transport.rendezvous import StoreHost, bundle_key, connect_store, join, lead
from routing.wire import VERSION, FrameKind, unpack_header
from tests.contract.bundles import (
    DEADLINE_S,
    LIMITS,
    SOON_S,
    Bundles,
    answer_doubled,
    assert_doubled,
    make_exchange,
    random_ids,
    run,
    take,
    until,
)

STARTED_S = 60.0
OPTIONS = CollectiveOptions(timeout_s=DEADLINE_S)
BOTH_RANKS = [[0, 1, 4, 5], [0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.fixture
def bundles() -> Iterator[Bundles]:
    """One connected gloo bundle of two expert ranks."""
    opened = Bundles("gloo")
    opened.connect()
    yield opened
    opened.close()


@pytest.mark.parametrize("per_expert", [False, True])
@pytest.mark.parametrize("capacity_rows", [1, 4, 32])
def test_padded_payloads(per_expert: bool, capacity_rows: int) -> None:
    """Padding changes no result, below, at and above the capacity, and ranks without rows are no exception."""
    padded = Bundles("gloo", ep_size=3, capacity_rows=capacity_rows)
    padded.connect()
    with padded.serving(answer_doubled):
        batches = [random_ids(num_tokens, 3) for num_tokens in (1, 4, 5, 32)]
        batches += [torch.empty(0, 4), torch.tensor([[8, 9, 10, 11]] * 4)]
        for sequence, ids in enumerate(batches, start=1):
            assert_doubled(padded.attention[0], make_exchange(sequence, ids, ep_size=3, per_expert=per_expert))
    padded.close()


def test_padding_rows_are_nobodys_work() -> None:
    """A rank without rows takes part in a padded exchange, and its actor never hears of it."""
    padded = Bundles("gloo", capacity_rows=4)
    padded.connect()
    seen: list[int] = []

    def note(port: object, work: object) -> None:
        seen.append(padded.experts.index(port))  # type: ignore[arg-type]
        answer_doubled(port, work)  # type: ignore[arg-type]

    with padded.serving(note):
        assert_doubled(padded.attention[0], make_exchange(1, [[4, 5, 6, 7]]))
    padded.close()
    assert seen == [1]


def test_other_terms_do_not_connect(caplog: pytest.LogCaptureFixture) -> None:
    """An expert rank with other limits stays out, and says in its log what differs."""
    ours = Bundles("gloo", ep_size=1)
    theirs = Bundles("gloo", ep_size=1, num_attention=0, limits=replace(LIMITS, hidden_size=32))
    ours.experts, mine = theirs.experts, ours.experts
    with caplog.at_level(logging.WARNING):
        for port in ours.attention:
            port.reconcile(ours.shards)
        theirs.experts[0].reconcile([port.endpoint for port in ours.attention], ours.shards)
        until(lambda: "hidden_size=32" in caplog.text and "hidden_size=16" in caplog.text)
    assert ours.attention[0].connected() == frozenset()
    for port in (*mine, *ours.experts, *ours.attention):
        port.close()


def test_hostile_expert_header(bundles: Bundles) -> None:
    """A member that answers with noise costs its bundle and never gives numbers."""
    impostor_endpoint = Endpoint("gloo", "impostor", "")
    shards = {0: impostor_endpoint}
    port = bundles.attention[0]
    port.reconcile(shards)
    store = connect_store(port.endpoint, DEADLINE_S)
    key = bundle_key(port.endpoint, shards)
    joined = join(store, key, 1, after=0, terms=bundles.terms, is_wanted=lambda: True)
    assert joined is not None
    group = BundleGroup(joined[1], 1, 2, OPTIONS)
    port.wait_connected([0], DEADLINE_S)
    exchange = make_exchange(1, [[0, 1, 2, 3]])
    port.send(exchange)
    answer = bytearray(group.wait_header(0))
    answer[36:40] = (1000).to_bytes(4, "little")  # more rows than were sent
    group.send_header(0, bytes(answer)).wait(time.monotonic() + DEADLINE_S)
    with pytest.raises(FrameError, match="does not repeat"):
        port.receive(exchange, DEADLINE_S)
    port.drop(exchange)
    until(lambda: not port.connected())
    group.abort()


@pytest.mark.parametrize("capacity_rows", [None, 4])
def test_frame_that_breaks_a_limit_is_refused(capacity_rows: int | None) -> None:
    """More pairs than rows x top_k: the rank says so, its neighbour's answer is read, and the bundle goes on whole."""
    bundles = Bundles("gloo", capacity_rows=capacity_rows)
    bundles.connect()
    port = bundles.attention[0]
    formed = port._bundle  # type: ignore[attr-defined]
    exchange = make_exchange(1, [[0, 1, 2, 3], [4, 5, 6, 7]])
    wrong = replace(exchange, plan=replace(exchange.plan, pair_splits=(3, 5)))
    with bundles.serving(answer_doubled):
        with pytest.raises(ExpertRefused, match="5 pairs exceed") as caught:
            run(port, wrong)
        assert caught.value.ep_rank == 1
        assert_doubled(port, make_exchange(2, BOTH_RANKS))
    assert port._bundle is formed  # type: ignore[attr-defined]
    bundles.close()


def test_frame_too_large_to_be_read_is_refused() -> None:
    """A hostile sender of more rows than agreed gets its reason, costs no memory, and never becomes a Work."""
    bundles = Bundles("gloo", ep_size=1, num_attention=0)
    host = StoreHost("127.0.0.1", DEADLINE_S)
    hostile = Endpoint("gloo", host.address, "")
    bundles.experts[0].reconcile([hostile], bundles.shards)
    store = lead(host.client(), bundle_key(hostile, bundles.shards), 1, bundles.terms, lambda: True)
    assert store is not None
    group = BundleGroup(store, 0, 2, OPTIONS)
    header = replace(dispatch_header(make_exchange(6, [[0, 1, 2, 3]], ep_size=1), 0), num_rows=2**30)
    group.send_header(1, header.pack()).wait(time.monotonic() + DEADLINE_S)
    seen: list[Work] = []
    with bundles.serving(lambda _, work: seen.append(work)):
        posted = group.receive_header(1)
        posted.wait(time.monotonic() + DEADLINE_S)
        answer = unpack_header(bytes(posted.tensors[0].numpy()))
        reason = group.receive_reason(1, answer.num_rows, time.monotonic() + DEADLINE_S)
    assert (answer.kind, answer.sequence, seen) == (FrameKind.REFUSE, 6, [])
    assert b"1073741824 rows" in reason
    group.abort()
    bundles.close()
    host.close()


def test_terms_name_the_wire_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two builds that speak different versions of the header do not connect."""
    ours = PayloadFormat(LIMITS, None).terms
    monkeypatch.setattr("routing.transport.collective.VERSION", VERSION + 1)
    assert PayloadFormat(LIMITS, None).terms != ours


def test_too_many_exchanges_given_up(bundles: Bundles) -> None:
    """When the room for late answers is used up, `send` says so before it sends, and the bundle forms anew."""
    port = bundles.attention[0]
    for sequence in range(4):
        given_up = make_exchange(sequence, BOTH_RANKS)
        port.send(given_up)
        port.drop(given_up)
    refused = make_exchange(4, BOTH_RANKS)
    with pytest.raises(RankLost, match="4 exchanges are unanswered") as caught:
        port.send(refused)
    assert caught.value.ep_ranks == (0, 1)
    port.drop(refused)
    bundles.wait(port)
    with bundles.serving(answer_doubled):
        assert_doubled(port, make_exchange(5, BOTH_RANKS))


def test_a_refusal_outlives_its_bundle(bundles: Bundles) -> None:
    """If one rank refused and another went away, the caller is told what sending again would not change."""
    port = bundles.attention[0]
    exchange = make_exchange(1, BOTH_RANKS)
    port.send(exchange)
    (work,) = take(bundles.experts[0], 1)
    take(bundles.experts[1], 1)
    bundles.experts[0].refuse(work, "not here")
    with pytest.raises(ExpertRefused, match="not here"):
        port.receive(exchange, SOON_S)
    port.drop(exchange)


def test_attempts_continue_where_the_bundle_broke(bundles: Bundles) -> None:
    """After each of several failures the same members form new groups and the rows are right."""
    port = bundles.attention[0]
    for sequence in (1, 3, 5):
        lost = make_exchange(sequence, BOTH_RANKS)
        port.send(lost)
        works = [take(expert, 1)[0] for expert in bundles.experts]
        assert bundles.attention[0]._bundle is not None  # type: ignore[attr-defined]
        bundles.attention[0]._bundle.group.abort()  # type: ignore[attr-defined]
        with pytest.raises(RankLost) as caught:
            port.receive(lost, DEADLINE_S)
        assert caught.value.ep_ranks == (0, 1)
        port.drop(lost)
        for expert, work in zip(bundles.experts, works, strict=True):
            expert.reply(work, work.hidden)  # to a bundle that is gone: ignored
        bundles.wait(port)
        with bundles.serving(answer_doubled):
            assert_doubled(port, make_exchange(sequence + 1, BOTH_RANKS))


@pytest.mark.timeout(120)  # a child process imports torch, which takes seconds on a busy machine
def test_killed_expert_process() -> None:
    """SIGKILL in the middle of an exchange is noticed at once; a replacement joins and serves."""
    bundles = Bundles("gloo", ep_size=1)
    (replacement,) = bundles.experts
    port = bundles.attention[0]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_silent_expert, args=(theirs, port.endpoint), daemon=True)
    child.start()
    assert ours.poll(STARTED_S), "the child never came up"
    port.reconcile({0: ours.recv()})
    bundles.wait(port)
    exchange = make_exchange(1, [[0, 1, 2, 3]], ep_size=1)
    port.send(exchange)
    assert ours.poll(DEADLINE_S), "the child never saw the rows"
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(RankLost):
        port.receive(exchange, 60.0)
    port.drop(exchange)
    child.join(DEADLINE_S)
    bundles.experts = [replacement]
    bundles.connect()
    with bundles.serving(answer_doubled):
        assert_doubled(port, make_exchange(2, [[0, 1, 2, 3]], ep_size=1))
    bundles.close()


def test_nothing_is_left_behind() -> None:
    """Opening and closing bundles leaves no thread and no file descriptor."""
    counts = []
    for _ in range(3):
        bundles = Bundles("gloo", num_attention=2)
        bundles.connect()
        with bundles.serving(answer_doubled):
            assert_doubled(bundles.attention[0], make_exchange(1, BOTH_RANKS))
        bundles.close()
        del bundles
        counts.append((threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))))
    assert counts[2] == counts[1]


def test_listens_on_the_given_address_only(bundles: Bundles) -> None:
    """The store of an attention port is bound to the configured address, not to all of them."""
    host, _, port = bundles.attention[0].endpoint.address.partition("/")[0].rpartition(":")
    assert host == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", int(port)), timeout=DEADLINE_S).close()


@pytest.mark.parametrize("is_connected", [False, True])
def test_close_stops_listening(is_connected: bool) -> None:
    """A closed attention port takes no connection, whoever still holds the object or an error that it raised."""
    bundles = Bundles("gloo")
    if is_connected:
        bundles.connect()
    attention = bundles.attention[0]
    exchange = make_exchange(1, BOTH_RANKS)
    with pytest.raises(TransportError) as held:
        run(attention, exchange, SOON_S)
    bundles.close()
    host, _, port = attention.endpoint.address.partition("/")[0].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=DEADLINE_S).close()
    assert held.value.ep_ranks == (0, 1)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("routing.transport.member.join", KeyError("a bug of the expert end")),
        ("routing.transport.member.connect_store", OSError("no descriptors")),
        ("routing.transport.collective_attention.lead", TypeError("a bug of the attention end")),
        ("routing.transport.collective_attention.bundle_key", OSError("no entropy")),
    ],
)
def test_surprises_do_not_end_a_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str, error: Exception
) -> None:
    """Whatever goes wrong once while a bundle forms is logged with its trace, and the next attempt succeeds."""
    monkeypatch.setattr(place, _failing_once(place, error))
    bundles = Bundles("gloo", ep_size=1)
    bundles.connect()
    with bundles.serving(answer_doubled):
        assert_doubled(bundles.attention[0], make_exchange(1, [[0, 1, 2, 3]], ep_size=1))
    bundles.close()
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]


def test_group_that_cannot_be_used_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a formed group cannot be installed, it is aborted before the next one is formed."""
    events: list[str] = []
    place = "routing.transport.collective_attention._Bundle"
    monkeypatch.setattr(place, _failing_once(place, TypeError("a bug")))
    abort = BundleGroup.abort

    def noted_abort(group: BundleGroup) -> None:
        events.append(threading.current_thread().name)
        abort(group)

    monkeypatch.setattr(BundleGroup, "abort", noted_abort)
    bundles = Bundles("gloo", ep_size=1)
    bundles.connect()
    assert "bundle-keeper" in events
    with bundles.serving(answer_doubled):
        assert_doubled(bundles.attention[0], make_exchange(1, [[0, 1, 2, 3]], ep_size=1))
    bundles.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "mpi"},
        {"kind": "nccl", "device": "cpu"},
        {"kind": "gloo", "device": "cuda:0"},
        {"timeout_s": 0.0},
        {"host": "0.0.0.0"},
        {"host": ""},
        {"capacity_rows": 0},
    ],
)
def test_options_that_cannot_work(settings: dict[str, object]) -> None:
    """Wrong options are refused at birth."""
    with pytest.raises(ValueError, match=r"\w"):
        CollectiveOptions(**settings)  # type: ignore[arg-type]


def test_attention_address_that_is_none(bundles: Bundles) -> None:
    """An endpoint of another transport is logged and left alone; the other bundles are served on."""
    alien = Endpoint("gloo", "no-port-here", "")
    known = [port.endpoint for port in bundles.attention]
    for expert in bundles.experts:
        expert.reconcile([alien, *known], bundles.shards)
    with bundles.serving(answer_doubled):
        assert_doubled(bundles.attention[0], make_exchange(1, BOTH_RANKS))


def test_incomplete_bundle_waits(bundles: Bundles) -> None:
    """With one rank missing from the exact membership nothing connects, and the wait names the ranks."""
    port = bundles.attention[0]
    port.reconcile({0: bundles.experts[0].endpoint, 1: Endpoint("gloo", "nobody", "")})
    with pytest.raises(BundleIncomplete) as caught:
        port.wait_connected([0, 1], SOON_S)
    assert caught.value.ep_ranks == (0, 1)


def _failing_once(place: str, error: Exception) -> Callable[..., object]:
    """What stands at `place`, except that the first call raises."""
    original = resolve_name(place)
    errors = [error]

    def call(*args: object, **settings: object) -> object:
        if errors:
            raise errors.pop()
        return original(*args, **settings)

    return call


def _silent_expert(pipe: object, attention: Endpoint) -> None:
    """A child process: joins as rank 0, tells that rows came, never answers."""
    bundles = Bundles("gloo", ep_size=1, num_attention=0)
    bundles.experts[0].reconcile([attention], bundles.shards)
    pipe.send(bundles.experts[0].endpoint)  # type: ignore[attr-defined]
    take(bundles.experts[0], 1)
    pipe.send("rows")  # type: ignore[attr-defined]
    threading.Event().wait(60.0)
