"""What our spans, their events and their own attributes are called; names of conventions are in `genai`. Pure."""

from __future__ import annotations

# Spans below the gateway's: a sequence at its attention actor, and the parts of its time.
SEQUENCE = "generate"
QUEUE, PREFILL, DECODE = "queue", "prefill", "decode"

# Events of a sequence.
FIRST_TOKEN, FINISH = "first_token", "finish"

REQUEST_ID = "step35.request_id"
PROMPT_TOKENS = "step35.prompt_tokens"
CACHED_TOKENS = "step35.cached_tokens"
COMPLETION_TOKENS = "step35.completion_tokens"
FINISH_REASON = "step35.finish_reason"
ERROR_KIND = "step35.error_kind"
STEPS = "step35.steps"
FIRST_STEP, LAST_STEP = "step35.step.first", "step35.step.last"
RETRIES = "step35.step.retries"  # steps that the expert tier did not answer, repeated
PREEMPTIONS = "step35.preemptions"
MAX_BATCH_SEQUENCES, MAX_BATCH_ROWS = "step35.batch.max_sequences", "step35.batch.max_rows"
FIRST_MAP_EPOCH, LAST_MAP_EPOCH = "step35.map_epoch.first", "step35.map_epoch.last"
DRAFTS_VERIFIED, DRAFTS_ACCEPTED = "step35.drafts.verified", "step35.drafts.accepted"
