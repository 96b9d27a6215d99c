"""NCCL with one GPU: the groups of a bundle form, carry a payload to ourselves, and can be aborted."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
from torch.distributed import HashStore  # noqa: TID251 - a store of our own for one rank

from routing.transport.collective import CollectiveOptions
from routing.transport.group import BundleGroup, Direction, Posted

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WAIT_S = 30.0


@pytest.fixture
def group() -> BundleGroup:
    options = CollectiveOptions(kind="nccl", device="cuda:0", timeout_s=WAIT_S)
    return BundleGroup(HashStore(), 0, 1, options)


@pytest.mark.parametrize("direction", list(Direction))
def test_a_payload_reaches_ourselves(group: BundleGroup, direction: Direction) -> None:
    """A grouped send and receive on the direction's communicator moves the bytes unchanged."""
    sent = torch.arange(1 << 16, device="cuda:0").to(torch.uint8)
    received = torch.zeros_like(sent)
    nccl = group._payload[direction]
    nccl._start_coalescing()  # a send to oneself waits for its receive, so both go out as one launch
    nccl.send([sent], 0, 0)
    nccl.recv([received], 0, 0)
    Posted([nccl._end_coalescing()], [sent, received]).wait(time.monotonic() + WAIT_S)
    assert torch.equal(received, sent)
    group.abort()


def test_abort_is_idempotent(group: BundleGroup) -> None:
    """A group that carried nothing can be aborted, twice."""
    group.abort()
    group.abort()


def test_two_groups_live_side_by_side() -> None:
    """Bundles come and go on their own: aborting one leaves the other working."""
    options = CollectiveOptions(kind="nccl", device="cuda:0", timeout_s=WAIT_S)
    first, second = BundleGroup(HashStore(), 0, 1, options), BundleGroup(HashStore(), 0, 1, options)
    first.abort()
    nccl = second._payload[Direction.DISPATCH]
    tensor = torch.ones(8, device="cuda:0")
    received = torch.zeros_like(tensor)
    nccl._start_coalescing()
    nccl.send([tensor], 0, 0)
    nccl.recv([received], 0, 0)
    nccl._end_coalescing().wait(timedelta(seconds=WAIT_S))
    assert torch.equal(received, tensor)
    second.abort()
