"""One sequence through the decoder with a paged cache of shuffled blocks, driven by hand: no scheduler, no engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from actors.expert.actor import load_shard
from actors.expert.config import ExpertConfig
from actors.kernels.contract import AttentionInputs, LayerKV, SequenceRows
from actors.kernels.registry import load_kernels
from actors.model.config import LayerSpec, ModelConfig
from actors.model.decoder import Decoder, run_passes
from actors.weights.check import read_model_config
from actors.weights.loader import load_attention_weights
from actors.weights.source import SafetensorsSource
from routing.experts import linear_expert_map
from routing.local import LocalDispatcher


class PagedCache:
    """Every layer has the same block table; blocks lie in random order so that a wrong table shows."""

    def __init__(self, config: ModelConfig, num_tokens: int, *, block_size: int, device: str) -> None:
        num_blocks = -(-num_tokens // block_size) + 3
        self._block_size = block_size
        generator = torch.Generator().manual_seed(num_tokens)
        self._block_ids = torch.randperm(num_blocks, generator=generator).to(device)
        shape = (num_blocks, block_size, config.layers[0].num_kv_heads, config.layers[0].head_dim)
        # NaN shows any use of a slot that was never written.
        nan = torch.full(shape, torch.nan, device=device)
        self._layers = [LayerKV(nan.clone(), nan.clone()) for _ in config.layers]

    def cache_of(self, layer_id: int) -> LayerKV:
        return self._layers[layer_id]

    def inputs(self, first_position: int, num_rows: int) -> Callable[[LayerSpec], AttentionInputs]:
        positions = torch.arange(first_position, first_position + num_rows, device=self._block_ids.device)
        slots = self._slots(positions)
        inputs = AttentionInputs(positions, slots, [SequenceRows(0, num_rows, first_position, self._block_ids)])
        return lambda _spec: inputs

    def _slots(self, positions: Tensor) -> Tensor:
        return self._block_ids[positions // self._block_size] * self._block_size + positions % self._block_size


class OneSequence:
    """Logits of one sequence computed chunk by chunk; every EP rank in this process."""

    def __init__(
        self, folder: Path, *, ep_size: int, deterministic: bool, device: str = "cpu", kernels: str = "reference"
    ) -> None:
        self._config = config = read_model_config(folder)
        self._device = device
        with SafetensorsSource(folder) as source:
            self._weights = load_attention_weights(source, config, dtype=torch.float32, device=device)
        self._kernels = load_kernels(
            device, rms_norm_eps=config.rms_norm_eps, row_independent=deterministic, families=(kernels,)
        )
        moe_layers, experts = len(config.moe_layers), config.num_experts
        expert_map = linear_expert_map(moe_layers, experts, ep_size, num_redundant_slots=1)
        expert_config = ExpertConfig(
            param_dtype="float32", deterministic=deterministic, device=device, kernels=(kernels,)
        )
        shards = [load_shard(expert_config, folder, expert_map, ep_rank) for ep_rank in range(ep_size)]
        self._dispatcher = LocalDispatcher(expert_map, shards, deterministic=deterministic, device=device)

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int], chunks: Sequence[int]) -> Tensor:
        """float32 [T, V]; `chunks` sum to the length of `token_ids`."""
        assert sum(chunks) == len(token_ids)
        cache = PagedCache(self._config, len(token_ids), block_size=4, device=self._device)
        decoder = Decoder(self._config, self._weights, self._kernels, cache.cache_of, torch.float32)
        parts, first = [], 0
        for chunk in chunks:
            ids = torch.tensor(token_ids[first : first + chunk], device=self._device)
            forward = decoder.forward(ids, cache.inputs(first, chunk), self._dispatcher)
            parts.append(decoder.logits(run_passes([forward], self._dispatcher)[0]))
            first += chunk
        return torch.cat(parts).cpu()
