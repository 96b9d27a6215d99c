"""Our trunk against transformers' Step-3.7 text model in fp32: every detail of the forward pass, by an outside oracle.

The largest difference allowed is 1e-4 at logits of magnitude about 1. A wrong window, scale, exponent or norm shows
at 1e-3 to 10 (specification, 2.7); fp32 rounding in another order of summation shows at 1e-6.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.fakes.one_sequence import OneSequence
from tests.fakes.parity import CASES, difference

MAX_DIFFERENCE = 1e-4


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str, kernels: str, tmp_path: Path) -> None:
    """Every row's logits equal the oracle's, whatever chunks the prompt is computed in."""
    found = difference(name, kernels, tmp_path)
    assert 0.2 < found.magnitude < 20, "the oracle's logits have lost their magnitude"
    assert found.max_difference <= MAX_DIFFERENCE


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_deterministic_mode_is_exact_over_chunks(kernels: str, tmp_path: Path) -> None:
    """In deterministic mode the bits of a row do not depend on how its prompt was cut, nor on the number of ranks."""
    fields = tiny_config()
    write_checkpoint(tmp_path, fields, seed=3, dtype=torch.float32)
    token_ids = torch.randint(0, fields["vocab_size"], (37,)).tolist()
    whole = OneSequence(tmp_path, ep_size=1, deterministic=True, kernels=kernels).logits(token_ids, (37,))
    for ep_size, chunks in ((1, (1,) * 37), (4, (5, 9, 23)), (8, (36, 1))):
        again = OneSequence(tmp_path, ep_size=ep_size, deterministic=True, kernels=kernels).logits(token_ids, chunks)
        assert torch.equal(again, whole)
