"""Which transport is chosen, and what an unknown one gets."""

from __future__ import annotations

import pytest

from routing.transport.select import TransportOptions, choose_transport, open_attention_port, open_expert_port
from tests.contract.bundles import LIMITS


@pytest.mark.parametrize(
    ("requested", "expert_host_ids", "has_gpus", "chosen"),
    [
        ("auto", ["a", "a"], False, "shm"),
        ("auto", ["a", "b"], False, "gloo"),
        ("auto", ["a", "a"], True, "nccl"),
        ("auto", [], False, "shm"),
        ("gloo", ["a", "a"], True, "gloo"),
        ("shm", ["a", "a"], True, "shm"),
    ],
)
def test_choice(requested: str, expert_host_ids: list[str], has_gpus: bool, chosen: str) -> None:
    """GPUs first, then shared memory where all can share it; what was asked for by name is kept."""
    hosts = {"attention_host_ids": ["a"], "expert_host_ids": expert_host_ids}
    assert choose_transport(requested, **hosts, has_gpus=has_gpus) == chosen


def test_shared_memory_between_hosts() -> None:
    """Asking for shm between two hosts is refused before anything starts."""
    with pytest.raises(ValueError, match="shm needs every process on one host"):
        choose_transport("shm", attention_host_ids=["a"], expert_host_ids=["b"], has_gpus=False)


def test_unknown_names_list_the_known_ones() -> None:
    """A typo is answered with the names there are."""
    with pytest.raises(ValueError, match="'tcp' is not one of auto, shm, gloo, nccl"):
        choose_transport("tcp", attention_host_ids=["a"], expert_host_ids=["a"], has_gpus=False)
    with pytest.raises(ValueError, match="shm, gloo, nccl"):
        open_attention_port("tcp", ep_size=1, limits=LIMITS, options=TransportOptions())
    with pytest.raises(ValueError, match="shm, gloo, nccl"):
        open_expert_port("tcp", ep_rank=0, limits=LIMITS, options=TransportOptions())
