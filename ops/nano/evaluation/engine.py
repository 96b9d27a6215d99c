"""The engine that serves, with a checkpoint's tokenizer, for many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from actors.attention.config import AttentionConfig, DtypeName
from actors.attention.engine import TOKENIZER_NAME
from actors.local_cluster import LocalCluster, tokens_of
from actors.messages import FinishReason, GenerateRequest, SamplingSpec
from actors.weights.check import read_model_config
from ops.nano.evaluation.results import Completion

MAX_RUNNING = 64
TOKENS_PER_SEQUENCE = 1024  # of KV cache; a longer one takes its neighbour's room


class Engine:
    """Both tiers in this process."""

    def __init__(self, checkpoint: Path, *, device: str = "cpu", param_dtype: DtypeName = "auto") -> None:
        """Raises CheckpointError, KernelError."""
        self._max_positions = read_model_config(checkpoint).max_positions
        config = AttentionConfig(
            max_running=MAX_RUNNING,
            max_waiting=1_000_000,
            max_step_tokens=1024,
            kv_cache_tokens=max(2 * self._max_positions, MAX_RUNNING * TOKENS_PER_SEQUENCE),
            device=device,
            param_dtype=param_dtype,
        )
        self._cluster = LocalCluster(checkpoint, config, ep_size=1)
        self.tokenizer = Tokenizer.from_file(str(checkpoint / TOKENIZER_NAME))

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Completion]:
        """The likeliest token each time, for every prompt."""
        return self._complete(prompts, [SamplingSpec(max_tokens, temperature=0.0)] * len(prompts))

    def sampled(self, prompts: Sequence[Sequence[int]], max_tokens: int, seed: int) -> list[Completion]:
        """At temperature 1 without filters; each prompt has random numbers of its own."""
        first_seed = seed * 1_000_003
        specs = [SamplingSpec(max_tokens, temperature=1.0, seed=first_seed + idx) for idx in range(len(prompts))]
        return self._complete(prompts, specs)

    def text(self, token_ids: Sequence[int]) -> str:
        """With every special token in it."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def _complete(self, prompts: Sequence[Sequence[int]], specs: Sequence[SamplingSpec]) -> list[Completion]:
        """In the order of the prompts."""
        requests = [
            GenerateRequest(str(idx), tuple(prompt), spec)
            for idx, (prompt, spec) in enumerate(zip(prompts, specs, strict=True))
            if len(prompt) < self._max_positions
        ]
        events = self._cluster.generate(requests)
        completions = [Completion(tuple(prompt), (), is_stopped=False) for prompt in prompts]
        for request in requests:
            told = events[request.request_id]
            reason = told[-1].finish_reason
            if reason not in (FinishReason.STOP, FinishReason.LENGTH):
                raise RuntimeError(f"a prompt was not completed: {told[-1].error}")
            is_stopped = reason is FinishReason.STOP
            completion = Completion(request.prompt_token_ids, tuple(tokens_of(told)), is_stopped)
            completions[int(request.request_id)] = completion
        return completions
