"""Endpoint: where a process of the data plane can be reached. Imports nothing, so that a control-plane process that
only passes endpoints on never loads torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Endpoint:
    """Where one process can be reached. Plain strings, safe to publish in a view.

    kind: "loopback" | "shm" | "gloo" | "nccl". address: its meaning belongs to the transport. host_id: equal for
    processes that can share memory (see `transport.host.host_id`).
    """

    kind: str
    address: str
    host_id: str
