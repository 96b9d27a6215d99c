"""What both tiers must agree on before they can talk: the sizes and dtype of the rows that travel between them."""

from __future__ import annotations

import torch

from actors.attention.config import AttentionConfig
from actors.model.config import ModelConfig
from routing.transport.contract import FrameLimits

MAX_IN_FLIGHT = 2  # two micro-batches


def compute_dtype(config: AttentionConfig) -> torch.dtype:
    """dtype of activations, KV cache and travelling rows."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[config.row_dtype]


def frame_limits(config: AttentionConfig, model: ModelConfig) -> FrameLimits:
    """The limits that an attention actor with this configuration and its expert ranks open their ports with."""
    return FrameLimits(
        hidden_size=model.hidden_size,
        top_k=model.top_k,
        dtype=compute_dtype(config),
        max_rows=config.max_step_tokens,
        max_in_flight=MAX_IN_FLIGHT,
    )
