"""BalancingConfig: when experts are moved and copied, by what rule, and how much at a time."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class BalancingConfig(BaseModel):
    """How the balancer behaves. Slots to copy experts into are `experts.num_redundant_slots`; how fast they are filled
    is `experts.engine.slot_bandwidth_mib_s`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Literal["auto", "manual", "off"] = Field(
        "auto", description="auto: when it pays; manual: when an operator says so; off: never"
    )
    policy: Literal["tier_time", "eplb", "eplb_hierarchical", "linear"] = Field(
        "tier_time",
        description="tier_time: least predicted time of the expert tier with few moves; eplb: the public rule",
    )
    load: Literal["tokens", "soft"] = Field(
        "tokens", description="what forecasts the load: plain counts, or counts shared with a contested runner-up"
    )
    interval_s: float = Field(60.0, ge=1, description="least time between two automatic rebalances")
    drift_interval_s: float = Field(15.0, ge=1, description="the same while the router drifts")
    horizon_s: float = Field(600.0, gt=0, description="time over which a gain must pay for its moves")
    min_gain: float = Field(0.03, ge=0, lt=1, description="least share of the expert tier's time that must be gained")
    move_s: float = Field(
        0.005, ge=0, description="seconds of serving that loading one expert costs, averaged over the tier"
    )
    half_life_s: float = Field(60.0, gt=0, description="age at which a measurement counts half")
    min_tokens: int = Field(2_000, ge=1, description="tokens the load window must hold before anything is decided")
    max_moves: int | None = Field(None, ge=1, description="experts loaded in one rebalance at most; None: no limit")
    max_copies_per_layer: int | None = Field(
        None, ge=0, description="redundant copies in one MoE layer at most; None: as many as there are slots"
    )
    stage_timeout_s: float = Field(120.0, gt=0, description="a map not prepared within this time is abandoned")
