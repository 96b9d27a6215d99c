"""How the members of a bundle agree on one set of process groups, over a TCP store that the attention side hosts.

A bundle's *key* names one attention endpoint and the exact expert endpoints; whoever sees another membership waits
under another key. Under a key, attempts are numbered: all join attempt n, then build its groups. Knows no tensors.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from torch.distributed import DistStoreError, TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from routing.transport.endpoint import Endpoint

# Waiting for peers may last as long as they are wanted; it is cut in slices so that `is_wanted` is looked at.
_SLICE = timedelta(milliseconds=200)
_BACKLOG = 256


class StoreHost:
    """A TCP store bound to one address of this host, and its published form "host:port/bundle-id".

    Serves from birth to `close`. Only clients are given away, so that no group keeps the socket open.
    """

    def __init__(self, host: str, timeout_s: float) -> None:
        # The store binds to every address when it opens the socket itself, so it is given a socket that is bound.
        listener = socket.create_server((host, 0), family=_family(host), backlog=_BACKLOG)
        port = listener.getsockname()[1]
        self._host, self._port = host, port
        self._timeout = timedelta(seconds=timeout_s)
        self.address = f"{host}:{port}/{secrets.token_hex(16)}"
        self._server: Store | None = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=self._timeout,
            master_listen_fd=listener.detach(),
        )

    def client(self) -> Store:
        """A connection to the store. Raises RuntimeError when it cannot be reached."""
        return _connect(self._host, self._port, self._timeout)

    def close(self) -> None:
        """Stop listening and disconnect every client. Idempotent."""
        # TCPStore has no close: its server ends with the last reference.
        self._server = None


def connect_store(attention: Endpoint, timeout_s: float) -> Store:
    """A client of the store behind an attention endpoint. Raises ValueError or RuntimeError."""
    host, separator, port = attention.address.partition("/")[0].rpartition(":")
    if not separator or not port.isdigit():
        raise ValueError(f"attention address {attention.address!r} is not host:port/bundle-id")
    return _connect(host, int(port), timedelta(seconds=timeout_s))


def bundle_key(attention: Endpoint, shards: Mapping[int, Endpoint]) -> str:
    """The same for everyone who sees the same members."""
    members = [attention.address, *(f"{ep_rank}={shards[ep_rank].address}" for ep_rank in sorted(shards))]
    return hashlib.sha256("\n".join(members).encode()).hexdigest()


def lead(store: Store, key: str, num_experts: int, terms: str, is_wanted: Callable[[], bool]) -> Store | None:
    """Attention side: open the next attempt, wait for every expert rank, and start. Returns the groups' own store.

    terms: what the members must agree on, compared as text. None when the bundle is no longer wanted. Raises
    RuntimeError when the store fails.
    """
    attempt = store.add(f"{key}/attempt", 1)
    store.set(f"{key}/{attempt}/open", terms)
    joined = [f"{key}/{attempt}/joined/{group_rank}" for group_rank in range(1, num_experts + 1)]
    if not _wait(store, joined, is_wanted):
        return None
    store.set(f"{key}/{attempt}/go", "")
    return PrefixStore(f"{key}/{attempt}/groups", store)


def join(
    store: Store, key: str, group_rank: int, *, after: int, terms: str, is_wanted: Callable[[], bool]
) -> tuple[int, Store] | None:
    """Expert side: join the newest attempt above `after`, wait for its start. Returns its number and the groups' store.

    None when the bundle is no longer wanted, or a newer attempt was opened. Raises RuntimeError when the store fails,
    ValueError when the attention side offers other terms.
    """
    attempt = after + 1
    if store.check([f"{key}/attempt"]):
        attempt = max(attempt, _newest(store, key))
    if not _wait(store, [f"{key}/{attempt}/open"], is_wanted):
        return None
    offered = store.get(f"{key}/{attempt}/open").decode()
    if offered != terms:
        raise ValueError(f"the attention side offers {offered}, this expert rank has {terms}")
    store.set(f"{key}/{attempt}/joined/{group_rank}", "")
    if not _wait(store, [f"{key}/{attempt}/go"], lambda: is_wanted() and _newest(store, key) == attempt):
        return None
    return attempt, PrefixStore(f"{key}/{attempt}/groups", store)


def _connect(host: str, port: int, timeout: timedelta) -> Store:
    store: Store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
    return store


def _newest(store: Store, key: str) -> int:
    return int(store.get(f"{key}/attempt"))


def _wait(store: Store, keys: Sequence[str], is_wanted: Callable[[], bool]) -> bool:
    while is_wanted():
        try:
            store.wait(list(keys), _SLICE)
        except DistStoreError:
            continue
        return True
    return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
