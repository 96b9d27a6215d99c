"""Made-up gateways, attention actors, expert ranks and a coordinator, and what they count in a second. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ops.console.synthetic.load import FloatArray
from ops.console.synthetic.recorder import Recorder
from ops.console.synthetic.shape import Shape

ACCEPTANCE = (0.81, 0.68, 0.57)  # of the draft at each position, given those before
STREAMS = 14.0  # of one attention actor, on average
BURST_S = range(104, 112)  # more streams come than there is room for
NUM_BLOCKS = 4096


@dataclass(frozen=True)
class Second:
    """What all processes share. step_s: duration of a step; expert_s: the expert tier's part of it."""

    number: int
    step_s: float
    attention_s: float
    expert_s: float
    rows: float
    is_preparing: bool

    def rng(self, salt: int) -> np.random.Generator:
        return np.random.default_rng((self.number, salt))


@dataclass
class Member:
    """One process."""

    member: str
    role: str
    host: str
    ep_rank: int | None = None
    recorder: Recorder = field(default_factory=Recorder)


def members_of(shape: Shape) -> list[Member]:
    """Two expert ranks and what else fits on a host."""
    experts = [
        Member(f"SERVE_REPLICA::Experts#{_id(rank)}", "expert", f"host-{rank // 2 + 1}", rank)
        for rank in range(shape.ep_size)
    ]
    attention = [
        Member(f"SERVE_REPLICA::Attention#{_id(20 + number)}", "attention", f"host-{number + 1}")
        for number in range(shape.num_attention_actors)
    ]
    gateways = [
        Member(f"SERVE_REPLICA::Gateway#{_id(40 + number)}", "gateway", f"host-{number + 1}")
        for number in range(shape.num_gateways)
    ]
    return [Member("coordinator", "coordinator", "host-1"), *gateways, *attention, *experts]


def count_attention(recorder: Recorder, second: Second, salt: int) -> None:
    """One attention actor: steps, drafts, streams and blocks."""
    rng = second.rng(salt)
    num_steps = max(1, round(1.0 / second.step_s))
    slow = 1.0 + (0.25 if second.is_preparing else 0.0) * (rng.random(num_steps) < 0.1)
    durations = second.step_s * rng.lognormal(0.0, 0.09, num_steps) * slow
    recorder.observe("step35_step_seconds", durations)
    recorder.observe("step35_step_rows", rng.poisson(second.rows, num_steps))
    recorder.add("step35_steps_total", num_steps, 2)
    _count_parts(recorder, second, float(durations.sum()))
    running = max(1.0, round(STREAMS + 4.0 * np.sin(second.number / 17.0 + salt) + rng.normal(0.0, 1.0)))
    waiting = 9.0 + salt % 3 if second.number in BURST_S else max(0.0, round(rng.normal(-0.4, 0.8)))
    recorder.set("step35_requests_running", running)
    recorder.set("step35_requests_waiting", waiting)
    _count_drafts(recorder, rng, int(running * num_steps))
    used = 0.46 + 0.08 * np.sin(second.number / 41.0 + salt)
    recorder.set("step35_kv_cache_usage_ratio", used)
    for pool, share in (("full", used), ("sliding", 0.7 * used)):
        recorder.set("step35_kv_blocks_used", round(NUM_BLOCKS * share), pool)
        recorder.set("step35_kv_blocks", NUM_BLOCKS, pool)
    queued = rng.lognormal(-3.0 if waiting > 1.0 else -5.0, 0.6, int(rng.poisson(1.6)))
    recorder.observe("step35_queue_time_seconds", queued)
    recorder.add("step35_preemptions_total", 1.0 if second.number in BURST_S and rng.random() < 0.4 else 0.0)
    recorder.add("step35_prefix_cache_query_tokens_total", 900.0)
    recorder.add("step35_prefix_cache_hit_tokens_total", 310.0 + 40.0 * rng.random())
    recorder.add("step35_step_retries_total", 0.0)


def count_gateway(recorder: Recorder, second: Second, salt: int) -> None:
    """One gateway: latencies of requests, and those that were sent away."""
    rng = second.rng(salt)
    num_tokens, num_ended = int(STREAMS / second.step_s), int(rng.poisson(1.6))
    crowd = 6.0 if second.number in BURST_S else 1.0
    recorder.observe("step35_inter_token_latency_seconds", second.step_s * rng.lognormal(0.02, 0.16, num_tokens))
    recorder.observe("step35_time_to_first_token_seconds", crowd * rng.lognormal(-1.9, 0.45, num_ended + 1))
    recorder.observe("step35_time_per_output_token_seconds", 0.42 * second.step_s * rng.lognormal(0.0, 0.1, num_ended))
    recorder.observe("step35_request_latency_seconds", rng.lognormal(1.9, 0.6, num_ended))
    recorder.add("step35_completion_tokens_total", 2.3 * num_tokens)
    recorder.add("step35_prompt_tokens_total", 640.0 * num_ended)
    recorder.set("step35_requests_open", STREAMS + round(rng.normal(0.0, 2.0)))
    for reason, share in (("stop", 0.8), ("length", 0.17), ("abort", 0.03)):
        recorder.add("step35_requests_finished_total", float(rng.binomial(num_ended, share)), reason)
    recorder.add("step35_requests_shed_total", 3.0 if second.number in BURST_S else 0.0, "overloaded")
    recorder.add("step35_requests_rejected_total", float(rng.random() < 0.02), "too_long")
    recorder.add("step35_http_responses_total", float(num_ended), "2xx")
    recorder.add("step35_http_responses_total", 3.0 if second.number in BURST_S else 0.0, "4xx")


def count_expert(
    recorder: Recorder, second: Second, layer_ids: Sequence[int], pairs: FloatArray, busy_s: float
) -> None:
    """One expert rank. pairs: of a step, in each layer. busy_s: of a step, over all layers."""
    num_batches = max(1, round(1.0 / second.step_s))
    for layer_id, amount in zip(layer_ids, pairs, strict=True):
        recorder.add("step35_expert_pairs_total", round(num_batches * amount), layer_id)
        recorder.add("step35_expert_batches_total", num_batches, layer_id)
    recorder.add("step35_expert_busy_seconds_total", min(1.0, num_batches * busy_s))


def count_coordinator(recorder: Recorder, shape: Shape, second: Second, balancer: tuple[bool, int]) -> None:
    """The control plane. balancer: is it paused, the map's epoch."""
    recorder.set("step35_balancer_paused", float(balancer[0]))
    recorder.set("step35_map_epoch", float(balancer[1]))
    for tier, number in (("attention", shape.num_attention_actors), ("expert", shape.ep_size)):
        recorder.set("step35_members", number, tier)
        recorder.set("step35_members_ready", number, tier)
    wanted = shape.num_attention_actors + (1 if second.number in BURST_S else 0)
    recorder.set("step35_autoscaler_desired_replicas", wanted, "attention")
    recorder.set("step35_autoscaler_replicas", shape.num_attention_actors, "attention")
    if second.number % 5 == 0:
        decision = "up" if second.number in BURST_S else "hold"
        recorder.add("step35_autoscaler_decisions_total", 1.0, "attention", decision)


def _count_parts(recorder: Recorder, second: Second, total_s: float) -> None:
    draft_s = 0.11 * second.attention_s
    shares = {
        "attention": second.attention_s - draft_s,
        "draft": draft_s,
        "dispatch": 0.06 * second.step_s,
        "combine_wait": 0.9 * (second.step_s - second.attention_s),
    }
    for part, part_s in shares.items():
        recorder.add("step35_step_part_seconds_total", total_s * part_s / second.step_s, part)


def _count_drafts(recorder: Recorder, rng: np.random.Generator, num_verified: int) -> None:
    recorder.add("step35_verifications_total", num_verified)
    lengths = rng.multinomial(num_verified, (0.06, 0.17, 0.25, 0.52))
    for length, number in enumerate(lengths):
        recorder.add("step35_draft_length_choices_total", float(number), length)
    for reason, share in (("kept", 0.71), ("faster", 0.2), ("probe", 0.07), ("learning", 0.02)):
        recorder.add("step35_draft_length_reasons_total", share * num_verified, reason)
    accepted_before = num_verified
    total = 0
    for position, rate in enumerate(ACCEPTANCE):
        drafted = int(lengths[position + 1 :].sum())
        accepted = int(rng.binomial(min(drafted, accepted_before), rate))
        recorder.add("step35_draft_tokens_total", drafted, position)
        recorder.add("step35_accepted_tokens_total", accepted, position)
        accepted_before, total = accepted, total + accepted
    recorder.set("step35_mean_acceptance_length_tokens", 1.0 + total / max(1, num_verified))


def _id(number: int) -> str:
    return "".join(np.random.default_rng(number).choice(list("abcdefghijkmnpqrstuvwxyz23456789"), 8))
