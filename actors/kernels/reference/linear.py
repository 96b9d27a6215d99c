"""y = x @ W^T, with an optional fixed tile so that a row's bits do not depend on its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, tile_rows: int) -> Tensor:
    """x: [T, in]. weight: [out, in], cast to the dtype of x. Returns [T, out].

    tile_rows 0 lets the BLAS choose its algorithm by T. Otherwise every product has exactly `tile_rows` rows, the last
    one padded with zeros: one shape means one algorithm, and an element's sum runs over `in` in the same order
    whatever the other rows hold (tests/unit/test_reference_kernels.py proves it on the machine it runs on).
    """
    weight = weight.to(x.dtype)
    if not tile_rows:
        return functional.linear(x, weight)
    num_rows = x.shape[0]
    padded = functional.pad(x, (0, 0, 0, -num_rows % tile_rows))
    tiles = [functional.linear(tile, weight) for tile in padded.split(tile_rows)]
    return torch.cat(tiles)[:num_rows] if tiles else x.new_empty((0, weight.shape[0]))
