"""One pass of an expert rank: receive all that is ready, group by layer, compute, reply.

Rows of one layer from several attention actors become one grouped product, because reading an expert's weights once
for many rows is what makes the tier pay.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from actors.expert.shard import ExpertShard
from routing.errors import STALE_MAP
from routing.transport.contract import ExpertPort, Work

logger = logging.getLogger(__name__)

GroupKey = tuple[int, int, bool]


def serve_ready(port: ExpertPort, shard: ExpertShard, timeout_s: float) -> int:
    """Serve every frame that is ready, waiting for the first at most `timeout_s`. Returns how many were answered.

    A frame that asks for something impossible is refused alone; the others of its group go on.
    """
    works = port.receive(timeout_s)
    for group in group_by_layer(works).values():
        legal = _refuse_illegal(port, shard, group)
        if legal:
            _serve(port, shard, legal)
    return len(works)


def group_by_layer(works: Sequence[Work]) -> dict[GroupKey, list[Work]]:
    """Works that one grouped product can serve: same MoE layer, map epoch and kind of answer; arrival order kept."""
    groups: dict[GroupKey, list[Work]] = {}
    for work in works:
        header = work.header
        groups.setdefault((header.moe_layer_idx, header.map_epoch, header.per_expert), []).append(work)
    return groups


def _refuse_illegal(port: ExpertPort, shard: ExpertShard, group: Sequence[Work]) -> list[Work]:
    """Returns the frames that may be computed."""
    legal = []
    for work in group:
        fault = _fault(shard, work)
        if fault is None:
            legal.append(work)
        else:
            shard.refusals["map_not_served" if fault.startswith(STALE_MAP) else "bad_frame"] += 1
            port.refuse(work, fault)
    return legal


def _fault(shard: ExpertShard, work: Work) -> str | None:
    """What is wrong with a frame; None if it may be computed."""
    header = work.header
    try:
        shard.check(
            map_epoch=header.map_epoch,
            moe_layer_idx=header.moe_layer_idx,
            num_rows=header.num_rows,
            pair_row=work.pair_row,
            pair_slot=work.pair_slot,
        )
    except ValueError as error:
        return str(error)
    return None


def _serve(port: ExpertPort, shard: ExpertShard, group: Sequence[Work]) -> None:
    try:
        outputs = _compute(shard, group)
    except Exception as error:
        logger.exception("experts failed in MoE layer %d", group[0].header.moe_layer_idx)
        _serve_apart(port, shard, group, error)
        return
    for work, part in zip(group, outputs, strict=True):
        port.reply(work, part)


def _serve_apart(port: ExpertPort, shard: ExpertShard, group: Sequence[Work], error: Exception) -> None:
    """A kernel failed: find the frame that is to blame, so that the others are served, and keep the rank alive."""
    if len(group) > 1:
        for work in group:
            _serve(port, shard, [work])
        return
    shard.refusals["kernel"] += 1
    port.refuse(group[0], f"the expert computation failed: {type(error).__name__}")


def _compute(shard: ExpertShard, group: Sequence[Work]) -> Sequence[Tensor]:
    header = group[0].header
    outputs = shard.compute(
        map_epoch=header.map_epoch,
        moe_layer_idx=header.moe_layer_idx,
        hidden=_joined([work.hidden for work in group]),
        pair_row=_joined(_shifted_rows(group)),
        pair_slot=_joined([work.pair_slot for work in group]),
        pair_weight=_joined([work.pair_weight for work in group]),
        per_expert=header.per_expert,
    )
    sizes = [work.header.num_pairs if header.per_expert else work.header.num_rows for work in group]
    parts: Sequence[Tensor] = outputs.split(sizes)
    return parts


def _shifted_rows(group: Sequence[Work]) -> list[Tensor]:
    """Each frame counts its rows from 0; in the joined batch they follow one another."""
    shifted, first_row = [], 0
    for work in group:
        shifted.append(work.pair_row + first_row if first_row else work.pair_row)
        first_row += work.header.num_rows
    return shifted


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
