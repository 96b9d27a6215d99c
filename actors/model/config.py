"""ModelConfig: a checkpoint's config.json, understood field by field or refused. Pure.

A field that could change the computation is either implemented, or pinned to the one value that is implemented, or an
error naming it. Field meanings: specification section 1; derived per-layer table: `LayerSpec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.errors import ConfigError
from actors.model.fields import FieldReader, is_integer, shown
from actors.model.known_fields import field_problems

DEFAULT_RMS_NORM_EPS = 1e-5  # absent from the published file; 1e-6 would be wrong

# Whoever checks a checkpoint lists every layer and expert, so a wrong number must not become a list without end.
MAX_LAYERS = 1000
MAX_EXPERTS = 4096

FULL, SLIDING = "full_attention", "sliding_attention"
DEFAULT_FP8_BLOCK = (128, 128)


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
    def window(self) -> int:
        """The sliding window, 0 if no layer slides."""
        return max(spec.window for spec in self.layers)


def parse_model_config(fields: Mapping[str, Any]) -> ModelConfig:
    """Understand a config.json or raise ConfigError with everything that is wrong, whatever the values are."""
    problems = field_problems(fields)
    if problems:
        raise ConfigError("config.json", problems)
    parser = _Parser(fields)
    config = parser.parse()
    if parser.problems:
        raise ConfigError("config.json", parser.problems)
    return config


class _Parser:
    """Gives the fields their meaning, noting problems instead of stopping at the first. All required ones are there."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._reader = FieldReader(fields)
        self._num_layers = self._reader.integer("num_hidden_layers", maximum=MAX_LAYERS)
        num_mtp = self._reader.integer("num_nextn_predict_layers", minimum=0, maximum=MAX_LAYERS, default=0)
        self._total = self._num_layers + num_mtp

    @property
    def problems(self) -> list[str]:
        return self._reader.problems

    def parse(self) -> ModelConfig:
        integer = self._reader.integer
        specs = self._layer_specs()
        vocab_size = integer("vocab_size")
        return ModelConfig(
            hidden_size=integer("hidden_size"),
            vocab_size=vocab_size,
            intermediate_size=integer("intermediate_size"),
            moe_intermediate_size=integer("moe_intermediate_size"),
            shared_intermediate_size=integer("share_expert_dim"),
            num_experts=integer("moe_num_experts", maximum=MAX_EXPERTS),
            top_k=specs[0].top_k,
            max_positions=self._max_positions(),
            rms_norm_eps=specs[0].rms_norm_eps,
            layers=tuple(specs[: self._num_layers]),
            mtp_layers=tuple(specs[self._num_layers :]),
            fp8=self._fp8(),
            eos_token_ids=self._eos_token_ids(vocab_size),
        )

    def _layer_specs(self) -> list[LayerSpec]:
        """One spec for each layer and module: what all share, then what differs."""
        reader = self._reader
        sliding_heads = self._sliding_heads()
        full = LayerSpec(
            layer_id=0,
            window=0,
            num_heads=self._full_heads(),
            num_kv_heads=reader.integer("num_attention_groups"),
            head_dim=reader.integer("head_dim"),
            rotary_dim=0,
            rope_theta=1.0,
            rope_scaling=None,
            rms_norm_eps=reader.number("rms_norm_eps", is_above=True, default=DEFAULT_RMS_NORM_EPS),
            moe_layer_idx=-1,
            top_k=self._top_k(),
            routed_scale=reader.number("moe_router_scaling_factor", is_above=True),
            routed_limit=0.0,
            shared_limit=0.0,
        )
        sliding = replace(full, window=reader.integer("sliding_window"), num_heads=sliding_heads)
        own = self._own_values(full.head_dim)
        return [replace(sliding if kind == SLIDING else full, **own(i, kind)) for i, kind in enumerate(self._kinds())]

    def _own_values(self, head_dim: int) -> Callable[[int, str], dict[str, Any]]:
        """What a layer does not share with the others of its kind, by its id and kind."""
        reader, total = self._reader, self._total
        thetas = reader.numbers("rope_theta", total, minimum=1.0)
        rotary_dims = self._rotary_dims(head_dim)
        routed_limits = reader.numbers("swiglu_limits", total, minimum=0.0, default=0.0)
        shared_limits = reader.numbers("swiglu_limits_shared", total, minimum=0.0, default=0.0)
        moe_ids = self._moe_layer_ids()
        scaling, scaled_kinds = self._rope_scaling(), self._scaled_kinds()

        def values(layer_id: int, kind: str) -> dict[str, Any]:
            is_moe = layer_id in moe_ids
            return {
                "layer_id": layer_id,
                "rotary_dim": rotary_dims[layer_id],
                "rope_theta": thetas[layer_id],
                "rope_scaling": scaling if kind in scaled_kinds else None,
                "moe_layer_idx": moe_ids.index(layer_id) if is_moe else -1,
                "routed_limit": routed_limits[layer_id] if is_moe else 0.0,
                "shared_limit": shared_limits[layer_id],
            }

        return values

    def _kinds(self) -> Sequence[str]:
        kinds = self._reader.get("layer_types")
        if not isinstance(kinds, list) or len(kinds) != self._total:
            num = len(kinds) if isinstance(kinds, list) else shown(kinds)
            self._reader.note(
                f"layer_types has {num} entries, needs a list of {self._total}, one for each layer and module"
            )
            return [FULL] * self._total
        for layer_id, kind in enumerate(kinds):
            if kind not in (FULL, SLIDING):
                self._reader.note(f"layer_types[{layer_id}] = {shown(kind)} is not implemented")
        return kinds

    def _top_k(self) -> int:
        num_experts = self._reader.integer("moe_num_experts", maximum=MAX_EXPERTS)
        top_k = self._reader.integer("moe_top_k")
        if top_k > num_experts:
            self._reader.note(f"moe_top_k {top_k} exceeds moe_num_experts {num_experts}")
        return top_k

    def _moe_layer_ids(self) -> list[int]:
        text = self._reader.get("moe_layers_enum")
        try:
            ids = sorted({int(part) for part in text.split(",") if part.strip()})
        except (AttributeError, ValueError):
            self._reader.note_value("moe_layers_enum", "is not a comma-separated list of layer ids")
            return []
        if not ids or ids[0] < 0 or ids[-1] >= self._num_layers:
            self._reader.note_value("moe_layers_enum", f"must name layers of 0 to {self._num_layers - 1}")
        return ids

    def _full_heads(self) -> int:
        num_heads = self._reader.integer("num_attention_heads")
        self._check_groups("num_attention_heads", num_heads)
        return num_heads

    def _sliding_heads(self) -> int:
        """Query heads of the sliding layers; everything else about them must repeat the other fields."""
        other = self._reader.section("attention_other_setting")
        if other is None:
            self._reader.note_value("attention_other_setting", "must name num_attention_heads of the sliding layers")
            return 1
        num_heads = other.integer("num_attention_heads")
        self._check_groups("attention_other_setting.num_attention_heads", num_heads)
        expected = {
            "attention_type": SLIDING,
            "num_attention_groups": self._reader.get("num_attention_groups"),
            "head_dim": self._reader.get("head_dim"),
            "true_head_dim": self._reader.get("head_dim"),
            "num_attention_heads": other.get("num_attention_heads"),
        }
        for name in other.names():
            if name not in expected or other.get(name) != expected[name]:
                other.note_value(name, "is not implemented")
        return num_heads

    def _check_groups(self, name: str, num_heads: int) -> None:
        groups = self._reader.integer("num_attention_groups")
        if num_heads % groups:
            self._reader.note(f"{name}: {num_heads} query heads do not divide over {groups} key/value groups")

    def _rotary_dims(self, head_dim: int) -> Sequence[int]:
        """Leading dimensions of a head that rotate, for each layer."""
        factors = self._reader.numbers("partial_rotary_factors", self._total, minimum=0.0)
        dims = [round(head_dim * factor) for factor in factors]
        for layer_id, (factor, rotary_dim) in enumerate(zip(factors, dims, strict=True)):
            if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
                self._reader.note(
                    f"partial_rotary_factors[{layer_id}] = {factor:g}: {rotary_dim} of {head_dim} dims rotate"
                )
        return dims

    def _scaled_kinds(self) -> Sequence[str]:
        """Layer kinds whose frequencies are scaled."""
        kinds = self._reader.get("yarn_only_types")
        if kinds is None:
            return FULL, SLIDING
        if not isinstance(kinds, list) or not kinds or any(kind not in (FULL, SLIDING) for kind in kinds):
            self._reader.note_value("yarn_only_types", f"must be a list of {FULL} and {SLIDING}")
            return ()
        return kinds

    def _rope_scaling(self) -> RopeScaling | None:
        fields = self._reader.section("rope_scaling")
        if fields is None:
            return None
        names = {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}
        kinds = [fields.get(name) for name in ("rope_type", "type") if name in fields.names()]
        if kinds not in (["llama3"], ["llama3"] * 2) or fields.names() - {"rope_type", "type"} != names:
            self._reader.note_value("rope_scaling", f"is not implemented: only llama3 with {sorted(names)} is")
            return None
        scaling = RopeScaling(
            factor=fields.number("factor", minimum=1.0),
            original_max_positions=fields.integer("original_max_position_embeddings"),
            low_freq_factor=fields.number("low_freq_factor", is_above=True),
            high_freq_factor=fields.number("high_freq_factor", is_above=True),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            fields.note_value("high_freq_factor", f"must be above low_freq_factor {scaling.low_freq_factor:g}")
        return scaling

    def _fp8(self) -> Fp8Config | None:
        fields = self._reader.section("quantization_config")
        if fields is None:
            return None
        pinned = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        neutral = {"weight_block_size", "modules_to_not_convert", "ignored_layers"}
        for name in fields.names() - neutral:
            if name not in pinned or fields.get(name) != pinned[name]:
                fields.note_value(name, "is not implemented")
        if "quant_method" not in fields.names():
            self._reader.note("quantization_config.quant_method is missing; only fp8 is implemented")
        block = fields.get("weight_block_size") if "weight_block_size" in fields.names() else list(DEFAULT_FP8_BLOCK)
        if not isinstance(block, list) or len(block) != 2 or not all(is_integer(size, 1) for size in block):
            fields.note_value("weight_block_size", "must be two integers of at least 1")
            return None
        return Fp8Config((block[0], block[1]))

    def _eos_token_ids(self, vocab_size: int) -> tuple[int, ...]:
        value = self._reader.get("eos_token_id")
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(is_integer(token_id, 0, vocab_size - 1) for token_id in ids):
            self._reader.note_value("eos_token_id", f"must be a token id below {vocab_size}, or a list of them")
            return ()
        return tuple(ids)

    def _max_positions(self) -> int:
        names = [name for name in ("max_position_embeddings", "max_seq_len") if name in self._reader.names()]
        values = {self._reader.integer(name) for name in names}
        if len(values) != 1:
            self._reader.note("max_position_embeddings and max_seq_len must agree, and one must be there")
        return min(values, default=1)
