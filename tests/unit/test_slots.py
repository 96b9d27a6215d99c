"""Slots of an expert rank while maps come and go: what is loaded, what is served, and what a failure leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from actors.errors import CheckpointError
from actors.expert.actor import load_shard
from actors.expert.config import ExpertConfig
from actors.expert.shard import ExpertShard
from actors.expert.slots import SlotLoader, SlotProgress, checksum
from actors.model.config import parse_model_config
from actors.weights.loader import SlotReader
from routing.experts import EMPTY_SLOT, ExpertMap, expert_map_from_rows, joined_slots, linear_expert_map
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config

FIELDS = tiny_config(num_hidden_layers=5, num_nextn_predict_layers=0, vocab_size=40, moe_num_experts=8)
CONFIG = parse_model_config(FIELDS)
LAYERS = len(CONFIG.moe_layers)
DEADLINE_S = 10.0
FREE = EMPTY_SLOT

# Rank 0 has four experts and a free slot, rank 1 likewise. Expert 5 gets a copy on rank 0, then leaves rank 1.
START = expert_map_from_rows([[0, 1, 2, 3, FREE, 4, 5, 6, 7, FREE]] * LAYERS, 8, 2, map_epoch=1)
COPIED = expert_map_from_rows([[0, 1, 2, 3, 5, 4, 5, 6, 7, FREE]] * LAYERS, 8, 2, map_epoch=2)
MOVED = expert_map_from_rows([[0, 1, 2, 3, 5, 4, FREE, 6, 7, FREE]] * LAYERS, 8, 2, map_epoch=3)
# Contradicts COPIED in rank 0's last slot.
OTHER = expert_map_from_rows([[0, 1, 2, 3, 6, 4, 5, 6, 7, FREE]] * LAYERS, 8, 2, map_epoch=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), FIELDS)


class Rank:
    """One rank with its slots, and a reader that can be held up or made to fail."""

    def __init__(self, folder: Path, expert_map: ExpertMap = START, ep_rank: int = 0, bandwidth: float = 1e12) -> None:
        self.shard: ExpertShard = load_shard(ExpertConfig(deterministic=True), folder, expert_map, ep_rank)
        self._reader = SlotReader(folder, CONFIG, self.shard.weights)
        self.fills: list[tuple[int, int, int]] = []
        self.filled = threading.Event()
        self.failure: Exception | None = None
        self.events: list[str] = []
        self.slots = SlotLoader(
            self.shard,
            expert_map,
            ep_rank,
            self._fill,
            bandwidth_bytes_s=bandwidth,
            await_pass=lambda: self.events.append(f"pass over, serving {self.shard.served_epochs}"),
        )
        self.slots.start()

    def _fill(self, moe_layer_idx: int, slot: int, logical_id: int) -> int:
        if self.failure is not None:
            raise self.failure
        num_bytes = self._reader.fill(moe_layer_idx, slot, logical_id)
        self.fills.append((moe_layer_idx, slot, logical_id))
        self.events.append(f"filled {moe_layer_idx}.{slot}")
        self.filled.set()
        return num_bytes

    def wait(self, is_met: Callable[[SlotProgress], bool]) -> SlotProgress:
        """The first progress that meets a condition; fails the test when the time is over."""
        pause = threading.Event()
        for _ in range(int(DEADLINE_S / 0.005)):
            if is_met(self.slots.progress()):
                return self.slots.progress()
            pause.wait(0.005)
        raise AssertionError(f"still {self.slots.progress()}")

    def close(self) -> None:
        self.slots.close()
        self._reader.close()


@pytest.fixture
def rank(folder: Path) -> Iterator[Rank]:
    made = Rank(folder)
    yield made
    made.close()


def test_the_next_map_is_loaded_and_both_are_served(folder: Path, rank: Rank) -> None:
    """The slot that is added holds what a rank loaded with that map from the start holds, and nothing else was read."""
    rank.slots.follow([START], COPIED)
    progress = rank.wait(lambda progress: progress.served_epochs == (1, 2))
    assert (progress.num_loaded, progress.num_to_load, progress.failure) == (LAYERS, LAYERS, None)
    assert rank.fills == [(layer, 4, 5) for layer in range(LAYERS)]
    expected = load_shard(ExpertConfig(deterministic=True), folder, COPIED, 0)
    for mine, fresh in zip(rank.shard.weights, expected.weights, strict=True):
        assert torch.equal(mine.gate, fresh.gate)
        assert torch.equal(mine.up, fresh.up)
        assert torch.equal(mine.down, fresh.down)


def test_an_epoch_is_refused_until_it_is_complete(folder: Path) -> None:
    """While slots are missing the next epoch's rows are refused with the reason that makes the sender wait."""
    rank = Rank(folder, bandwidth=1e-9)  # after the first slot it waits for ever, unless there is news
    try:
        rank.slots.follow([START], COPIED)
        assert rank.filled.wait(DEADLINE_S)
        assert rank.shard.served_epochs == (1,)
        none = torch.empty(0, dtype=torch.int32)
        with pytest.raises(ValueError, match="map not served: epoch 2, only 1"):
            rank.shard.check(map_epoch=2, moe_layer_idx=0, num_rows=0, pair_row=none, pair_slot=none)
    finally:
        rank.close()


def test_a_map_that_is_given_up_half_way_leaves_everything_as_it_was(folder: Path) -> None:
    """News interrupt the loading at once; the current map was served all the time, and its weights are untouched."""
    rank = Rank(folder, bandwidth=1e-9)
    try:
        before = [checksum(weights, slot) for weights in rank.shard.weights for slot in range(4)]
        rank.slots.follow([START], COPIED)
        assert rank.filled.wait(DEADLINE_S)
        rank.slots.follow([START], None)
        progress = rank.wait(lambda progress: progress.num_to_load == 0)
        assert progress.served_epochs == (1,)
        assert len(rank.fills) == 1
        assert before == [checksum(weights, slot) for weights in rank.shard.weights for slot in range(4)]
    finally:
        rank.close()


def test_what_was_loaded_for_a_map_given_up_is_not_read_again(rank: Rank) -> None:
    """A slot that nobody names keeps its expert until somebody needs the place."""
    rank.slots.follow([START], COPIED)
    rank.wait(lambda progress: progress.served_epochs == (1, 2))
    rank.slots.follow([START], None)
    rank.wait(lambda progress: progress.served_epochs == (1,))
    rank.slots.follow([START], COPIED)
    rank.wait(lambda progress: progress.served_epochs == (1, 2))
    assert len(rank.fills) == LAYERS


def test_a_slot_is_overwritten_only_when_nobody_can_read_it(rank: Rank) -> None:
    """First its map is no longer served, then the running pass ends, then the new expert comes in."""
    rank.slots.follow([COPIED], None)
    rank.wait(lambda progress: progress.served_epochs == (2,))
    rank.events.clear()
    rank.slots.follow([OTHER], None)
    rank.wait(lambda progress: progress.served_epochs == (4,))
    assert rank.events[0] == "pass over, serving ()"
    assert rank.events[1:] == [f"filled {layer}.4" for layer in range(LAYERS)]


def test_maps_that_contradict_each_other_overwrite_nothing(rank: Rank) -> None:
    """A fault of whoever made them: what is served stays, and the failure says which epochs."""
    rank.slots.follow([COPIED], None)
    rank.wait(lambda progress: progress.served_epochs == (2,))
    rank.slots.follow([COPIED], OTHER)
    progress = rank.wait(lambda progress: progress.failure is not None)
    assert progress.failure is not None
    assert "maps [2, 4] put different experts into one slot of EP rank 0" in progress.failure
    assert progress.served_epochs == (2,)


def test_a_read_that_fails_is_reported_and_serving_goes_on(rank: Rank) -> None:
    """The next map is never served; once it is given up the failure is forgotten."""
    rank.failure = CheckpointError("model.safetensors", ["its file ends early"])
    rank.slots.follow([START], COPIED)
    progress = rank.wait(lambda progress: progress.failure is not None)
    assert progress.failure is not None
    assert "its file ends early" in progress.failure
    assert progress.served_epochs == (1,)
    rank.slots.follow([START], None)
    assert rank.wait(lambda progress: progress.failure is None).served_epochs == (1,)
    rank.slots.check_health()


def test_retiring_a_map_reads_nothing(rank: Rank) -> None:
    """Commit and retire only change which epochs are served."""
    rank.slots.follow([START], COPIED)
    rank.wait(lambda progress: progress.served_epochs == (1, 2))
    num_fills = len(rank.fills)
    rank.slots.follow([COPIED, START], None)
    rank.slots.follow([COPIED], None)
    rank.wait(lambda progress: progress.served_epochs == (2,))
    rank.slots.follow([COPIED], MOVED)
    rank.wait(lambda progress: progress.served_epochs == (2, 3))
    assert len(rank.fills) == num_fills


def test_two_ranks_agree_on_the_checksums_of_an_expert_that_is_copied(folder: Path) -> None:
    """The rank that has it and the rank that gets it; a flipped bit in either shows."""
    ranks = [Rank(folder, ep_rank=ep_rank) for ep_rank in range(2)]
    try:
        for each in ranks:
            each.slots.follow([START], COPIED)
        sums = [each.wait(lambda progress: 2 in progress.served_epochs).checksums for each in ranks]
        assert sums[0] == sums[1]
        assert sums[0].keys() == {(layer, 5) for layer in range(LAYERS)}
        ranks[0].shard.weights[1].down[4].view(torch.int16)[0, 0] ^= 1
        assert checksum(ranks[0].shard.weights[1], 4) != sums[0][1, 5]
    finally:
        for each in ranks:
            each.close()


def test_joined_slots_by_hand() -> None:
    """Empty slots take what another map puts there; a contradiction names the maps and the rank."""
    assert joined_slots([START, COPIED], 0).tolist() == [[0, 1, 2, 3, 5]] * LAYERS
    assert joined_slots([MOVED, START], 1).tolist() == [[4, 5, 6, 7, FREE]] * LAYERS
    with pytest.raises(ValueError, match=r"maps \[2, 4\] put different experts into one slot of EP rank 0"):
        joined_slots([COPIED, OTHER], 0)
    assert joined_slots([linear_expert_map(1, 4, 2)], 1).tolist() == [[2, 3]]
