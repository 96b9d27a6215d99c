"""Muon for matrices, Adam for the rest.

Muon orthogonalises the momentum of a matrix with a few Newton-Schulz steps (Jordan et al., 2024, "Muon: an optimizer
for hidden layers in neural networks"); the published model was trained with it. torch.optim.Muon takes no stacks of
matrices, which the packed experts are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, for parameters of shape [..., out, in]; leading dimensions are a stack."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1.0 - MOMENTUM)
                update = orthogonalised(parameter.grad.lerp(momentum, MOMENTUM))
                # A tall matrix gets larger rows, so that its output changes as much as a wide one's.
                scale = max(1.0, parameter.shape[-2] / parameter.shape[-1]) ** 0.5
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest matrices with singular values near 1. [..., out, in], computed in bfloat16."""
    x = matrices.to(torch.bfloat16)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_STEPS):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x.transpose(-1, -2) if is_tall else x
    return result


def optimizers(tensors: Mapping[str, Tensor], *, matrix_lr: float, vector_lr: float) -> Sequence[torch.optim.Optimizer]:
    """Muon for the matrices between embedding and heads, Adam for embedding, heads, routers and norms."""
    matrices = [tensor for name, tensor in tensors.items() if _is_inner_matrix(name, tensor)]
    others = [tensor for name, tensor in tensors.items() if not _is_inner_matrix(name, tensor)]
    return (
        Muon(matrices, lr=matrix_lr, weight_decay=0.1),
        torch.optim.AdamW(others, lr=vector_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    )


def _is_inner_matrix(name: str, tensor: Tensor) -> bool:
    is_outer = name.endswith(("embed_tokens.weight", "lm_head.weight", "shared_head.output.weight", "moe.gate.weight"))
    return tensor.dim() > 1 and not is_outer
