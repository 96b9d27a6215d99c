"""The protocol of a rebalance: prepare, adopt, retire; what abandons it; and what a restart in the middle leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.experts_status import Outcome, Phase
from cluster.membership import AttentionReport, ExpertReport, MemberReport
from cluster.rebalancer import MAX_HISTORY, Rebalance, Rebalancer, phase_of
from cluster.view import AttentionMember, ClusterView, Shard, with_attention, with_shard, without_member
from routing.experts import EMPTY_SLOT, PAIRS_PER_TOUCH, expert_map_from_rows
from routing.transport.endpoint import Endpoint

FREE = EMPTY_SLOT
TIMEOUT_S = 60.0
START = expert_map_from_rows([[0, 1, FREE, 2, 3, FREE]], 4, 2)
FIRST = expert_map_from_rows([[0, 1, 2, 2, 3, FREE]], 4, 2, map_epoch=1)
SECOND = expert_map_from_rows([[0, 1, 2, FREE, 3, FREE]], 4, 2, map_epoch=2)
PLANNED = Rebalance((FIRST, SECOND), "manual", num_moves=1, gain=0.2, balancedness_before=0.5, balancedness_planned=0.9)


def endpoint(name: str) -> Endpoint:
    return Endpoint("shm", name, "host")


def joined() -> ClusterView:
    """Two expert ranks and two attention actors."""
    view = with_shard(ClusterView(0, START), 0, Shard("e0", endpoint("e0")))
    view = with_shard(view, 1, Shard("e1", endpoint("e1")))
    for member_id in ("a0", "a1"):
        view = with_attention(view, member_id, AttentionMember(endpoint(member_id), is_ready=True))
    return view


class Protocol:
    """A rebalancer, its view, and what the members have said."""

    def __init__(self) -> None:
        self.view = joined()
        self.now = 100.0
        self.reports: dict[str, MemberReport] = {}
        self.restart()

    def restart(self) -> None:
        """Another coordinator, which knows the view and nothing else."""
        self.rebalancer = Rebalancer(TIMEOUT_S, wall_clock=lambda: 1e9)

    def begin(self) -> None:
        self.rebalancer.begin(PLANNED, self.now)
        self.advance()

    def serve(self, *epochs: int, **fields: object) -> None:
        """Both ranks say that they serve these epochs."""
        for member_id in ("e0", "e1"):
            self.reports[member_id] = replace(ExpertReport(epochs), **fields)  # type: ignore[arg-type]
        self.advance()

    def adopt(self, epoch: int, *member_ids: str) -> None:
        for member_id in member_ids or ("a0", "a1"):
            self.reports[member_id] = AttentionReport(epoch)
        self.advance()

    def advance(self) -> None:
        self.view = self.rebalancer.advance(self.view, self.reports, self.now)

    @property
    def epochs(self) -> tuple[int | None, int, int | None]:
        """Of the previous, the current and the next map."""
        view = self.view
        previous, following = view.previous_map, view.next_map
        return previous and previous.map_epoch, view.expert_map.map_epoch, following and following.map_epoch


@pytest.fixture
def protocol() -> Protocol:
    return Protocol()


def test_two_stages_by_hand(protocol: Protocol) -> None:
    """Each stage is prepared by all ranks, adopted by all attention actors and retired before the next one begins."""
    protocol.begin()
    assert (protocol.epochs, phase_of(protocol.view)) == ((None, 0, 1), Phase.PREPARING)
    protocol.serve(0)
    assert protocol.epochs == (None, 0, 1)
    protocol.serve(0, 1)
    assert (protocol.epochs, phase_of(protocol.view)) == ((0, 1, None), Phase.ADOPTING)
    assert protocol.view.served_maps == (protocol.view.expert_map, START)
    protocol.adopt(1, "a0")
    assert protocol.epochs == (0, 1, None)
    protocol.adopt(1)
    assert protocol.epochs == (None, 1, 2), "retired, and the second stage begins at once"
    protocol.serve(1, 2)
    protocol.adopt(2)
    assert (protocol.epochs, phase_of(protocol.view)) == ((None, 2, None), Phase.IDLE)
    assert protocol.view.expert_map == SECOND
    (record,) = protocol.rebalancer.history
    assert (record.outcome, record.num_stages, record.trigger, record.gain) == (Outcome.DONE, 2, "manual", 0.2)
    assert not protocol.rebalancer.is_busy


def test_dispatches_learn_the_price_that_the_maps_were_planned_with(protocol: Protocol) -> None:
    """From the first stage on; a rebalance that does not know it leaves what was known."""
    before = protocol.view.pairs_per_touch
    protocol.rebalancer.begin(replace(PLANNED, pairs_per_touch=41), protocol.now)
    protocol.advance()
    assert (before, protocol.view.pairs_per_touch) == (PAIRS_PER_TOUCH, 41)
    assert ClusterView.from_dict(protocol.view.to_dict()).pairs_per_touch == 41
    for epoch in (1, 2):
        protocol.serve(epoch - 1, epoch)
        protocol.adopt(epoch)
    protocol.begin()
    assert protocol.view.pairs_per_touch == 41


def test_one_rank_that_is_not_ready_holds_the_stage(protocol: Protocol) -> None:
    """And one that has said nothing yet counts as not ready."""
    protocol.begin()
    protocol.reports["e0"] = ExpertReport((0, 1))
    protocol.advance()
    assert protocol.epochs == (None, 0, 1)


@pytest.mark.parametrize("obstacle", ["failure", "checksums", "lost rank", "time"])
def test_what_abandons_a_stage(protocol: Protocol, obstacle: str) -> None:
    """The current map goes on, the record says why, and the next attempt has an epoch of its own."""
    protocol.begin()
    if obstacle == "failure":
        protocol.serve(0, failure="CheckpointError: its file ends early")
    elif obstacle == "checksums":
        protocol.reports["e1"] = ExpertReport((0, 1), checksums=((0, 2, 111),))
        protocol.reports["e0"] = ExpertReport((0, 1), checksums=((0, 2, 112),))
        protocol.advance()
    elif obstacle == "lost rank":
        protocol.view = without_member(protocol.view, "e1")
        protocol.advance()
    else:
        protocol.now += TIMEOUT_S + 1
        protocol.advance()
    assert protocol.epochs == (None, 0, None)
    (record,) = protocol.rebalancer.history
    expected = {
        "failure": "its file ends early",
        "checksums": "two ranks hold different weights of expert 2 in MoE layer 0",
        "lost rank": "EP rank 1 is gone",
        "time": "not prepared within 60 s",
    }
    assert record.outcome is Outcome.ABANDONED
    assert expected[obstacle] in record.reason
    protocol.reports.clear()
    protocol.begin()
    assert protocol.epochs[2] == (None if obstacle == "lost rank" else 2)


def test_equal_checksums_are_no_obstacle(protocol: Protocol) -> None:
    """The rank that had the expert and the one that got it agree."""
    protocol.begin()
    protocol.serve(0, 1, checksums=((0, 2, 111),))
    assert phase_of(protocol.view) is Phase.ADOPTING


def test_a_silent_attention_actor_is_waited_for_and_shown(protocol: Protocol) -> None:
    """Its rows may still be planned with the old map, so that one stays; the watchdog says that it takes too long."""
    protocol.begin()
    protocol.serve(0, 1)
    protocol.adopt(1, "a0")
    protocol.now += TIMEOUT_S + 1
    protocol.advance()
    assert protocol.epochs == (0, 1, None)
    assert protocol.rebalancer.is_stalled(protocol.now)
    protocol.view = without_member(protocol.view, "a1")
    protocol.advance()
    assert protocol.epochs == (None, 1, 2)


@pytest.mark.parametrize("num_steps", range(5))
def test_a_coordinator_that_restarts_goes_on(protocol: Protocol, num_steps: int) -> None:
    """At every point of the first stage: the stage is finished with what the members say again, and nothing more."""
    steps = [
        protocol.begin,
        lambda: protocol.serve(0),
        lambda: protocol.serve(0, 1),
        lambda: protocol.adopt(1, "a0"),
        lambda: None,
    ]
    for step in steps[: num_steps + 1]:
        step()
    protocol.restart()
    protocol.reports.clear()
    protocol.advance()
    protocol.serve(0, 1)
    protocol.adopt(1)
    assert (protocol.epochs, phase_of(protocol.view)) == ((None, 1, None), Phase.IDLE)
    (record,) = protocol.rebalancer.history
    assert (record.trigger, record.num_moves, record.gain) == ("resumed", 1, None)


def test_nothing_happens_by_itself(protocol: Protocol) -> None:
    """An idle view stays the same object, whatever is reported."""
    before = protocol.view
    protocol.serve(0)
    protocol.adopt(0)
    assert protocol.view is before
    assert (protocol.rebalancer.stage(), protocol.rebalancer.phase_seconds(protocol.now)) == ((0, 0), 0.0)


def test_the_last_record_learns_what_was_measured(protocol: Protocol) -> None:
    """Once, and only where there is one."""
    protocol.rebalancer.note_measured(0.7)
    protocol.begin()
    protocol.serve(0, failure="broken")
    protocol.rebalancer.note_measured(0.8)
    protocol.rebalancer.note_measured(0.9)
    assert [record.balancedness_after for record in protocol.rebalancer.history] == [0.8]


def test_history_is_bounded(protocol: Protocol) -> None:
    """Old records give way."""
    for _ in range(MAX_HISTORY + 3):
        protocol.begin()
        protocol.serve(0, failure="broken")
        protocol.reports.clear()
    assert len(protocol.rebalancer.history) == MAX_HISTORY
