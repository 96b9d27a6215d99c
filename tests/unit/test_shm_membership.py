"""Who is let in, who is turned away with which sentence, and what a replaced rank looks like."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from routing.errors import BundleIncomplete, RankLost
from routing.transport.contract import Endpoint, FrameLimits
from routing.transport.host import host_id
from routing.transport.shm import ShmAttentionPort, ShmExpertPort
from tests.unit.shm_bundle import LIMITS, SHORT_S, TIMEOUT_S, bundle, double, exchange, join, receive_one

HELLO_BYTES = 160
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2


def test_several_bundles_share_an_expert() -> None:
    """One receive returns the work of every bundle; each answer goes home to its own."""
    with (
        closing(ShmExpertPort(ep_rank=0, limits=LIMITS)) as expert,
        closing(ShmAttentionPort(ep_size=1, limits=LIMITS)) as first,
        closing(ShmAttentionPort(ep_size=1, limits=LIMITS)) as second,
    ):
        join([first, second], [expert])
        sent = {port: exchange(sequence, ep_size=1) for sequence, port in enumerate((first, second))}
        for port in sent:
            port.send(sent[port])
        works = expert.receive(TIMEOUT_S)
        assert len({work.bundle for work in works}) == 2
        for work in reversed(works):
            expert.reply(work, work.hidden + 1)
        for port in sent:
            assert torch.equal(port.receive(sent[port], TIMEOUT_S)[0], sent[port].hidden + 1)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hidden_size": 32}, "hidden_size 32, this rank has 16"),
        ({"max_rows": 8}, "max_rows 8, this rank has 4"),
        ({"top_k": 3}, "top_k"),
        ({"dtype": torch.float16}, "dtype"),
        ({"max_in_flight": 3}, "max_in_flight 3, this rank has 2"),
    ],
)
def test_other_limits_are_turned_away(change: dict[str, object], field: str) -> None:
    """The sentence that reaches `wait_connected` names the field and both numbers."""
    limits: FrameLimits = replace(LIMITS, **change)
    with (
        closing(ShmExpertPort(ep_rank=0, limits=LIMITS)) as expert,
        closing(ShmAttentionPort(ep_size=1, limits=limits)) as attention,
    ):
        expert.reconcile([attention.endpoint], {})
        attention.reconcile({0: expert.endpoint})
        with pytest.raises(BundleIncomplete, match=f"limits differ.*{field}"):
            attention.wait_connected([0], 0.2)


def test_wrong_rank_is_turned_away() -> None:
    """An endpoint published under another rank is noticed by the rank itself."""
    with (
        closing(ShmExpertPort(ep_rank=1, limits=LIMITS)) as expert,
        closing(ShmAttentionPort(ep_size=2, limits=LIMITS)) as attention,
    ):
        expert.reconcile([attention.endpoint], {})
        attention.reconcile({0: expert.endpoint})
        with pytest.raises(BundleIncomplete, match="this is expert rank 1, not 0"):
            attention.wait_connected([0], 0.2)


def test_bundle_waits_at_the_door_until_the_view_lists_it() -> None:
    """An attention actor that knows the rank before the rank knows it connects without a retry."""
    with (
        closing(ShmExpertPort(ep_rank=0, limits=LIMITS)) as expert,
        closing(ShmAttentionPort(ep_size=1, limits=LIMITS)) as attention,
    ):
        attention.reconcile({0: expert.endpoint})
        with pytest.raises(BundleIncomplete, match="not admitted yet"):
            attention.wait_connected([0], 0.1)
        expert.reconcile([attention.endpoint], {})
        attention.wait_connected([0], TIMEOUT_S)


def test_endpoint_that_shares_no_memory_is_named() -> None:
    """An endpoint of another host or transport is missing with its reason, not an error of `reconcile`."""
    with closing(ShmAttentionPort(ep_size=2, limits=LIMITS)) as attention:
        attention.reconcile({0: Endpoint("shm", "step35-x", "elsewhere"), 1: Endpoint("gloo", "x", host_id())})
        with pytest.raises(BundleIncomplete, match=r"0: its shm endpoint shares no memory.*1: its gloo") as missing:
            attention.wait_connected([0, 1], SHORT_S)
        assert missing.value.ep_ranks == (0, 1)
        with pytest.raises(ValueError, match=r"\[2\]"):
            attention.reconcile({2: Endpoint("shm", "step35-x", host_id())})


def test_replaced_rank_gets_a_new_link() -> None:
    """A lost rank ends its exchange; another endpoint under the same rank is connected and serves."""
    with bundle() as (attention, experts):
        lost = exchange(0)
        attention.send(lost)
        double(experts[0])
        experts[1].close()
        with pytest.raises(RankLost) as error:
            attention.receive(lost, TIMEOUT_S)
        assert error.value.ep_ranks == (1,)
        attention.drop(lost)
        with pytest.raises(BundleIncomplete):
            attention.send(exchange(1))
        with closing(ShmExpertPort(ep_rank=1, limits=LIMITS)) as replacement:
            join([attention], [experts[0], replacement])
            again = exchange(2)
            attention.send(again)
            double(experts[0])
            double(replacement)
            assert all(torch.equal(out, again.hidden * 2) for out in attention.receive(again, TIMEOUT_S))


def test_incomplete_bundle_sends_nothing() -> None:
    """When one rank is missing, the ranks that are there get no row either."""
    with bundle() as (attention, experts):
        attention.reconcile({0: experts[0].endpoint})
        with pytest.raises(BundleIncomplete, match="1: not in the view") as error:
            attention.send(exchange(0))
        assert error.value.ep_ranks == (1,)
        assert experts[0].receive(SHORT_S) == []


def test_dropped_bundle_is_lost_and_comes_back() -> None:
    """A rank whose view no longer lists the bundle hangs up; listed again, it is served again by the same endpoint."""
    with bundle(ep_size=1) as (attention, (expert,)):
        sent = exchange(0, ep_size=1)
        attention.send(sent)
        work = receive_one(expert)
        expert.reconcile([], {})
        with pytest.raises(RankLost):
            attention.receive(sent, TIMEOUT_S)
        expert.reply(work, work.hidden)  # ignored: the bundle is gone
        attention.drop(sent)
        join([attention], [expert])
        again = exchange(1, ep_size=1)
        attention.send(again)
        double(expert)
        assert torch.equal(attention.receive(again, TIMEOUT_S)[0], again.hidden * 2)


def _hello(*, magic: int = 0x53335348, version: int = 1) -> bytes:
    """The start of a good hello, with limits of zeros."""
    return struct.pack("<IIiI64s", magic, version, 0, 0, b"step35-stranger").ljust(HELLO_BYTES, b"\0")


def _answer_to(expert: ShmExpertPort, hello: bytes, fds: list[int]) -> str:
    """What the expert says to a hand-made hello before it hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(TIMEOUT_S)
        peer.connect(b"\0" + expert.endpoint.address.encode())
        socket.send_fds(peer, [hello], fds)
        welcome = peer.recv(4096)
        assert peer.recv(1) == b"", "the expert must hang up"
    assert struct.unpack_from("<I", welcome, 8) == (0,), "the expert must not admit"
    return welcome[12:].split(b"\0", 1)[0].decode()


def test_strangers_are_turned_away() -> None:
    """Garbage, another version, missing descriptors: one sentence each, and the next bundle is served as ever."""
    with bundle(ep_size=1) as (attention, (expert,)):
        fd = os.memfd_create("stranger")
        try:
            assert "not one of this protocol" in _answer_to(expert, b"GET / HTTP/1.1", [])
            assert "not one of this protocol" in _answer_to(expert, _hello(), [fd])
            assert "not one of this protocol" in _answer_to(expert, _hello(magic=1), [fd, fd])
            assert "version 9" in _answer_to(expert, _hello(version=9), [fd, fd])
            assert "limits differ" in _answer_to(expert, _hello(), [fd, fd])
        finally:
            os.close(fd)
        sent = exchange(0, ep_size=1)
        attention.send(sent)
        double(expert)
        attention.receive(sent, TIMEOUT_S)


@pytest.mark.parametrize(("is_sealed", "fault"), [(False, "not sealed"), (True, "smaller than agreed")])
def test_memory_that_could_fault_is_turned_away(is_sealed: bool, fault: str) -> None:
    """Memory that can shrink, or is too small, would turn a read into SIGBUS: it is not mapped."""
    with (
        closing(ShmExpertPort(ep_rank=0, limits=LIMITS)) as expert,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        closing(ShmAttentionPort(ep_size=1, limits=LIMITS)) as attention,
    ):
        # A listener in the rank's place collects a hello with the right limits, to be sent with other memory.
        listener.settimeout(TIMEOUT_S)
        listener.bind(b"\0" + expert.endpoint.address.encode() + b"-copy")
        listener.listen()
        attention.reconcile({0: replace(expert.endpoint, address=expert.endpoint.address + "-copy")})
        peer, _ = listener.accept()
        with peer:
            hello, fds, _, _ = socket.recv_fds(peer, 4096, 4)
        memory = os.memfd_create("small", os.MFD_ALLOW_SEALING)
        os.ftruncate(memory, mmap.PAGESIZE)
        try:
            if is_sealed:
                fcntl.fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK)
            assert fault in _answer_to(expert, hello, [memory, fds[1]])
        finally:
            for fd in (memory, *fds):
                os.close(fd)


def test_host_id_is_stable_and_names_the_namespaces() -> None:
    """Same process, same id; it contains what must match for an abstract socket to be reachable."""
    assert host_id() == host_id()
    assert os.readlink("/proc/self/ns/net") in host_id()
    assert os.readlink("/proc/self/ns/ipc") in host_id()
