"""Whether a checkpoint can be served, decided from config and headers before memory is allocated.

One CheckpointError lists everything that is wrong: config, broken files, missing, extra, mis-shaped and mis-typed
tensors, and an EP size that does not divide the experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.errors import CheckpointError, ConfigError
from actors.model.config import ModelConfig, parse_model_config
from actors.weights.index import TensorInfo, read_index
from actors.weights.item_bytes import ITEM_BYTES
from actors.weights.json_object import read_object
from actors.weights.plan import (
    SlotPlan,
    attention_plan,
    detect_layout,
    expected_tensors,
    expert_plan,
)
from actors.weights.tensors import ExpertLayout, TensorKind, TensorSpec, gate_group
from routing.experts import check_ep_size, linear_expert_map

CONFIG_NAME = "config.json"
MAX_CONFIG_BYTES = 10_000_000
MAX_LISTED = 20  # of each kind of problem; the rest are counted

# What every family of kernels reads; the native ones know no F16.
ALLOWED_DTYPES: Mapping[TensorKind, tuple[str, ...]] = {
    TensorKind.MODEL: ("BF16", "F32"),
    TensorKind.ROUTER_BIAS: ("F32",),
    TensorKind.FP8: ("F8_E4M3",),
    TensorKind.SCALE: ("F32", "BF16"),
}


@dataclass(frozen=True)
class CheckpointSummary:
    """What a sound checkpoint holds, in stored bytes, and what ranks hold of it in memory.

    num_parameters: all tensors but the fp8 scales. attention_bytes: what each attention rank reads of the trunk.
    mtp_bytes: the draft modules, of which an attention rank reads those it uses. rank_bytes: what each EP rank reads
    under the linear map without redundant experts. held_*: what is in memory after that, with param_dtype auto.
    dtype: safetensors code of the tensors that are not quantised.
    """

    config: ModelConfig
    layout: ExpertLayout
    dtype: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    attention_bytes: int
    mtp_bytes: int
    expert_bytes: int
    experts_per_rank: int
    rank_bytes: tuple[int, ...]
    held_attention_bytes: int
    held_rank_bytes: tuple[int, ...]


def read_model_config(folder: Path) -> ModelConfig:
    """The config of a checkpoint folder. Raises ConfigError."""
    try:
        fields = read_object(folder / CONFIG_NAME, MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(CONFIG_NAME, [f"{CONFIG_NAME} cannot be used: {error}"]) from error
    return parse_model_config(fields)


def check_checkpoint(folder: Path, ep_size: int) -> CheckpointSummary:
    """Check a folder for service on `ep_size` expert ranks.

    Raises CheckpointError with every problem; ConfigError if config.json is the only one.
    """
    index = read_index(folder)
    try:
        config = read_model_config(folder)
    except ConfigError as error:
        if not index.problems:
            raise
        raise CheckpointError(str(folder), error.problems + _limited("broken files", index.problems)) from error
    problems = _limited("broken files", index.problems) + find_problems(config, index.tensors)
    try:
        check_ep_size(config.num_experts, ep_size)
    except ValueError as error:
        problems += (str(error),)
    if problems:
        raise CheckpointError(str(folder), problems)
    return summarize(config, index.tensors, ep_size)


def find_problems(config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    """What differs from the tensors that the config implies: one sentence each, a bounded list of each kind."""
    expected = {spec.name: spec for spec in expected_tensors(config, detect_layout(config, tensors.keys()))}
    present = [spec for name, spec in expected.items() if name in tensors]
    return (
        *_limited("missing tensors", [_missing(spec) for name, spec in expected.items() if name not in tensors]),
        *_limited("extra tensors", [_extra(name, tensors[name]) for name in sorted(tensors.keys() - expected.keys())]),
        *_limited("wrong shapes", _shape_problems(present, tensors)),
        *_limited("wrong formats", _dtype_problems(present, tensors)),
    )


def summarize(config: ModelConfig, tensors: Mapping[str, TensorInfo], ep_size: int) -> CheckpointSummary:
    """The numbers of a checkpoint without problems."""
    layout = detect_layout(config, tensors.keys())
    expert_map = linear_expert_map(len(config.moe_layers), config.num_experts, ep_size)
    plans = [expert_plan(config, expert_map, ep_rank, layout) for ep_rank in range(ep_size)]
    attention = attention_plan(config, include_mtp=False)
    attention_bytes = _tensor_bytes(attention, tensors)
    mtp_bytes = _tensor_bytes(attention_plan(config, include_mtp=True), tensors) - attention_bytes
    num_bytes = sum(info.num_bytes for info in tensors.values())
    specs = expected_tensors(config, layout)
    return CheckpointSummary(
        config=config,
        layout=layout,
        dtype=_main_dtype(specs, tensors),
        num_tensors=len(tensors),
        num_parameters=sum(spec.num_elements for spec in specs if spec.kind is not TensorKind.SCALE),
        num_bytes=num_bytes,
        attention_bytes=attention_bytes,
        mtp_bytes=mtp_bytes,
        expert_bytes=num_bytes - attention_bytes - mtp_bytes,
        experts_per_rank=expert_map.slots_per_rank,
        rank_bytes=tuple(slots_bytes(plan, tensors) for plan in plans),
        held_attention_bytes=_held_attention_bytes(config, attention, tensors),
        held_rank_bytes=tuple(_held_slots_bytes(plan, tensors) for plan in plans),
    )


def slots_bytes(plans: Sequence[SlotPlan], tensors: Mapping[str, TensorInfo]) -> int:
    """Stored bytes that filling these slots reads."""
    projections = [projection for plan in plans for projection in (plan.gate, plan.up, plan.down)]
    slices = [part for projection in projections for part in (projection.weight, projection.scale) if part]
    return sum(part.num_elements * ITEM_BYTES[tensors[part.name].dtype] for part in slices)


def _held_attention_bytes(config: ModelConfig, specs: Sequence[TensorSpec], tensors: Mapping[str, TensorInfo]) -> int:
    """Bytes of these tensors in memory: as stored, but for the router and its bias, which are float32 always."""
    gates = [gate_group(config, layer) for layer in config.moe_layers]
    widened = {gate[field].name for gate in gates for field in ("router", "bias")}
    return sum(
        spec.num_elements * ITEM_BYTES["F32" if spec.name in widened else tensors[spec.name].dtype] for spec in specs
    )


def _held_slots_bytes(plans: Sequence[SlotPlan], tensors: Mapping[str, TensorInfo]) -> int:
    """Bytes of these slots in memory: as stored, but fp8 becomes bf16 and the scales go into the weights."""
    weights = [projection.weight for plan in plans for projection in (plan.gate, plan.up, plan.down)]
    return sum(part.num_elements * max(ITEM_BYTES[tensors[part.name].dtype], ITEM_BYTES["BF16"]) for part in weights)


def _tensor_bytes(specs: Sequence[TensorSpec], tensors: Mapping[str, TensorInfo]) -> int:
    return sum(tensors[spec.name].num_bytes for spec in specs)


def _missing(spec: TensorSpec) -> str:
    return f"{spec.name} {list(spec.shape)} is missing"


def _extra(name: str, info: TensorInfo) -> str:
    return f"{name} {list(info.shape)} {info.dtype} is not a tensor of this model"


def _shape_problems(specs: Sequence[TensorSpec], tensors: Mapping[str, TensorInfo]) -> list[str]:
    return [
        f"{spec.name} has shape {list(tensors[spec.name].shape)}, the config implies {list(spec.shape)}"
        for spec in specs
        if tensors[spec.name].shape != spec.shape
    ]


def _dtype_problems(specs: Sequence[TensorSpec], tensors: Mapping[str, TensorInfo]) -> list[str]:
    main = _main_dtype(specs, tensors)
    if main not in ALLOWED_DTYPES[TensorKind.MODEL]:
        served = " and ".join(ALLOWED_DTYPES[TensorKind.MODEL])
        return [f"the weights are stored as {main}; {served} are served, and block-scaled FP8 for the routed experts"]
    allowed = {**ALLOWED_DTYPES, TensorKind.MODEL: (main,)}
    return [
        f"{spec.name} is stored as {tensors[spec.name].dtype}, expected {' or '.join(allowed[spec.kind])}"
        for spec in specs
        if tensors[spec.name].dtype not in allowed[spec.kind]
    ]


def _main_dtype(specs: Sequence[TensorSpec], tensors: Mapping[str, TensorInfo]) -> str:
    """The format most unquantised tensors have, so that a single odd one is what gets reported."""
    stored = Counter(tensors[spec.name].dtype for spec in specs if spec.kind is TensorKind.MODEL)
    return max(stored, key=lambda dtype: stored[dtype], default=ALLOWED_DTYPES[TensorKind.MODEL][0])


def _limited(kind: str, problems: Sequence[str]) -> tuple[str, ...]:
    if len(problems) <= MAX_LISTED:
        return tuple(problems)
    return (*problems[:MAX_LISTED], f"and {len(problems) - MAX_LISTED} more {kind}, {len(problems)} in all")
