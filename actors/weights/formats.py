"""Names that safetensors files use for number formats, and the torch formats behind those that this program loads."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from actors.weights.item_bytes import ITEM_BYTES as ITEM_BYTES

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
}

DTYPE_CODES: Mapping[torch.dtype, str] = {dtype: code for code, dtype in TORCH_DTYPES.items()}
