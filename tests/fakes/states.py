"""Answers of GET /admin/state for tests, of any size: two of them a second or more apart, whose differences are known.

Everything grows linearly, so a rate is the same over any window.
"""

from __future__ import annotations

import json
from typing import Any

from ops.telemetry.metrics import METRICS
from tests.fakes.experts import tier_status

START = 1_795_835_045.0  # 28 November 2026, 03:04:05 UTC
COMPLETION_PER_S, PROMPT_PER_S, STEPS_PER_S, FINISHED_PER_S = 612.0, 1240.0, 80.0, 3.0
VERIFIED_PER_S = 100.0
DRAFTED_PER_S, ACCEPTED_PER_S = (100.0, 80.0, 50.0), (80.0, 48.0, 13.0)
PARTS = {"attention": 0.41, "draft": 0.05, "dispatch": 0.06, "combine_wait": 0.48}

Fields = dict[str, Any]


def cluster_state(seconds: float = 0.0, *, num_layers: int = 10, ep_size: int = 8, **fields: Any) -> Fields:
    """The state `seconds` after START, as JSON has it. Nano's shape by default; 42 layers is the full model's."""
    values: Fields = {
        "time": START + seconds,
        "model": {"name": "step-nano", "layer_ids": [3 + idx for idx in range(num_layers)], "ep_size": ep_size},
        "experts": tier_status(num_layers, ep_size).to_dict(),
        "load": [],
        "members": members(seconds, ep_size),
        "events": [
            event(0.0, "rank_leased", "EP rank 0 is served by a"),
            event(7.0, "rebalance", "a rebalance began: 17 moves"),
            event(9.0, "autoscaler", "attention: 1 replica stays"),
        ],
    }
    return dict(json.loads(json.dumps({**values, **fields})))


def event(seconds: float, kind: str, text: str) -> Fields:
    return {"time": START + seconds, "kind": kind, "text": text, "member": None}


def members(seconds: float, ep_size: int) -> list[Fields]:
    """A gateway, an attention actor, the expert ranks and the coordinator."""
    experts = [member(f"expert-{rank}", "expert", ep_rank=rank, metrics={}) for rank in range(ep_size)]
    return [
        member("gateway-a", "gateway", metrics=gateway_metrics(seconds)),
        member("attention-a", "attention", metrics=attention_metrics(seconds)),
        *experts,
        member("coordinator", "coordinator", metrics={"step35_map_epoch": [[[], 7.0]]}),
    ]


def member(name: str, role: str, **fields: Any) -> Fields:
    values: Fields = {"member": name, "role": role, "ep_rank": None, "host": "host-1", "is_ready": True, "age_s": 0.4}
    return {**values, "metrics": {}, **fields}


def gateway_metrics(seconds: float) -> Fields:
    """First tokens: 30 a second, half of them between 50 and 100 ms, half between 1 and 2.5 s."""
    return {
        "step35_completion_tokens_total": [[[], 5000.0 + COMPLETION_PER_S * seconds]],
        "step35_prompt_tokens_total": [[[], 900.0 + PROMPT_PER_S * seconds]],
        "step35_requests_finished_total": [[["stop"], 40.0 + FINISHED_PER_S * seconds], [["abort"], 1.0]],
        "step35_requests_shed_total": [[["overloaded"], 4.0]],
        "step35_http_responses_total": [[["2xx"], 900.0 + seconds], [["5xx"], 2.0]],
        "step35_time_to_first_token_seconds": [
            [[], histogram("step35_time_to_first_token_seconds", {0.1: 15 * seconds, 2.5: 15 * seconds})]
        ],
        "step35_inter_token_latency_seconds": [
            [[], histogram("step35_inter_token_latency_seconds", {0.015: 500 * seconds})]
        ],
    }


def attention_metrics(seconds: float) -> Fields:
    """One actor that runs 12 sequences with 24 rows in a step."""
    rows = histogram("step35_step_rows", {32.0: STEPS_PER_S * seconds})
    parts = {part: share * (9.0 + seconds) for part, share in PARTS.items()}
    return {
        "step35_requests_running": [[[], 12.0]],
        "step35_requests_waiting": [[[], 0.0]],
        "step35_kv_cache_usage_ratio": [[[], 0.46]],
        "step35_steps_total": [[["1"], 70.0 + STEPS_PER_S * seconds]],
        "step35_step_rows": [[[], {**rows, "total": 24.0 * STEPS_PER_S * seconds}]],
        "step35_verifications_total": [[[], 31.0 + VERIFIED_PER_S * seconds]],
        "step35_draft_tokens_total": _by_position(DRAFTED_PER_S, seconds),
        "step35_accepted_tokens_total": _by_position(ACCEPTED_PER_S, seconds),
        "step35_step_part_seconds_total": [[[part], value] for part, value in parts.items()],
    }


def histogram(name: str, by_bound: dict[float, float]) -> Fields:
    """So many values just at the bounds, and ten old ones that no difference may count."""
    bounds = METRICS[name].buckets
    counts = [int(by_bound.get(bound, 0)) for bound in (*bounds, float("inf"))]
    counts[3] += 10
    return {"counts": counts, "total": sum(bound * number for bound, number in by_bound.items()) + 10 * bounds[3]}


def _by_position(per_s: tuple[float, ...], seconds: float) -> list[list[Any]]:
    return [[[str(position)], 7.0 + rate * seconds] for position, rate in enumerate(per_s)]
