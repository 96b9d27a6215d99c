"""One shm attention port and its expert ports in the test's own thread: the test plays every part in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import torch

from routing.plan import DispatchPlan
from routing.transport.contract import Exchange, FrameLimits, Work
from routing.transport.shm import ShmAttentionPort, ShmExpertPort

LIMITS = FrameLimits(hidden_size=16, top_k=2, dtype=torch.float32, max_rows=4)
TIMEOUT_S = 5.0
# A wait that must end without an answer.
SHORT_S = 0.02


@contextmanager
def bundle(ep_size: int = 2) -> Iterator[tuple[ShmAttentionPort, list[ShmExpertPort]]]:
    """A connected bundle, closed at the end."""
    with ExitStack() as stack:
        attention = stack.enter_context(closing(ShmAttentionPort(ep_size=ep_size, limits=LIMITS)))
        experts = [
            stack.enter_context(closing(ShmExpertPort(ep_rank=ep_rank, limits=LIMITS))) for ep_rank in range(ep_size)
        ]
        join([attention], experts)
        yield attention, experts


def join(attention: Sequence[ShmAttentionPort], experts: Sequence[ShmExpertPort]) -> None:
    """Publish one view to everybody and wait until it holds."""
    shards = {ep_rank: expert.endpoint for ep_rank, expert in enumerate(experts)}
    for expert in experts:
        expert.reconcile([port.endpoint for port in attention], shards)
    for port in attention:
        port.reconcile(shards)
        port.wait_connected(sorted(shards), TIMEOUT_S)


def exchange(sequence: int, *, ep_size: int = 2, rows: int = 1, per_expert: bool = False) -> Exchange:
    """`rows` rows to every rank, two pairs each; every number is made from the sequence and its place."""
    hidden = torch.arange(rows * LIMITS.hidden_size, dtype=torch.float32).reshape(rows, -1) + 1000 * sequence
    num_pairs = 2 * ep_size * rows
    plan = DispatchPlan(
        row_token=torch.arange(rows).repeat(ep_size),
        row_splits=(rows,) * ep_size,
        pair_row=torch.arange(rows, dtype=torch.int32).repeat_interleave(2).repeat(ep_size),
        pair_slot=torch.arange(num_pairs, dtype=torch.int32) + sequence,
        pair_weight=torch.arange(num_pairs, dtype=torch.float32) / 8,
        pair_source=torch.arange(num_pairs),
        pair_splits=(2 * rows,) * ep_size,
    )
    return Exchange(sequence, 7, 3, sequence % 2, per_expert, hidden, plan)


def receive_one(expert: ShmExpertPort) -> Work:
    """The one Work that must be there."""
    (work,) = expert.receive(TIMEOUT_S)
    return work


def double(expert: ShmExpertPort) -> None:
    """Serve one Work: outputs are twice the rows."""
    work = receive_one(expert)
    expert.reply(work, work.hidden * 2)
