"""The Step-3.7 text model of transformers (same trunk) with the weights of our checkpoints: an outside oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

_NOT_FOR_THE_TEXT_MODEL = ("architectures", "auto_map", "torch_dtype")


class TransformersOracle:
    """Logits of whole sequences, without a cache."""

    def __init__(self, fields: Mapping[str, Any], folder: Path) -> None:
        tensors = _read(folder)
        kept = {name: value for name, value in fields.items() if name not in _NOT_FOR_THE_TEXT_MODEL}
        config: Any = Step3p7TextConfig  # its arguments and `to` have no types that hold
        model: Any = Step3p7TextModel(config(**kept, attn_implementation="eager"))
        self._model = model.to(torch.float32).eval()
        self._head = tensors["lm_head.weight"].to(torch.float32)
        state = _renamed(tensors, fields["num_hidden_layers"])
        missing, unexpected = self._model.load_state_dict(state, strict=False)
        assert not missing, missing
        assert not unexpected, unexpected

    @torch.no_grad()
    def logits(self, token_ids: list[int]) -> Tensor:
        """float32 [T, V]."""
        hidden = self._model(input_ids=torch.tensor([token_ids]), use_cache=False).last_hidden_state[0]
        logits: Tensor = hidden @ self._head.T
        return logits


def _read(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(shard))
    return tensors


def _renamed(tensors: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    state = {}
    for layer_id in range(num_layers):
        prefix = f"model.layers.{layer_id}."
        layer = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        state.update({f"layers.{layer_id}.{name}": t.to(torch.float32) for name, t in _layer(layer).items()})
    state["embed_tokens.weight"] = tensors["model.embed_tokens.weight"].to(torch.float32)
    state["norm.weight"] = tensors["model.norm.weight"].to(torch.float32)
    return state


def _layer(layer: dict[str, Tensor]) -> dict[str, Tensor]:
    plain = {name: t for name, t in layer.items() if not name.startswith(("moe.", "share_expert."))}
    if "moe.gate.weight" not in layer:
        return plain
    plain.update({name.replace("share_expert.", "mlp.shared_experts."): layer[name] for name in _SHARED})
    plain["mlp.gate.weight"] = layer["moe.gate.weight"]
    plain["mlp.gate.e_score_correction_bias"] = layer["moe.router_bias"]
    plain["mlp.experts.gate_up_proj"] = torch.cat((layer["moe.gate_proj.weight"], layer["moe.up_proj.weight"]), dim=1)
    plain["mlp.experts.down_proj"] = layer["moe.down_proj.weight"]
    return plain


_SHARED = tuple(f"share_expert.{projection}_proj.weight" for projection in ("gate", "up", "down"))
