"""An expert process killed in the middle of an exchange is noticed by its hang-up, not by a time-out."""

from __future__ import annotations

import multiprocessing
import signal
import time
from contextlib import closing
from dataclasses import asdict
from multiprocessing.connection import Connection

import pytest

from routing.errors import RankLost
from routing.transport.contract import Endpoint
from routing.transport.shm import ShmAttentionPort, ShmExpertPort
from tests.unit.shm_bundle import LIMITS, exchange

TIMEOUT_S = 60.0


def _hold_one_request(pipe: Connection) -> None:
    """Take one request, say so, and never answer it."""
    with closing(ShmExpertPort(ep_rank=0, limits=LIMITS)) as port:
        pipe.send(asdict(port.endpoint))
        port.reconcile([Endpoint(**pipe.recv())], {})
        port.receive(TIMEOUT_S)
        pipe.send("taken")
        pipe.recv()


def test_killed_expert_is_lost_before_the_deadline() -> None:
    """SIGKILL while the rank owes an answer: RankLost, long before the deadline of the receive."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_hold_one_request, args=(theirs,), daemon=True)
    process.start()
    try:
        with closing(ShmAttentionPort(ep_size=1, limits=LIMITS)) as attention:
            endpoint = Endpoint(**ours.recv())
            ours.send(asdict(attention.endpoint))
            attention.reconcile({0: endpoint})
            attention.wait_connected([0], TIMEOUT_S)
            sent = exchange(0, ep_size=1)
            attention.send(sent)
            assert ours.recv() == "taken"
            deadline = time.monotonic() + TIMEOUT_S
            process.kill()
            with pytest.raises(RankLost) as error:
                attention.receive(sent, TIMEOUT_S)
            assert error.value.ep_ranks == (0,)
            assert time.monotonic() < deadline - TIMEOUT_S / 2
            attention.drop(sent)
            assert attention.connected() == frozenset()
    finally:
        process.kill()
        process.join(TIMEOUT_S)
    assert process.exitcode == -signal.SIGKILL
