"""RMSNorm with zero-centred weights (specification 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x: [..., W]. weight: [W], stored as gamma - 1. All in fp32, cast to the dtype of x last."""
    wide = x.to(torch.float32)
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * scale * (1.0 + weight.to(torch.float32))).to(x.dtype)
