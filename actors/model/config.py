"""ModelConfig: a checkpoint's config.json, understood field by field or refused. Pure.

A field that could change the computation is either implemented, or pinned to the one value that is implemented, or an
error naming it. Field meanings: specification section 1; derived per-layer table: `LayerSpec`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.errors import ConfigError

DEFAULT_RMS_NORM_EPS = 1e-5  # absent from the published file; 1e-6 would be wrong

# Fields that cannot change what is computed.
NEUTRAL_FIELDS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "dtype",
        "initializer_range",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

# Fields with one implemented value.
PINNED_FIELDS: Mapping[str, Any] = {
    "model_type": "step3p5",
    "att_impl_type": "GQA",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "mlp_bias": False,
    "moe_every_n_layer": 1,
    "moe_layer_offset": 0,
    "moe_router_activation": "sigmoid",
    "need_fp32_gate": True,
    "norm_expert_weight": True,
    "sink": False,
    "tie_word_embeddings": False,
    "use_head_wise_attn_gate": True,
    "use_moe": True,
    "use_moe_router_bias": True,
    "use_qk_norm": True,
    "use_rope_layers": [],
    "zero_centered": True,
}

REQUIRED_FIELDS = (
    "attention_other_setting",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "model_type",
    "moe_intermediate_size",
    "moe_layers_enum",
    "moe_num_experts",
    "moe_router_scaling_factor",
    "moe_top_k",
    "num_attention_groups",
    "num_attention_heads",
    "num_hidden_layers",
    "partial_rotary_factors",
    "rope_theta",
    "share_expert_dim",
    "sliding_window",
    "vocab_size",
)

OPTIONAL_FIELDS = (
    "eos_token_id",
    "max_position_embeddings",
    "max_seq_len",
    "num_nextn_predict_layers",
    "quantization_config",
    "rms_norm_eps",
    "rope_scaling",
    "swiglu_limits",
    "swiglu_limits_shared",
    "yarn_only_types",
)

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class RopeScaling:
    """llama3 frequency scaling (specification 2.4)."""

    factor: float
    original_max_positions: int
    low_freq_factor: float
    high_freq_factor: float


@dataclass(frozen=True)
class LayerSpec:
    """Everything a kernel must know of one layer besides its weights.

    window: keys a query sees, itself included; 0 means all. rotary_dim: leading dims of a head that rotate.
    moe_layer_idx: position among the MoE layers, -1 for a dense layer. *_limit: clamp after silu, 0 means none.
    """

    layer_id: int
    window: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    rms_norm_eps: float
    moe_layer_idx: int
    top_k: int
    routed_scale: float
    routed_limit: float
    shared_limit: float

    @property
    def is_sliding(self) -> bool:
        return self.window > 0

    @property
    def is_moe(self) -> bool:
        return self.moe_layer_idx >= 0


@dataclass(frozen=True)
class Fp8Config:
    """Block-scaled e4m3 weights of the routed experts (specification 4.2)."""

    block_size: tuple[int, int]


@dataclass(frozen=True)
class ModelConfig:
    """A validated Step-3.5 configuration. `layers` are the trunk's, `mtp_layers` the draft modules'."""

    hidden_size: int
    vocab_size: int
    intermediate_size: int
    moe_intermediate_size: int
    shared_intermediate_size: int
    num_experts: int
    top_k: int
    max_positions: int
    rms_norm_eps: float
    layers: tuple[LayerSpec, ...]
    mtp_layers: tuple[LayerSpec, ...]
    fp8: Fp8Config | None
    eos_token_ids: tuple[int, ...]

    @property
    def moe_layers(self) -> tuple[LayerSpec, ...]:
        return tuple(spec for spec in self.layers if spec.is_moe)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_kv_heads(self) -> int:
        return self.layers[0].num_kv_heads

    @property
    def head_dim(self) -> int:
        return self.layers[0].head_dim

    @property
    def window(self) -> int:
        """The sliding window, 0 if no layer slides."""
        return max(spec.window for spec in self.layers)


def parse_model_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Understand a config.json or raise ConfigError with everything that is wrong."""
    problems = _field_problems(fields)
    if problems:
        raise ConfigError("config.json", problems)
    reader = _Reader(fields)
    config = reader.read()
    if reader.problems:
        raise ConfigError("config.json", reader.problems)
    return config


def _field_problems(fields: Mapping[str, Any]) -> list[str]:
    known = NEUTRAL_FIELDS | PINNED_FIELDS.keys() | set(REQUIRED_FIELDS) | set(OPTIONAL_FIELDS)
    problems = [f"{name} is missing" for name in REQUIRED_FIELDS if name not in fields]
    problems += [
        f"{name} = {fields[name]!r} is not implemented: only {value!r} is"
        for name, value in PINNED_FIELDS.items()
        if name in fields and fields[name] != value
    ]
    problems += [
        f"{name} = {fields[name]!r} is not a field this program knows; it could change the computation"
        for name in sorted(fields.keys() - known)
    ]
    return problems


class _Reader:
    """Reads typed values, noting problems instead of stopping at the first."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self.problems: list[str] = []
        self._num_layers = self._positive("num_hidden_layers")
        self._num_mtp = self._integer("num_nextn_predict_layers", 0, minimum=0)

    def read(self) -> ModelConfig:
        self._check_heads()
        num_experts, top_k = self._positive("moe_num_experts"), self._positive("moe_top_k")
        if top_k > num_experts:
            self.problems.append(f"moe_top_k {top_k} exceeds moe_num_experts {num_experts}")
        specs = self._layer_specs(top_k)
        return ModelConfig(
            hidden_size=self._positive("hidden_size"),
            vocab_size=self._positive("vocab_size"),
            intermediate_size=self._positive("intermediate_size"),
            moe_intermediate_size=self._positive("moe_intermediate_size"),
            shared_intermediate_size=self._positive("share_expert_dim"),
            num_experts=num_experts,
            top_k=top_k,
            max_positions=self._max_positions(),
            rms_norm_eps=self._eps(),
            layers=tuple(specs[: self._num_layers]),
            mtp_layers=tuple(specs[self._num_layers :]),
            fp8=self._fp8(),
            eos_token_ids=self._eos_token_ids(),
        )

    def _layer_specs(self, top_k: int) -> list[LayerSpec]:
        kinds = self._per_layer("layer_types", FULL)
        thetas = self._per_layer("rope_theta", 10_000.0)
        rotary_factors = self._per_layer("partial_rotary_factors", 1.0)
        routed_limits = self._per_layer("swiglu_limits", 0.0)
        shared_limits = self._per_layer("swiglu_limits_shared", 0.0)
        moe_ids = self._moe_layer_ids()
        scaling, scaled_kinds = self._rope_scaling(), self._fields.get("yarn_only_types") or [FULL, SLIDING]
        head_dim = self._positive("head_dim")
        other = self._fields["attention_other_setting"]
        specs = []
        for layer_id, kind in enumerate(kinds):
            if kind not in (FULL, SLIDING):
                self.problems.append(f"layer_types[{layer_id}] = {kind!r} is not implemented")
            is_sliding = kind == SLIDING
            is_moe = layer_id in moe_ids
            specs.append(
                LayerSpec(
                    layer_id=layer_id,
                    window=self._positive("sliding_window") if is_sliding else 0,
                    num_heads=other["num_attention_heads"] if is_sliding else self._positive("num_attention_heads"),
                    num_kv_heads=self._positive("num_attention_groups"),
                    head_dim=head_dim,
                    rotary_dim=self._rotary_dim(layer_id, head_dim, float(rotary_factors[layer_id])),
                    rope_theta=float(thetas[layer_id]),
                    rope_scaling=scaling if kind in scaled_kinds else None,
                    rms_norm_eps=self._eps(),
                    moe_layer_idx=moe_ids.index(layer_id) if is_moe else -1,
                    top_k=top_k,
                    routed_scale=float(self._fields["moe_router_scaling_factor"]),
                    routed_limit=float(routed_limits[layer_id]) if is_moe else 0.0,
                    shared_limit=float(shared_limits[layer_id]),
                )
            )
        return specs

    def _per_layer(self, name: str, default: Any) -> Sequence[Any]:
        total = self._num_layers + self._num_mtp
        value = self._fields.get(name)
        if value is None:
            return [default] * total
        if not isinstance(value, list):
            return [value] * total
        if len(value) != total:
            self.problems.append(
                f"{name} has {len(value)} entries, needs {total}: {self._num_layers} layers, {self._num_mtp} modules"
            )
            return [default] * total
        return value

    def _moe_layer_ids(self) -> list[int]:
        text = self._fields["moe_layers_enum"]
        try:
            ids = sorted({int(part) for part in str(text).split(",") if part.strip()})
        except ValueError:
            self.problems.append(f"moe_layers_enum = {text!r} is not a comma-separated list of layer ids")
            return []
        outside = [layer_id for layer_id in ids if not 0 <= layer_id < self._num_layers]
        if outside or not ids:
            self.problems.append(f"moe_layers_enum {text!r} must name layers of 0..{self._num_layers - 1}")
        return ids

    def _check_heads(self) -> None:
        other = self._fields["attention_other_setting"]
        groups, head_dim = self._positive("num_attention_groups"), self._positive("head_dim")
        if not isinstance(other, Mapping) or "num_attention_heads" not in other:
            self.problems.append("attention_other_setting must name num_attention_heads of the sliding layers")
            self._fields = {**self._fields, "attention_other_setting": {"num_attention_heads": groups}}
            return
        expected = {
            "attention_type": SLIDING,
            "num_attention_groups": groups,
            "head_dim": head_dim,
            "true_head_dim": head_dim,
            "num_attention_heads": other["num_attention_heads"],
        }
        for name, value in other.items():
            if name not in expected or value != expected[name]:
                self.problems.append(f"attention_other_setting.{name} = {value!r} is not implemented")
        for heads in (self._positive("num_attention_heads"), other["num_attention_heads"]):
            if not isinstance(heads, int) or heads < 1 or heads % groups:
                self.problems.append(f"{heads!r} query heads do not divide over {groups} key/value groups")

    def _rotary_dim(self, layer_id: int, head_dim: int, factor: float) -> int:
        rotary_dim = round(head_dim * factor)
        if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
            self.problems.append(
                f"partial_rotary_factors[{layer_id}] = {factor}: {rotary_dim} of {head_dim} dims rotate"
            )
        return rotary_dim

    def _rope_scaling(self) -> RopeScaling | None:
        fields = self._fields.get("rope_scaling")
        if fields is None:
            return None
        names = {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
        kind = fields.get("rope_type", fields.get("type"))
        if kind != "llama3" or fields.keys() - {"rope_type", "type"} != names:
            self.problems.append(f"rope_scaling {fields!r} is not implemented: only llama3 with {sorted(names)} is")
            return None
        return RopeScaling(
            factor=float(fields["factor"]),
            original_max_positions=int(fields["original_max_position_embeddings"]),
            low_freq_factor=float(fields["low_freq_factor"]),
            high_freq_factor=float(fields["high_freq_factor"]),
        )

    def _fp8(self) -> Fp8Config | None:
        fields = self._fields.get("quantization_config")
        if fields is None:
            return None
        block = fields.get("weight_block_size", [128, 128])
        pinned = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        neutral = {"weight_block_size", "modules_to_not_convert", "ignored_layers"}
        for name, value in fields.items():
            if name not in neutral and value != pinned.get(name, object()):
                self.problems.append(f"quantization_config.{name} = {value!r} is not implemented")
        if fields.get("quant_method") != "fp8" or not (isinstance(block, list) and len(block) == 2 and min(block) > 0):
            self.problems.append(f"quantization_config {fields!r} is not block-scaled fp8")
            return None
        return Fp8Config((int(block[0]), int(block[1])))

    def _eos_token_ids(self) -> tuple[int, ...]:
        value = self._fields.get("eos_token_id")
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids):
            self.problems.append(f"eos_token_id = {value!r} must be a token id or a list of them")
            return ()
        return tuple(ids)

    def _max_positions(self) -> int:
        names = [name for name in ("max_position_embeddings", "max_seq_len") if name in self._fields]
        values = {self._positive(name) for name in names}
        if len(values) != 1:
            self.problems.append("max_position_embeddings and max_seq_len must agree, and one must be there")
            return 1
        return values.pop()

    def _eps(self) -> float:
        return float(self._fields.get("rms_norm_eps", DEFAULT_RMS_NORM_EPS))

    def _positive(self, name: str) -> int:
        return self._integer(name, 0, minimum=1)

    def _integer(self, name: str, default: int, *, minimum: int) -> int:
        value = self._fields.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            problem = f"{name} = {value!r} must be an integer of at least {minimum}"
            if problem not in self.problems:
                self.problems.append(problem)
            return minimum
        return value
