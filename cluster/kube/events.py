"""Notices as Kubernetes Events about the RayService, posted seldom enough. Equal notices are one Event with a series.

What cannot be written is logged and given up: an Event is a kindness, not a record.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.kube.api import KubeApi
from cluster.kube.errors import AccessDenied, KubeError
from cluster.kube.queue import NoticeQueue
from cluster.kube.settings import KubernetesConfig
from cluster.notices import Notice

logger = logging.getLogger(__name__)

MAX_SERIES = 64
SERIES_S = 360.0  # after this time without an equal notice a series is over, as in Kubernetes' own recorder
MAX_NOTE = 1024  # what the API takes
BURST = 10  # Events at once, after a quiet time
CONTROLLER = "step35.io/coordinator"


@dataclass(frozen=True)
class Subject:
    """What Events are about, and who says so. kind: RayService or RayCluster, of ray.io/v1. uid: "" if not known."""

    kind: str
    name: str
    namespace: str
    reporter: str
    uid: str = ""


@dataclass
class _Series:
    """An Event that was posted, and how often its notice was told."""

    event_name: str
    count: int
    last_at: float


class EventPoster:
    """Takes notices off a queue and posts them. `run` is a task of its owner."""

    def __init__(
        self,
        queue: NoticeQueue,
        subject: Subject,
        settings: KubernetesConfig,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """clock: seconds since the epoch."""
        self._queue = queue
        self._subject = subject
        self._settings = settings
        self._clock = clock
        self._sleep = sleep
        self._series: OrderedDict[Notice, _Series] = OrderedDict()
        self._tokens, self._filled_at = float(BURST), clock()

    async def run(self, api: KubeApi) -> None:
        """For ever, or until Events may not be written; its owner cancels it."""
        while True:
            await self._queue.news.wait()
            if (taken := self._queue.take()) is None:
                continue
            await self._wait_turn()
            try:
                await self._post(api, *taken)
            except AccessDenied as error:
                logger.warning("no Events are written: %s", error)
                self._queue.close()
                return
            except KubeError as error:
                logger.info("an Event was not written: %s", error)

    async def _wait_turn(self) -> None:
        """A bucket that holds BURST tokens and fills at the rate that is set."""
        per_s = self._settings.events_per_minute / 60.0
        while True:
            now = self._clock()
            self._tokens = min(float(BURST), self._tokens + max(now - self._filled_at, 0.0) * per_s)
            self._filled_at = now
            if self._tokens >= 1.0:
                self._tokens -= 1.0
                return
            await self._sleep((1.0 - self._tokens) / per_s)

    async def _post(self, api: KubeApi, notice: Notice, count: int, num_dropped: int) -> None:
        now, path = self._clock(), f"/apis/events.k8s.io/v1/namespaces/{self._subject.namespace}/events"
        series = self._series.get(notice)
        if series is not None and now - series.last_at < SERIES_S:
            series.count, series.last_at = series.count + count, now
            body = {"series": {"count": series.count, "lastObservedTime": _micro_time(now)}}
            await api.patch(f"{path}/{series.event_name}", body)
            return
        name = f"{self._subject.name}.{secrets.token_hex(8)}"
        await api.create(path, event_body(notice, self._subject, name, now, count=count, num_dropped=num_dropped))
        self._series[notice] = _Series(name, count, now)
        self._series.move_to_end(notice)
        while len(self._series) > MAX_SERIES:
            self._series.popitem(last=False)


def event_body(
    notice: Notice, subject: Subject, name: str, now: float, *, count: int = 1, num_dropped: int = 0
) -> dict[str, Any]:
    """An Event of events.k8s.io/v1. num_dropped: notices that this one also stands for."""
    more = f" (and {num_dropped} more notices that found no room)" if num_dropped else ""
    reason = "".join(word.title() for word in notice.kind.split("_"))
    regarding = {"apiVersion": "ray.io/v1", "kind": subject.kind, "name": subject.name, "namespace": subject.namespace}
    body: dict[str, Any] = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": subject.namespace},
        "eventTime": _micro_time(now),
        "reportingController": CONTROLLER,
        "reportingInstance": subject.reporter[:128],
        "action": reason,
        "reason": reason,
        "regarding": regarding | ({"uid": subject.uid} if subject.uid else {}),
        "note": notice.text[: MAX_NOTE - len(more)] + more,
        "type": "Warning" if notice.is_warning else "Normal",
    }
    if count > 1:
        body["series"] = {"count": count, "lastObservedTime": _micro_time(now)}
    return body


def _micro_time(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
