"""What training minimises: next tokens, balance between expert groups, and the drafts of the MTP modules.

Legend: T tokens, E experts, K experts per token, G expert-parallel groups, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ops.nano.dense import Batch, DenseModel, RoutingRecord

NUM_GROUPS = 8  # the expert-parallel size that the model is served with


def token_loss(logits: Tensor, batch: Batch, ahead: int = 1) -> Tensor:
    """Weighted mean cross-entropy of the token `ahead` places later, in the same document. logits: [T, V]."""
    targets = functional.pad(batch.token_ids[:, ahead:], (0, ahead))
    same = functional.pad(batch.document[:, ahead:], (0, ahead), value=-2) == batch.document
    weights = (functional.pad(batch.weight[:, ahead:], (0, ahead)) * same).flatten()
    losses = functional.cross_entropy(logits, targets.flatten(), reduction="none")
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)


def balance_loss(record: RoutingRecord) -> Tensor:
    """G * sum_g f_g p_g over groups of consecutive experts (specification 7): f_g is their share of the choices, p_g
    their share of the probability. 1 when balanced."""
    scores, topk_ids = record.scores, record.topk_ids
    probability = (scores / scores.sum(dim=-1, keepdim=True)).mean(dim=0)
    share = expert_counts(record) / topk_ids.numel()
    groups = (part.unflatten(0, (NUM_GROUPS, -1)).sum(dim=1) for part in (probability, share))
    return NUM_GROUPS * torch.stack(list(groups)).prod(dim=0).sum()


def expert_counts(record: RoutingRecord) -> Tensor:
    """How often each expert was chosen, float32 [E]."""
    return torch.bincount(record.topk_ids.flatten(), minlength=record.scores.shape[1]).to(torch.float32)


def draft_loss(
    model: DenseModel, batch: Batch, trunk_hidden: Tensor, weights: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """Weighted sum over the modules, and each module's own loss. Module k predicts the token 2 + k places later."""
    losses = [
        token_loss(logits, batch, ahead) for ahead, logits in enumerate(model.draft(batch, trunk_hidden), start=2)
    ]
    return torch.stack([loss * weight for loss, weight in zip(losses, weights, strict=True)]).sum(), losses
