"""Our trunk against transformers' Step-3.7 text model in fp32: every detail of the forward pass, by an outside oracle.

The largest difference allowed is 1e-4 at logits of magnitude about 1. A wrong window, scale, exponent or norm shows
at 1e-3 to 10 (specification, 2.7); fp32 rounding in another order of summation shows at 1e-6.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.fakes.one_sequence import OneSequence
from tests.fakes.transformers_oracle import TransformersOracle

MAX_DIFFERENCE = 1e-4

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 2.0,
    "original_max_position_embeddings": 32,
    "low_freq_factor": 1.0,
    "high_freq_factor": 32.0,
}


def _layers(num_layers: int, value: Any, default: Any, at: tuple[int, ...], num_mtp: int = 3) -> list[Any]:
    return [value if layer_id in at else default for layer_id in range(num_layers + num_mtp)]


# name -> (config overrides, prompt length, chunk sizes the prompt is computed in)
CASES: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {
    "default, whole prompt": ({}, 40, (40,)),
    "one token at a time": ({}, 30, (1,) * 30),
    "window edge: prompt is the window": ({"sliding_window": 16}, 16, (16,)),
    "window edge: one past, in chunks": ({"sliding_window": 16}, 17, (16, 1)),
    "window smaller than a block": ({"sliding_window": 3}, 50, (7, 1, 20, 22)),
    "tight clamps after silu": (
        {"swiglu_limits": _layers(6, 0.05, 0.0, (4, 5)), "swiglu_limits_shared": _layers(6, 0.1, 0.0, (5,))},
        40,
        (13, 27),
    ),
    "llama3 scaling on full layers": ({"rope_scaling": LLAMA3, "yarn_only_types": ["full_attention"]}, 60, (25, 35)),
    "no scaling, other scale": ({"rope_scaling": None, "moe_router_scaling_factor": 1.0}, 33, (32, 1)),
    "quarter rotary on full layers": (
        {"partial_rotary_factors": _layers(6, 0.25, 1.0, (0, 4))},
        40,
        (40,),
    ),
    "many experts, one per token": ({"moe_num_experts": 48, "moe_top_k": 1}, 40, (11, 29)),
    "all layers but the first are MoE": ({"moe_layers_enum": "1,2,3,4,5"}, 40, (40,)),
    "dense in the middle": ({"moe_layers_enum": "1,3,5"}, 40, (20, 20)),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    """Every row's logits equal the oracle's, whatever chunks the prompt is computed in."""
    overrides, num_tokens, chunks = CASES[name]
    fields = tiny_config(**overrides)
    write_checkpoint(tmp_path, fields, seed=len(name), dtype=torch.float32)
    token_ids = torch.randint(0, fields["vocab_size"], (num_tokens,)).tolist()
    expected = TransformersOracle(fields, tmp_path).logits(token_ids)
    actual = OneSequence(tmp_path, ep_size=4, deterministic=False).logits(token_ids, chunks)
    assert 0.2 < expected.std() < 20, "the oracle's logits have lost their magnitude"
    assert (actual - expected).abs().max() <= MAX_DIFFERENCE


def test_deterministic_mode_is_exact_over_chunks(tmp_path: Path) -> None:
    """In deterministic mode the bits of a row do not depend on how its prompt was cut, nor on the number of ranks."""
    fields = tiny_config()
    write_checkpoint(tmp_path, fields, seed=3, dtype=torch.float32)
    token_ids = torch.randint(0, fields["vocab_size"], (37,)).tolist()
    whole = OneSequence(tmp_path, ep_size=1, deterministic=True).logits(token_ids, (37,))
    for ep_size, chunks in ((1, (1,) * 37), (4, (5, 9, 23)), (8, (36, 1))):
        again = OneSequence(tmp_path, ep_size=ep_size, deterministic=True).logits(token_ids, chunks)
        assert torch.equal(again, whole)
