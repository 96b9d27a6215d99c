"""The balancer: when it acts by itself, what an operator may order, and what it shows. Reports are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.balancer import Balancer
from cluster.balancing import BalancingConfig
from cluster.errors import InvalidOrder
from cluster.experts_status import ExpertTierStatus, Outcome, Phase
from cluster.membership import AttentionReport, ExpertReport, MemberReport
from cluster.view import (
    AttentionMember,
    ClusterView,
    Orders,
    Shard,
    with_attention,
    with_orders,
    with_shard,
    without_member,
)
from routing.experts import ExpertMap, linear_expert_map
from routing.load.cost_fit import cost_moments
from routing.load.expert_sample import ExpertSample
from routing.load.sample import LoadSample
from routing.placement.contract import Pin
from routing.transport.endpoint import Endpoint

LAYERS, EXPERTS, RANKS, SLOTS = 2, 16, 4, 5
TOP_K = 2
MAP = linear_expert_map(LAYERS, EXPERTS, RANKS, num_redundant_slots=1)
# Rank 0 holds experts 0 to 3, which get nearly everything.
SKEWED = np.array([40.0] * 4 + [1.0] * 12)
EVEN = np.ones(EXPERTS)


def load_sample(load: np.ndarray, num_steps: int = 100) -> dict[str, Any]:
    """A report's sample: `num_steps` steps with this many pairs for each expert."""
    tokens = np.tile(load, (LAYERS, 1)) * num_steps
    num_tokens = float(tokens[0].sum()) / TOP_K
    empty = LoadSample.empty(LAYERS, EXPERTS)
    measures = np.tile(np.array([[0.3], [0.9], [0.02]]), (1, LAYERS)) * num_tokens
    sample = replace(
        empty, num_steps=float(num_steps), num_tokens=num_tokens, tokens=tokens, soft=tokens, measure_sums=measures
    )
    return sample.to_dict()


def expert_sample(pairs: float, num_steps: int = 100) -> dict[str, Any]:
    """A rank's sample: so many pairs in each layer and step, each of which takes a microsecond, an expert ten."""
    per_slot = np.full((LAYERS, SLOTS), pairs * num_steps / SLOTS)
    rng = np.random.default_rng(0)
    distinct, calls = rng.integers(1, 6, 200), rng.integers(1, 200, 200)
    sample = replace(
        ExpertSample.empty(LAYERS, SLOTS),
        num_calls=np.full(LAYERS, float(num_steps)),
        distinct=np.full(LAYERS, 3.0 * num_steps),
        pairs=per_slot,
        norm_sums=per_slot,
        norm_counts=per_slot,
        cost=cost_moments(distinct, calls, 1e-5 * distinct + 1e-6 * calls),
    )
    return sample.to_dict()


class Tier:
    """A balancer with its view and its members' reports."""

    def __init__(self, **fields: Any) -> None:
        self.config = BalancingConfig(**{"min_tokens": 100, "half_life_s": 10.0, "min_gain": 0.03, **fields})
        self.now = 1000.0
        self.balancer = Balancer(self.config, MAP, layer_ids=(3, 4), wall_clock=lambda: 1e9)
        view = ClusterView(0, MAP)
        for rank in range(RANKS):
            view = with_shard(view, rank, Shard(f"e{rank}", Endpoint("shm", f"e{rank}", "host")))
        self.view = with_attention(view, "a0", AttentionMember(Endpoint("shm", "a0", "host"), is_ready=True))
        self.reports: dict[str, MemberReport] = {}

    def note(self, load: np.ndarray) -> None:
        """Every member reports this load; ranks as their experts get it."""
        self.say("a0", AttentionReport(self.view.expert_map.map_epoch, (0.01, 0.02), load_sample(load)), None)
        for rank in range(RANKS):
            self.say(
                f"e{rank}", ExpertReport((), sample=expert_sample(float(load[4 * rank : 4 * rank + 4].sum()))), rank
            )

    def say(self, member_id: str, report: MemberReport, ep_rank: int | None) -> None:
        self.reports[member_id] = report
        self.balancer.note(report, ep_rank, self.now)

    def advance(self) -> None:
        self.view = self.balancer.advance(self.view, self.reports, self.now)

    def follow(self) -> None:
        """Members do what the view asks for, until the rebalance is over."""
        for _ in range(20):
            maps = [*self.view.served_maps, self.view.next_map]
            epochs = tuple(sorted(each.map_epoch for each in maps if each is not None))
            for rank in range(RANKS):
                self.say(f"e{rank}", ExpertReport(epochs), rank)
            self.say("a0", AttentionReport(self.view.expert_map.map_epoch), None)
            self.advance()

    def status(self) -> ExpertTierStatus:
        return self.balancer.status(self.view, self.reports, self.now)


class TestByItself:
    def test_a_skewed_load_is_balanced(self) -> None:
        """Without being told; the record has its reason, gain and what was planned."""
        tier = Tier()
        tier.note(SKEWED)
        tier.advance()
        assert tier.view.next_map is not None
        tier.follow()
        status = tier.status()
        (record,) = status.balancer.history
        assert (record.trigger, record.outcome, status.balancer.phase) == ("load", Outcome.DONE, Phase.IDLE)
        assert record.gain is not None
        assert record.gain > 0.4
        assert record.balancedness_planned is not None
        assert record.balancedness_planned > 0.9
        assert "would save" in status.balancer.last_decision

    def test_an_even_load_is_left_alone(self) -> None:
        """And it is said why."""
        tier = Tier()
        tier.note(EVEN)
        tier.advance()
        assert tier.view.next_map is None
        assert tier.status().balancer.last_decision != "nothing has been decided yet"

    @pytest.mark.parametrize("reason", ["manual", "off", "paused", "too little", "missing rank", "no load"])
    def test_what_holds_it_back(self, reason: str) -> None:
        """A skewed load in each case."""
        tier = Tier(**{"mode": reason} if reason in ("manual", "off") else {})
        if reason == "paused":
            tier.view = with_orders(tier.view, Orders(is_paused=True))
        if reason == "missing rank":
            tier.view = without_member(tier.view, "e2")
        if reason == "too little":
            tier = Tier(min_tokens=10**9)
        if reason != "no load":
            tier.note(SKEWED)
        before = tier.view
        tier.advance()
        assert tier.view is before

    def test_the_next_one_waits_for_its_interval(self) -> None:
        """A load that turns round is answered, but not at once."""
        tier = Tier(interval_s=60, drift_interval_s=60)
        tier.note(SKEWED)
        tier.advance()
        tier.follow()
        tier.now += 20
        for _ in range(5):
            tier.now += 7
            tier.note(SKEWED[::-1].copy())
            tier.advance()
        assert tier.view.next_map is None
        assert "less than 60 s ago" in tier.status().balancer.last_decision
        tier.now += 20
        tier.note(SKEWED[::-1].copy())
        tier.advance()
        assert tier.view.next_map is not None

    def test_drift_shortens_the_interval_and_is_the_trigger(self) -> None:
        """The load is not what experts were placed for; the operator is told."""
        tier = Tier(interval_s=10_000, drift_interval_s=15)
        tier.note(SKEWED)
        tier.advance()
        tier.follow()
        for _ in range(8):
            tier.now += 8
            tier.note(SKEWED[::-1].copy())
            tier.advance()
        assert tier.view.next_map is not None
        assert "is not what experts were placed for" in tier.status().drift
        tier.follow()
        assert [record.trigger for record in tier.status().balancer.history] == ["load", "drift"]

    def test_what_a_rebalance_brought_is_measured_later(self) -> None:
        """When the window holds little from before it."""
        tier = Tier()
        tier.note(SKEWED)
        tier.advance()
        tier.follow()
        assert tier.status().balancer.history[-1].balancedness_after is None
        tier.now += 2 * tier.config.half_life_s + 1
        for _ in range(10):  # far more than what is left of the beginning
            tier.note(EVEN * SKEWED.mean())
        tier.advance()
        after = tier.status().balancer.history[-1].balancedness_after
        assert after is not None
        assert after > 0.9


class TestOrders:
    def test_a_dry_run_changes_nothing(self) -> None:
        """It says what would be done."""
        tier = Tier(mode="manual")
        tier.note(SKEWED)
        proposal = tier.balancer.propose(tier.view, tier.now, is_dry_run=True)
        assert (proposal.is_accepted, proposal.is_dry_run) == (True, True)
        assert proposal.num_moves > 0
        assert proposal.balancedness_after > proposal.balancedness_before
        before = tier.view
        tier.advance()
        assert tier.view is before

    def test_a_rebalance_by_hand(self) -> None:
        """However little it gains, and only one at a time."""
        tier = Tier(mode="manual", min_gain=0.99)
        tier.note(SKEWED)
        assert tier.balancer.propose(tier.view, tier.now, is_dry_run=False).is_accepted
        tier.advance()
        assert tier.view.next_map is not None
        with pytest.raises(InvalidOrder, match="under way"):
            tier.balancer.propose(tier.view, tier.now, is_dry_run=True)
        tier.follow()
        assert tier.status().balancer.history[-1].trigger == "manual"

    @pytest.mark.parametrize(
        ("fields", "is_noted", "is_whole", "message"),
        [
            ({"mode": "off"}, True, True, "set balancing.mode"),
            ({}, False, True, "send some requests first"),
            ({}, True, False, "Nobody serves EP ranks 2"),
        ],
    )
    def test_orders_that_cannot_be_followed(
        self, fields: dict[str, Any], is_noted: bool, is_whole: bool, message: str
    ) -> None:
        """The message says what to do."""
        tier = Tier(**fields)
        if is_noted:
            tier.note(SKEWED)
        if not is_whole:
            tier.view = without_member(tier.view, "e2")
        with pytest.raises(InvalidOrder, match=message):
            tier.balancer.propose(tier.view, tier.now, is_dry_run=False)

    def test_pins_keep_experts_where_they_are(self) -> None:
        """The hottest expert stays alone on its rank, whatever is gained elsewhere; unpinned it may go."""
        tier = Tier(mode="manual")
        tier.note(SKEWED)
        tier.view = tier.balancer.with_pin(tier.view, 3, 0, None)
        assert tier.view.orders.pins == (Pin(0, 0, (0,)),)
        tier.view = tier.balancer.with_pin(tier.view, 4, 1, (2, 1))
        tier.balancer.propose(tier.view, tier.now, is_dry_run=False)
        tier.advance()
        tier.follow()
        expert_map = tier.view.expert_map
        assert ranks_of(expert_map, 0, 0) == [0]
        assert ranks_of(expert_map, 1, 1) == [1, 2]
        assert [expert.ep_ranks for expert in tier.status().pinned] == [(0,), (1, 2)]
        tier.view = tier.balancer.without_pin(tier.view, 3, 0)
        assert tier.view.orders.pins == (Pin(1, 1, (1, 2)),)

    @pytest.mark.parametrize(
        ("layer", "expert", "ranks", "message"),
        [
            (2, 0, None, "Layer 2 has no experts; 3 to 4 have"),
            (3, 16, None, "expert 16 is outside 0..15"),
            (3, 0, (4,), r"ranks \[4\] must be different ones of 0..3"),
        ],
    )
    def test_pins_that_cannot_be(self, layer: int, expert: int, ranks: tuple[int, ...] | None, message: str) -> None:
        """Named by the model's numbers."""
        tier = Tier()
        with pytest.raises(InvalidOrder, match=message):
            tier.balancer.with_pin(tier.view, layer, expert, ranks)

    def test_unpinning_what_is_not_pinned(self) -> None:
        """A slip of the finger is told."""
        tier = Tier()
        with pytest.raises(InvalidOrder, match="Expert 5 of layer 3 is not pinned"):
            tier.balancer.without_pin(tier.view, 3, 5)


class TestStatus:
    def test_figures_by_hand(self) -> None:
        """Rank 0 has 160 pairs a step, the others 4: the mean is 43, balancedness 43 / 160."""
        tier = Tier()
        tier.note(SKEWED)
        status = tier.status()
        assert status.balancedness == pytest.approx(43 / 160)
        layer = status.layers[0]
        assert layer.layer_id == 3
        assert layer.rank_pairs == pytest.approx((160.0, 4.0, 4.0, 4.0))
        assert layer.rank_experts == pytest.approx((3.0,) * 4)
        assert (layer.mass, layer.entropy, layer.margin) == pytest.approx((0.3, 0.9, 0.02))
        assert (layer.norm_low, layer.norm_high) == (1.0, 1.0)
        assert (status.per_expert_us, status.per_pair_us) == pytest.approx((10.0, 1.0), rel=0.01)
        assert status.best_us < status.predicted_us
        hottest = status.hottest[0]
        assert (hottest.layer_id, hottest.logical_id, hottest.ep_ranks) == (3, 0, (0,))
        assert hottest.load == pytest.approx(40 / SKEWED.mean())
        assert (status.step_p50_ms, status.num_free_slots) == (pytest.approx(15.0), 4 * LAYERS)

    def test_it_survives_json(self) -> None:
        """What the admin route sends is what the command line shows."""
        tier = Tier()
        tier.note(SKEWED)
        tier.advance()
        tier.follow()
        status = tier.status()
        assert ExpertTierStatus.from_dict(status.to_dict()) == status

    def test_reports_that_make_no_sense_are_left_out(self) -> None:
        """One broken member does not spoil the picture."""
        tier = Tier()
        tier.say("a0", AttentionReport(0, (), {"tokens": b""}), None)
        tier.say("e0", ExpertReport((0,), sample={"pairs": b"xx"}), 0)
        assert tier.status().window_tokens == 0.0


def ranks_of(expert_map: ExpertMap, layer: int, expert: int) -> list[int]:
    physical = expert_map.logical_to_physical[layer, expert]
    return [int(each) // expert_map.slots_per_rank for each in physical if each >= 0]
