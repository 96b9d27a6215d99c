"""Headers of one exchange and the checks both ends make before they trust one. Shared by the transports in Python.

Knows the wire header and the limits; nothing of how bytes travel.
"""

from __future__ import annotations

from dataclasses import replace

from routing.errors import FrameError
from routing.transport.contract import Exchange, FrameLimits
from routing.wire import FrameKind, Header

MAX_REASON_BYTES = 1024


def dispatch_header(exchange: Exchange, ep_rank: int) -> Header:
    """The header that goes to one rank of an exchange."""
    return Header(
        kind=FrameKind.DISPATCH,
        per_expert=exchange.per_expert,
        dtype=exchange.hidden.dtype,
        map_epoch=exchange.map_epoch,
        sequence=exchange.sequence,
        moe_layer_idx=exchange.moe_layer_idx,
        microbatch_idx=exchange.microbatch_idx,
        num_rows=exchange.plan.row_splits[ep_rank],
        num_pairs=exchange.plan.pair_splits[ep_rank],
        hidden_size=exchange.hidden.shape[1],
    )


def combine_header(dispatched: Header) -> Header:
    """The header of the answer to a dispatch."""
    return replace(dispatched, kind=FrameKind.COMBINE)


def num_output_rows(header: Header) -> int:
    """Rows of the outputs that answer a dispatch."""
    return header.num_pairs if header.per_expert else header.num_rows


def check_exchange(exchange: Exchange, limits: FrameLimits) -> None:
    """Raises ValueError, with the numbers, when an exchange does not fit what both ends agreed on."""
    hidden = exchange.hidden
    if hidden.dim() != 2 or hidden.shape[1] != limits.hidden_size or hidden.dtype != limits.dtype:
        agreed = f"[T, {limits.hidden_size}] of {limits.dtype}"
        raise ValueError(f"hidden of shape {tuple(hidden.shape)} and {hidden.dtype}, agreed are {agreed}")
    if hidden.shape[0] > limits.max_rows:
        raise ValueError(f"{hidden.shape[0]} tokens in one dispatch, at most {limits.max_rows} are agreed")
    if len(exchange.plan.pair_source) > hidden.shape[0] * limits.top_k:
        raise ValueError(f"more than top_k {limits.top_k} pairs per token")


def check_dispatch(header: Header, limits: FrameLimits) -> None:
    """Raises FrameError when a dispatch from a peer exceeds or contradicts the limits; its sizes are safe otherwise."""
    if header.kind is not FrameKind.DISPATCH:
        raise FrameError(f"frame kind {header.kind.name} where a dispatch belongs")
    if min(header.moe_layer_idx, header.microbatch_idx) < 0:
        raise FrameError(f"negative index in {header}")
    if header.num_rows > limits.max_rows or header.num_pairs > header.num_rows * limits.top_k:
        raise FrameError(f"{header.num_rows} rows and {header.num_pairs} pairs exceed {limits}")
    if header.hidden_size != limits.hidden_size or header.dtype != limits.dtype:
        raise FrameError(f"rows of {header.hidden_size} x {header.dtype} contradict {limits}")


def check_answer(answer: Header, dispatched: Header) -> None:
    """Raises FrameError unless `answer` repeats the header of its dispatch, or refuses that very dispatch."""
    if answer.kind is FrameKind.REFUSE and answer.sequence == dispatched.sequence:
        if not 0 < answer.num_rows <= MAX_REASON_BYTES:
            raise FrameError(f"a reason of {answer.num_rows} bytes, between 1 and {MAX_REASON_BYTES} are allowed")
        return
    if answer != combine_header(dispatched):
        raise FrameError(f"the answer {answer} does not repeat its dispatch {dispatched}")
