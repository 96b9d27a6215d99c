"""Which transport a cluster uses. Imports nothing, so that the coordinator can choose without loading torch."""

from __future__ import annotations

from collections.abc import Collection

TRANSPORTS = ("shm", "gloo", "nccl")


def choose_transport(
    requested: str, *, attention_host_ids: Collection[str], expert_host_ids: Collection[str], has_gpus: bool
) -> str:
    """`requested`, or for "auto": nccl with GPUs, shm where all processes can share memory, gloo otherwise.

    Raises ValueError for an unknown name, and for shm between processes that share no memory.
    """
    if requested not in ("auto", *TRANSPORTS):
        raise ValueError(f"transport {requested!r} is not one of auto, {', '.join(TRANSPORTS)}")
    is_one_host = len({*attention_host_ids, *expert_host_ids}) <= 1
    if requested == "shm" and not is_one_host:
        raise ValueError("transport shm needs every process on one host, in one IPC and network namespace")
    if requested != "auto":
        return requested
    if has_gpus:
        return "nccl"
    return "shm" if is_one_host else "gloo"
