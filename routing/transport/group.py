"""The process groups of one bundle and the four things done with them: headers, payloads, reasons, watching.

Attention is group rank 0, the expert ranks follow. Everything is point to point, so a rank without rows is left alone.
Headers and reasons always travel on a gloo group, where sizes are known on the host; payloads travel on it too when
they live on the CPU, and on one NCCL group per direction when they live on GPUs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any, Protocol, cast

import torch
import torch.distributed.distributed_c10d as c10d
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from routing.transport.collective import CollectiveOptions
from routing.wire import HEADER_BYTES

# Gloo knows no wait without a limit; this one outlasts any process.
_FOREVER = timedelta(days=365)
_AT_ONCE = timedelta(milliseconds=1)


class Tag(IntEnum):
    """Gloo matches sends and receives by (peer, tag), in order."""

    HEADER = 1
    PAYLOAD = 2
    REASON = 3
    WATCH = 4  # nothing is ever sent under it: a receive that ends means that the peer is gone
    ABORT = 5


class Direction(IntEnum):
    """Each has its own order of operations, so that two exchanges may pass each other."""

    DISPATCH = 0
    COMBINE = 1


class Pending(Protocol):
    """An operation under way: torch's Work. `wait` raises RuntimeError when it failed or the time is over."""

    def wait(self, timeout: timedelta = ...) -> bool: ...


class _Group(Protocol):
    @property
    def supports_coalescing(self) -> bool: ...
    def send(self, tensors: list[Tensor], dst: int, tag: int) -> Pending: ...
    def recv(self, tensors: list[Tensor], src: int, tag: int) -> Pending: ...
    def _start_coalescing(self) -> None: ...
    def _end_coalescing(self) -> Pending: ...
    def abort(self) -> None: ...


_Operation = Callable[[list[Tensor], int, int], Pending]


@dataclass(frozen=True)
class Posted:
    """Operations under way and the tensors they read or write, which must live as long."""

    works: Sequence[Pending]
    tensors: Sequence[Tensor]

    def wait(self, deadline: float) -> None:
        """Raises RuntimeError when one failed, or at `deadline` (of time.monotonic) at the latest.

        A gloo operation that runs out of time takes its whole group with it.
        """
        for work in self.works:
            work.wait(max(timedelta(seconds=deadline - time.monotonic()), _AT_ONCE))


class BundleGroup:
    """One incarnation of a bundle's groups. Born connected or not at all; once broken it never heals."""

    def __init__(self, store: Store, group_rank: int, group_size: int, options: CollectiveOptions) -> None:
        """Blocks until all members are connected. Raises RuntimeError when that takes longer than the time-out."""
        self._peers = [peer for peer in range(group_size) if peer != group_rank]
        self._control = _gloo_group(PrefixStore("control", store), group_rank, group_size, options)
        self._payload = dict.fromkeys(Direction, self._control)
        if options.kind == "nccl":
            for direction in Direction:
                own_store = PrefixStore(direction.name, store)
                self._payload[direction] = _nccl_group(own_store, group_rank, group_size, options)
        self._lock = threading.Lock()
        self._is_aborted = False

    def send_header(self, peer: int, header: bytes) -> Posted:
        return self._post_control(self._control.send, peer, Tag.HEADER, _bytes_tensor(header))

    def receive_header(self, peer: int) -> Posted:
        """The tensor holds the header once waited for."""
        return self._post_control(self._control.recv, peer, Tag.HEADER, _empty(HEADER_BYTES))

    def send_reason(self, peer: int, reason: bytes) -> Posted:
        return self._post_control(self._control.send, peer, Tag.REASON, _bytes_tensor(reason))

    def receive_reason(self, peer: int, num_bytes: int, deadline: float) -> bytes:
        posted = self._post_control(self._control.recv, peer, Tag.REASON, _empty(num_bytes))
        posted.wait(deadline)
        return bytes(posted.tensors[0].numpy())

    def send_payloads(self, direction: Direction, payloads: Sequence[tuple[int, Tensor]]) -> Posted:
        """payloads: (peer, uint8 tensor) each."""
        group = self._payload[direction]
        return _post(group, group.send, payloads)

    def receive_payloads(self, direction: Direction, payloads: Sequence[tuple[int, Tensor]]) -> Posted:
        """payloads: (peer, uint8 tensor to fill) each."""
        group = self._payload[direction]
        return _post(group, group.recv, payloads)

    def wait_header(self, peer: int) -> bytes:
        """The next header of one peer, however long it takes. Raises RuntimeError when the peer goes or on abort."""
        posted = self.receive_header(peer)
        posted.works[0].wait(_FOREVER)
        return bytes(posted.tensors[0].numpy())

    def watch(self, peer: int) -> None:
        """Returns when the peer is gone or the group aborted."""
        posted = self._post_control(self._control.recv, peer, Tag.WATCH, _empty(1))
        with contextlib.suppress(RuntimeError):
            posted.works[0].wait(_FOREVER)

    def abort(self) -> None:
        """Wake whoever waits in this group, here and at the peers, and close its connections. Idempotent."""
        with self._lock:
            if self._is_aborted:
                return
            self._is_aborted = True
        for group in {id(group): group for group in self._payload.values() if group is not self._control}.values():
            group.abort()
        # Gloo has no abort. A receive that runs out of time closes all connections of its group, which is one; a
        # receive from a peer that is gone already fails at once and closes none, so every peer gets its turn.
        for peer in self._peers:
            with contextlib.suppress(RuntimeError):
                self._post_control(self._control.recv, peer, Tag.ABORT, _empty(1)).works[0].wait(_AT_ONCE)

    def _post_control(self, operation: _Operation, peer: int, tag: Tag, tensor: Tensor) -> Posted:
        return Posted([operation([tensor], peer, tag)], [tensor])


def _post(group: _Group, operation: _Operation, payloads: Sequence[tuple[int, Tensor]]) -> Posted:
    """One grouped launch where the backend can (NCCL), one operation per peer where it cannot (gloo)."""
    payloads = [(peer, tensor) for peer, tensor in payloads if tensor.numel()]
    is_grouped = group.supports_coalescing and bool(payloads)
    if is_grouped:
        group._start_coalescing()
    works = [operation([tensor], peer, Tag.PAYLOAD) for peer, tensor in payloads]
    if is_grouped:
        works = [group._end_coalescing()]
    return Posted(works, [tensor for _, tensor in payloads])


def _empty(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _gloo_group(store: Store, group_rank: int, group_size: int, options: CollectiveOptions) -> _Group:
    gloo: Any = c10d.ProcessGroupGloo
    settings = gloo._Options()
    settings._devices = [gloo.create_device(hostname=options.host)]
    settings._threads = 1
    settings._timeout = timedelta(seconds=options.timeout_s)
    return cast(_Group, gloo(store, group_rank, group_size, settings))


def _nccl_group(store: Store, group_rank: int, group_size: int, options: CollectiveOptions) -> _Group:
    nccl: Any = c10d.ProcessGroupNCCL  # absent from builds of torch for CPUs
    settings = nccl.Options()
    settings._timeout = timedelta(seconds=options.timeout_s)
    group = nccl(store, group_rank, group_size, settings)
    # All together, now: a communicator made at first use would wait for ranks that happen to get no rows.
    group.eager_connect_single_device(options.torch_device)
    return cast(_Group, group)
