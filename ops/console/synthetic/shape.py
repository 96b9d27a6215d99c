"""How large the made-up clusters are: the full model's and the nano model's. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One cluster. layer_ids: of the MoE layers, as the model counts. num_rows: tokens of a step."""

    name: str
    layer_ids: tuple[int, ...]
    num_logical_experts: int
    ep_size: int
    slots_per_rank: int
    num_attention_actors: int
    num_gateways: int
    num_rows: int
    num_stages: int
    top_k: int = 8

    @property
    def num_layers(self) -> int:
        return len(self.layer_ids)

    @property
    def num_redundant(self) -> int:
        """Slots of a layer beyond one per expert."""
        return self.ep_size * self.slots_per_rank - self.num_logical_experts


FULL = Shape(
    name="Step-3.5-Flash",
    layer_ids=tuple(range(3, 45)),
    num_logical_experts=288,
    ep_size=8,
    slots_per_rank=37,
    num_attention_actors=2,
    num_gateways=2,
    num_rows=192,
    num_stages=6,
)
NANO = Shape(
    name="step-nano",
    layer_ids=tuple(range(3, 9)),
    num_logical_experts=64,
    ep_size=2,
    slots_per_rank=33,
    num_attention_actors=1,
    num_gateways=1,
    num_rows=24,
    num_stages=2,
)
SHAPES = {"full": FULL, "nano": NANO}
