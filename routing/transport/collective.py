"""What both ends of a `torch.distributed` bundle agree on: options, and the bytes of a payload on either way.

A dispatch payload is the pairs, int32 [P, 3] of (row, slot, bits of the weight), then the rows [R, H]; pairs first
keeps both aligned. An answer is the outputs. Knows nothing of groups, threads or membership.

Legend: H hidden size, R rows, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from routing.transport.contract import Exchange, FrameLimits, Work
from routing.transport.frames import num_output_rows
from routing.wire import VERSION, FrameKind, Header

_PAIR_BYTES = 12


@dataclass(frozen=True)
class CollectiveOptions:
    """Settings of a collective port. Both ends of a bundle must agree on all but `host` and `host_id`.

    kind: "gloo" (CPU tensors) or "nccl". host: the address of this host to bind to and to be reached at.
    timeout_s: forming groups, and every operation whose caller gives no deadline. device: where payloads live.
    capacity_rows: pad payloads of up to this many rows to one size, and include ranks that get none, so that shapes
    are constant; None sends exact sizes.
    """

    kind: str = "gloo"
    host: str = "127.0.0.1"
    host_id: str = ""
    timeout_s: float = 30.0
    device: str = "cpu"
    capacity_rows: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("gloo", "nccl"):
            raise ValueError(f"kind {self.kind!r} is not gloo or nccl")
        if (self.kind == "gloo") != (self.torch_device.type == "cpu"):
            raise ValueError(f"{self.kind} cannot carry tensors on device {self.device}")
        if self.timeout_s <= 0.0:
            raise ValueError(f"timeout_s must be above 0, got {self.timeout_s}")
        if self.capacity_rows is not None and self.capacity_rows < 1:
            raise ValueError(f"capacity_rows must be at least 1, got {self.capacity_rows}")
        if self.host in ("", "0.0.0.0", "::"):
            raise ValueError(f"host {self.host!r} would listen on every address; name one")

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)


@dataclass(frozen=True)
class PayloadFormat:
    """Sizes and packing of payloads under one set of limits."""

    limits: FrameLimits
    capacity_rows: int | None

    @property
    def terms(self) -> str:
        """What both ends compare before they form groups."""
        return f"wire version {VERSION}, {self!r}"

    @property
    def max_unread(self) -> int:
        """Exchanges of a bundle whose answers have not been read: those open, and as many that were given up."""
        return 2 * self.limits.max_in_flight

    def is_agreed_size(self, header: Header) -> bool:
        """Whether the payload behind a header of a peer is one that the limits allow, so that it can be received."""
        rows = max(self.limits.max_rows, self.capacity_rows or 0)
        largest = self._exact_bytes(rows, rows * self.limits.top_k)
        return header.kind is FrameKind.DISPATCH and self.dispatch_bytes(header) <= largest

    def dispatch_bytes(self, header: Header) -> int:
        """Size of the payload that follows a dispatch header."""
        if self._is_padded(header):
            return self._exact_bytes(*self._capacity)
        return self._exact_bytes(header.num_rows, header.num_pairs)

    def answer_bytes(self, header: Header) -> int:
        """Size of the payload that answers a dispatch header."""
        vectors = num_output_rows(header)
        if self._is_padded(header):
            vectors = self._capacity[1 if header.per_expert else 0]
        return vectors * self._row_bytes

    def pack_dispatch(self, exchange: Exchange, dispatched: dict[int, Header]) -> list[Tensor]:
        """One uint8 tensor per header of `dispatched` (ascending EP ranks), all slices of one buffer."""
        plan = exchange.plan
        rows = exchange.hidden.index_select(0, plan.row_token).view(torch.uint8).flatten()
        pairs = torch.stack([plan.pair_row, plan.pair_slot, plan.pair_weight.view(torch.int32)], dim=1)
        row_parts = rows.split([count * self._row_bytes for count in plan.row_splits])
        pair_parts = pairs.view(torch.uint8).flatten().split([count * _PAIR_BYTES for count in plan.pair_splits])
        sizes = [self.dispatch_bytes(header) for header in dispatched.values()]
        pieces: list[Tensor] = []
        for ep_rank, size in zip(dispatched, sizes, strict=True):
            used = len(pair_parts[ep_rank]) + len(row_parts[ep_rank])
            pieces += [pair_parts[ep_rank], row_parts[ep_rank], rows.new_zeros(size - used)]
        packed = torch.cat(pieces) if pieces else rows
        return list(packed.split(sizes))

    def unpack_dispatch(self, payload: Tensor, header: Header, bundle: int) -> Work:
        """Views of a received payload; the pair arrays are copied, to be contiguous."""
        end = header.num_pairs * _PAIR_BYTES
        pairs = payload[:end].view(torch.int32).view(-1, 3).t().contiguous()
        rows = payload[end : end + header.num_rows * self._row_bytes]
        hidden = rows.view(header.dtype).view(header.num_rows, header.hidden_size)
        return Work(bundle, header, hidden, pairs[0], pairs[1], pairs[2].view(torch.float32))

    def pack_answer(self, outputs: Tensor, header: Header) -> Tensor:
        """A copy, because the caller may reuse `outputs` while the copy is under way. Raises ValueError on a shape."""
        expected = (num_output_rows(header), header.hidden_size)
        if tuple(outputs.shape) != expected or outputs.dtype != header.dtype:
            raise ValueError(f"outputs {tuple(outputs.shape)} {outputs.dtype}, expected {expected} {header.dtype}")
        payload = torch.zeros(self.answer_bytes(header), dtype=torch.uint8, device=outputs.device)
        data = outputs.contiguous().view(torch.uint8).flatten()
        payload[: len(data)] = data
        return payload

    def unpack_answer(self, payload: Tensor, header: Header) -> Tensor:
        """[rows, H], or [pairs, H] if per_expert."""
        vectors = num_output_rows(header)
        return payload[: vectors * self._row_bytes].view(header.dtype).view(vectors, header.hidden_size)

    @property
    def _row_bytes(self) -> int:
        return self.limits.hidden_size * self.limits.dtype.itemsize

    @property
    def _capacity(self) -> tuple[int, int]:
        rows = self.capacity_rows or 0
        return rows, rows * self.limits.top_k

    def _is_padded(self, header: Header) -> bool:
        return self.capacity_rows is not None and header.num_rows <= self.capacity_rows

    def _exact_bytes(self, num_rows: int, num_pairs: int) -> int:
        return num_pairs * _PAIR_BYTES + num_rows * self._row_bytes
