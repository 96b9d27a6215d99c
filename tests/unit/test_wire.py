"""The binary header and the layout behind it: the exact bytes, and everything that must not parse."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from routing.errors import FrameError
from routing.transport.contract import FrameLimits
from routing.transport.frames import check_dispatch
from routing.wire import (
    ALIGNMENT,
    HEADER_BYTES,
    FrameKind,
    Header,
    frame_bytes,
    frame_layout,
    max_frame_bytes,
    unpack_header,
)

HEADER = Header(
    kind=FrameKind.DISPATCH,
    per_expert=True,
    dtype=torch.bfloat16,
    map_epoch=0x0102030405060708,
    sequence=9,
    moe_layer_idx=41,
    microbatch_idx=1,
    num_rows=3,
    num_pairs=5,
    hidden_size=7,
)


def test_the_exact_bytes() -> None:
    """The layout of version 1, byte by byte: it may not change without the version."""
    assert HEADER.pack() == bytes.fromhex(
        "46353353 0100 01 01 01000000"  # magic "F53S", version, kind, flags, dtype code
        "0807060504030201 0900000000000000"  # map_epoch, sequence
        "29000000 01000000 03000000 05000000 07000000" + "00" * 16  # layer, micro-batch, rows, pairs, hidden size
    )


@pytest.mark.parametrize("kind", list(FrameKind))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_expert", [False, True])
def test_unpack_inverts_pack(kind: FrameKind, dtype: torch.dtype, per_expert: bool) -> None:
    """Every field survives, from bytes, a bytearray or a memoryview with a frame behind it."""
    header = replace(HEADER, kind=kind, dtype=dtype, per_expert=per_expert)
    for data in (header.pack(), bytearray(header.pack()), memoryview(header.pack() + b"rows")):
        assert unpack_header(data) == header


@pytest.mark.parametrize(
    ("offset", "value", "sentence"),
    [
        (0, b"HTTP", "magic"),
        (4, b"\x02\x00", "version 2"),
        (6, b"\x00", "kind 0"),
        (6, b"\x09", "kind 9"),
        (7, b"\x02", "flags 2"),
        (8, b"\x03\x00\x00\x00", "dtype code 3"),
        (36, b"\xff\xff\xff\xff", "negative"),
        (40, b"\xff\xff\xff\xff", "negative"),
        (44, b"\xff\xff\xff\xff", "negative"),
    ],
)
def test_corrupt_headers(offset: int, value: bytes, sentence: str) -> None:
    """Each field that must hold something names itself when it does not."""
    data = bytearray(HEADER.pack())
    data[offset : offset + len(value)] = value
    with pytest.raises(FrameError, match=sentence):
        unpack_header(data)


@pytest.mark.parametrize("index", ["moe_layer_idx", "microbatch_idx"])
def test_impossible_indices(index: str) -> None:
    """They do not hide whose frame it is, so that it can be refused; but nobody is asked to compute it."""
    header = unpack_header(replace(HEADER, **{index: -1}).pack())
    assert header.sequence == HEADER.sequence
    with pytest.raises(FrameError, match="negative index"):
        check_dispatch(header, FrameLimits(hidden_size=7, top_k=2, dtype=torch.bfloat16, max_rows=3))


@pytest.mark.parametrize("num_bytes", [0, 1, HEADER_BYTES - 1])
def test_short_headers(num_bytes: int) -> None:
    """A truncated header is refused with its length."""
    with pytest.raises(FrameError, match=f"{num_bytes} bytes"):
        unpack_header(HEADER.pack()[:num_bytes])


def test_random_bytes_never_crash() -> None:
    """Noise either parses or is a FrameError; nothing else comes out."""
    for _ in range(500):
        data = bytearray(HEADER.pack())
        for _ in range(random.randint(1, 8)):
            data[random.randrange(HEADER_BYTES)] = random.randrange(256)
        try:
            header = unpack_header(data)
        except FrameError:
            continue
        assert unpack_header(header.pack()) == header


def test_dispatch_layout_by_hand() -> None:
    """3 rows x 7 x 2 bytes = 42, padded to 64; then three arrays of 5 x 4 = 20 bytes, each padded to 64."""
    hidden, pair_row, pair_slot, pair_weight = frame_layout(HEADER)
    assert [spec.offset for spec in (hidden, pair_row, pair_slot, pair_weight)] == [64, 128, 192, 256]
    assert [spec.num_bytes for spec in (hidden, pair_row, pair_slot, pair_weight)] == [42, 20, 20, 20]
    assert (hidden.shape, hidden.dtype) == ((3, 7), torch.bfloat16)
    assert [spec.dtype for spec in (pair_row, pair_slot, pair_weight)] == [torch.int32, torch.int32, torch.float32]
    assert frame_bytes(HEADER) == 320


def test_answer_layouts_by_hand() -> None:
    """One vector per pair, or one per row, or a sentence of num_rows bytes."""
    combine = replace(HEADER, kind=FrameKind.COMBINE)
    assert frame_layout(combine)[0].shape == (5, 7)
    assert frame_layout(replace(combine, per_expert=False))[0].shape == (3, 7)
    (sentence,) = frame_layout(replace(HEADER, kind=FrameKind.REFUSE, num_rows=80))
    assert (sentence.shape, sentence.dtype) == ((80,), torch.uint8)
    assert frame_bytes(replace(HEADER, kind=FrameKind.REFUSE, num_rows=80)) == HEADER_BYTES + 128


def test_nothing_exceeds_the_largest_frame() -> None:
    """No dispatch or answer within the limits is larger than max_frame_bytes, and every frame is aligned."""
    largest = max_frame_bytes(16, 4, 24, torch.float16)
    for num_rows in range(17):
        for kind in (FrameKind.DISPATCH, FrameKind.COMBINE):
            for per_expert in (False, True):
                sizes = {"num_rows": num_rows, "num_pairs": num_rows * 4, "hidden_size": 24}
                header = replace(HEADER, kind=kind, per_expert=per_expert, dtype=torch.float16, **sizes)
                assert frame_bytes(header) <= largest
                assert frame_bytes(header) % ALIGNMENT == 0
