"""The session with Kubernetes, by the real client over real HTTP: what is followed, whatever the server does.

What must never happen: a busy loop (requests are counted), a state that stays behind, a failure that reaches the
coordinator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kubernetes.aio import client

from cluster.config import PodEnvironment
from cluster.errors import ConfigurationError
from cluster.kube import follower
from cluster.kube.api import KubeApi
from cluster.kube.observer import KubeObserver
from cluster.kube.queue import NoticeQueue
from cluster.kube.session import KubeSession
from cluster.kube.settings import KubernetesConfig
from cluster.membership import Place
from cluster.notices import Notice
from cluster.surroundings import Surroundings
from tests.fakes.kubernetes_api import FakeKubernetes, Raw

POD = PodEnvironment("head-pod", "head-node", "models", "demo-raycluster", "demo")
FAST = KubernetesConfig(
    call_timeout_s=1.0, watch_s=1.0, first_backoff_s=0.05, max_backoff_s=0.2, denied_retry_s=30.0, events_per_minute=60
)
WAIT_S = 8.0
CORDONED = {"spec": {"unschedulable": True}}


class Heard:
    """What the coordinator was told last."""

    def __init__(self) -> None:
        self.surroundings = Surroundings()
        self.num_told = 0

    async def note(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.num_told += 1

    @property
    def doomed(self) -> set[str]:
        return {*self.surroundings.doomed_nodes, *self.surroundings.doomed_pods}


@pytest.fixture
def kubernetes() -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as server:
        server.put("nodes", "n0")
        server.put("nodes", "n1")
        server.put("pods", "p0", spec={"nodeName": "n0"})
        yield server


@asynccontextmanager
async def session(
    server: FakeKubernetes,
    settings: KubernetesConfig = FAST,
    queue: NoticeQueue | None = None,
    pod: PodEnvironment = POD,
) -> AsyncIterator[Heard]:
    """A session that runs meanwhile, and must still run in the end."""
    heard = Heard()

    def connect(config: KubernetesConfig) -> KubeApi:
        return KubeApi(client.Configuration(host=server.url, api_key={"BearerToken": "bearer secret"}), config)

    running = KubeSession(settings, pod, queue or NoticeQueue(), heard.note, connect=connect)
    task = asyncio.create_task(running.run())
    try:
        yield heard
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(is_met: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_met():  # noqa: ASYNC110 - what is waited for happens on the server's threads
            await asyncio.sleep(0.01)


async def test_what_is_there_and_what_changes(kubernetes: FakeKubernetes) -> None:
    """Lists, then events of watches; the pods of this RayCluster alone; what is over is forgotten."""
    kubernetes.put("nodes", "n1", **CORDONED)
    async with session(kubernetes) as heard:
        await until(lambda: heard.doomed == {"n1"})
        await until(lambda: kubernetes.num_watches("nodes") == kubernetes.num_watches("pods") == 1)
        kubernetes.put("pods", "p0", metadata={"deletionTimestamp": "2026-11-28T08:45:00Z"})
        await until(lambda: heard.doomed == {"n1", "p0"})
        assert heard.surroundings.doomed_pods["p0"].deadline == 1795855500.0
        kubernetes.put("nodes", "n1")
        kubernetes.remove("pods", "p0")
        await until(lambda: heard.doomed == set())
        kubernetes.remove("nodes", "n0")
        await until(lambda: heard.surroundings.doom_of(Place("p0", "n0")) is not None)
    for query in (*kubernetes.asked("list", "pods"), *kubernetes.asked("watch", "pods")):
        assert query["labelSelector"] == "ray.io/cluster=demo-raycluster"


async def test_changes_that_mean_nothing_are_not_told(kubernetes: FakeKubernetes) -> None:
    """A node's heartbeat, another pod: the coordinator hears nothing."""
    async with session(kubernetes) as heard:
        await until(lambda: heard.num_told > 0 and kubernetes.num_watches("nodes") == 1)
        num_told = heard.num_told
        for _ in range(20):
            kubernetes.put("nodes", "n0", status={"conditions": [{"type": "Ready", "status": "True"}]})
            kubernetes.put("pods", "p7", spec={"nodeName": "n0"})
        await asyncio.sleep(0.3)
        assert heard.num_told == num_told


async def test_a_watch_goes_on_from_its_bookmark(kubernetes: FakeKubernetes) -> None:
    """The next watch begins there, without a list."""
    async with session(kubernetes):
        await until(lambda: kubernetes.num_watches("nodes") == 1)
        version = kubernetes.bookmark("nodes")
        await asyncio.sleep(0.1)
        kubernetes.send("nodes", None)
        await until(lambda: len(kubernetes.asked("watch", "nodes")) >= 2)
    first, second = kubernetes.asked("watch", "nodes")[:2]
    assert first["allowWatchBookmarks"] == "true"
    assert second["resourceVersion"] == str(version)
    assert len(kubernetes.asked("list", "nodes")) == 1


async def test_lists_come_in_pages(kubernetes: FakeKubernetes) -> None:
    """All of them count."""
    kubernetes.page_size = 2
    for number in range(7):
        kubernetes.put("nodes", f"more{number}", **CORDONED)
    async with session(kubernetes) as heard:
        await until(lambda: len(heard.surroundings.domains or ()) == 9)
        assert len(heard.doomed) == 7
    assert len(kubernetes.asked("list", "nodes")) == 5


async def test_a_version_that_is_too_old(kubernetes: FakeKubernetes) -> None:
    """410 in the middle of a watch: a new list; what happened in between is seen."""
    async with session(kubernetes) as heard:
        await until(lambda: kubernetes.num_watches("nodes") == 1)
        gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}
        kubernetes.send("nodes", gone)
        kubernetes._objects["nodes"]["n0"]["spec"] = {"unschedulable": True}  # an event that nobody heard
        await until(lambda: heard.doomed == {"n0"})
    assert len(kubernetes.asked("list", "nodes")) == 2


@pytest.mark.parametrize(
    ("garbage", "num_lists"),
    [
        (Raw(b'{"type": "MODI'), 1),  # it comes again
        (Raw(b'{"type": "MODI', is_cut=False), 1),
        (Raw(b"{]\n"), 2),  # nobody knows what was missed
        (Raw(b'{"type": "MODIFIED", "object": 7}\n'), 2),
        (Raw(b"[]\n"), 2),
    ],
)
async def test_a_stream_that_breaks(kubernetes: FakeKubernetes, garbage: Raw, num_lists: int) -> None:
    """In the middle of a line, or with a line that is none: the state is right again afterwards."""
    async with session(kubernetes) as heard:
        await until(lambda: kubernetes.num_watches("nodes") == 1)
        kubernetes.send("nodes", garbage)
        await until(lambda: len(kubernetes.asked("watch", "nodes")) >= 2)
        kubernetes.put("nodes", "n1", **CORDONED)
        await until(lambda: heard.doomed == {"n1"})
    assert len(kubernetes.asked("list", "nodes")) == num_lists


async def test_access_to_nodes_is_denied(kubernetes: FakeKubernetes, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, pods go on to be followed, and nodes are not asked for again soon. Nobody is missed."""
    kubernetes.rights -= {("list", "nodes"), ("watch", "nodes")}
    kubernetes.put("pods", "p0", metadata={"deletionTimestamp": "2026-11-28T08:45:00Z"})
    with caplog.at_level(logging.WARNING):
        async with session(kubernetes) as heard:
            await until(lambda: heard.doomed == {"p0"})
            await asyncio.sleep(0.5)
            assert heard.surroundings.domains is None
            assert heard.surroundings.doom_of(Place("p9", "n9")) is None
    assert len(kubernetes.asked("list", "nodes")) == 1
    assert [record.message for record in caplog.records if "nodes" in record.message] == [
        "nodes are not followed: the service account may not list and watch them"
    ]


async def test_denied_access_is_asked_for_again(kubernetes: FakeKubernetes) -> None:
    """After its time; then everything is there. Where only watching is denied, what was listed stays."""
    kubernetes.rights -= {("list", "nodes")}
    settings = FAST.model_copy(update={"denied_retry_s": 0.2})
    async with session(kubernetes, settings) as heard:
        await until(lambda: len(kubernetes.asked("list", "nodes")) >= 2)
        kubernetes.put("nodes", "n1", **CORDONED)
        kubernetes.rights |= {("list", "nodes")}
        kubernetes.rights -= {("watch", "nodes")}
        await until(lambda: heard.doomed == {"n1"})
        num_lists, num_told = len(kubernetes.asked("list", "nodes")), heard.num_told
        await until(lambda: len(kubernetes.asked("list", "nodes")) >= num_lists + 2)
        assert (heard.doomed, heard.num_told) == ({"n1"}, num_told)


@pytest.mark.parametrize("trouble", ["gone", "ends", "errors", "down"])
async def test_no_trouble_makes_a_busy_loop(kubernetes: FakeKubernetes, trouble: str) -> None:
    """410 for each watch, watches that end at once, 500 for everything, a server that is away: a few requests only."""
    settings = FAST.model_copy(update={"first_backoff_s": 0.1, "max_backoff_s": 10.0})
    kubernetes.is_watch_gone = trouble == "gone"
    kubernetes.ends_watches_at_once = trouble == "ends"
    kubernetes.next_statuses = [500] * 1000 if trouble == "errors" else []
    if trouble == "down":
        kubernetes._server.server_close()
    async with session(kubernetes, settings):
        await asyncio.sleep(1.5)
    # Waits of at least 0.05, 0.1, 0.2, 0.4 and 0.8 s lie between; each round is a list and a watch at most.
    for kind in ("nodes", "pods"):
        num_asked = len(kubernetes.asked("list", kind)) + len(kubernetes.asked("watch", kind))
        assert num_asked <= 12, trouble
        assert num_asked >= 2 or trouble in ("errors", "down")


async def test_a_server_that_asks_for_time_gets_it(kubernetes: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After: nobody asks again before."""
    monkeypatch.setattr(
        "tests.fakes.kubernetes_api._Handler.end_headers", lambda handler: _with_retry_after(handler, "3")
    )
    kubernetes.next_statuses = [429] * 100
    async with session(kubernetes):
        await asyncio.sleep(1.0)
    assert len(kubernetes.asked("list", "nodes")) == len(kubernetes.asked("list", "pods")) == 1


async def test_a_slow_server_is_given_up_in_time(kubernetes: FakeKubernetes) -> None:
    """An answer later than the deadline is none; when the server is quick again everything is seen."""
    kubernetes.delay_s = 1.0
    settings = FAST.model_copy(update={"call_timeout_s": 0.2})
    async with session(kubernetes, settings) as heard:
        await until(lambda: len(kubernetes.asked("list", "nodes")) >= 2)
        assert heard.num_told == 0
        kubernetes.delay_s = 0.0
        kubernetes.put("nodes", "n1", **CORDONED)
        await until(lambda: heard.doomed == {"n1"})


async def test_a_connection_that_says_nothing_is_given_up(
    kubernetes: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server forgets a watch without ending it: after the watch's time another one is opened."""
    monkeypatch.setattr("cluster.kube.api.WATCH_SLACK_S", 0.1)
    async with session(kubernetes):
        await until(lambda: len(kubernetes.asked("watch", "nodes")) >= 2)
    assert len(kubernetes.asked("list", "nodes")) == 1
    assert kubernetes.asked("watch", "nodes")[0]["timeoutSeconds"] == "1"


async def test_what_is_kept_is_bounded(kubernetes: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    """More nodes than that: some are followed, and none is called missing."""
    monkeypatch.setattr(follower, "MAX_OBJECTS", 4)
    kubernetes.page_size = 2
    for number in range(8):
        kubernetes.put("nodes", f"more{number}", **CORDONED)
    async with session(kubernetes) as heard:
        await until(lambda: bool(heard.doomed))
        assert len(heard.doomed) <= 4
        assert heard.surroundings.domains is None


async def test_a_line_without_end_is_refused(kubernetes: FakeKubernetes) -> None:
    """Nobody's memory is filled; the watch is opened anew."""
    async with session(kubernetes):
        await until(lambda: kubernetes.num_watches("nodes") == 1)
        kubernetes.send("nodes", Raw(b"x" * (6 * 2**20)))
        await until(lambda: len(kubernetes.asked("watch", "nodes")) >= 2)
    assert len(kubernetes.asked("list", "nodes")) == 2, "the same line would come again after the same version"


async def test_an_object_that_cannot_be_read_is_left_out(kubernetes: FakeKubernetes) -> None:
    """The others are seen."""
    kubernetes.put("nodes", "n0", spec={"taints": "none"})
    kubernetes.put("nodes", "n1", **CORDONED)
    async with session(kubernetes) as heard:
        await until(lambda: heard.doomed == {"n1"})


async def test_nothing_is_left_when_it_ends(kubernetes: FakeKubernetes) -> None:
    """Open watches are hung up; the server notices with the next thing it sends."""
    async with session(kubernetes):
        await until(lambda: kubernetes.num_watches("nodes") == kubernetes.num_watches("pods") == 1)
    for _ in range(3):
        kubernetes.bookmark("nodes")
        kubernetes.bookmark("pods")
        await asyncio.sleep(0.1)
    await until(lambda: kubernetes.num_watches("nodes") == kubernetes.num_watches("pods") == 0)


async def test_only_what_is_asked_for_is_followed(kubernetes: FakeKubernetes) -> None:
    """Neither nodes nor Events by configuration; no pods without a RayCluster to look for."""
    settings = FAST.model_copy(update={"nodes": False, "events": False})
    kubernetes.put("pods", "p0", metadata={"deletionTimestamp": "2026-11-28T08:45:00Z"})
    async with session(kubernetes, settings) as heard:
        await until(lambda: heard.doomed == {"p0"})
    assert {kind for _, kind, _ in kubernetes.requests} == {"pods"}
    kubernetes.requests.clear()
    async with session(kubernetes, pod=PodEnvironment()):
        await until(lambda: kubernetes.num_watches("nodes") == 1)
    assert {kind for _, kind, _ in kubernetes.requests} == {"nodes"}


async def test_notices_become_events(kubernetes: FakeKubernetes) -> None:
    """About the RayService, with its uid; told again, the same Event has a series."""
    queue = NoticeQueue()
    async with session(kubernetes, queue=queue):
        for number in (1, 2):
            queue.tell(Notice("rank_lost", "EP rank 3 is lost", is_warning=True))
            sent = "create" if number == 1 else "patch"
            await until(lambda verb=sent: len(kubernetes.asked(verb, "events")) == 1)  # type: ignore[misc]
        await until(lambda: any("series" in event for event in kubernetes.events.values()))
    (event,) = kubernetes.events.values()
    assert (event["reason"], event["note"], event["series"]["count"]) == ("RankLost", "EP rank 3 is lost", 2)
    assert (event["regarding"]["name"], event["regarding"]["uid"]) == ("demo", "uid-demo")


class TestObserver:
    """Whether there is a session at all."""

    def test_outside_of_kubernetes_it_is_off(self, tmp_path: Path) -> None:
        """Silently; what it is told goes nowhere."""
        observer = KubeObserver(KubernetesConfig(), PodEnvironment(), token=tmp_path / "token")
        observer.tell(Notice("drift", "x"))
        assert not observer.is_on
        assert observer._queue.take() is None

    def test_it_can_be_demanded_and_forbidden(self, tmp_path: Path) -> None:
        """on without a token stops the start; off with one does nothing. YAML's booleans are understood."""
        with pytest.raises(ConfigurationError, match=r"kubernetes\.enabled is on"):
            KubeObserver(KubernetesConfig(enabled="on"), POD, token=tmp_path / "token")
        (tmp_path / "token").write_text("secret")
        assert KubeObserver(KubernetesConfig(), POD, token=tmp_path / "token").is_on
        off = KubernetesConfig.model_validate({"enabled": False})
        assert not KubeObserver(off, POD, token=tmp_path / "token").is_on

    async def test_a_session_that_fails_is_only_logged(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A token without a cluster around it: the coordinator goes on."""
        (tmp_path / "token").write_text("secret")
        observer = KubeObserver(KubernetesConfig(), POD, token=tmp_path / "token")
        observer.start(Heard().note)
        await until(lambda: "watching Kubernetes has ended" in caplog.text)
        observer.tell(Notice("drift", "x"))
        await observer.close()
        await observer.close()


def _with_retry_after(handler: object, seconds: str) -> None:
    from http.server import BaseHTTPRequestHandler

    assert isinstance(handler, BaseHTTPRequestHandler)
    handler.send_header("Retry-After", seconds)
    BaseHTTPRequestHandler.end_headers(handler)
