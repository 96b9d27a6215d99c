"""ClusterView: transitions make newer views, views cross a process unchanged, and only a newer one is adopted."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from cluster.view import (
    AttentionMember,
    ClusterView,
    Orders,
    Shard,
    raised_above,
    with_attention,
    with_next_map,
    with_next_map_adopted,
    with_orders,
    with_shard,
    with_transport,
    without_member,
    without_next_map,
    without_previous_map,
)
from routing.experts import linear_expert_map
from routing.placement.contract import Pin
from routing.transport.endpoint import Endpoint

MAP = linear_expert_map(num_moe_layers=2, num_logical_experts=8, ep_size=2)


def endpoint(name: str) -> Endpoint:
    return Endpoint("shm", name, "host")


def full_view() -> ClusterView:
    view = with_transport(ClusterView(0, MAP), "shm")
    view = with_shard(view, 1, Shard("e1", endpoint("b")))
    view = with_shard(view, 0, Shard("e0", endpoint("a")))
    return with_attention(view, "a0", AttentionMember(endpoint("c"), is_ready=True))


def test_round_trip_through_json() -> None:
    """A view is made of plain values: JSON carries it, next map included."""
    view = full_view()
    view = ClusterView(**{**view.__dict__, "next_map": linear_expert_map(2, 8, 2, map_epoch=1)})
    assert ClusterView.from_dict(json.loads(json.dumps(view.to_dict()))) == view


def test_every_transition_makes_a_newer_view() -> None:
    """Four changes, four numbers, and the old views stay as they were."""
    empty = ClusterView(0, MAP)
    assert full_view().view_id == 4
    with_shard(empty, 0, Shard("e0", endpoint("a")))
    assert not empty.shards


@pytest.mark.parametrize(
    "again",
    [
        lambda view: with_transport(view, "shm"),
        lambda view: with_shard(view, 0, Shard("e0", endpoint("a"))),
        lambda view: with_attention(view, "a0", AttentionMember(endpoint("c"), is_ready=True)),
        lambda view: without_member(view, "nobody"),
        lambda view: raised_above(view, view, {}),
    ],
)
def test_no_change_no_new_view(again: Any) -> None:
    """Saying the same twice wakes nobody."""
    view = full_view()
    assert again(view) is view


def test_is_serving_needs_every_rank_and_a_warm_attention_actor() -> None:
    """Take away any one of the three and the view no longer promises a token."""
    view = full_view()
    assert view.is_serving
    assert not without_member(view, "e1").is_serving
    assert without_member(view, "e1").missing_ranks == (1,)
    assert not without_member(view, "a0").is_serving
    assert not with_attention(view, "a0", AttentionMember(endpoint("c"))).is_serving


def test_endpoints_are_ordered_by_rank() -> None:
    """Ports get ranks in order, whatever order the processes came in."""
    assert list(full_view().shard_endpoints().items()) == [(0, endpoint("a")), (1, endpoint("b"))]
    assert full_view().attention_endpoints() == (endpoint("c"),)


def test_a_replacement_takes_the_rank() -> None:
    """Publishing a rank again replaces its holder."""
    view = with_shard(full_view(), 1, Shard("e2", endpoint("d")))
    assert view.shards[1].member_id == "e2"
    assert without_member(view, "e1") is view


def test_adopt_only_newer() -> None:
    """An equal or older number is never adopted; anything is newer than nothing."""
    view = full_view()
    assert view.is_newer_than(None)
    assert view.is_newer_than(ClusterView(3, MAP))
    assert not view.is_newer_than(ClusterView(4, MAP))


def test_a_restarted_coordinator_goes_above_what_it_is_told() -> None:
    """It takes the number, the newer map, the transport and the members, of the shards those whose member holds the
    rank; what it knows itself is fresher."""
    newer_map = linear_expert_map(2, 8, 2, map_epoch=5)
    seen = ClusterView(**{**full_view().__dict__, "view_id": 17, "expert_map": newer_map})
    own = with_shard(ClusterView(0, MAP), 1, Shard("e2", endpoint("new")))
    view = raised_above(own, seen, {0: "e0", 1: "e2"})
    assert (view.view_id, view.expert_map.map_epoch, view.transport) == (18, 5, "shm")
    assert view.shards == {0: seen.shards[0], 1: own.shards[1]}
    assert view.attention == seen.attention
    # An older report must not take anything back.
    assert raised_above(view, full_view(), {0: "e0", 1: "e1"}) is view


def test_another_view_of_the_same_number_is_risen_above() -> None:
    """Two lives of a coordinator may have given one number twice; whoever saw the other must see news."""
    own = with_transport(ClusterView(3, MAP), "shm")
    seen = full_view()
    assert own.view_id == seen.view_id
    assert raised_above(own, seen, {0: "e0", 1: "e1"}).view_id == own.view_id + 1


def test_views_cannot_be_changed() -> None:
    """Neither fields nor mappings."""
    view = full_view()
    with pytest.raises(FrozenInstanceError):
        view.view_id = 9  # type: ignore[misc]
    with pytest.raises(TypeError):
        view.shards[0] = Shard("x", endpoint("x"))  # type: ignore[index]


def test_a_rank_outside_the_map_is_refused() -> None:
    """A shard of rank 2 of 2 is a bug of the caller, named."""
    with pytest.raises(ValueError, match=r"EP ranks \[2\] lie outside 0\.\.1"):
        with_shard(full_view(), 2, Shard("e2", endpoint("d")))


@pytest.mark.parametrize("damage", [{"shards": [{"ep_rank": 0}]}, {"view_id": "x"}, {"expert_map": {}}])
def test_damaged_views_are_refused(damage: dict[str, Any]) -> None:
    """A view that lacks something is an error, never half a view."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        ClusterView.from_dict({**full_view().to_dict(), **damage})


NEXT = replace(MAP, map_epoch=1)


class TestMaps:
    """A rebalance as views see it."""

    def test_a_rebalance_from_beginning_to_end(self) -> None:
        """Each transition is a newer view; two maps are served between adopting and retiring."""
        views = [full_view()]
        for transition in (
            lambda view: with_next_map(view, NEXT),
            with_next_map_adopted,
            without_previous_map,
        ):
            views.append(transition(views[-1]))
        assert [view.view_id for view in views] == list(range(views[0].view_id, views[0].view_id + 4))
        served = [[expert_map.map_epoch for expert_map in view.served_maps] for view in views]
        assert served == [[0], [0], [1, 0], [1]]
        assert [view.highest_epoch for view in views] == [0, 1, 1, 1]
        assert [ClusterView.from_dict(json.loads(json.dumps(view.to_dict()))) for view in views] == views

    def test_giving_up_changes_nothing_else(self) -> None:
        """And nothing at all where nothing was prepared."""
        view = full_view()
        assert without_next_map(view) is view
        assert without_previous_map(view) is view
        given_up = without_next_map(with_next_map(view, NEXT))
        assert replace(given_up, view_id=view.view_id) == view

    def test_an_epoch_is_used_once(self) -> None:
        """A map with a number that was there is a bug of whoever made it, and so are three maps at a time."""
        with pytest.raises(AssertionError, match="never used twice"):
            with_next_map(full_view(), MAP)
        adopting = with_next_map_adopted(with_next_map(full_view(), NEXT))
        with pytest.raises(ValueError, match="cannot be prepared while"):
            with_next_map(adopting, replace(MAP, map_epoch=2))

    def test_orders_travel_with_the_view(self) -> None:
        """Through JSON too; giving the same order again is no news."""
        orders = Orders(is_paused=True, pins=(Pin(1, 5, (0, 1)),))
        view = with_orders(full_view(), orders)
        assert with_orders(view, orders) is view
        assert ClusterView.from_dict(json.loads(json.dumps(view.to_dict()))).orders == orders

    def test_a_restarted_coordinator_takes_up_the_rebalance(self) -> None:
        """From the newest view: what was prepared goes on, what was given up stays so, orders are kept."""
        preparing = with_orders(with_next_map(full_view(), NEXT), Orders(is_paused=True))
        restored = raised_above(ClusterView(0, MAP), preparing, HOLDERS)
        assert (restored.next_map, restored.orders) == (NEXT, Orders(is_paused=True))
        given_up = without_next_map(preparing)
        assert raised_above(restored, given_up, HOLDERS).next_map is None
        assert raised_above(raised_above(ClusterView(0, MAP), given_up, HOLDERS), preparing, HOLDERS).next_map is None

    def test_an_older_view_with_a_newer_map_gives_its_map_only(self) -> None:
        """Somebody may plan with it already. Its members may have left since."""
        adopting = with_next_map_adopted(with_next_map(full_view(), NEXT))
        ahead = replace(without_member(full_view(), "e1"), view_id=99)
        raised = raised_above(ahead, adopting, HOLDERS)
        assert raised.is_newer_than(ahead)
        assert (raised.expert_map, raised.previous_map) == (NEXT, MAP)
        assert raised.shards == ahead.shards


HOLDERS = {0: "e0", 1: "e1"}
