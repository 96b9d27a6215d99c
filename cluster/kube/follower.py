"""Follower: keeps what the cluster says of one kind of object, by list and watch, for as long as it runs.

Whatever the server does, two requests are apart in time, failures double the wait, and what is kept stays bounded.
While nothing is heard, what was heard last stays good. Knows nothing of what the objects are.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from cluster.kube.api import KubeApi, Resource
from cluster.kube.errors import AccessDenied, KubeError, KubeUnavailable, WatchLost
from cluster.kube.settings import KubernetesConfig

logger = logging.getLogger(__name__)

MAX_OBJECTS = 20_000
GAP_S = 0.2  # between two watches that end in peace
LIVED_S = 2.0  # a watch that lived so long, or brought something, was no failure


class Named(Protocol):
    """What is kept of an object."""

    @property
    def name(self) -> str: ...


State = TypeVar("State", bound=Named)


class Follower(Generic[State]):
    """`states` by name. Belongs to one event loop; `run` is its only writer."""

    def __init__(
        self,
        resource: Resource,
        parse: Callable[[Mapping[str, Any], KubernetesConfig], State],
        settings: KubernetesConfig,
        on_change: Callable[[], None],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """parse: raises ValueError for what it cannot read, which is left out. on_change: `states` are others now."""
        self.states: dict[str, State] = {}
        self.is_synced = False  # everything was listed once, and access is not denied
        self._resource = resource
        self._parse = parse
        self._settings = settings
        self._on_change = on_change
        self._sleep = sleep
        self._version: str | None = None
        self._num_failures = 0
        self._num_heard = 0
        self._was_denied = False

    async def run(self, api: KubeApi) -> None:
        """For ever; its owner cancels it."""
        while True:
            began, heard = time.monotonic(), self._num_heard
            try:
                if self._version is None:
                    self._version = await self._list(api)
                await api.watch(self._resource, self._version, self._note)
                is_failure, asked_s, self._was_denied = False, 0.0, False
            except KubeError as error:
                is_failure, asked_s = True, self._failed(error)
            is_alive = time.monotonic() - began > LIVED_S or (not is_failure and self._num_heard > heard)
            self._num_failures = 0 if is_alive else self._num_failures + 1
            await self._sleep(max(GAP_S, asked_s, self._backoff_s() if is_failure or not is_alive else 0.0))

    def _failed(self, error: KubeError) -> float:
        """Says what is wrong, and how long to wait at least."""
        name = self._resource.name
        match error:
            case AccessDenied():
                self._deny()
                return self._settings.denied_retry_s * random.uniform(1.0, 1.2)
            case WatchLost():
                logger.info("%s are listed anew: %s", name, error)
                self._version = None
                return 0.0
            case KubeUnavailable():
                logger.log(logging.INFO if self._num_failures else logging.WARNING, "%s: %s", name, error)
                return error.retry_after_s
        return 0.0

    def _backoff_s(self) -> float:
        """Drawn between half and all of a wait that doubles, so that many coordinators do not return at once."""
        longest = self._settings.max_backoff_s
        wait_s = min(self._settings.first_backoff_s * 2.0 ** min(max(self._num_failures - 1, 0), 20), longest)
        return wait_s * random.uniform(0.5, 1.0)

    def _deny(self) -> None:
        if not self._was_denied:
            logger.warning("%s are not followed: the service account may not list and watch them", self._resource.name)
        if self._version is None:
            self._replace({}, is_synced=False)
        # What may be listed and not watched is listed now and then.
        self._was_denied, self._version = True, None

    async def _list(self, api: KubeApi) -> str:
        states: dict[str, State] = {}
        proceed, version = "", ""
        while len(states) < MAX_OBJECTS:
            page = await api.list_page(self._resource, proceed)
            metadata, items = page.get("metadata"), page.get("items")
            if not isinstance(metadata, Mapping) or not isinstance(items, list):
                raise KubeUnavailable("a list without metadata and items")
            for state in map(self._read, items):
                if state is not None:
                    states[state.name] = state
            version, proceed = str(metadata.get("resourceVersion") or ""), str(metadata.get("continue") or "")
            if not proceed:
                break
        self._replace(states, is_synced=not proceed)
        return version

    def _note(self, event: Mapping[str, Any]) -> None:
        """One event of a watch. Raises WatchLost for what is none."""
        changed, kind = event.get("object"), event.get("type")
        metadata = changed.get("metadata") if isinstance(changed, Mapping) else None
        version = metadata.get("resourceVersion") if isinstance(metadata, Mapping) else None
        if not isinstance(changed, Mapping) or not isinstance(version, str):
            raise WatchLost(f"an event that is none: {kind}")
        self._version = version
        self._num_heard += 1
        if kind == "BOOKMARK":
            return
        state = self._read(changed)
        if state is None:
            return
        before = self.states.pop(state.name, None) if kind == "DELETED" else self.states.get(state.name)
        if kind != "DELETED" and before != state and (before is not None or len(self.states) < MAX_OBJECTS):
            self.states[state.name] = state
        if self.states.get(state.name) != before or kind == "DELETED":
            self._on_change()

    def _replace(self, states: dict[str, State], *, is_synced: bool) -> None:
        if (states, is_synced) != (self.states, self.is_synced):
            self.states, self.is_synced = states, is_synced
            self._on_change()

    def _read(self, item: Any) -> State | None:
        try:
            return self._parse(item, self._settings) if isinstance(item, Mapping) else None
        except ValueError as error:
            logger.warning("one of %s was left out: %s", self._resource.name, error)
            return None
