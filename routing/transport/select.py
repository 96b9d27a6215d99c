"""Which transport, and its ports by name. Loads a transport only when it is asked for.

Knows what each transport needs, nothing of how it works.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from routing.transport.contract import AttentionPort, ExpertPort, FrameLimits
from routing.transport.host import host_id

TRANSPORTS = ("shm", "gloo", "nccl")


@dataclass(frozen=True)
class TransportOptions:
    """host: address of this host, for transports that listen. timeout_s: forming and operations without a deadline.

    device: where rows live, "cuda:0" with nccl. capacity_rows: see `collective.CollectiveOptions`.
    """

    host: str = "127.0.0.1"
    timeout_s: float = 30.0
    device: str = "cpu"
    capacity_rows: int | None = None


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


def open_attention_port(kind: str, *, ep_size: int, limits: FrameLimits, options: TransportOptions) -> AttentionPort:
    """A port of one of TRANSPORTS. Raises ValueError for another name."""
    if kind == "shm":
        from routing.transport.shm import ShmAttentionPort

        return ShmAttentionPort(ep_size=ep_size, limits=limits)
    from routing.transport.collective_attention import CollectiveAttentionPort

    return CollectiveAttentionPort(ep_size=ep_size, limits=limits, options=_collective(kind, options))


def open_expert_port(kind: str, *, ep_rank: int, limits: FrameLimits, options: TransportOptions) -> ExpertPort:
    """A port of one of TRANSPORTS. Raises ValueError for another name."""
    if kind == "shm":
        from routing.transport.shm import ShmExpertPort

        return ShmExpertPort(ep_rank=ep_rank, limits=limits)
    from routing.transport.collective_expert import CollectiveExpertPort

    return CollectiveExpertPort(ep_rank=ep_rank, limits=limits, options=_collective(kind, options))


def _collective(kind: str, options: TransportOptions) -> CollectiveOptions:
    if kind not in TRANSPORTS:
        raise ValueError(f"transport {kind!r} is not one of {', '.join(TRANSPORTS)}")
    return CollectiveOptions(
        kind=kind,
        host=options.host,
        host_id=host_id(),
        timeout_s=options.timeout_s,
        device=options.device,
        capacity_rows=options.capacity_rows,
    )
