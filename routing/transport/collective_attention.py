"""The attention end over `torch.distributed`: owns the store, the current bundle, and the exchanges under way in it.

A bundle breaks as a whole: after any failure or time-out all of its ranks are lost, and a background thread forms its
groups anew while it is wanted. Answers are read in the order of sending, which is the order in which experts give them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from routing.errors import BundleIncomplete, ExchangeTimeout, FrameError, RankLost, refusal
from routing.transport.collective import CollectiveOptions, PayloadFormat
from routing.transport.contract import Endpoint, Exchange, FrameLimits
from routing.transport.frames import check_answer, check_exchange, dispatch_header
from routing.transport.group import BundleGroup, Direction, Posted
from routing.transport.rendezvous import StoreHost, bundle_key, lead
from routing.wire import FrameKind, Header, unpack_header

log = logging.getLogger(__name__)

_RETRY_S = 0.5
# Gloo counts whole milliseconds, so a wait may end this much before its deadline.
_CLOCK_SLACK_S = 0.002
_JOIN_SLACK_S = 5.0
# Gloo cannot say whether an answer has arrived; reading one that has takes less than this.
_READ_S = 0.02


@dataclass(eq=False)
class _Entry:
    """One exchange under way. `answers`: header receives already posted. `outputs` once all was collected."""

    exchange: Exchange
    dispatched: dict[int, Header]
    sends: list[Posted] = field(default_factory=list)
    answers: dict[int, Posted] = field(default_factory=dict)
    refusals: dict[int, str] = field(default_factory=dict)
    outputs: list[Tensor] | None = None


@dataclass(eq=False)
class _Bundle:
    """One incarnation. `pending`: exchanges not collected yet, in order of sending; at most `max_unread`."""

    shards: Mapping[int, Endpoint]
    group: BundleGroup
    pending: deque[_Entry] = field(default_factory=deque)
    watchers: list[threading.Thread] = field(default_factory=list)
    is_broken: bool = False

    @property
    def ep_ranks(self) -> tuple[int, ...]:
        return tuple(sorted(self.shards))

    def peer(self, ep_rank: int) -> int:
        return 1 + self.ep_ranks.index(ep_rank)


class CollectiveAttentionPort:
    """See `contract.AttentionPort`."""

    def __init__(self, *, ep_size: int, limits: FrameLimits, options: CollectiveOptions) -> None:
        self._ep_size = ep_size
        self._limits = limits
        self._options = options
        self._format = PayloadFormat(limits, options.capacity_rows)
        self._host = StoreHost(options.host, options.timeout_s)
        self._endpoint = Endpoint(options.kind, self._host.address, options.host_id)
        self._changed = threading.Condition()
        self._wanted: Mapping[int, Endpoint] = {}
        self._bundle: _Bundle | None = None
        self._is_closed = False
        self._open: dict[int, tuple[_Bundle, _Entry]] = {}
        self._keeper = threading.Thread(target=self._keep, name="bundle-keeper", daemon=True)
        self._keeper.start()

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def reconcile(self, shards: Mapping[int, Endpoint]) -> None:
        outside = [ep_rank for ep_rank in shards if not 0 <= ep_rank < self._ep_size]
        if outside:
            raise ValueError(f"ep_ranks {outside} outside ep_size {self._ep_size}")
        with self._changed:
            if dict(shards) != self._wanted:
                self._wanted = dict(shards)
                self._changed.notify_all()

    def connected(self) -> frozenset[int]:
        with self._changed:
            return self._connected()

    def wait_connected(self, ep_ranks: Sequence[int], timeout_s: float) -> None:
        wanted = set(ep_ranks)
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or wanted <= self._connected(), timeout_s)
            missing = wanted - self._connected()
        if missing:
            raise BundleIncomplete(f"expert ranks {sorted(missing)} are not connected", missing)

    def send(self, exchange: Exchange) -> None:
        check_exchange(exchange, self._limits)
        assert len(self._open) < self._limits.max_in_flight, "one more exchange than max_in_flight is open"
        bundle = self._usable_bundle(exchange.plan.ranks)
        self._make_room(bundle)
        ranks = exchange.plan.ranks if self._options.capacity_rows is None else bundle.ep_ranks
        entry = _Entry(exchange, {ep_rank: dispatch_header(exchange, ep_rank) for ep_rank in ranks})
        self._open[exchange.sequence] = (bundle, entry)
        try:
            self._post(bundle, entry)
        except RuntimeError as error:
            # The caller learns it from `receive`: what `send` may raise, it raises before anything is sent.
            self._break(bundle, error)

    def receive(self, exchange: Exchange, timeout_s: float) -> list[Tensor]:
        bundle, entry = self._open[exchange.sequence]
        deadline = time.monotonic() + timeout_s
        try:
            while entry.outputs is None:
                self._collect_oldest(bundle, deadline)
        except FrameError as error:
            self._break(bundle, error)
            raise
        except RuntimeError as error:
            self._break(bundle, error)
            _raise_refusal(entry)
            if time.monotonic() >= deadline - _CLOCK_SLACK_S:
                raise ExchangeTimeout(f"no answer in {timeout_s} s", bundle.ep_ranks) from error
            raise RankLost(f"the bundle broke: {_first_line(error)}", bundle.ep_ranks) from error
        _raise_refusal(entry)
        return entry.outputs

    def drop(self, exchange: Exchange) -> None:
        # An answer that is still due stays in `pending`, and is read and thrown away in its turn.
        self._open.pop(exchange.sequence, None)

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            bundle = self._bundle
            self._changed.notify_all()
        if bundle is not None:
            bundle.group.abort()
        if threading.current_thread() is not self._keeper:
            self._keeper.join(self._options.timeout_s + _JOIN_SLACK_S)
        self._open.clear()
        self._host.close()

    def _usable_bundle(self, ep_ranks: Sequence[int]) -> _Bundle:
        with self._changed:
            missing = set(ep_ranks) - self._connected()
            if missing or self._bundle is None:
                raise BundleIncomplete(f"expert ranks {sorted(missing)} are not connected", missing)
            return self._bundle

    def _connected(self) -> frozenset[int]:
        bundle = self._bundle
        if self._is_closed or bundle is None or bundle.is_broken or bundle.shards != self._wanted:
            return frozenset()
        return frozenset(bundle.shards)

    # -- exchanges: on the caller's thread

    def _make_room(self, bundle: _Bundle) -> None:
        """Read answers that have arrived for exchanges that were given up. Raises RankLost, and breaks the bundle, when
        too many have not."""
        try:
            while len(bundle.pending) >= self._format.max_unread:
                self._collect_oldest(bundle, time.monotonic() + _READ_S)
        except (RuntimeError, FrameError) as error:
            self._break(bundle, error)
            message = f"{len(bundle.pending)} exchanges are unanswered: the bundle is given up"
            raise RankLost(message, bundle.ep_ranks) from error

    def _post(self, bundle: _Bundle, entry: _Entry) -> None:
        payloads = self._format.pack_dispatch(entry.exchange, entry.dispatched)
        peers = [bundle.peer(ep_rank) for ep_rank in entry.dispatched]
        bundle.pending.append(entry)
        for ep_rank, header in entry.dispatched.items():
            entry.sends.append(bundle.group.send_header(bundle.peer(ep_rank), header.pack()))
            entry.answers[ep_rank] = bundle.group.receive_header(bundle.peer(ep_rank))
        parts = list(zip(peers, payloads, strict=True))
        entry.sends.append(bundle.group.send_payloads(Direction.DISPATCH, parts))

    def _collect_oldest(self, bundle: _Bundle, deadline: float) -> None:
        if bundle.is_broken or not bundle.pending:
            raise RuntimeError("its connections are closed")
        entry = bundle.pending[0]
        accepted = self._collect_headers(bundle, entry, deadline)
        device = self._options.torch_device
        payloads = {
            ep_rank: torch.empty(self._format.answer_bytes(header), dtype=torch.uint8, device=device)
            for ep_rank, header in accepted.items()
        }
        parts = [(bundle.peer(ep_rank), payload) for ep_rank, payload in payloads.items()]
        bundle.group.receive_payloads(Direction.COMBINE, parts).wait(deadline)
        for posted in entry.sends:
            posted.wait(deadline)
        entry.outputs = [
            self._format.unpack_answer(payloads[ep_rank], header)
            for ep_rank, header in accepted.items()
            if ep_rank in entry.exchange.plan.ranks
        ]
        bundle.pending.popleft()

    def _collect_headers(self, bundle: _Bundle, entry: _Entry, deadline: float) -> dict[int, Header]:
        """Headers of the ranks that answered with outputs; refusals are noted in the entry."""
        accepted = {}
        for ep_rank, posted in entry.answers.items():
            posted.wait(deadline)
            header = unpack_header(bytes(posted.tensors[0].numpy()))
            check_answer(header, entry.dispatched[ep_rank])
            if header.kind is FrameKind.REFUSE:
                reason = bundle.group.receive_reason(bundle.peer(ep_rank), header.num_rows, deadline)
                entry.refusals[ep_rank] = reason.decode(errors="replace")
            else:
                accepted[ep_rank] = header
        return accepted

    # -- membership: on the keeper's thread

    def _break(self, bundle: _Bundle, error: Exception | None) -> None:
        with self._changed:
            if not bundle.is_broken and not self._is_closed and bundle.shards == self._wanted:
                log.warning("bundle of expert ranks %s broke: %s", bundle.ep_ranks, error or "a peer is gone")
            bundle.is_broken = True
            self._changed.notify_all()

    def _keep(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._is_stale())
                wanted, old = self._wanted, self._bundle
                self._bundle = None
            if not self._renew(old, wanted):
                self._pause(wanted)
            if self._is_closed:
                return

    def _renew(self, old: _Bundle | None, wanted: Mapping[int, Endpoint]) -> bool:
        """Retire one bundle and form the next; False if that failed, which is logged."""
        try:
            self._retire(old)
            if wanted and not self._is_closed:
                self._form(wanted)
        except RuntimeError as error:
            log.warning("forming the bundle of expert ranks %s failed: %s", sorted(wanted), _first_line(error))
        except Exception:  # a bug; a thread that ended would leave the bundle unformed for good
            log.exception("forming the bundle of expert ranks %s failed", sorted(wanted))
        else:
            return True
        return False

    def _pause(self, wanted: Mapping[int, Endpoint]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_wanted(wanted), _RETRY_S)

    def _is_stale(self) -> bool:
        if self._bundle is None:
            return bool(self._wanted)
        return self._bundle.is_broken or self._bundle.shards != self._wanted

    def _retire(self, bundle: _Bundle | None) -> None:
        if bundle is None:
            return
        bundle.is_broken = True
        bundle.group.abort()
        for watcher in bundle.watchers:
            watcher.join(_JOIN_SLACK_S)

    def _form(self, wanted: Mapping[int, Endpoint]) -> None:
        key = bundle_key(self._endpoint, wanted)
        terms = self._format.terms
        store = lead(self._host.client(), key, len(wanted), terms, lambda: self._is_wanted(wanted))
        if store is None:
            return
        group = BundleGroup(store, 0, 1 + len(wanted), self._options)
        try:
            self._install(_Bundle(wanted, group))
        except BaseException:
            group.abort()
            raise

    def _is_wanted(self, wanted: Mapping[int, Endpoint]) -> bool:
        return not self._is_closed and self._wanted is wanted

    def _install(self, bundle: _Bundle) -> None:
        bundle.watchers += [
            threading.Thread(target=self._watch, args=(bundle, bundle.peer(rank)), name=f"watch-{rank}", daemon=True)
            for rank in bundle.ep_ranks
        ]
        for watcher in bundle.watchers:
            watcher.start()
        with self._changed:
            self._bundle = bundle
            self._changed.notify_all()

    def _watch(self, bundle: _Bundle, peer: int) -> None:
        try:
            bundle.group.watch(peer)
        finally:
            self._break(bundle, None)


def _raise_refusal(entry: _Entry) -> None:
    # Before any loss: sending the same again would be refused again.
    for ep_rank, reason in entry.refusals.items():
        raise refusal(ep_rank, reason)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
