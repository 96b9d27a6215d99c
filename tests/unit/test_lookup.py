"""The gateway's look for the engine's deployments: patient while Serve builds them, and with an end. No Ray runs."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cluster.errors import StartFailed

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NAMES = ("Coordinator", "AttentionActor")


class Serve:
    """Knows each deployment after it has been asked for it so many times."""

    def __init__(self, **num_failures: int) -> None:
        self.num_failures = num_failures
        self.error: Exception = KeyError("does not exist")
        self.asked: list[str] = []

    def get_deployment_handle(self, name: str, app_name: str) -> Any:
        self.asked.append(name)
        if self.asked.count(name) <= self.num_failures.get(name, 0):
            raise self.error
        return f"{app_name}:{name}"


async def find(serve: Serve, timeout_s: float = 5.0) -> Any:
    from cluster.lookup import find_deployments

    return await find_deployments(NAMES, "step35", timeout_s, serve.get_deployment_handle)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.lookup.FIRST_BACKOFF_S", 0.001)


async def test_what_is_there_is_found_at_once() -> None:
    """In the order that was asked for, with one question each."""
    serve = Serve()
    assert await find(serve) == ["step35:Coordinator", "step35:AttentionActor"]
    assert serve.asked == list(NAMES)


async def test_deployments_that_come_later_are_waited_for() -> None:
    """What has been found is not asked for again."""
    serve = Serve(Coordinator=1, AttentionActor=3)
    assert await find(serve) == ["step35:Coordinator", "step35:AttentionActor"]
    assert (serve.asked.count("Coordinator"), serve.asked.count("AttentionActor")) == (2, 4)


async def test_a_controller_that_is_away_is_waited_for() -> None:
    """It may restart just then."""
    from ray.exceptions import RayActorError

    serve = Serve(Coordinator=2)
    serve.error = RayActorError()
    assert len(await find(serve)) == 2


async def test_the_end_names_what_is_missing() -> None:
    """And what to look at; what is there is not named."""
    with pytest.raises(StartFailed) as caught:
        await find(Serve(AttentionActor=10**6), timeout_s=0.02)
    first, second = str(caught.value).splitlines()
    assert first == "Serve has no AttentionActor after 0.02 s"
    assert second == "AttentionActor of application step35: not deployed; look at the status of that application first"


async def test_a_controller_that_never_answers_meets_the_deadline() -> None:
    """The thread that asks is left behind, the gateway is not."""
    from cluster.lookup import find_deployments

    over = threading.Event()

    def hang(_name: str, _app_name: str) -> Any:
        over.wait(5)
        raise KeyError("too late")

    try:
        with pytest.raises(StartFailed, match="does not answer"):
            await find_deployments(("Coordinator",), "step35", 0.02, hang)
    finally:
        over.set()


async def test_a_bug_is_not_waited_for() -> None:
    """Only what may pass by itself is."""
    serve = Serve(Coordinator=1)
    serve.error = TypeError("a bug")
    with pytest.raises(TypeError):
        await find(serve)
