"""What an operator is shown, put together from the view and the load picture. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cluster.experts_status import BalancerStatus, ExpertStatus, ExpertTierStatus, LayerStatus
from cluster.load_picture import LoadPicture
from cluster.view import ClusterView
from routing.experts import EMPTY_SLOT, ExpertMap
from routing.load.sums import FloatArray
from routing.placement.score import balancedness, layer_seconds, least_seconds

NUM_HOTTEST = 12


def tier_status(
    view: ClusterView, picture: LoadPicture, layer_ids: Sequence[int], balancer: BalancerStatus, now: float
) -> ExpertTierStatus:
    """Everything at one moment. layer_ids: the model's number of each MoE layer."""
    expert_map, load, cost = view.expert_map, picture.load(now), picture.cost()
    window, (step_p50_ms, step_p99_ms) = picture.window(now), picture.step_milliseconds(now)
    layers = _layers(expert_map, picture, layer_ids, now)
    num_redundant = int((expert_map.num_copies - 1).sum())
    max_copies = expert_map.num_physical_experts - expert_map.num_logical_experts
    return ExpertTierStatus(
        map_epoch=expert_map.map_epoch,
        ep_size=expert_map.ep_size,
        slots_per_rank=expert_map.slots_per_rank,
        num_free_slots=int((expert_map.physical_to_logical == EMPTY_SLOT).sum()),
        num_redundant=num_redundant,
        window_steps=round(window.num_steps, 1),
        window_tokens=round(window.num_tokens, 1),
        step_p50_ms=step_p50_ms,
        step_p99_ms=step_p99_ms,
        balancedness=float(np.mean([layer.balancedness for layer in layers])),
        per_expert_us=1e6 * cost.per_expert_s,
        per_pair_us=1e6 * cost.per_pair_s,
        predicted_us=1e6 * float(layer_seconds(expert_map, load, cost).sum()),
        best_us=1e6 * float(least_seconds(load, cost, expert_map.ep_size, max_copies).sum()),
        drift="; ".join(picture.drift.reasons),
        layers=layers,
        hottest=_hottest(view, load, layer_ids),
        pinned=_pinned(view, load, layer_ids),
        balancer=balancer,
    )


def expert_status(
    view: ClusterView, load: FloatArray, layer_ids: Sequence[int], moe_layer_idx: int, logical_id: int
) -> ExpertStatus:
    """One logical expert."""
    mean = float(load[moe_layer_idx].mean())
    physical = view.expert_map.logical_to_physical[moe_layer_idx, logical_id]
    return ExpertStatus(
        layer_id=layer_ids[moe_layer_idx],
        logical_id=logical_id,
        load=float(load[moe_layer_idx, logical_id]) / mean if mean else 0.0,
        ep_ranks=tuple(int(each) // view.expert_map.slots_per_rank for each in physical if each >= 0),
        is_pinned=any((pin.moe_layer_idx, pin.logical_id) == (moe_layer_idx, logical_id) for pin in view.orders.pins),
    )


def _layers(
    expert_map: ExpertMap, picture: LoadPicture, layer_ids: Sequence[int], now: float
) -> tuple[LayerStatus, ...]:
    window, drift = picture.window(now), picture.drift
    pairs, distinct = picture.rank_pairs(now), picture.rank_distinct(now)
    low, high = picture.norm_ratios(now)
    means = [window.mean(measure) for measure in ("mass", "entropy", "margin")]
    balanced = balancedness(pairs)
    return tuple(
        LayerStatus(
            layer_id=layer_id,
            rank_pairs=tuple(pairs[idx].tolist()),
            rank_experts=tuple(distinct[idx].tolist()),
            balancedness=float(balanced[idx]),
            num_copies=int((expert_map.num_copies[idx] - 1).sum()),
            mass=float(means[0][idx]),
            entropy=float(means[1][idx]),
            margin=float(means[2][idx]),
            norm_low=_known(low[idx]),
            norm_high=_known(high[idx]),
            is_drifting=idx in drift.layers or idx in drift.unsure_layers,
        )
        for idx, layer_id in enumerate(layer_ids)
    )


def _hottest(view: ClusterView, load: FloatArray, layer_ids: Sequence[int]) -> tuple[ExpertStatus, ...]:
    """By how much they exceed the mean of their layer."""
    relative = load / np.maximum(load.mean(axis=1, keepdims=True), 1e-30)
    order = np.argsort(-relative, axis=None, kind="stable")[:NUM_HOTTEST]
    places = (divmod(int(flat), load.shape[1]) for flat in order)
    return tuple(expert_status(view, load, layer_ids, layer, expert) for layer, expert in places)


def _pinned(view: ClusterView, load: FloatArray, layer_ids: Sequence[int]) -> tuple[ExpertStatus, ...]:
    return tuple(expert_status(view, load, layer_ids, pin.moe_layer_idx, pin.logical_id) for pin in view.orders.pins)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
