"""FP8 weights with one scale per block of an [out, in] matrix (specification 4.2): quantise and back. Pure.

w = q * scale of q's block. Blocks at the lower and right edge may be smaller than the block size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def dequantize_blocks(quantized: Tensor, scale_inv: Tensor, block_size: tuple[int, int]) -> Tensor:
    """quantized: float8_e4m3fn [out, in]. scale_inv: [ceil(out / bo), ceil(in / bi)]. Returns float32 [out, in].

    Raises ValueError when the shapes do not belong together.
    """
    _check_shapes(quantized, scale_inv, block_size)
    return quantized.float().mul_(_spread(scale_inv.float(), quantized.shape, block_size))


def quantize_blocks(weight: Tensor, block_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """weight: [out, in]. Returns (float8_e4m3fn [out, in], float32 [ceil(out / bo), ceil(in / bi)]).

    The largest magnitude of a block becomes 448. A block of zeros has scale 1.
    """
    largest = _block_max(weight.float().abs(), block_size)
    scale_inv = torch.where(largest > 0, largest / FP8_MAX, torch.ones_like(largest))
    scaled = weight.float() / _spread(scale_inv, weight.shape, block_size)
    # Division may land a hair above 448, which would become NaN.
    return scaled.clamp_(-FP8_MAX, FP8_MAX).to(FP8), scale_inv


def _spread(scale_inv: Tensor, shape: torch.Size, block_size: tuple[int, int]) -> Tensor:
    """One value per block to one per element, [out, in]."""
    rows = scale_inv.repeat_interleave(block_size[0], dim=0)[: shape[0]]
    return rows.repeat_interleave(block_size[1], dim=1)[:, : shape[1]]


def _block_max(magnitude: Tensor, block_size: tuple[int, int]) -> Tensor:
    (rows, columns), (block_rows, block_columns) = magnitude.shape, block_size
    padded = pad(magnitude, (0, -columns % block_columns, 0, -rows % block_rows))
    blocks = padded.view(padded.shape[0] // block_rows, block_rows, padded.shape[1] // block_columns, block_columns)
    return blocks.amax(dim=(1, 3))


def _check_shapes(quantized: Tensor, scale_inv: Tensor, block_size: tuple[int, int]) -> None:
    expected = tuple(-(-size // block) for size, block in zip(quantized.shape, block_size, strict=True))
    if tuple(scale_inv.shape) != expected:
        raise ValueError(
            f"a {tuple(quantized.shape)} weight in blocks of {block_size} needs scales of shape {expected},"
            f" got {tuple(scale_inv.shape)}"
        )
