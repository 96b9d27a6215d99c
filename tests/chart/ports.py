"""Ports of this machine that nobody listens on just now."""

from __future__ import annotations

import socket
from contextlib import ExitStack

FIRST, LAST = 20000, 32000  # above those of Ray's workers, below those that Linux gives to clients


def free_ports(count: int) -> list[int]:
    """All at once, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [made.getsockname()[1] for made in sockets]


def free_range(count: int) -> int:
    """First of so many in a row, free on every address."""
    for first in range(FIRST, LAST, count):
        try:
            with ExitStack() as stack:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("", port)))
        except OSError:
            continue
        return first
    raise AssertionError(f"no {count} free ports in a row from {FIRST} to {LAST}")
