"""Which ports are scraped: those that answer, and for a while those that did. Asks them over HTTP.

Prometheus reports a target that does not answer as down. A port where nothing ever was is no target; one that fell
silent stays for five minutes, so that alerts see it go.
"""

from __future__ import annotations

import http.client
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

HOST = "127.0.0.1"
KEEP_S = 300.0
TIMEOUT_S = 2.0  # of one answer
MAX_AT_ONCE = 16
METRICS, MATRIX = "/metrics", "/metrics/experts"
_SIGN = b"step35_telemetry_scrapes_total"


@dataclass(frozen=True)
class Targets:
    """Ports by what they are asked for, ascending."""

    metrics: tuple[int, ...] = ()
    matrix: tuple[int, ...] = ()


class TargetTable:
    """Remembers when a port answered last. Pure: told of answers and of the time."""

    def __init__(self, keep_s: float = KEEP_S) -> None:
        self._keep_s = keep_s
        self._seen: dict[int, float] = {}
        self._has_matrix: dict[int, bool] = {}

    def update(self, answers: Mapping[int, bool], now: float) -> Targets:
        """answers: by port, whether it serves the matrix of experts."""
        self._seen |= dict.fromkeys(answers, now)
        self._has_matrix |= answers
        self._seen = {port: at for port, at in self._seen.items() if now - at <= self._keep_s}
        ports = tuple(sorted(self._seen))
        return Targets(ports, tuple(port for port in ports if self._has_matrix[port]))


def ask(ports: Collection[int]) -> dict[int, bool]:
    """Those that answer as our exporters do, and whether they serve the matrix. Takes a few seconds at most."""
    with ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="ask") as threads:
        answers = zip(ports, threads.map(_ask, ports), strict=True)
        return {port: answer for port, answer in answers if answer is not None}


def _ask(port: int) -> bool | None:
    text = _get(port, METRICS)
    if text is None or _SIGN not in text:
        return None
    return b'role="coordinator"' in text and _get(port, MATRIX) is not None


def _get(port: int, path: str) -> bytes | None:
    """The body of a 200, or None."""
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return body if response.status == 200 else None
