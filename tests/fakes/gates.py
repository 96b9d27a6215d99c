"""Gate outputs made of numbers alone, for what counts them."""

from __future__ import annotations

import torch

from actors.kernels.contract import NO_RUNNER_UP, UNCONTESTED_MARGIN, GateConfidence, GateOutput


def gate_output(num_tokens: int, num_experts: int, top_k: int) -> GateOutput:
    """Random scores, chosen without a bias; mass and entropy are any numbers between 0 and 1."""
    scores = torch.rand(num_tokens, num_experts)
    best = scores.topk(min(top_k + 1, num_experts), dim=1)
    margin, runner_up = torch.full((num_tokens,), UNCONTESTED_MARGIN), torch.full((num_tokens,), float(NO_RUNNER_UP))
    if num_experts > top_k:
        margin, runner_up = best.values[:, top_k - 1] - best.values[:, top_k], best.indices[:, top_k].float()
    table = torch.stack((torch.rand(num_tokens), torch.rand(num_tokens), margin, runner_up))
    weights = 3.0 * torch.rand(num_tokens, top_k)
    return GateOutput(torch.zeros(num_tokens, 4), best.indices[:, :top_k].contiguous(), weights, GateConfidence(table))
