"""Every metric of the product, declared once: whoever records, draws or alerts uses these names and no others. Pure.

Groups follow the operator's questions. Process labels (role, member, ep_rank) come on top of those declared here, so
what each expert rank says of its layers is known by layer and rank. Which code records a metric is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping

from ops.telemetry.labels import CHANGE_S, EXPERT, LAYER, POSITION, REQUEST_S, ROWS, STEP_S, TIER, TOKENS, WAIT_S
from ops.telemetry.spec import Alias, Declarations, Label, MetricSpec, Owner

FINISH = Label("reason", ("stop", "length", "abort", "error"))
POOL = Label("pool", ("full", "sliding"))
MEASURE = Label("measure", ("mass", "entropy", "margin"))

_gateway, _attention, _expert, _coordinator, _every = (
    Declarations(owner) for owner in (Owner.GATEWAY, Owner.ATTENTION, Owner.EXPERT, Owner.COORDINATOR, Owner.EVERY)
)

REQUESTS = (
    _gateway.gauge("step35_requests_open", "Requests that are being answered."),
    _gateway.counter(
        "step35_requests_finished_total",
        "Sequences that ended, by reason.",
        FINISH,
        aliases=(Alias("vllm:request_success_total", rename=(("reason", "finished_reason"),)),),
    ),
    _gateway.counter(
        "step35_requests_rejected_total",
        "Requests that can never work as they are.",
        Label("reason", ("invalid", "too_long", "unknown_model")),
    ),
    _gateway.counter(
        "step35_requests_shed_total",
        "Requests sent away that would work later. They are demand, though no queue ever shows them.",
        Label("reason", ("concurrency", "overloaded", "not_ready", "unavailable", "deadline")),
        aliases=(Alias("vllm:admission_rejections_total"),),
    ),
    _gateway.histogram(
        "step35_time_to_first_token_seconds",
        "From the request's arrival to its first token with content.",
        unit="seconds",
        buckets=WAIT_S,
        aliases=(Alias("vllm:time_to_first_token_seconds"),),
    ),
    _gateway.histogram(
        "step35_inter_token_latency_seconds",
        "Between two events of a stream; with drafts an event may carry several tokens.",
        unit="seconds",
        buckets=STEP_S,
        aliases=(Alias("vllm:inter_token_latency_seconds"),),
    ),
    _gateway.histogram(
        "step35_time_per_output_token_seconds",
        "Of a request: its time after the first token over its tokens after the first.",
        unit="seconds",
        buckets=STEP_S,
        aliases=(Alias("vllm:request_time_per_output_token_seconds"),),
    ),
    _gateway.histogram(
        "step35_request_latency_seconds",
        "From the request's arrival to its last token.",
        unit="seconds",
        buckets=REQUEST_S,
        aliases=(Alias("vllm:e2e_request_latency_seconds"),),
    ),
    _gateway.counter(
        "step35_prompt_tokens_total",
        "Prompt tokens of accepted requests, cached ones included.",
        unit="tokens",
        aliases=(Alias("vllm:prompt_tokens_total"),),
    ),
    _gateway.counter(
        "step35_completion_tokens_total",
        "Tokens produced for clients.",
        unit="tokens",
        aliases=(Alias("vllm:generation_tokens_total"),),
    ),
    _gateway.histogram(
        "step35_request_prompt_tokens",
        "Prompt tokens of a request.",
        unit="tokens",
        buckets=TOKENS,
        aliases=(Alias("vllm:request_prompt_tokens"),),
    ),
    _gateway.histogram(
        "step35_request_completion_tokens",
        "Completion tokens of a request.",
        unit="tokens",
        buckets=TOKENS,
        aliases=(Alias("vllm:request_generation_tokens"),),
    ),
    _attention.gauge(
        "step35_requests_waiting",
        "Sequences that wait for their first or next turn, preempted ones included.",
        aliases=(Alias("vllm:num_requests_waiting"),),
    ),
    _attention.gauge(
        "step35_requests_running",
        "Sequences that hold KV blocks.",
        aliases=(Alias("vllm:num_requests_running"),),
    ),
    _attention.histogram(
        "step35_queue_time_seconds",
        "From a sequence's arrival at its attention actor to its first step.",
        unit="seconds",
        buckets=WAIT_S,
        aliases=(Alias("vllm:request_queue_time_seconds"),),
    ),
    _attention.counter(
        "step35_preemptions_total",
        "Sequences whose blocks were taken; they are computed again.",
        aliases=(Alias("vllm:num_preemptions_total"),),
    ),
)

KV = (
    _attention.gauge(
        "step35_kv_cache_usage_ratio",
        "Blocks in use over blocks, of the fuller pool.",
        unit="ratio",
        aliases=(Alias("vllm:kv_cache_usage_perc"),),
    ),
    _attention.gauge("step35_kv_blocks_used", "KV blocks held by sequences.", POOL),
    _attention.gauge("step35_kv_blocks", "KV blocks there are.", POOL),
    _attention.counter(
        "step35_prefix_cache_query_tokens_total",
        "Prompt tokens looked up in the prefix cache.",
        unit="tokens",
        aliases=(Alias("vllm:prefix_cache_queries_total"),),
    ),
    _attention.counter(
        "step35_prefix_cache_hit_tokens_total",
        "Prompt tokens found in the prefix cache.",
        unit="tokens",
        aliases=(Alias("vllm:prefix_cache_hits_total"),),
    ),
)

SPECULATION = (
    _attention.counter("step35_verifications_total", "Sequences verified in a step, those without drafts included."),
    _attention.counter(
        "step35_draft_tokens_total",
        "Draft tokens verified, by position behind the token that the target chose itself.",
        POSITION,
        unit="tokens",
        aliases=(
            Alias("vllm:spec_decode_num_draft_tokens_total", drop=("position",)),
            Alias("vllm:spec_decode_num_drafts_total", where=(("position", "0"),), drop=("position",)),
        ),
    ),
    _attention.counter(
        "step35_accepted_tokens_total",
        "Draft tokens accepted, by position.",
        POSITION,
        unit="tokens",
        aliases=(
            Alias("vllm:spec_decode_num_accepted_tokens_total", drop=("position",)),
            Alias("vllm:spec_decode_num_accepted_tokens_per_pos_total"),
        ),
    ),
    _attention.counter(
        "step35_draft_length_choices_total",
        "Sequences that were given so many drafts.",
        Label("length", at_most=9),
    ),
    _attention.counter(
        "step35_draft_length_reasons_total",
        "Why draft lengths were chosen as they were.",
        Label("reason", ("fixed", "learning", "probe", "kept", "faster")),
    ),
    _attention.gauge(
        "step35_mean_acceptance_length_tokens",
        "Tokens of a verification, the target's own included, over the last report interval.",
        unit="tokens",
    ),
)

STEPS = (
    _attention.histogram("step35_step_seconds", "Duration of an engine step.", unit="seconds", buckets=STEP_S),
    _attention.histogram("step35_step_rows", "Tokens computed in an engine step.", unit="rows", buckets=ROWS),
    _attention.counter(
        "step35_steps_total", "Engine steps, by micro-batches in flight.", Label("microbatches", at_most=4)
    ),
    _attention.counter("step35_step_retries_total", "Engine steps that failed at the expert tier and were repeated."),
    _attention.histogram(
        "step35_recovery_seconds",
        "From the first failed step of a run to the next that succeeded.",
        unit="seconds",
        buckets=WAIT_S,
    ),
    _attention.counter("step35_recoveries_given_up_total", "Runs of failed steps that outlasted the deadline."),
)

EXPERT_TIER = (
    _expert.counter("step35_expert_rows_total", "Rows this rank computed.", LAYER, unit="rows"),
    _expert.counter("step35_expert_pairs_total", "(row, expert) pairs this rank computed.", LAYER),
    _expert.counter("step35_expert_touched_total", "Distinct experts touched, added up over batches.", LAYER),
    _expert.counter("step35_expert_batches_total", "Batches of ready rows, one product each.", LAYER),
    _expert.counter("step35_expert_busy_seconds_total", "Time spent in the products of experts.", unit="seconds"),
    _coordinator.gauge(
        "step35_balancedness_ratio",
        "Pairs over the load window: mean over ranks over maximum over ranks; 1 is perfect.",
        LAYER,
        unit="ratio",
    ),
    _coordinator.gauge(
        "step35_gate_confidence_ratio",
        "Mean over tokens of a gate's mass on its chosen experts, its entropy (1: no preference), its margin.",
        LAYER,
        MEASURE,
        unit="ratio",
    ),
    _coordinator.gauge(
        "step35_activation_norm_ratio",
        "Smallest and largest activation norm of an expert over the median of its layer.",
        LAYER,
        Label("extreme", ("min", "max")),
        unit="ratio",
    ),
    _coordinator.gauge("step35_layer_drifting", "1 where the gate's confidence left its usual range.", LAYER),
    _coordinator.gauge(
        "step35_expert_time_per_step_seconds",
        "Expert time of a step: as predicted for the present map, and its lower bound over all maps.",
        Label("estimate", ("predicted", "best")),
        unit="seconds",
    ),
)

TRANSPORT = (
    _attention.counter(
        "step35_exchanges_total",
        "Dispatches to the expert ranks that were answered.",
        Label("transport", ("loopback", "shm", "gloo", "nccl")),
    ),
    _attention.counter(
        "step35_exchange_bytes_total",
        "Bytes of rows, pairs and outputs exchanged with the expert ranks; headers are left out.",
        Label("direction", ("sent", "received")),
        unit="bytes",
    ),
    _attention.counter(
        "step35_exchange_failures_total",
        "Exchanges that failed, by cause.",
        Label("cause", ("incomplete", "rank_lost", "timeout", "map_not_served", "refused", "bad_frame")),
    ),
    _expert.counter(
        "step35_frames_refused_total",
        "Frames this rank refused, by kind.",
        Label("kind", ("map_not_served", "bad_frame", "kernel")),
    ),
)

PIPELINE = (
    _attention.counter(
        "step35_step_part_seconds_total",
        "Where the seconds of steps go. combine_wait: for experts, what nothing else hid, and summing their answers.",
        Label("part", ("attention", "dispatch", "combine_wait", "draft")),
        unit="seconds",
    ),
)

BALANCER = (
    _coordinator.gauge(
        "step35_balancer_phase", "1 for the present phase.", Label("phase", ("idle", "preparing", "adopting"))
    ),
    _coordinator.counter(
        "step35_balancer_decisions_total", "Maps considered.", Label("decision", ("rebalance", "keep"))
    ),
    _coordinator.counter("step35_balancer_moves_total", "Experts copied to a slot."),
    _coordinator.counter(
        "step35_rebalances_total",
        "Rebalances that ended, by outcome and by what started them.",
        Label("outcome", ("done", "abandoned")),
        Label("trigger", ("load", "drift", "manual", "pin", "resumed", "doomed", "returned")),
    ),
    _coordinator.histogram("step35_rebalance_seconds", "Duration of a rebalance.", unit="seconds", buckets=CHANGE_S),
    _coordinator.gauge(
        "step35_rebalance_predicted_gain_ratio",
        "Share of the expert tier's time that the last decision expected to save.",
        unit="ratio",
    ),
    _coordinator.gauge("step35_balancer_stalled", "1 while a phase takes longer than its watchdog allows."),
    _coordinator.gauge("step35_balancer_paused", "1 while an operator has paused it."),
    _coordinator.gauge("step35_map_epoch", "Epoch of the expert map that is served."),
    _coordinator.gauge("step35_expert_slots_free", "Expert slots that hold nothing, over all layers and ranks."),
    _coordinator.gauge("step35_expert_pins", "Experts that an operator pinned to a rank."),
    _coordinator.gauge("step35_load_drifting", "1 while the load leaves what the present map was made for."),
)

CONTROL_PLANE = (
    _coordinator.gauge("step35_view_id", "Number of the cluster view that is published."),
    _coordinator.gauge("step35_members", "Members in the view.", TIER),
    _coordinator.gauge("step35_members_ready", "Members that serve.", TIER),
    _coordinator.gauge("step35_leases_held", "EP ranks that a member holds."),
    _coordinator.gauge("step35_leases_free", "EP ranks that nobody holds: the bundle is incomplete."),
    _coordinator.counter("step35_leases_expired_total", "Leases that ended because their holder fell silent."),
    _coordinator.counter("step35_reports_total", "Reports of members.", TIER),
    _coordinator.counter("step35_coordinator_restarts_total", "Starts that took over from an earlier view."),
)

API_GUARDS = (
    _gateway.counter(
        "step35_auth_failures_total", "Requests without a known key.", Label("reason", ("missing", "unknown"))
    ),
    _gateway.counter("step35_bodies_refused_total", "Bodies past a limit.", Label("reason", ("too_large", "too_slow"))),
    _gateway.counter("step35_client_disconnects_total", "Clients that left before their answer was complete."),
    _gateway.counter(
        "step35_http_responses_total",
        "HTTP answers of the API by class.",
        Label("status", ("2xx", "3xx", "4xx", "5xx")),
    ),
)

CONTINUATIONS = (
    _gateway.counter(
        "step35_continuations_total",
        "Streams whose attention actor was lost, and whether another one went on.",
        Label("outcome", ("continued", "failed")),
    ),
    _gateway.histogram(
        "step35_continuation_seconds",
        "From the loss of an attention actor to the next token of a stream.",
        unit="seconds",
        buckets=WAIT_S,
    ),
)

AUTOSCALER = (
    _coordinator.counter(
        "step35_autoscaler_decisions_total",
        "Looks at Serve's status, by what had become of the number of replicas that it wants.",
        TIER,
        Label("decision", ("up", "down", "hold")),
    ),
    _coordinator.gauge("step35_autoscaler_desired_replicas", "Replicas that Serve wants, by its own status.", TIER),
    _coordinator.gauge("step35_autoscaler_replicas", "Replicas that are ready, by the same status.", TIER),
)

TELEMETRY = (
    _every.counter("step35_telemetry_dropped_total", "Label sets past a metric's bound: recorded nowhere."),
    _every.counter("step35_telemetry_scrapes_total", "Scrapes answered."),
    _every.counter("step35_telemetry_scrapes_failed_total", "Scrapes refused, late or broken."),
)

MATRICES = (
    _coordinator.matrix("step35_expert_load_tokens", "Pairs of a step.", LAYER, EXPERT, unit="tokens"),
    _coordinator.matrix("step35_expert_gate_mass", "Gate weights of a step; a token's sum to 1.", LAYER, EXPERT),
    _coordinator.matrix(
        "step35_expert_soft_load_tokens",
        "Pairs of a step, where a contested last choice counts partly for the runner-up.",
        LAYER,
        EXPERT,
        unit="tokens",
    ),
)

GROUPS: Mapping[str, tuple[MetricSpec, ...]] = {
    "requests": REQUESTS,
    "kv": KV,
    "speculation": SPECULATION,
    "steps": STEPS,
    "expert tier": EXPERT_TIER,
    "transport": TRANSPORT,
    "pipeline": PIPELINE,
    "balancer": BALANCER,
    "control plane": CONTROL_PLANE,
    "api guards": API_GUARDS,
    "continuations": CONTINUATIONS,
    "autoscaler": AUTOSCALER,
    "telemetry": TELEMETRY,
    "expert matrix": MATRICES,
}
METRICS: Mapping[str, MetricSpec] = {spec.name: spec for group in GROUPS.values() for spec in group}
