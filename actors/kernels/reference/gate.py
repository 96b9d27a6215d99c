"""The router of a MoE layer (specification 2.7, steps 1 to 4), and how sure it is of its choice.

Legend: T tokens, H hidden, E logical experts, K experts per token.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from actors.kernels.contract import NO_RUNNER_UP, UNCONTESTED_MARGIN, GateConfidence, GateOutput, GateWeights
from actors.kernels.reference.elementwise import elementwise
from actors.kernels.reference.linear import linear
from actors.kernels.reference.norm import rms_norm
from actors.model.config import LayerSpec

_TINY = 1e-20
_MIN_SCORE = torch.finfo(torch.float32).tiny


def gate(hidden: Tensor, weights: GateWeights, spec: LayerSpec, *, tile_rows: int) -> GateOutput:
    """Normed input, and the K experts of each token with their weights, which sum to `routed_scale`.

    The product runs in fp32. The bias takes part in the choice only; weights come from the unbiased scores.
    """
    normed = rms_norm(hidden, weights.norm, spec.rms_norm_eps)
    router_logits = linear(normed.to(torch.float32), weights.router, tile_rows)
    scores = elementwise(torch.sigmoid, router_logits, is_padded=tile_rows > 0)
    best = torch.topk(scores + weights.bias, min(spec.top_k + 1, scores.shape[1]), dim=-1)
    topk_ids = best.indices[:, : spec.top_k].contiguous()
    chosen = scores.gather(1, topk_ids)
    total = chosen.sum(dim=-1, keepdim=True)
    topk_weights = chosen / (total + _TINY) * spec.routed_scale
    with torch.no_grad():
        mass_entropy = mass_and_entropy(scores, total.squeeze(1), is_padded=tile_rows > 0)
        margin, runner_up = contest(best.values, best.indices, spec.top_k)
        confidence = GateConfidence(torch.stack((*mass_entropy, margin, runner_up.to(torch.float32))))
    return GateOutput(normed, topk_ids, topk_weights, confidence)


def mass_and_entropy(scores: Tensor, chosen: Tensor, *, is_padded: bool = False) -> tuple[Tensor, Tensor]:
    """scores: [T, E]. chosen: [T], sum of the chosen ones. Returns their share of all, and the entropy over log E.

    With S the sum of scores s, the entropy is log S - (sum of s log s) / S. It is 0 when all scores are.
    """
    total, num_experts = scores.sum(dim=1) + _TINY, scores.shape[1]
    if num_experts == 1:
        return chosen / total, torch.zeros_like(total)
    logs = elementwise(torch.log, scores.clamp(min=_MIN_SCORE), is_padded=is_padded)
    log_total = elementwise(torch.log, total, is_padded=is_padded)
    entropy = (log_total - (scores * logs).sum(dim=1) / total) / math.log(num_experts)
    return chosen / total, entropy.clamp(min=0.0)


def contest(biased: Tensor, ids: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Margin and runner-up of each token, from its best K + 1 biased scores and their experts, or only K: [T]."""
    if biased.shape[1] > top_k:
        return biased[:, top_k - 1] - biased[:, top_k], ids[:, top_k]
    return torch.full_like(biased[:, 0], UNCONTESTED_MARGIN), torch.full_like(ids[:, 0], NO_RUNNER_UP)
