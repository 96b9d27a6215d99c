"""The reference kernels on a GPU against themselves on the CPU, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.fakes.one_sequence import OneSequence

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def _full_precision() -> None:
    """TF32 keeps ten bits of mantissa; a comparison at 1e-4 needs them all."""
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("chunks", [(40,), (17, 1, 22)], ids=["whole", "chunked"])
def test_logits_on_cuda_equal_cpu(chunks: tuple[int, ...], tmp_path: Path) -> None:
    """Same weights, same tokens: logits agree to fp32 rounding."""
    fields = tiny_config()
    write_checkpoint(tmp_path, fields, seed=1, dtype=torch.float32)
    token_ids = torch.randint(0, fields["vocab_size"], (40,)).tolist()
    expected = OneSequence(tmp_path, ep_size=4, deterministic=False).logits(token_ids, chunks)
    actual = OneSequence(tmp_path, ep_size=4, deterministic=False, device="cuda").logits(token_ids, chunks)
    assert (actual - expected).abs().max() <= 1e-4
