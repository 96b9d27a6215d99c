"""Random configurations of the trunk, and our distance from transformers on each. For tests and benchmarks.

`python -m tests.fakes.parity` prints the differences as a table and one JSON line.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ops.nano.evaluation.transformers_oracle import TransformersOracle
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.fakes.one_sequence import OneSequence

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


@dataclass(frozen=True)
class Difference:
    """Largest absolute difference of the logits, and the standard deviation of the oracle's."""

    case: str
    kernels: str
    max_difference: float
    magnitude: float


def difference(name: str, kernels: str, folder: Path) -> Difference:
    """Write the case's checkpoint into `folder`, and compare every row's logits in fp32."""
    overrides, num_tokens, chunks = CASES[name]
    fields = tiny_config(**overrides)
    write_checkpoint(folder, fields, seed=len(name), dtype=torch.float32)
    generator = torch.Generator().manual_seed(num_tokens)
    token_ids = torch.randint(0, fields["vocab_size"], (num_tokens,), generator=generator).tolist()
    expected = TransformersOracle(fields, folder).logits(token_ids)
    actual = OneSequence(folder, ep_size=4, deterministic=False, kernels=kernels).logits(token_ids, chunks)
    return Difference(name, kernels, float((actual - expected).abs().max()), float(expected.std()))


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    print("| configuration | kernels | max abs difference | std of the logits |\n|---|---|---|---|")
    for name in CASES:
        for kernels in ("reference", "native"):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(difference(name, kernels, Path(folder)))
            print(f"| {name} | {kernels} | {rows[-1].max_difference:.1e} | {rows[-1].magnitude:.2f} |", flush=True)
    print(json.dumps({"benchmark": "parity", "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
