"""KubeObserver: the coordinator's side of a session with Kubernetes: whether there is one, its task, and its end.

Never on a token's path and never a reason for the coordinator to fail. Outside of Kubernetes it does nothing, and the
client is not even imported.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import PodEnvironment
from cluster.errors import ConfigurationError
from cluster.kube.queue import NoticeQueue
from cluster.kube.settings import KubernetesConfig
from cluster.notices import Notice
from cluster.surroundings import Surroundings

if TYPE_CHECKING:
    from cluster.kube.session import KubeSession

logger = logging.getLogger(__name__)

TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class KubeObserver:
    """`tell` at any time; `start` once, then `close`. All methods belong to one event loop."""

    def __init__(self, settings: KubernetesConfig, pod: PodEnvironment, *, token: Path = TOKEN) -> None:
        """token: the service account's. Raises ConfigurationError if it must be there and is not."""
        has_token = token.exists()
        if settings.enabled == "on" and not has_token:
            raise ConfigurationError(f"kubernetes.enabled is on, but there is no service account's token at {token}")
        self._settings = settings
        self._pod = pod
        self._queue = NoticeQueue()
        self.is_on = settings.enabled != "off" and has_token
        if not self.is_on or not settings.events:
            self._queue.close()
        self._task: asyncio.Task[None] | None = None

    def tell(self, notice: Notice) -> None:
        """To be written as an Event, if Events are written."""
        self._queue.tell(notice)

    def start(self, on_surroundings: Callable[[Surroundings], Awaitable[None]]) -> None:
        """Begin to watch. on_surroundings: hears what is known now, each time it is something else."""
        if self.is_on:
            self._task = asyncio.create_task(self._run(on_surroundings), name="watch-kubernetes")

    async def close(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, on_surroundings: Callable[[Surroundings], Awaitable[None]]) -> None:
        try:
            # Half a second of importing must not hold up the members' calls.
            session = await asyncio.to_thread(_load_session)
            await session(self._settings, self._pod, self._queue, on_surroundings).run()
        except Exception:
            logger.exception("watching Kubernetes has ended; serving goes on without it")
        finally:
            self._queue.close()


def _load_session() -> type[KubeSession]:
    from cluster.kube.session import KubeSession

    return KubeSession
