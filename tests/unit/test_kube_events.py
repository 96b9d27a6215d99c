"""Events: what is written of a notice, how often, and what happens when nothing may be written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import kubernetes_validate
import pytest

from cluster.kube.errors import AccessDenied, KubeUnavailable
from cluster.kube.events import BURST, EventPoster, Subject, event_body
from cluster.kube.queue import MAX_WAITING, NoticeQueue
from cluster.kube.settings import KubernetesConfig
from cluster.notices import Notice, changes
from cluster.view import AttentionMember, ClusterView, Shard, with_attention, with_doomed, with_shard, without_member
from routing.experts import linear_expert_map
from routing.transport.endpoint import Endpoint
from tests.fakes.clock import ManualClock

SUBJECT = Subject("RayService", "demo", "models", reporter="demo-head", uid="uid-demo")
SETTINGS = KubernetesConfig(events_per_minute=6)


class Api:
    """What was written; and the error that the next calls raise."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.patched: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    async def create(self, _path: str, body: dict[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.created.append(body)

    async def patch(self, path: str, body: dict[str, Any]) -> None:
        self.patched.append((path, body))


class Post:
    """A poster with a clock that its sleeps move."""

    def __init__(self) -> None:
        self.api, self.clock, self.queue = Api(), ManualClock(1.8e9), NoticeQueue()
        self.poster = EventPoster(self.queue, SUBJECT, SETTINGS, clock=self.clock, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await asyncio.sleep(0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.poster.run(self.api))  # type: ignore[arg-type]
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def idle(self) -> None:
        for _ in range(400):
            await asyncio.sleep(0)


def notice(number: int = 0) -> Notice:
    return Notice("rank_lost", f"EP rank {number} is lost", f"e{number}", is_warning=True)


def test_the_body_is_an_event() -> None:
    """By Kubernetes' own schema, and by the rules that it does not state: sizes, and one namespace."""
    body = event_body(notice(3), SUBJECT, "demo.1", 1.8e9, count=2)
    kubernetes_validate.validate(body, "1.35", strict=True)
    assert (body["reason"], body["type"], body["note"]) == ("RankLost", "Warning", "EP rank 3 is lost")
    assert body["regarding"] == {
        "apiVersion": "ray.io/v1", "kind": "RayService", "name": "demo", "namespace": "models", "uid": "uid-demo"
    }  # fmt: skip
    assert datetime.fromisoformat(body["eventTime"]).timestamp() == 1.8e9
    assert body["series"]["count"] == 2
    long = event_body(Notice("drift", "x" * 5000), SUBJECT, "demo.2", 1.8e9, num_dropped=7)
    assert len(long["note"]) == 1024
    assert long["note"].endswith("(and 7 more notices that found no room)")
    assert "series" not in long
    assert "uid" not in event_body(notice(), Subject("RayCluster", "c", "n", "r"), "c.1", 1.0)["regarding"]


async def test_equal_notices_are_a_series() -> None:
    """One Event whose count rises; after a quiet time another Event."""
    post = Post()
    async with post.running():
        for _ in range(3):
            post.queue.tell(notice())
            await post.idle()
        assert len(post.api.created) == 1
        name = post.api.created[0]["metadata"]["name"]
        assert [(path.rsplit("/", 1)[1], body["series"]["count"]) for path, body in post.api.patched] == [
            (name, 2),
            (name, 3),
        ]
        post.clock.advance(1000.0)
        post.queue.tell(notice())
        await post.idle()
        assert len(post.api.created) == 2


async def test_what_waits_together_is_written_together() -> None:
    """Before anybody took it."""
    post = Post()
    for _ in range(5):
        post.queue.tell(notice())
    async with post.running():
        await post.idle()
    assert [body["series"]["count"] for body in post.api.created] == [5]


async def test_no_more_than_the_rate() -> None:
    """A burst, then one every ten seconds; what finds no room is counted and told with the next."""
    post = Post()
    for number in range(MAX_WAITING + 20):
        post.queue.tell(notice(number))
    began = post.clock()
    async with post.running():
        await post.idle()
    assert len(post.api.created) == MAX_WAITING
    assert "and 20 more notices" in post.api.created[0]["note"]
    assert not any("more notices" in body["note"] for body in post.api.created[1:])
    seconds = post.clock() - began
    assert seconds == pytest.approx((MAX_WAITING - BURST) * 60.0 / SETTINGS.events_per_minute)


async def test_denied_access_is_said_once_and_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever tells goes on without notice of it, and nothing piles up."""
    post = Post()
    post.api.error = AccessDenied("POST events: access is denied")
    with caplog.at_level(logging.WARNING):
        async with post.running():
            for number in range(200):
                post.queue.tell(notice(number))
                await asyncio.sleep(0)
    assert post.queue.take() is None
    assert caplog.text.count("no Events are written") == 1


async def test_an_event_that_fails_is_given_up() -> None:
    """The next one is written."""
    post = Post()
    post.api.error = KubeUnavailable("status 500")
    async with post.running():
        post.queue.tell(notice(1))
        await post.idle()
        post.api.error = None
        post.queue.tell(notice(2))
        await post.idle()
    assert [body["note"] for body in post.api.created] == ["EP rank 2 is lost"]


def base() -> ClusterView:
    view = ClusterView(0, linear_expert_map(1, 4, 2))
    for rank in range(2):
        view = with_shard(view, rank, Shard(f"e{rank}", Endpoint("shm", f"e{rank}", "h")))
    return with_attention(view, "a0", AttentionMember(Endpoint("shm", "a0", "h")))


@pytest.mark.parametrize(
    ("change", "kinds", "text"),
    [
        (lambda view: without_member(view, "e1"), ["rank_lost"], "EP rank 1 is lost"),
        (lambda view: without_member(view, "a0"), ["member_lost"], "attention actor a0 is gone"),
        (
            lambda view: with_shard(view, 1, Shard("e9", Endpoint("shm", "e9", "h"))),
            ["rank_leased"],
            "EP rank 1 is served by e9",
        ),
        (
            lambda view: with_attention(view, "a1", AttentionMember(Endpoint("shm", "a1", "h"))),
            ["member_joined"],
            "attention actor a1",
        ),
        (
            lambda view: with_attention(view, "a0", AttentionMember(Endpoint("shm", "a0", "h"), is_ready=True)),
            [],
            "",
        ),
        (
            lambda view: with_doomed(view, {"e1": "node n is cordoned"}),
            ["member_doomed"],
            "EP rank 1 is about to go: node n is cordoned",
        ),
    ],
)
def test_notices_of_a_changed_view(change: Callable[[ClusterView], ClusterView], kinds: list[str], text: str) -> None:
    """One for each thing that somebody should know; nothing for what is no news."""
    made = list(changes(base(), change(base())))
    assert [each.kind for each in made] == kinds
    assert text in "".join(each.text for each in made)


def test_a_doom_that_ends_is_told() -> None:
    """If the member is still there; the same doom is not told twice, a new reason is."""
    doomed = with_doomed(base(), {"e1": "one", "a0": "one"})
    assert [each.kind for each in changes(doomed, with_doomed(doomed, {"a0": "two"}))] == [
        "member_doomed",
        "member_spared",
    ]
    gone = with_doomed(without_member(doomed, "e1"), {"a0": "one"})
    assert [each.kind for each in changes(doomed, gone)] == ["rank_lost"]
