"""The coordinator and the engine behind Serve handles: a deadline on every call, named failures, never a hang."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack
from typing import Any, cast

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from actors.messages import ErrorKind, FinishReason, GenerateRequest, RequestError, TokenEvent
from cluster.api.engine import Readiness
from cluster.autoscaling import GatewayLoad
from cluster.errors import ClusterError, CoordinatorUnavailable, NotReady
from cluster.membership import ClusterStatus, MemberReport, ProcessReport, ViewReply
from cluster.view import ClusterView
from cluster.watcher import Watcher
from routing.transport.endpoint import Endpoint

logger = logging.getLogger(__name__)

# What the engine itself needs to end a request whose deadline has passed, before the gateway stops waiting for it.
DEADLINE_SLACK_S = 5.0


class RemoteCoordinator:
    """`CoordinatorPort` over a handle. A call takes at most its own waiting time plus `timeout_s`."""

    def __init__(self, handle: DeploymentHandle[Any], timeout_s: float) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def lease_rank(
        self, member_id: str, host_id: str, *, held: int | None = None, timeout_s: float = 0.0
    ) -> int | None:
        answer: int | None = await self._call(
            "lease_rank", timeout_s, member_id, host_id, held=held, timeout_s=timeout_s
        )
        return answer

    async def publish_shard(self, member_id: str, endpoint: Endpoint) -> bool:
        return bool(await self._call("publish_shard", 0.0, member_id, endpoint))

    async def join_attention(self, member_id: str, host_id: str, endpoint: Endpoint | None = None) -> None:
        await self._call("join_attention", 0.0, member_id, host_id, endpoint)

    async def report_ready(self, member_id: str, is_ready: bool) -> bool:
        return bool(await self._call("report_ready", 0.0, member_id, is_ready))

    async def report(self, member_id: str, report: MemberReport) -> bool:
        return bool(await self._call("report", 0.0, member_id, report))

    async def leave(self, member_id: str) -> None:
        await self._call("leave", 0.0, member_id)

    async def recover(self, view: Mapping[str, Any]) -> None:
        await self._call("recover", 0.0, view)

    async def wait_view(self, after_view_id: int, timeout_s: float, member_id: str | None = None) -> ViewReply:
        reply: ViewReply = await self._call("wait_view", timeout_s, after_view_id, timeout_s, member_id)
        return reply

    async def gateway_load(self) -> GatewayLoad | None:
        load: GatewayLoad | None = await self._call("gateway_load", 0.0)
        return load

    async def report_process(self, report: ProcessReport) -> None:
        await self._call("report_process", 0.0, report)

    async def status(self) -> ClusterStatus:
        status: ClusterStatus = await self._call("status", 0.0)
        return status

    async def _call(self, method: str, own_wait_s: float, *args: object, **kwargs: object) -> Any:
        """Raises CoordinatorUnavailable for whatever keeps an answer from coming, and ClusterError with the
        coordinator's own sentence if it refuses: asking again would not help."""
        try:
            with ExitStack() as unanswered:
                response = getattr(self._handle, method).remote(*args, **kwargs)
                unanswered.callback(response.cancel)
                async with asyncio.timeout(own_wait_s + self._timeout_s):
                    answer = await response
                unanswered.pop_all()
                return answer
        except (TimeoutError, RayError, RayServeException) as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            if isinstance(cause, ValueError | ClusterError):
                raise ClusterError(f"the coordinator refuses {method}: {cause}") from error
            raise CoordinatorUnavailable(f"{method}: {type(error).__name__}") from error


class RemoteEngine:
    """`cluster.api.engine.Engine` over the attention deployment; readiness comes from the view, not from a call."""

    def __init__(self, attention: DeploymentHandle[Any], watcher: Watcher, max_silence_s: float) -> None:
        """max_silence_s: how long the last view is believed while the coordinator does not answer."""
        self._stream = attention.options(stream=True)
        self._watcher = watcher
        self._max_silence_s = max_silence_s

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """Closing it cancels the Serve stream, which closes the replica's generator, which aborts the sequence."""
        view = self._watcher.view
        if view is None or not view.attention:
            # Serve would hold the request until a replica comes, as long as its deadline.
            raise NotReady("No attention actor is there; send the request again later.")
        deadline = asyncio.get_running_loop().time() + request.deadline_s + DEADLINE_SLACK_S
        try:
            with ExitStack() as opened:
                responses = cast("DeploymentResponseGenerator[TokenEvent]", self._stream.generate.remote(request))
                opened.callback(responses.cancel)
                is_finished = False
                while not is_finished:
                    # The deadline must not enclose a yield: the next event may be asked for by another task.
                    async with asyncio.timeout_at(deadline):
                        event = await anext(responses)
                    is_finished = event.finish_reason is not None
                    yield event
        except StopAsyncIteration:
            yield _failed(request, ErrorKind.INTERNAL, "the request ended without a reason")
        except TimeoutError:
            yield _failed(request, ErrorKind.DEADLINE, "the request's deadline has passed")
        except BackPressureError:
            yield _failed(request, ErrorKind.OVERLOADED, "Too many requests are waiting; send the request again later.")
        except (RayError, RayServeException) as error:
            logger.warning("the stream of %s broke: %s", request.request_id, type(error).__name__)
            yield _failed(request, ErrorKind.UNAVAILABLE, "the server that ran this request is gone; send it again")

    async def ready(self) -> Readiness:
        silence_s = self._watcher.silence_s
        if self._watcher.view is not None and silence_s > self._max_silence_s:
            return Readiness(False, f"the coordinator has not answered for {silence_s:.0f} s")
        return readiness(self._watcher.view)


def readiness(view: ClusterView | None) -> Readiness:
    """Whether the view promises a token, and if not what it lacks."""
    if view is None:
        return Readiness(False, "the coordinator has not been reached yet")
    if view.missing_ranks:
        return Readiness(False, f"no process serves expert ranks {', '.join(map(str, view.missing_ranks))}")
    if not view.is_serving:
        return Readiness(False, "no attention actor has warmed up yet")
    return Readiness(True)


def _failed(request: GenerateRequest, kind: ErrorKind, message: str) -> TokenEvent:
    return TokenEvent(request.request_id, finish_reason=FinishReason.ERROR, error=RequestError(kind, message))
