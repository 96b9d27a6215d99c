"""What the gates do with text of different domains: how evenly experts are used, and how sure the choice is.

Confidence is the probability mass on the chosen experts, where an expert's probability is its sigmoid score over the
sum of all scores ("routing confidence", specification 7); with no preference it is K / E. The margin is the distance
between the last expert that was chosen and the first that was not, in what the choice is made by: score plus bias.

Legend: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import torch
from rich.progress import track
from torch import Tensor

from ops.nano.dense import DenseModel, RoutingRecord
from ops.nano.evaluation.checkpoint import Checkpoint
from ops.nano.evaluation.rows import rows_of
from ops.nano.losses import NUM_GROUPS
from ops.nano.model import router_biases


@dataclass(frozen=True)
class LayerRouting:
    """One MoE layer on one domain. load: how often each expert was chosen. expert_skew, rank_skew: the busiest over the
    mean, of experts and of EP ranks of consecutive experts. mass, margin: means over tokens. distance_to_self: total
    variation distance between the loads of two halves of the texts, which is chance."""

    layer_id: int
    load: tuple[int, ...]
    expert_skew: float
    rank_skew: float
    mass: float
    margin: float
    distance_to_self: float


@dataclass(frozen=True)
class DomainRouting:
    """All MoE layers on one domain. is_foreign: of a kind that the model was never trained on."""

    domain: str
    is_foreign: bool
    num_tokens: int
    layers: tuple[LayerRouting, ...]


@dataclass(frozen=True)
class RoutingResults:
    """distances: total variation distance of expert load between two domains, mean over layers, by "one | other"."""

    num_experts: int
    top_k: int
    num_ranks: int
    domains: tuple[DomainRouting, ...]
    distances: Mapping[str, float]

    def distance(self, one: str, other: str) -> float:
        """Between two domains in either order, or of one to itself by chance."""
        if one == other:
            layers = next(domain.layers for domain in self.domains if domain.domain == one)
            return fmean(layer.distance_to_self for layer in layers)
        return self.distances[f"{one} | {other}" if f"{one} | {other}" in self.distances else f"{other} | {one}"]


@dataclass
class GateSums:
    """Sums over tokens of one MoE layer. halves: float64 [2, E], loads of every other text. bias: the router's, [E]."""

    layer_id: int
    bias: Tensor
    halves: Tensor
    mass: float = 0.0
    margin: float = 0.0
    num_tokens: int = 0

    def add(self, record: RoutingRecord, half: int) -> None:
        """The tokens of one record."""
        chosen = record.scores.gather(1, record.topk_ids)
        self.halves[half] += torch.bincount(record.topk_ids.flatten(), minlength=self.halves.shape[1])
        self.mass += (chosen.sum(dim=1) / record.scores.sum(dim=1)).sum().item()
        self.margin += margins(record, self.bias).sum().item()
        self.num_tokens += len(record.scores)

    def result(self) -> LayerRouting:
        load = self.halves.sum(dim=0)
        return LayerRouting(
            layer_id=self.layer_id,
            load=tuple(int(count) for count in load.tolist()),
            expert_skew=skew(load),
            rank_skew=skew(load.unflatten(0, (NUM_GROUPS, -1)).sum(dim=1)),
            mass=self.mass / self.num_tokens,
            margin=self.margin / self.num_tokens,
            distance_to_self=total_variation(*self.halves),
        )


def evaluate_routing(
    checkpoint: Checkpoint, texts: Mapping[str, Sequence[Sequence[int]]], foreign: Mapping[str, Sequence[Sequence[int]]]
) -> RoutingResults:
    """Token ids of the texts of each domain, at least two texts each; foreign ones are of kinds never trained on."""
    model = checkpoint.model()
    domains = []
    for domain, members in (*texts.items(), *foreign.items()):
        layers = _layers(model, checkpoint, members, f"routing of {domain}")
        domains.append(DomainRouting(domain, domain in foreign, sum(map(len, members)), layers))
    return RoutingResults(
        num_experts=checkpoint.config.num_experts,
        top_k=checkpoint.config.top_k,
        num_ranks=NUM_GROUPS,
        domains=tuple(domains),
        distances={f"{one.domain} | {other.domain}": _distance(one, other) for one, other in combinations(domains, 2)},
    )


@torch.no_grad()
def _layers(
    model: DenseModel, checkpoint: Checkpoint, texts: Sequence[Sequence[int]], title: str
) -> tuple[LayerRouting, ...]:
    config = checkpoint.config
    biases = [checkpoint.tensors[name] for name in router_biases(config)]
    sums = [
        GateSums(spec.layer_id, bias, torch.zeros(2, config.num_experts, dtype=torch.float64))
        for spec, bias in zip(config.moe_layers, biases, strict=True)
    ]
    for rows in track(rows_of(texts, window=config.window), title, transient=True):
        model.hidden(rows.batch)
        for layer, record in zip(sums, model.routing, strict=True):
            for row, number in enumerate(rows.numbers):
                own = RoutingRecord(rows.sequence(record.scores, row), rows.sequence(record.topk_ids, row))
                layer.add(own, half=number % 2)
    return tuple(layer.result() for layer in sums)


def margins(record: RoutingRecord, bias: Tensor) -> Tensor:
    """By how much the last chosen expert of each token is ahead of the next, float32 [T]. bias: [E]."""
    top_k = record.topk_ids.shape[1]
    best = (record.scores + bias).topk(top_k + 1, dim=1).values
    return best[:, -2] - best[:, -1]


def skew(load: Tensor) -> float:
    """The largest over the mean; 1 when balanced, and for no load at all."""
    return float(load.max() / load.mean()) if load.sum() else 1.0


def total_variation(one: Tensor, other: Tensor) -> float:
    """Half the sum of differences between two loads as shares, 0 to 1. Raises ValueError for a load of nothing."""
    if not one.sum() or not other.sum():
        raise ValueError("a load of nothing has no shares")
    return float((one / one.sum() - other / other.sum()).abs().sum() / 2)


def _distance(one: DomainRouting, other: DomainRouting) -> float:
    pairs = zip(one.layers, other.layers, strict=True)
    return fmean(total_variation(torch.tensor(a.load, dtype=torch.float64), torch.tensor(b.load)) for a, b in pairs)
