"""What the life of every replica has in common: who it is, how long it waits, how it talks to a coordinator that may be
away. No Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cluster.errors import ClusterError, CoordinatorUnavailable
from cluster.membership import CoordinatorPort, MemberReport, Place
from cluster.view import ClusterView

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0


@dataclass(frozen=True)
class ReplicaSettings:
    """Seconds.

    join_timeout_s: longest wait for a rank and for the choice of a transport. rank_wait_s: one request for a rank waits
    this long, and so renews the asker. drain_timeout_s: time for running requests to end. leave_timeout_s: time for
    saying good-bye. ready_check_s: period in which a warming attention actor is asked whether it is ready.
    report_s: period in which a member tells the coordinator where it stands and what it measured.
    """

    join_timeout_s: float = 300.0
    rank_wait_s: float = 2.0
    drain_timeout_s: float = 20.0
    leave_timeout_s: float = 2.0
    ready_check_s: float = 0.2
    report_s: float = 1.0


@dataclass(frozen=True)
class Identity:
    """Who a replica is. member_id: unique for the life of its process. host_id: equal where memory can be shared.
    place: where that is in Kubernetes."""

    member_id: str
    host_id: str
    place: Place = Place()


async def persist(call: Callable[[], Awaitable[Answer]], timeout_s: float) -> Answer:
    """Ask until the coordinator answers. Raises CoordinatorUnavailable when the time is over."""
    backoff_s = FIRST_BACKOFF_S
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            return await call()
        except CoordinatorUnavailable:
            if asyncio.get_running_loop().time() + backoff_s > deadline:
                raise
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


async def leave(coordinator: CoordinatorPort, member_id: str, timeout_s: float) -> None:
    """Say good-bye if the coordinator is there to hear it; otherwise it will notice the silence."""
    try:
        async with asyncio.timeout(timeout_s):
            await coordinator.leave(member_id)
    except (TimeoutError, CoordinatorUnavailable):
        logger.info("member %s left without telling the coordinator", member_id)


def has_transport(view: ClusterView) -> bool:
    """The condition under which a member can open its port."""
    return view.transport is not None


async def report_forever(
    coordinator: CoordinatorPort, member_id: str, make: Callable[[], MemberReport | None], settings: ReplicaSettings
) -> None:
    """Tell the coordinator what `make` says, period by period; None says nothing. Unheard while it is away."""
    while True:
        await asyncio.sleep(settings.report_s)
        report = make()
        if report is None:
            continue
        try:
            async with asyncio.timeout(settings.leave_timeout_s + settings.report_s):
                await coordinator.report(member_id, report)
        except (TimeoutError, CoordinatorUnavailable) as error:
            logger.debug("a report of %s was not heard: %s", member_id, error)


def check_task(task: asyncio.Task[None] | None, what: str) -> None:
    """Raises ClusterError if a task that should run as long as its replica has ended by itself."""
    if task is not None and task.done() and not task.cancelled():
        raise ClusterError(f"this process no longer {what}") from task.exception()


async def end_task(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait for its end."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
