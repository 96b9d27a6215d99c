"""The router of a MoE layer (specification 2.7, steps 1 to 4).

Legend: T tokens, H hidden, E logical experts, K experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actors.kernels.contract import GateOutput, GateWeights
from actors.kernels.reference.elementwise import elementwise
from actors.kernels.reference.linear import linear
from actors.kernels.reference.norm import rms_norm
from actors.model.config import LayerSpec


def gate(hidden: Tensor, weights: GateWeights, spec: LayerSpec, *, tile_rows: int) -> GateOutput:
    """Normed input, and the K experts of each token with their weights, which sum to `routed_scale`.

    The product runs in fp32. The bias takes part in the choice only; weights come from the unbiased scores.
    """
    normed = rms_norm(hidden, weights.norm, spec.rms_norm_eps)
    router_logits = linear(normed.to(torch.float32), weights.router, tile_rows)
    scores = elementwise(torch.sigmoid, router_logits, is_padded=tile_rows > 0)
    topk_ids = torch.topk(scores + weights.bias, spec.top_k, dim=-1).indices
    chosen = scores.gather(1, topk_ids)
    topk_weights = chosen / (chosen.sum(dim=-1, keepdim=True) + 1e-20) * spec.routed_scale
    return GateOutput(normed, topk_ids, topk_weights)
