"""Starting and stopping a cluster, as far as it goes without Ray: the port, whose applications, failures."""

from __future__ import annotations

import http.client
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import ClusterConfig
from cluster.errors import StartFailed

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

HOST = "127.0.0.1"


def shared_listener(port: int) -> socket.socket:
    """As Ray's proxy listens: it shares its port with whoever asks."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((HOST, port))
    listener.listen()
    return listener


def test_a_port_with_a_listener_is_refused() -> None:
    """Also one that would share it, as another cluster's proxy does."""
    from cluster.start import reserve_port

    with shared_listener(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StartFailed, match=f"port {port} of {HOST} is in use"):
            reserve_port(HOST, port)
    with pytest.raises(StartFailed, match="cannot be listened on"):
        reserve_port("192.0.2.1", port)


def test_a_reserved_port_is_for_our_proxy_alone() -> None:
    """A second cluster is refused even before the first one listens; our own proxy can bind, and connections that it
    has closed do not keep the port from the next run."""
    from cluster.start import reserve_port

    with shared_listener(0) as probe:
        port = probe.getsockname()[1]
    with reserve_port(HOST, port):
        with pytest.raises(StartFailed, match="is in use"):
            reserve_port(HOST, port)
        with shared_listener(port) as listener, socket.create_connection((HOST, port)) as client:
            connection, _ = listener.accept()
            connection.close()
            assert client.recv(1) == b""
    reserve_port(HOST, port).close()


class Serve:
    """Stands for `ray.serve`: applications by name, and what was asked of it."""

    def __init__(self, **statuses: str) -> None:
        self.statuses, self.asked = statuses, list[str]()
        self.error: Exception | None = None

    def status(self) -> Any:
        from ray.serve.schema import ApplicationStatus

        if self.error is not None:
            raise self.error
        known = {name.replace("_", "-"): ApplicationStatus(status) for name, status in self.statuses.items()}
        return SimpleNamespace(
            applications={name: SimpleNamespace(status=status, deployments={}) for name, status in known.items()}
        )

    def get_deployment_handle(self, *_: object) -> None:
        raise KeyError("not registered yet")

    def delete(self, name: str, _blocking: bool = True) -> None:
        assert not _blocking, "it would wait 60 s, however long the drain"
        self.asked.append(f"delete {name}")
        del self.statuses[name.replace("-", "_")]

    def shutdown(self) -> None:
        self.asked.append("shutdown")


def cluster(monkeypatch: pytest.MonkeyPatch, serve: Serve, **ray_fields: Any) -> Any:
    """A RunningCluster over the stand-in, with a Ray that has no Serve controller (any more)."""
    from cluster import start

    def get_actor(*_: object) -> None:
        raise ValueError("no such actor")

    ray = SimpleNamespace(is_initialized=lambda: True, get_actor=get_actor, shutdown=lambda: serve.asked.append("ray"))
    monkeypatch.setattr(start, "serve", serve)
    monkeypatch.setattr(start, "ray", ray)
    monkeypatch.setattr("urllib.request.urlopen", refuse_connection)
    return start.RunningCluster(ClusterConfig.model_validate({"checkpoint": "/a", "ray": ray_fields}))


def refuse_connection(*_: object, **__: object) -> None:
    raise ConnectionRefusedError


def look_once(running: Any) -> bool:
    """One round of waiting until it is ready."""
    stop = threading.Event()
    stop.set()
    return bool(running.wait_ready(lambda _status: None, stop))


@pytest.fixture
def serve() -> Serve:
    """Our two applications run; somebody else's has failed."""
    return Serve(step35="RUNNING", step35_gateway="RUNNING", other="DEPLOY_FAILED")


def test_another_application_is_not_ours_to_judge(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    """Its failure does not end our start; a failure of ours does."""
    running = cluster(monkeypatch, serve, address="auto")
    assert not look_once(running)
    serve.statuses["step35"] = "DEPLOY_FAILED"
    with pytest.raises(StartFailed, match="did not start"):
        look_once(running)


def test_only_our_applications_leave_an_existing_cluster(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    """Gateway, then engine; Serve itself and the other application stay."""
    running = cluster(monkeypatch, serve, address="auto")
    running.close()
    running.close()
    assert serve.asked == ["delete step35-gateway", "delete step35", "ray"]
    assert list(serve.statuses) == ["other"]


def test_a_cluster_of_our_own_is_shut_down(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    """The gateway first, so that its streams end before their proxies do."""
    cluster(monkeypatch, serve).close()
    assert serve.asked == ["delete step35-gateway", "shutdown", "ray"]


def test_a_serve_that_does_not_answer_is_no_failure(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    """Neither while the cluster starts nor when it ends: the deadline decides."""
    from ray.exceptions import RayError

    running = cluster(monkeypatch, serve)
    serve.error = RayError("away")
    assert not look_once(running)
    running.close()
    assert serve.asked[-1] == "ray"


@pytest.mark.parametrize("error", [http.client.BadStatusLine("x"), ConnectionResetError(), TimeoutError()])
def test_a_broken_answer_is_not_ready(monkeypatch: pytest.MonkeyPatch, serve: Serve, error: Exception) -> None:
    """A proxy that starts or ends may answer anything."""

    def urlopen(*_: object, **__: object) -> None:
        raise error

    running = cluster(monkeypatch, serve)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert not running.is_ready()


@pytest.mark.parametrize(("answer", "is_gone"), [(None, False), (ValueError(), True), (TimeoutError(), False)])
async def test_only_a_missing_process_is_dead(
    monkeypatch: pytest.MonkeyPatch, answer: Exception | None, is_gone: bool
) -> None:
    """A cluster that does not answer is no proof of death."""
    from cluster import deploy

    def get_actor(*_: object) -> None:
        if answer is not None:
            raise answer

    monkeypatch.setattr(deploy.ray, "get_actor", get_actor)
    assert await deploy._is_gone("member") is is_gone
