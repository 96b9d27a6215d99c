"""The fixed binary header of every frame, and the layout of the arrays behind it. No pickle, no lengths to trust.

Little-endian, 64 bytes, versioned. A frame is: header, then the arrays of `frame_layout` one after the other, each
aligned to 64 bytes. Everything about the arrays follows from the header, so a frame is checked before it is touched.

Legend: H hidden size, R rows, P pairs.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

import torch

from routing.errors import FrameError

MAGIC = 0x53_33_35_46  # "S35F"
VERSION = 1
HEADER_BYTES = 64
ALIGNMENT = 64

# magic, version, kind, flags, dtype | map_epoch, sequence | moe_layer, micro-batch, rows, pairs, hidden | padding
_FORMAT = struct.Struct("<IHBBI q q iiiii 16x")
assert _FORMAT.size == HEADER_BYTES, "header layout and HEADER_BYTES must agree"

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class FrameKind(IntEnum):
    DISPATCH = 1  # attention -> expert: hidden [R, H], pair_row [P], pair_slot [P], pair_weight [P]
    COMBINE = 2  # expert -> attention: outputs [R, H], or [P, H] when PER_EXPERT
    REFUSE = 3  # expert -> attention: one UTF-8 sentence of `num_rows` bytes; see `errors.refusal`


class FrameFlag(IntEnum):
    NONE = 0
    PER_EXPERT = 1


@dataclass(frozen=True)
class Header:
    """One frame's identity. `sequence` numbers the exchanges of a bundle; a reply repeats its dispatch's header."""

    kind: FrameKind
    per_expert: bool
    dtype: torch.dtype
    map_epoch: int
    sequence: int
    moe_layer_idx: int
    microbatch_idx: int
    num_rows: int
    num_pairs: int
    hidden_size: int

    def pack(self) -> bytes:
        """64 bytes."""
        return _FORMAT.pack(
            MAGIC,
            VERSION,
            self.kind,
            FrameFlag.PER_EXPERT if self.per_expert else FrameFlag.NONE,
            _DTYPES.index(self.dtype),
            self.map_epoch,
            self.sequence,
            self.moe_layer_idx,
            self.microbatch_idx,
            self.num_rows,
            self.num_pairs,
            self.hidden_size,
        )


def unpack_header(data: bytes | bytearray | memoryview) -> Header:
    """Inverse of `Header.pack`. Raises FrameError naming the first field that is wrong.

    Checks what the layout follows from. Whether the rest can be served is said by `transport.frames.check_dispatch`,
    so that whoever sent it can be given the reason.
    """
    if len(data) < HEADER_BYTES:
        raise FrameError(f"frame of {len(data)} bytes is shorter than its {HEADER_BYTES} byte header")
    magic, version, kind, flags, dtype, *numbers = _FORMAT.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(f"magic {magic:#x} is not {MAGIC:#x}: the peer does not speak this protocol")
    if version != VERSION:
        raise FrameError(f"frame version {version}, this side speaks {VERSION}")
    if kind not in FrameKind._value2member_map_ or flags not in FrameFlag._value2member_map_:
        raise FrameError(f"unknown frame kind {kind} or flags {flags}")
    if dtype >= len(_DTYPES):
        raise FrameError(f"unknown dtype code {dtype}")
    header = Header(FrameKind(kind), bool(flags), _DTYPES[dtype], *numbers)
    if min(header.num_rows, header.num_pairs, header.hidden_size) < 0:
        raise FrameError(f"negative size in {header}")
    return header


@dataclass(frozen=True)
class ArraySpec:
    """One array of a frame. `offset` in bytes from the start of the frame."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int

    @property
    def num_bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize


def frame_layout(header: Header) -> tuple[ArraySpec, ...]:
    """The arrays behind a header, in the order of the FrameKind comments."""
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    if header.kind is FrameKind.DISPATCH:
        pairs = (header.num_pairs,)
        hidden = ((header.num_rows, header.hidden_size), header.dtype)
        shapes = (hidden, (pairs, torch.int32), (pairs, torch.int32), (pairs, torch.float32))
    elif header.kind is FrameKind.COMBINE:
        vectors = header.num_pairs if header.per_expert else header.num_rows
        shapes = (((vectors, header.hidden_size), header.dtype),)
    else:
        shapes = (((header.num_rows,), torch.uint8),)
    specs, offset = [], HEADER_BYTES
    for shape, dtype in shapes:
        specs.append(ArraySpec(shape, dtype, offset))
        offset += -(-specs[-1].num_bytes // ALIGNMENT) * ALIGNMENT
    return tuple(specs)


def frame_bytes(header: Header) -> int:
    """Size of the whole frame, header and alignment included."""
    last = frame_layout(header)[-1]
    return last.offset + -(-last.num_bytes // ALIGNMENT) * ALIGNMENT


def max_frame_bytes(max_rows: int, top_k: int, hidden_size: int, dtype: torch.dtype) -> int:
    """The largest frame in either direction when at most `max_rows` tokens travel at once."""
    numbers = (dtype, 0, 0, 0, 0, max_rows, max_rows * top_k, hidden_size)
    dispatch = Header(FrameKind.DISPATCH, False, *numbers)
    combine = Header(FrameKind.COMBINE, True, *numbers)
    return max(frame_bytes(dispatch), frame_bytes(combine))
