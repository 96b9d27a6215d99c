"""The coordinator and the engine behind handles: what becomes of refusals, silence and missing actors. No Ray runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.messages import ErrorKind, GenerateRequest, SamplingSpec, TokenEvent
from cluster.errors import ClusterError, CoordinatorUnavailable, NotReady
from cluster.view import AttentionMember, ClusterView, Shard, with_attention, with_shard
from routing.experts import linear_expert_map
from routing.transport.endpoint import Endpoint

# Ray's own, of pydantic and others, when it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

HERE = Endpoint("shm", "x", "host")
EMPTY = ClusterView(0, linear_expert_map(1, 4, 1))
SERVING = with_attention(with_shard(EMPTY, 0, Shard("e0", HERE)), "a0", AttentionMember(HERE, is_ready=True))


class Response:
    """What a handle's call returns: raises the error, or never answers."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error
        self.is_cancelled = False
        self.was_asked = asyncio.Event()

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> None:
        self.was_asked.set()
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()

    def cancel(self) -> None:
        self.is_cancelled = True


class Answered(Response):
    """One that answers None."""

    def __init__(self) -> None:
        super().__init__(None)

    async def _answer(self) -> None:
        return


class Handle:
    """A deployment handle whose every method returns the same response."""

    def __init__(self, response: object) -> None:
        self._response = response

    def __getattr__(self, _name: str) -> Any:
        return self

    def options(self, **_options: object) -> Any:
        return self

    def remote(self, *_args: object, **_kwargs: object) -> object:
        return self._response


class RefusingHandle(Handle):
    """One whose calls fail before there is a response."""

    def __init__(self, error: Exception) -> None:
        super().__init__(None)
        self._error = error

    def remote(self, *_args: object, **_kwargs: object) -> object:
        raise self._error


class Watched:
    """A watcher that stands still."""

    def __init__(self, view: ClusterView | None, silence_s: float = 0.0) -> None:
        self.view, self.silence_s = view, silence_s


def raised_in_task(cause: Exception) -> Exception:
    """As Ray raises it at the caller: of the cause's class too."""
    from ray.exceptions import RayTaskError

    error = RayTaskError("join_attention", "trace", cause).as_instanceof_cause()
    assert isinstance(error, Exception)
    return error


async def call(error: Exception | None) -> None:
    from cluster.handles import RemoteCoordinator

    response = Response(error)
    try:
        await RemoteCoordinator(Handle(response), 0.01).leave("a0")  # type: ignore[arg-type]
    finally:
        assert response.is_cancelled


@pytest.mark.parametrize("cause", [ValueError("shm needs one host"), ClusterError("shm needs one host")])
async def test_a_refusal_is_told_and_not_repeated(cause: Exception) -> None:
    """The coordinator's sentence arrives, as a failure that nobody takes for an outage."""
    with pytest.raises(ClusterError, match="refuses leave: shm needs one host") as caught:
        await call(raised_in_task(cause))
    assert not isinstance(caught.value, CoordinatorUnavailable)


@pytest.mark.parametrize("error", [None, raised_in_task(KeyError("x"))])
async def test_no_answer_is_an_outage(error: Exception | None) -> None:
    """A call that never returns, and one that fails for no named reason."""
    with pytest.raises(CoordinatorUnavailable):
        await call(error)


def engine(watched: Watched) -> Any:
    from cluster.handles import RemoteEngine

    return RemoteEngine(Handle(None), watched, max_silence_s=20)  # type: ignore[arg-type]


@pytest.mark.parametrize("view", [None, EMPTY])
async def test_without_attention_a_request_fails_at_once(view: ClusterView | None) -> None:
    """The API answers with 503; Serve would hold the request until a replica came."""
    request = GenerateRequest("r1", (1, 2), SamplingSpec(max_tokens=3))
    with pytest.raises(NotReady):
        await anext(engine(Watched(view)).generate(request))


class Refused:
    """A stream that Serve's queue had no room for."""

    is_cancelled = False

    async def __anext__(self) -> TokenEvent:
        from ray.serve.exceptions import BackPressureError

        raise BackPressureError(num_queued_requests=9, max_queued_requests=9)

    def cancel(self) -> None:
        self.is_cancelled = True


async def test_a_full_queue_of_serve_is_an_overload() -> None:
    """The client is told to come again (429), not that a server is gone."""
    from cluster.handles import RemoteEngine

    refused = Refused()
    remote = RemoteEngine(Handle(refused), Watched(SERVING), max_silence_s=20)  # type: ignore[arg-type]
    request = GenerateRequest("r1", (1, 2), SamplingSpec(max_tokens=3))
    events = [event async for event in remote.generate(request)]
    assert [event.error.kind for event in events if event.error is not None] == [ErrorKind.OVERLOADED]
    assert refused.is_cancelled


def raised_by_the_call() -> list[tuple[Exception, ErrorKind]]:
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, RayServeException

    return [
        (BackPressureError(num_queued_requests=9, max_queued_requests=9), ErrorKind.OVERLOADED),
        (RayServeException("Serve has been shut down"), ErrorKind.UNAVAILABLE),
        (RayActorError(), ErrorKind.UNAVAILABLE),
    ]


@pytest.mark.parametrize(("error", "kind"), raised_by_the_call())
async def test_a_call_that_fails_at_once_is_told_as_one_that_fails_later(error: Exception, kind: ErrorKind) -> None:
    """Whether Serve refuses when it is asked or when it answers is its own business."""
    from cluster.handles import RemoteCoordinator, RemoteEngine

    remote = RemoteEngine(RefusingHandle(error), Watched(SERVING), max_silence_s=20)  # type: ignore[arg-type]
    request = GenerateRequest("r1", (1, 2), SamplingSpec(max_tokens=3))
    events = [event async for event in remote.generate(request)]
    assert [event.error.kind for event in events if event.error is not None] == [kind]
    with pytest.raises(CoordinatorUnavailable):
        await RemoteCoordinator(RefusingHandle(error), 0.01).leave("a0")  # type: ignore[arg-type]


async def test_a_call_that_is_answered_is_not_cancelled() -> None:
    """And one whose caller gives up is."""
    from cluster.handles import RemoteCoordinator

    answered = Answered()
    assert await RemoteCoordinator(Handle(answered), 5.0).gateway_load() is None  # type: ignore[arg-type]
    assert not answered.is_cancelled
    hanging = Response(None)
    asking = asyncio.create_task(RemoteCoordinator(Handle(hanging), 5.0).leave("a0"))  # type: ignore[arg-type]
    await hanging.was_asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert hanging.is_cancelled


async def test_an_old_view_is_believed_for_a_while() -> None:
    """A short outage of the coordinator changes nothing; after a lease's time to live readiness is gone."""
    assert (await engine(Watched(SERVING, 20.0)).ready()).ready
    answer = await engine(Watched(SERVING, 21.0)).ready()
    assert (answer.ready, answer.reason) == (False, "the coordinator has not answered for 21 s")
