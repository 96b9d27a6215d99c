"""How forward passes are driven: order of dispatch and combine, and what becomes of open handles in a failure."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from actors.model.decoder import run_passes


class CountingDispatcher:
    """Answers a handle with its own number; remembers which handles are open."""

    def __init__(self, *, fails_at: int = -1) -> None:
        self.log: list[str] = []
        self.open: set[int] = set()
        self._fails_at = fails_at

    def dispatch(self, request: Any) -> Any:
        self.open.add(request)
        self.log.append(f"dispatch {request}")
        return request

    def combine(self, handle: Any) -> Tensor:
        self.open.remove(handle)
        if handle == self._fails_at:
            raise RuntimeError("lost")
        self.log.append(f"combine {handle}")
        return torch.tensor([float(handle)])

    def abandon(self, handle: Any) -> None:
        self.open.remove(handle)


def _pass(dispatcher: CountingDispatcher, base: int, layers: int) -> Generator[Any, Tensor, Tensor]:
    total = torch.zeros(1)
    for layer in range(layers):
        total = total + (yield dispatcher.dispatch(base + layer))
    return total


def test_two_micro_batches_take_turns() -> None:
    """While one waits the other dispatches: two in flight, combined in the order they were sent."""
    dispatcher = CountingDispatcher()
    results = run_passes([_pass(dispatcher, 10, 2), _pass(dispatcher, 20, 2)], dispatcher)
    assert [result.item() for result in results] == [21.0, 41.0]
    assert dispatcher.log == [
        *("dispatch 10", "dispatch 20"),
        *("combine 10", "dispatch 11", "combine 20", "dispatch 21"),
        *("combine 11", "combine 21"),
    ]


def test_a_pass_without_experts_returns_at_once() -> None:
    """A pass that never dispatches keeps its place among the results."""
    dispatcher = CountingDispatcher()
    results = run_passes([_pass(dispatcher, 0, 0), _pass(dispatcher, 5, 1)], dispatcher)
    assert [result.item() for result in results] == [0.0, 5.0]


@pytest.mark.parametrize("fails_at", [10, 20, 11, 21])
def test_every_handle_is_spent_when_one_fails(fails_at: int) -> None:
    """A failed combine ends the run; no handle of either micro-batch stays open."""
    dispatcher = CountingDispatcher(fails_at=fails_at)
    with pytest.raises(RuntimeError, match="lost"):
        run_passes([_pass(dispatcher, 10, 2), _pass(dispatcher, 20, 2)], dispatcher)
    assert not dispatcher.open
