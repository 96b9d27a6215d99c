"""Native and Python agree on every byte of a frame, and numbers that do not fit the frame are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from routing.errors import ExpertRefused, FrameError
from routing.transport.contract import FrameLimits
from routing.transport.shm import ShmAttentionPort
from routing.wire import HEADER_BYTES, FrameKind, Header, frame_layout
from tests.unit.shm_bundle import LIMITS, SHORT_S, TIMEOUT_S, bundle, double, exchange, receive_one


def _frame(header: Header, arrays: tuple[Tensor, ...]) -> dict[int, bytes]:
    """Offset -> bytes, as routing/wire.py lays a frame out."""
    layout = {spec.offset: array.numpy().tobytes() for spec, array in zip(frame_layout(header), arrays, strict=True)}
    return {0: header.pack(), **layout}


def _assert_frame(memory: np.ndarray, expected: dict[int, bytes]) -> None:
    for offset, data in expected.items():
        assert memory[offset : offset + len(data)].tobytes() == data


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_request_slot_is_the_frame_of_wire(rows: int) -> None:
    """The native side writes a dispatch exactly where and how wire.py says."""
    with bundle() as (attention, experts):
        sent = exchange(5, rows=rows)
        attention.send(sent)
        work = receive_one(experts[1])
        header = Header(FrameKind.DISPATCH, False, torch.float32, 7, 5, 3, 1, rows, 2 * rows, LIMITS.hidden_size)
        pairs = slice(2 * rows, 4 * rows)
        plan = sent.plan
        arrays = (sent.hidden, plan.pair_row[pairs], plan.pair_slot[pairs], plan.pair_weight[pairs])
        (link,) = experts[1]._port.link_ids()
        _assert_frame(experts[1]._port.request_frame(link, 0), _frame(header, arrays))
        assert work.header == header
        for given, expected in zip((work.hidden, work.pair_row, work.pair_slot, work.pair_weight), arrays, strict=True):
            assert torch.equal(given, expected)


@pytest.mark.parametrize("per_expert", [False, True])
def test_reply_slot_is_the_frame_of_wire(per_expert: bool) -> None:
    """A reply repeats the header of its dispatch with another kind, and has one vector per row or per pair."""
    with bundle(ep_size=1) as (attention, (expert,)):
        sent = exchange(4, ep_size=1, rows=2, per_expert=per_expert)
        attention.send(sent)
        work = receive_one(expert)
        outputs = torch.randn(4 if per_expert else 2, LIMITS.hidden_size)
        expert.reply(work, outputs)
        (received,) = attention.receive(sent, TIMEOUT_S)
        assert torch.equal(received, outputs)
        (link,) = attention._port.link_ids()
        _assert_frame(
            attention._port.reply_frame(link, 0), _frame(replace(work.header, kind=FrameKind.COMBINE), (outputs,))
        )


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (0, 0xFF, "magic"),
        (4, 99, "version"),
        (6, 9, "kind"),
        (7, 2, "kind or flag"),
        (8, 2, "dtype"),
        (36, 0xFF, "rows"),
        (40, 0xFF, "pairs"),
        (44, 0xFF, "hidden size"),
        (31, 0x80, "negative"),
    ],
)
def test_corrupt_request_is_refused(offset: int, value: int, reason: str) -> None:
    """A header that breaks the agreement never reaches the expert as work; the sender is told why."""
    with bundle(ep_size=1) as (attention, (expert,)):
        sent = exchange(0, ep_size=1)
        attention.send(sent)
        (link,) = expert._port.link_ids()
        expert._port.request_frame(link, 0)[offset] = value
        assert expert.receive(SHORT_S) == []
        with pytest.raises(ExpertRefused, match=reason):
            attention.receive(sent, TIMEOUT_S)


def test_pair_outside_its_rows_is_refused() -> None:
    """An expert kernel may trust `pair_row`."""
    with bundle(ep_size=1) as (attention, (expert,)):
        sent = exchange(0, ep_size=1, rows=2)
        sent.plan.pair_row[3] = 2
        attention.send(sent)
        assert expert.receive(SHORT_S) == []
        with pytest.raises(ExpertRefused, match="pair of a row"):
            attention.receive(sent, TIMEOUT_S)


@pytest.mark.parametrize("offset", [0, 6, 12, 20, 28, 36, 40, 63])
def test_corrupt_reply_is_a_frame_error(offset: int) -> None:
    """A reply whose header is not the one that must come is not read; the next exchange works."""
    with bundle(ep_size=1) as (attention, (expert,)):
        sent = exchange(0, ep_size=1)
        attention.send(sent)
        double(expert)
        (link,) = attention._port.link_ids()
        attention._port.reply_frame(link, 0)[offset] ^= 0x40
        with pytest.raises(FrameError, match="rank 0"):
            attention.receive(sent, TIMEOUT_S)
        attention.drop(sent)
        again = exchange(1, ep_size=1)
        attention.send(again)
        double(expert)
        assert torch.equal(attention.receive(again, TIMEOUT_S)[0], again.hidden * 2)


def test_refusal_carries_its_sentence() -> None:
    """Any text up to 1024 bytes arrives; a longer one is cut, never an overrun."""
    with bundle(ep_size=1) as (attention, (expert,)):
        for sequence, reason in enumerate(("no such epoch: größer", "x" * (HEADER_BYTES * 100))):
            sent = exchange(sequence, ep_size=1)
            attention.send(sent)
            expert.refuse(receive_one(expert), reason)
            with pytest.raises(ExpertRefused) as refusal:
                attention.receive(sent, TIMEOUT_S)
            assert refusal.value.reason == reason[:1024]
            attention.drop(sent)


@pytest.mark.parametrize("field", ["row_token", "pair_row", "pair_slot", "pair_weight"])
def test_wrong_dtype_of_a_plan_is_refused(field: str) -> None:
    """Native code is never given the address of an array of another type."""
    with bundle() as (attention, _):
        sent = exchange(0)
        plan = replace(sent.plan, **{field: getattr(sent.plan, field).to(torch.int16)})
        with pytest.raises(ValueError, match=f"{field} must be of the agreed dtype"):
            attention.send(replace(sent, plan=plan))


def test_arrays_that_do_not_fit_are_refused() -> None:
    """Short, strided, narrow and out-of-range arrays end in a ValueError before anything is copied."""
    with bundle() as (attention, _):
        sent = exchange(0, rows=2)
        plan = sent.plan
        for broken, message in (
            (replace(sent, hidden=sent.hidden[:, :8]), "hidden must be a matrix"),
            (replace(sent, hidden=sent.hidden.to(torch.float64)), "hidden must be of the agreed dtype"),
            (replace(sent, hidden=sent.hidden.repeat(1, 2)[:, ::2]), "hidden must be contiguous"),
            (replace(sent, plan=replace(plan, row_token=plan.row_token[:-1])), "row_token is shorter"),
            (replace(sent, plan=replace(plan, row_token=plan.row_token + 1)), "row_token points outside"),
            (replace(sent, plan=replace(plan, row_splits=(5, 0), pair_splits=(8, 0))), "row_token is shorter"),
            (replace(sent, plan=replace(plan, pair_splits=(4, 4, 0))), "different length"),
        ):
            with pytest.raises(ValueError, match=message):
                attention.send(broken)
        attention.send(sent)


def test_outputs_of_another_size_are_refused() -> None:
    """A reply needs exactly one vector per row, and each request takes one reply."""
    with bundle(ep_size=1) as (attention, (expert,)):
        attention.send(exchange(0, ep_size=1, rows=2))
        work = receive_one(expert)
        for outputs in (work.hidden[:1], work.hidden[:, :4], work.hidden.double()):
            with pytest.raises(ValueError, match="outputs must be|another number of vectors"):
                expert.reply(work, outputs)
        expert.reply(work, work.hidden.t().contiguous().t())
        with pytest.raises(ValueError, match="not held"):
            expert.reply(work, work.hidden)


def test_limits_beyond_the_state_page_are_refused() -> None:
    """The state words of a link fill one page at most."""
    with pytest.raises(ValueError, match="max_in_flight"):
        ShmAttentionPort(ep_size=1, limits=FrameLimits(16, 2, torch.float32, 4, max_in_flight=63))
