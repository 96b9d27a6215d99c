"""The expert end over `torch.distributed`: one thread per bundle that joins its groups and reads its frames.

Owns the inbox and the order of the answers. A bundle that breaks is joined again while it is wanted. Knows nothing of
what is computed.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from routing.errors import FrameError, TransportError
from routing.transport.collective import CollectiveOptions, PayloadFormat
from routing.transport.contract import Endpoint, FrameLimits, Work
from routing.transport.frames import MAX_REASON_BYTES, check_dispatch, combine_header
from routing.transport.group import BundleGroup, Direction, Posted
from routing.transport.member import BundleMember, Place
from routing.transport.rendezvous import bundle_key
from routing.wire import FrameKind, Header, unpack_header

log = logging.getLogger(__name__)

_ATTENTION = 0  # its group rank
_JOIN_SLACK_S = 5.0


@dataclass(frozen=True, eq=False)
class _Arrival:
    """One frame. `fault`: what is wrong with it; then the work has no rows, and is refused in its turn."""

    work: Work
    fault: str | None


@dataclass(eq=False)
class _Link:
    """One incarnation of one bundle. `due`: headers not answered yet, in the order in which they must be answered.

    `ready`: answers given out of order. `sent`: sends that may still read their buffers.
    """

    number: int
    group: BundleGroup
    due: deque[Header] = field(default_factory=deque)
    ready: dict[int, Tensor | bytes] = field(default_factory=dict)
    sent: deque[Posted] = field(default_factory=deque)


class CollectiveExpertPort:
    """See `contract.ExpertPort`."""

    def __init__(self, *, ep_rank: int, limits: FrameLimits, options: CollectiveOptions) -> None:
        self._ep_rank = ep_rank
        self._limits = limits
        self._options = options
        self._format = PayloadFormat(limits, options.capacity_rows)
        self._endpoint = Endpoint(options.kind, secrets.token_hex(16), options.host_id)
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._members: dict[str, BundleMember] = {}
        self._retired: list[BundleMember] = []
        self._links: dict[int, _Link] = {}
        self._inbox: deque[_Arrival] = deque()
        self._is_closed = False

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def reconcile(self, attention: Sequence[Endpoint], shards: Mapping[int, Endpoint]) -> None:
        is_member = shards.get(self._ep_rank) == self._endpoint
        wanted = {bundle_key(endpoint, shards): endpoint for endpoint in attention if is_member}
        group_rank = 1 + sorted(shards).index(self._ep_rank) if is_member else 0
        with self._changed:
            if self._is_closed:
                return
            retired = [self._members.pop(key) for key in self._members.keys() - wanted.keys()]
            self._retired = [member for member in self._retired if member.is_alive()] + retired
            for key in wanted.keys() - self._members.keys():
                place = Place(wanted[key], key, group_rank, 1 + len(shards), self._format.terms)
                self._members[key] = BundleMember(place, self._options, self._serve)
        for member in retired:
            member.stop()

    def receive(self, timeout_s: float) -> list[Work]:
        deadline = time.monotonic() + timeout_s
        while taken := self._take(deadline - time.monotonic()):
            works = [arrival.work for arrival in taken if not self._is_answered(arrival)]
            if works:
                return works
        return []

    def reply(self, work: Work, outputs: Tensor) -> None:
        self._answer(work, self._format.pack_answer(outputs, work.header))

    def refuse(self, work: Work, reason: str) -> None:
        self._answer(work, (reason or "no reason given").encode()[:MAX_REASON_BYTES])

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            members = [*self._members.values(), *self._retired]
            self._members, self._retired = {}, []
            self._inbox.clear()
            self._changed.notify_all()
        for member in members:
            member.stop()
        for member in members:
            member.join(self._options.timeout_s + _JOIN_SLACK_S)

    def _take(self, timeout_s: float) -> list[_Arrival]:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._inbox, timeout_s)
            if self._is_closed:
                raise TransportError("the expert port is closed")
            taken = [arrival for arrival in self._inbox if arrival.work.bundle in self._links]
            self._inbox.clear()
            return taken

    def _is_answered(self, arrival: _Arrival) -> bool:
        """Answers the frames that are nobody's work: faulty ones, and padded ones for a rank without rows."""
        if arrival.fault is not None:
            self.refuse(arrival.work, arrival.fault)
        elif not arrival.work.header.num_rows:
            self.reply(arrival.work, arrival.work.hidden)
        else:
            return False
        return True

    def _answer(self, work: Work, answer: Tensor | bytes) -> None:
        with self._changed:
            link = self._links.get(work.bundle)
        if link is None:
            return
        link.ready[work.header.sequence] = answer
        try:
            while link.due and link.due[0].sequence in link.ready:
                self._send_next(link)
        except RuntimeError as error:
            # The link is gone. Its reader notices too, and the attention side retries.
            log.debug("answer to bundle %d not sent: %s", link.number, error)

    def _send_next(self, link: _Link) -> None:
        header = link.due.popleft()
        answer = link.ready.pop(header.sequence)
        if isinstance(answer, bytes):
            refusal = replace(header, kind=FrameKind.REFUSE, num_rows=len(answer), num_pairs=0)
            link.sent.append(link.group.send_header(_ATTENTION, refusal.pack()))
            link.sent.append(link.group.send_reason(_ATTENTION, answer))
        else:
            link.sent.append(link.group.send_header(_ATTENTION, combine_header(header).pack()))
            link.sent.append(link.group.send_payloads(Direction.COMBINE, [(_ATTENTION, answer)]))
        # Two sends per answer. The attention side has read all answers but max_unread, so this does not wait.
        while len(link.sent) > 2 * self._format.max_unread:
            link.sent.popleft().wait(time.monotonic() + self._options.timeout_s)

    # -- on the members' threads

    def _serve(self, group: BundleGroup) -> None:
        """Read frames until the group breaks. Raises RuntimeError, or FrameError for a frame that has no answer."""
        link = _Link(next(self._numbers), group)
        with self._changed:
            self._links[link.number] = link
        try:
            while True:
                self._read(link)
        finally:
            with self._changed:
                del self._links[link.number]

    def _read(self, link: _Link) -> None:
        header = unpack_header(link.group.wait_header(_ATTENTION))
        fault = _fault(header, self._limits)
        if not self._format.is_agreed_size(header):
            self._deliver(link, _Arrival(_without_rows(link.number, header), fault))
            # What follows it cannot be received, so the link ends here: when the other end has its answer and leaves.
            link.group.watch(_ATTENTION)
            raise FrameError(f"refused, and the link given up: {fault}")
        payload = self._read_payload(link, header)
        if fault is None:
            self._deliver(link, _Arrival(self._format.unpack_dispatch(payload, header, link.number), None))
        else:
            self._deliver(link, _Arrival(_without_rows(link.number, header), fault))

    def _read_payload(self, link: _Link, header: Header) -> Tensor:
        device = self._options.torch_device
        payload = torch.empty(self._format.dispatch_bytes(header), dtype=torch.uint8, device=device)
        posted = link.group.receive_payloads(Direction.DISPATCH, [(_ATTENTION, payload)])
        posted.wait(time.monotonic() + self._options.timeout_s)
        return payload

    def _deliver(self, link: _Link, arrival: _Arrival) -> None:
        with self._changed:
            if len(link.due) >= self._format.max_unread:
                raise FrameError(f"more than {self._format.max_unread} exchanges are unanswered")
            link.due.append(arrival.work.header)
            self._inbox.append(arrival)
            self._changed.notify_all()


def _fault(header: Header, limits: FrameLimits) -> str | None:
    try:
        check_dispatch(header, limits)
    except FrameError as error:
        return str(error)
    return None


def _without_rows(bundle: int, header: Header) -> Work:
    """Stands for a frame whose rows were not read, until it is refused."""
    nothing = torch.empty(0)
    return Work(bundle, header, nothing, nothing, nothing, nothing)
