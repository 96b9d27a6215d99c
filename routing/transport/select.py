"""A transport's ports by name; `choice` says which transport. Loads a transport only when it is asked for.

Knows what each transport needs, nothing of how it works.
"""

from __future__ import annotations

from dataclasses import dataclass

from routing.transport.choice import TRANSPORTS as TRANSPORTS
from routing.transport.choice import choose_transport as choose_transport
from routing.transport.collective import CollectiveOptions
from routing.transport.contract import AttentionPort, ExpertPort, FrameLimits
from routing.transport.host import host_id


@dataclass(frozen=True)
class TransportOptions:
    """host: address of this host, for transports that listen. timeout_s: forming and operations without a deadline.

    device: where rows live, "cuda:0" with nccl. capacity_rows: see `collective.CollectiveOptions`.
    """

    host: str = "127.0.0.1"
    timeout_s: float = 30.0
    device: str = "cpu"
    capacity_rows: int | None = None


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
