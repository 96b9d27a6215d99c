"""fp8 blocks: the arithmetic of a hand-worked matrix, edges, and the error of a round trip."""

from __future__ import annotations

import pytest
import torch

from actors.weights.quantization import FP8, dequantize_blocks, quantize_blocks


def test_each_block_uses_its_own_scale() -> None:
    """A 3 x 3 matrix in 2 x 2 blocks has four scales; the blocks at the edges are smaller."""
    quantized = torch.ones(3, 3).to(FP8)
    scale_inv = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    expected = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [3.0, 3.0, 4.0]])
    assert torch.equal(dequantize_blocks(quantized, scale_inv, (2, 2)), expected)


@pytest.mark.parametrize("shape", [(128, 256), (130, 257), (1, 1), (64, 32), (127, 129)])
@pytest.mark.parametrize("block_size", [(128, 128), (16, 48)])
def test_round_trip_error(shape: tuple[int, int], block_size: tuple[int, int]) -> None:
    """e4m3 has 3 mantissa bits: 2^-4 relative, or half its smallest step, 2^-10, of the scale, whichever is larger."""
    weight = torch.randn(shape) * torch.logspace(-3, 3, shape[1])
    quantized, scale_inv = quantize_blocks(weight, block_size)
    restored = dequantize_blocks(quantized, scale_inv, block_size)
    scale = dequantize_blocks(torch.ones(shape).to(FP8), scale_inv, block_size)
    # 1.001 covers the fp32 rounding of the division and of the product.
    assert ((restored - weight).abs() <= 1.001 * torch.maximum(weight.abs() / 16, scale / 1024)).all()


def test_the_largest_value_of_a_block_uses_the_whole_range() -> None:
    """The largest magnitude of each block is stored as 448, the largest that fp8 holds."""
    quantized, scale_inv = quantize_blocks(torch.tensor([[7.0, -14.0, 1.75], [1.0, 2.0, 0.25]]), (2, 2))
    assert quantized.float()[0].tolist() == [224.0, -448.0, 448.0]
    assert scale_inv.tolist() == [[14.0 / 448, 1.75 / 448]]


def test_powers_of_two_survive() -> None:
    """Values that fp8 holds exactly under a power-of-two scale come back bit by bit."""
    weight = torch.tensor([[448.0, -224.0], [1.75, 0.0]]) / 64
    assert torch.equal(dequantize_blocks(*quantize_blocks(weight, (2, 2)), (2, 2)), weight)


def test_a_block_of_zeros_stays_zero() -> None:
    """Zeros do not divide by zero."""
    quantized, scale_inv = quantize_blocks(torch.zeros(3, 5), (2, 2))
    assert torch.equal(scale_inv, torch.ones(2, 3))
    assert torch.equal(dequantize_blocks(quantized, scale_inv, (2, 2)), torch.zeros(3, 5))


def test_bfloat16_scales() -> None:
    """Scales may be stored in bfloat16; the product is float32."""
    quantized, scale_inv = torch.full((2, 2), 3.0).to(FP8), torch.full((1, 1), 0.5, dtype=torch.bfloat16)
    restored = dequantize_blocks(quantized, scale_inv, (2, 2))
    assert restored.dtype == torch.float32
    assert torch.equal(restored, torch.full((2, 2), 1.5))


def test_scales_of_another_matrix_are_refused() -> None:
    """A missing edge block is an error with all the numbers, not a wrong result."""
    with pytest.raises(ValueError, match=r"\(2, 2\), got \(1, 2\)"):
        dequantize_blocks(torch.ones(3, 3).to(FP8), torch.ones(1, 2), (2, 2))
