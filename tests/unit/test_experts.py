"""ExpertMap: tables worked by hand, properties over random maps, and everything a broken map is refused for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from routing.experts import EMPTY_SLOT, ExpertMap, check_ep_size, expert_map_from_rows, linear_expert_map


def test_tables_by_hand() -> None:
    """Two ranks of three slots: rank 0 holds 0, 1, 2; rank 1 holds 3, a second 0, and an empty slot."""
    expert_map = expert_map_from_rows([[0, 1, 2, 3, 0, EMPTY_SLOT]], 4, 2, map_epoch=9)
    assert (expert_map.slots_per_rank, expert_map.num_physical_experts, expert_map.num_moe_layers) == (3, 6, 1)
    assert expert_map.num_copies.tolist() == [[2, 1, 1, 1]]
    # physical ids: rank 0 is 0..2, rank 1 is 3..5; the second copy of expert 0 is slot 1 of rank 1.
    assert expert_map.logical_to_physical.tolist() == [[[0, 4], [1, -1], [2, -1], [3, -1]]]
    assert expert_map.local_experts(1).tolist() == [[3, 0, EMPTY_SLOT]]


def test_linear_map_by_hand() -> None:
    """Contiguous blocks, with the free slots at the end of each rank."""
    expert_map = linear_expert_map(2, 6, 3, num_redundant_slots=1)
    assert expert_map.physical_to_logical.tolist() == [[0, 1, -1, 2, 3, -1, 4, 5, -1]] * 2


@pytest.mark.parametrize(("num_logical", "ep_size", "slots"), [(1, 1, 1), (8, 4, 3), (36, 3, 20), (288, 8, 40)])
def test_tables_invert_each_other(num_logical: int, ep_size: int, slots: int) -> None:
    """Every physical id is listed exactly once, under the expert it holds, in ascending order."""
    expert_map = expert_map_from_rows(
        [_random_row(num_logical, ep_size, slots) for _ in range(3)], num_logical, ep_size
    )
    for layer, row in enumerate(expert_map.physical_to_logical):
        listed = []
        for logical, physical_ids in enumerate(expert_map.logical_to_physical[layer]):
            held = [int(physical) for physical in physical_ids if physical >= 0]
            assert held == sorted(held)
            assert len(held) == expert_map.num_copies[layer, logical]
            assert all(row[physical] == logical for physical in held)
            assert (physical_ids[len(held) :] == -1).all()
            listed += held
        assert sorted(listed) == np.flatnonzero(row != EMPTY_SLOT).tolist()


@pytest.mark.parametrize(
    ("rows", "num_logical", "ep_size", "sentence"),
    [
        ([[0, 1, 2]], 3, 2, "does not divide"),
        ([0, 1], 2, 2, "does not divide"),
        ([[0, 1, 1, -1]], 3, 2, r"\[2\] have no physical copy"),
        ([[0, 0, 1, 2]], 3, 2, "rank 0 holds two copies"),
        ([[0, 1], [1, 0], [0, 0]], 2, 1, r"layer 2: .*\[1\]"),
        ([[0, 3]], 3, 1, r"\[-1, 3\)"),
        ([[0, -2]], 1, 1, r"\[-1, 1\)"),
    ],
)
def test_broken_maps(rows: list[list[int]], num_logical: int, ep_size: int, sentence: str) -> None:
    """A map that would lose or double an expert is refused at birth, with the place named."""
    with pytest.raises(ValueError, match=sentence):
        expert_map_from_rows(rows, num_logical, ep_size)


@pytest.mark.parametrize(("num_logical", "ep_size"), [(288, 7), (8, 16), (8, 0), (8, -1)])
def test_ep_size_that_does_not_divide(num_logical: int, ep_size: int) -> None:
    """Both numbers are in the message."""
    with pytest.raises(ValueError, match=f"{ep_size} must divide the {num_logical}"):
        check_ep_size(num_logical, ep_size)
    with pytest.raises(ValueError, match=f"{ep_size} must divide"):
        linear_expert_map(1, num_logical, ep_size)


def test_crosses_a_process_as_plain_values() -> None:
    """A map survives JSON, is equal and hashes equal; another epoch or placement is another map."""
    expert_map = expert_map_from_rows([[0, 1, 1, 0]], 2, 2, map_epoch=3)
    copy = ExpertMap.from_dict(json.loads(json.dumps(expert_map.to_dict())))
    assert copy == expert_map
    assert hash(copy) == hash(expert_map)
    assert copy != expert_map_from_rows([[0, 1, 1, 0]], 2, 2, map_epoch=4)
    assert copy != expert_map_from_rows([[1, 0, 1, 0]], 2, 2, map_epoch=3)


@pytest.mark.parametrize(
    "damage",
    [
        {"physical_to_logical": [[0.7, 1, 2, 3]]},
        {"physical_to_logical": [[0, True, 2, 3]]},
        {"physical_to_logical": [["0", 1, 2, 3]]},
        {"physical_to_logical": [[0, None, 2, 3]]},
        {"physical_to_logical": [[0, 1, 2, 2**31]]},
        {"physical_to_logical": [[0, 1, 2, 2**63]]},
        {"physical_to_logical": [[0, 1, 2, 10**40]]},
        {"physical_to_logical": [[0, 1, 2, 3], [0, 1, 2]]},
        {"physical_to_logical": [0, 1, 2, 3]},
        {"physical_to_logical": {"0": [0, 1, 2, 3]}},
        {"physical_to_logical": None},
        {"physical_to_logical": []},
        {"map_epoch": "3"},
        {"map_epoch": 3.0},
        {"ep_size": None},
        {"ep_size": True},
        {"ep_size": 10**40},
        {"num_logical_experts": 10**40},
        {"num_logical_experts": []},
    ],
)
def test_plain_values_are_taken_as_they_are_or_refused(damage: dict[str, object]) -> None:
    """Nothing is rounded, parsed or cut, and only a ValueError comes out."""
    whole = expert_map_from_rows([[0, 1, 2, 3]], 4, 2).to_dict()
    assert ExpertMap.from_dict(whole).to_dict() == whole
    with pytest.raises(ValueError, match=r"\w"):
        ExpertMap.from_dict({**whole, **damage})


@pytest.mark.parametrize("name", ["map_epoch", "ep_size", "num_logical_experts", "physical_to_logical"])
def test_a_missing_field_is_named(name: str) -> None:
    """A map without one of its fields is a KeyError with the name."""
    fields = linear_expert_map(1, 4, 2).to_dict()
    del fields[name]
    with pytest.raises(KeyError, match=name):
        ExpertMap.from_dict(fields)


@pytest.mark.parametrize("fields", [None, [], "map", 7])
def test_what_is_no_mapping_is_no_map(fields: object) -> None:
    """Anything but a mapping is refused like a wrong field."""
    with pytest.raises(ValueError, match="mapping"):
        ExpertMap.from_dict(fields)


def test_fractions_are_no_logical_ids() -> None:
    """Rows of floats are refused, not cut."""
    with pytest.raises(ValueError, match="whole numbers"):
        expert_map_from_rows([[0.7, 1.0]], 2, 1)  # type: ignore[list-item]


def test_table_cannot_be_changed() -> None:
    """Whoever holds a map may share it."""
    with pytest.raises(ValueError, match="read-only"):
        linear_expert_map(1, 4, 2).physical_to_logical[0, 0] = 3


def test_the_callers_array_stays_the_callers() -> None:
    """A map copies: the array it was made from stays writable, and writing to it changes no map."""
    rows = np.array([[0, 1, 2, 3]], dtype=np.int32)
    expert_map = ExpertMap(0, 2, 4, rows)
    rows[0, 0] = 3
    assert expert_map.physical_to_logical.tolist() == [[0, 1, 2, 3]]


def _random_row(num_logical: int, ep_size: int, slots: int) -> list[int]:
    """Every expert once, then copies wherever a rank lacks the expert, some slots left empty."""
    ranks: list[list[int]] = [[] for _ in range(ep_size)]
    for position, logical in enumerate(np.random.permutation(num_logical)):
        ranks[position % ep_size].append(int(logical))
    for held in ranks:
        others = [logical for logical in range(num_logical) if logical not in held]
        np.random.shuffle(others)
        held += others[: np.random.randint(0, slots - len(held) + 1)]
        held += [EMPTY_SLOT] * (slots - len(held))
        np.random.shuffle(held)
    return [logical for held in ranks for logical in held]
