"""SlotLoader: brings experts into free slots from the checkpoint, on a thread of its own, while the others are served.

Owns what lies in each slot of a rank and decides which maps the shard may serve. It is told all maps that matter and
reconciles: a map is served as soon as every slot it names is filled, and a slot that no map names is free to be filled.
Knows nothing of the coordinator or of the wire.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actors.errors import ActorError
from actors.expert.shard import ExpertShard
from actors.expert.slot_progress import SlotProgress as SlotProgress
from actors.kernels.contract import ExpertWeights
from routing.experts import EMPTY_SLOT, ExpertMap, Int32Array, joined_slots

logger = logging.getLogger(__name__)

RETRY_S = 5.0  # after a read that failed; only a map that is served already is tried again
JOIN_TIMEOUT_S = 10.0

# (moe_layer_idx, slot, logical_id) -> bytes that were read
FillSlot = Callable[[int, int, int], int]


@dataclass(frozen=True)
class _Wanted:
    """maps: to be served, the current one first. next_map: also to be prepared, and last."""

    maps: tuple[ExpertMap, ...]
    next_map: ExpertMap | None

    @property
    def all_maps(self) -> tuple[ExpertMap, ...]:
        return self.maps if self.next_map is None else (*self.maps, self.next_map)


class SlotLoader:
    """Owns a thread from `start` to `close`. `follow` and `progress` may be called by any thread."""

    def __init__(
        self,
        shard: ExpertShard,
        expert_map: ExpertMap,
        ep_rank: int,
        fill: FillSlot,
        *,
        bandwidth_bytes_s: float,
        await_pass: Callable[[], None],
    ) -> None:
        """expert_map: what the shard was loaded with. fill: reads one expert into one slot. await_pass: returns when
        no computation is running that began before it was called."""
        self._shard = shard
        self._ep_rank = ep_rank
        self._fill = fill
        self._bandwidth_bytes_s = bandwidth_bytes_s
        self._await_pass = await_pass
        self._held: Int32Array = expert_map.local_experts(ep_rank).copy()
        self._wanted = _Wanted((expert_map,), None)
        self._changed = threading.Condition()
        self._is_news = False
        self._is_closing = False
        self._progress = SlotProgress((expert_map.map_epoch,))
        self._thread = threading.Thread(target=self._run, name=f"slots-{ep_rank}", daemon=True)

    def start(self) -> None:
        """Begin to reconcile. Call once."""
        self._thread.start()

    def follow(self, maps: Sequence[ExpertMap], next_map: ExpertMap | None) -> None:
        """From now on these maps matter, the current one first, and no other. Returns at once."""
        wanted = _Wanted(tuple(maps), next_map)
        with self._changed:
            if _epochs(wanted) == _epochs(self._wanted):
                return
            self._wanted, self._is_news = wanted, True
            self._changed.notify_all()

    def progress(self) -> SlotProgress:
        return self._progress

    def check_health(self) -> None:
        """Raises ActorError when the thread has died."""
        if not self._is_closing and not self._thread.is_alive():
            raise ActorError("the thread that fills expert slots died")

    def close(self) -> None:
        """Stop between two slots. Idempotent."""
        with self._changed:
            self._is_closing = self._is_news = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=JOIN_TIMEOUT_S)

    def _run(self) -> None:
        timeout_s: float | None = None
        while not self._wait_news(timeout_s):
            timeout_s = self._reconcile(self._wanted)

    def _wait_news(self, timeout_s: float | None) -> bool:
        """Until there is something to do, or the time is over. True when it is time to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_news, timeout_s)
            self._is_news = self._is_closing
            return self._is_closing

    def _reconcile(self, wanted: _Wanted) -> float | None:
        """One attempt. Returns the seconds after which to try again, None when there is nothing left to do."""
        self._serve_held(wanted)
        try:
            for expert_map in wanted.all_maps:
                if not self._bring(wanted, expert_map):
                    return None  # there is news already
                self._serve_held(wanted)
        # Whatever keeps one expert from being read: what is served stays served, and the coordinator is told.
        except Exception as failure:
            logger.exception("EP rank %d could not fill its slots", self._ep_rank)
            self._progress = SlotProgress(self._shard.served_epochs, failure=f"{type(failure).__name__}: {failure}")
            return None if _is_held(self._held, joined_slots(wanted.maps, self._ep_rank)) else RETRY_S
        return None

    def _serve_held(self, wanted: _Wanted) -> None:
        """Serve what is complete. Checksums come first: whoever sees the next map's epoch sees them too."""
        is_held = {
            expert_map.map_epoch: _is_held(self._held, expert_map.local_experts(self._ep_rank))
            for expert_map in wanted.all_maps
        }
        next_map = wanted.next_map
        checksums = {}
        if next_map is not None and is_held[next_map.map_epoch]:
            checksums = self._checksums(wanted.maps[0], next_map)
        self._shard.serve([expert_map for expert_map in wanted.all_maps if is_held[expert_map.map_epoch]])
        missing = 0 if next_map is None else len(self._missing(next_map))
        to_load = 0 if next_map is None else len(_added(wanted.maps[0], next_map, self._ep_rank))
        self._progress = SlotProgress(
            self._shard.served_epochs, checksums, None, num_loaded=to_load - missing, num_to_load=to_load
        )

    def _bring(self, wanted: _Wanted, expert_map: ExpertMap) -> bool:
        """Fill the slots that a map lacks. False when what is wanted has changed meanwhile."""
        joined_slots(wanted.all_maps, self._ep_rank)  # a contradiction is found before anything is overwritten
        missing = self._missing(expert_map)
        if missing:
            self._await_pass()
        for moe_layer_idx, slot, logical_id in missing:
            start = time.monotonic()
            self._held[moe_layer_idx, slot] = EMPTY_SLOT
            num_bytes = self._fill(moe_layer_idx, slot, logical_id)
            self._held[moe_layer_idx, slot] = logical_id
            if self._is_interrupted(start + num_bytes / self._bandwidth_bytes_s - time.monotonic()):
                return False
        return True

    def _is_interrupted(self, pause_s: float) -> bool:
        """Waits so long, at most, that the bandwidth is kept. True when there is news."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_news, max(0.0, pause_s))

    def _missing(self, expert_map: ExpertMap) -> list[tuple[int, int, int]]:
        """(moe_layer_idx, slot, logical_id) of slots that do not hold what the map says."""
        local = expert_map.local_experts(self._ep_rank)
        return list(_entries(local, (local != EMPTY_SLOT) & (local != self._held)))

    def _checksums(self, current: ExpertMap, next_map: ExpertMap) -> dict[tuple[int, int], int]:
        """Of this rank's slots whose expert has a copy in the next map that it does not have now."""
        local = next_map.local_experts(self._ep_rank)
        is_new = (next_map.physical_to_logical != current.physical_to_logical) & (
            next_map.physical_to_logical != EMPTY_SLOT
        )
        layers, physical = np.nonzero(is_new)
        moved = set(zip(layers.tolist(), next_map.physical_to_logical[layers, physical].tolist(), strict=True))
        return {
            (moe_layer_idx, logical_id): checksum(self._shard.weights[moe_layer_idx], slot)
            for moe_layer_idx, slot, logical_id in _entries(local, local != EMPTY_SLOT)
            if (moe_layer_idx, logical_id) in moved
        }


def checksum(weights: ExpertWeights, slot: int) -> int:
    """CRC-32 of one slot's weights as they lie in memory."""
    value = 0
    for stacked in (weights.gate, weights.up, weights.down):
        value = zlib.crc32(_bytes_of(stacked[slot]), value)
    return value


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data


def _entries(
    local: Int32Array, is_meant: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> Iterator[tuple[int, int, int]]:
    for moe_layer_idx, slot in np.argwhere(is_meant).tolist():
        yield moe_layer_idx, slot, int(local[moe_layer_idx, slot])


def _added(current: ExpertMap, next_map: ExpertMap, ep_rank: int) -> list[tuple[int, int, int]]:
    local = next_map.local_experts(ep_rank)
    return list(_entries(local, (local != EMPTY_SLOT) & (local != current.local_experts(ep_rank))))


def _is_held(held: Int32Array, local: Int32Array) -> bool:
    return bool(np.all((local == EMPTY_SLOT) | (local == held)))


def _epochs(wanted: _Wanted) -> tuple[tuple[int, ...], int | None]:
    next_epoch = None if wanted.next_map is None else wanted.next_map.map_epoch
    return tuple(expert_map.map_epoch for expert_map in wanted.maps), next_epoch
