"""Transcendental functions, optionally padded so that the bits of a value do not depend on its place.

torch computes the body of a tensor in vectors and what is left over in scalars, whose exp and cos round differently.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

# Covers four AVX-512 vectors of floats, the widest step of torch's unrolled loops.
_STRIDE = 64


def elementwise(function: Callable[[Tensor], Tensor], x: Tensor, *, is_padded: bool) -> Tensor:
    """function(x), computed in whole vectors if `is_padded`. One thread: several would cut the tensor anywhere."""
    if not is_padded:
        return function(x)
    flat = x.flatten()
    return function(functional.pad(flat, (0, -flat.numel() % _STRIDE)))[: flat.numel()].view_as(x)
