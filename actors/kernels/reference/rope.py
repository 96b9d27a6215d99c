"""Rotary position embedding: partial rotation, per-layer base, llama3 scaling (specification 2.4).

The exponent runs over the rotated width, not over the head size.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from actors.kernels.reference.elementwise import elementwise
from actors.model.config import LayerSpec, RopeScaling


def inverse_frequencies(rotary_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """float32 [rotary_dim / 2] on the CPU, computed in float64."""
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float64)
    frequencies = theta ** (-2.0 * pairs / rotary_dim)
    if scaling is not None:
        frequencies = _scale_llama3(frequencies, scaling)
    return frequencies.to(torch.float32)


def _scale_llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Keep short waves, divide long ones by the factor, blend between."""
    wavelength = 2.0 * math.pi / frequencies
    trained = scaling.original_max_positions
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((trained / wavelength - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - keep) * frequencies / scaling.factor + keep * frequencies


@lru_cache(maxsize=64)
def _frequencies_on(rotary_dim: int, theta: float, scaling: RopeScaling | None, device: torch.device) -> Tensor:
    return inverse_frequencies(rotary_dim, theta, scaling).to(device)


def rope_rotation(positions: Tensor, spec: LayerSpec, *, is_padded: bool) -> tuple[Tensor, Tensor]:
    """cos and sin of every rotated pair, float32 [T, rotary_dim / 2]. positions: int64 [T]."""
    frequencies = _frequencies_on(spec.rotary_dim, spec.rope_theta, spec.rope_scaling, positions.device)
    angles = positions.to(torch.float32).unsqueeze(1) * frequencies
    return elementwise(torch.cos, angles, is_padded=is_padded), elementwise(torch.sin, angles, is_padded=is_padded)


def apply_rope(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """heads: [T, N, D]. Rotates the leading dims, dim j with dim j + rotary_dim / 2; the rest passes through."""
    cos, sin = (part.unsqueeze(1) for part in rotation)
    half = cos.shape[-1]
    # Rotated in fp32 and rounded once: rounding cos and sin to bf16 first would cost the last bits for nothing.
    first, second = heads[..., :half].to(torch.float32), heads[..., half : 2 * half].to(torch.float32)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(heads.dtype)
    return torch.cat((rotated, heads[..., 2 * half :]), dim=-1)
