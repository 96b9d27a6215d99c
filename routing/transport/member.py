"""An expert rank's place in one bundle: a thread that joins attempt after attempt and serves what it joined.

Ends when told to stop; until then any failure is logged and followed by the next attempt.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from routing.errors import FrameError
from routing.transport.collective import CollectiveOptions
from routing.transport.endpoint import Endpoint
from routing.transport.group import BundleGroup
from routing.transport.rendezvous import connect_store, join

log = logging.getLogger(__name__)

_RETRY_S = 0.2
_CONNECT_S = 5.0  # longer than a silent name server may hold up torch, see RES_OPTIONS in cluster/resources.py


@dataclass(frozen=True)
class Place:
    """Which bundle (attention endpoint and key), which rank of how many, and under which terms."""

    attention: Endpoint
    key: str
    group_rank: int
    group_size: int
    terms: str


class BundleMember:
    """Owns the thread and the group it is in. `serve` reads the group until it breaks."""

    def __init__(self, place: Place, options: CollectiveOptions, serve: Callable[[BundleGroup], None]) -> None:
        self._place = place
        self._options = options
        self._serve = serve
        self._attempt = 0
        self._group: BundleGroup | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"bundle-{place.key[:8]}", daemon=True)
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Leave the bundle at once; the thread ends soon after."""
        with self._lock:
            self._stopped.set()
            group = self._group
        if group is not None:
            group.abort()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._join_and_serve()
            except RuntimeError as error:
                # The other end went, or cannot be reached yet: its own log says why.
                log.info("not in the bundle of %s: %s", self._place.attention.address, str(error).partition("\n")[0])
            except (ValueError, FrameError) as error:
                log.warning("not in the bundle of %s: %s", self._place.attention.address, error)
            except Exception:  # a bug; a thread that ended would leave the rank out of the bundle for good
                log.exception("not in the bundle of %s", self._place.attention.address)
            self._stopped.wait(_RETRY_S)

    def _join_and_serve(self) -> None:
        group = self._form()
        if group is None:
            return
        try:
            if self._adopt(group):
                self._serve(group)
        finally:
            group.abort()
            self._adopt(None)

    def _form(self) -> BundleGroup | None:
        place, options = self._place, self._options
        store = connect_store(place.attention, _CONNECT_S)
        # The groups inherit the time-out of their store.
        store.set_timeout(timedelta(seconds=options.timeout_s))
        joined = join(
            store,
            place.key,
            place.group_rank,
            after=self._attempt,
            terms=place.terms,
            is_wanted=lambda: not self._stopped.is_set(),
        )
        if joined is None:
            return None
        self._attempt, groups_store = joined
        return BundleGroup(groups_store, place.group_rank, place.group_size, options)

    def _adopt(self, group: BundleGroup | None) -> bool:
        """False when `stop` came first, so that no group outlives it."""
        with self._lock:
            self._group = group
            return not self._stopped.is_set()
