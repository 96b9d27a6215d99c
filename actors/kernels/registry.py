"""Which implementation serves each operation on each device. Importing this file imports no implementation.

A row names an operation, a device type and a family; families are tried in the order asked for, and the reference
family serves every operation on every device. So a native or Triton twin replaces one operation at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from actors.errors import KernelError

OPERATIONS = ("attention_half", "dense_half", "gate", "shared_expert", "expert_mlp", "draft_input", "head")

# (operation, device type) -> families beside the reference, each "module:class" of a partial Kernels.
_FAMILIES: dict[str, dict[tuple[str, str], str]] = {
    "reference": {},
    "native": {(operation, "cpu"): "actors.kernels.native.kernels:NativeKernels" for operation in OPERATIONS},
}
_REFERENCE = "actors.kernels.reference.kernels:ReferenceKernels"


@dataclass(frozen=True)
class KernelSet:
    """One callable per operation, each from the first family that offers it. Satisfies `contract.Kernels`."""

    attention_half: Callable[..., Any]
    dense_half: Callable[..., Any]
    gate: Callable[..., Any]
    shared_expert: Callable[..., Any]
    expert_mlp: Callable[..., Any]
    draft_input: Callable[..., Any]
    head: Callable[..., Any]


def load_kernels(
    device_type: str, *, rms_norm_eps: float, row_independent: bool, families: Sequence[str] = ("reference",)
) -> KernelSet:
    """Kernels for "cpu" or "cuda".

    Raises KernelError for an unknown family, naming the known, for one not built, and where row independence cannot be
    kept: on a GPU, and on a CPU with more than one torch thread.
    """
    if row_independent:
        _check_row_independence(device_type)
    unknown = [family for family in families if family not in _FAMILIES]
    if unknown:
        raise KernelError(f"unknown kernel families {unknown}; known: {sorted(_FAMILIES)}")
    targets = {operation: _first_offer(operation, device_type, families) for operation in OPERATIONS}
    loaded = {target: _load_class(target)(rms_norm_eps, row_independent) for target in set(targets.values())}
    chosen = {operation: getattr(loaded[target], operation) for operation, target in targets.items()}
    return KernelSet(**chosen)


def _check_row_independence(device_type: str) -> None:
    if device_type != "cpu":
        raise KernelError(f"deterministic needs device cpu: row independence is not proven on {device_type}")
    # torch cuts a tensor among its threads, and what is left over at a cut is rounded differently (elementwise.py).
    num_threads = torch.get_num_threads()
    if num_threads != 1:
        raise KernelError(f"deterministic needs one torch thread, not {num_threads}: call torch.set_num_threads(1)")


def _first_offer(operation: str, device_type: str, families: Sequence[str]) -> str:
    offers = (_FAMILIES[family].get((operation, device_type)) for family in families)
    return next((offer for offer in offers if offer), _REFERENCE)


def _load_class(target: str) -> Callable[..., Any]:
    module, name = target.split(":")
    loaded: Callable[..., Any] = getattr(import_module(module), name)
    return loaded
