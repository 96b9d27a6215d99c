"""From a checkpoint folder to an engine: weights, KV cache, kernels, scheduler and sampler put together."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer

from actors.attention.config import AttentionConfig
from actors.attention.drafting import MAX_UNSETTLED, Drafter
from actors.attention.scheduler import Scheduler, SchedulerLimits
from actors.attention.speculation import Speculation
from actors.attention.step import BatchShape, EngineStep
from actors.cache.block_table import KvCache
from actors.cache.blocks import KvLayout
from actors.cache.storage import KvDemand, KvPoolSizes, KvStorage, size_for_bytes, size_for_tokens
from actors.frame_limits import compute_dtype
from actors.kernels.registry import load_kernels
from actors.model.config import ModelConfig
from actors.model.decoder import Decoder
from actors.model.draft_modules import DraftModules
from actors.sampling.sampler import Sampler
from actors.speculative.cost import StepCost
from actors.speculative.draft_length import DraftLengths
from actors.weights.check import check_checkpoint
from actors.weights.loader import load_attention_weights
from actors.weights.progress import logged
from actors.weights.shard import AttentionTierWeights
from actors.weights.source import SafetensorsSource
from routing.dispatcher import TimedDispatcher
from routing.load.monitor import LoadMonitor

TOKENIZER_NAME = "tokenizer.json"


def load_engine(config: AttentionConfig, checkpoint: Path, ep_size: int, dispatcher: TimedDispatcher) -> EngineStep:
    """Slow: reads the attention tier's weights. Raises CheckpointError, ValueError if the KV cache is too small."""
    if config.deterministic:
        torch.set_num_threads(1)  # `load_kernels` says why
    summary = check_checkpoint(checkpoint, ep_size)
    model = summary.config
    num_modules = num_draft_modules(config, model)
    # Modules are alike, so each has its share of the bytes.
    num_bytes = summary.attention_bytes + summary.mtp_bytes * num_modules // max(1, len(model.mtp_layers))
    with SafetensorsSource(checkpoint) as files:
        source = logged(files, num_bytes, "attention rank")
        weights = load_attention_weights(
            source,
            model,
            dtype=_param_dtype(config),
            device=config.device,
            num_draft_modules=num_modules,
        )
    return build_engine(config, model, weights, dispatcher, valid_vocab_size(checkpoint, model))


def build_engine(
    config: AttentionConfig,
    model: ModelConfig,
    weights: AttentionTierWeights,
    dispatcher: TimedDispatcher,
    num_valid_tokens: int,
) -> EngineStep:
    """An engine over loaded weights. num_valid_tokens: ids from here on are padding and never sampled."""
    dtype = compute_dtype(config)
    layout = kv_layout(config, model)
    sizes = kv_pool_sizes(config, model, layout, dtype)
    layers = (*model.layers, *model.mtp_layers[: layout.num_draft_modules])
    storage = KvStorage(layers, layout, sizes, dtype=dtype, device=config.device)
    kv_cache = KvCache(
        layout,
        num_full_blocks=sizes.full_blocks,
        num_sliding_blocks=sizes.sliding_blocks,
        enable_prefix_cache=config.enable_prefix_cache,
    )
    kernels = load_kernels(
        torch.device(config.device).type,
        rms_norm_eps=model.rms_norm_eps,
        row_independent=config.deterministic,
        families=config.kernels,
    )
    monitor = load_monitor(config, model)
    observe = None if monitor is None else monitor.observe
    decoder = Decoder(model, weights, kernels, storage.layers.__getitem__, dtype, observe)
    shape = BatchShape(config.block_size, model.window > 0, config.num_microbatches, config.device)
    scheduler = Scheduler(kv_cache, _limits(config, model))
    sampler = Sampler(num_valid_tokens)
    speculation = None
    if layout.num_draft_modules:
        modules = DraftModules(model, weights, kernels, storage.layers[model.num_layers :], layout.num_draft_modules)
        drafter = Drafter(modules, sampler, config.block_size, config.device, is_sampled=config.mtp.sample_drafts)
        lengths = draft_lengths(config, model, modules.num_modules)
        speculation = Speculation(drafter, scheduler, lengths, time.perf_counter, lambda: dispatcher.waited_s)
    return EngineStep(scheduler, decoder, dispatcher, sampler, shape, speculation, monitor)


def load_monitor(config: AttentionConfig, model: ModelConfig) -> LoadMonitor | None:
    """What counts the gates' choices; None if the configuration wants none."""
    if not config.monitor_load:
        return None
    return LoadMonitor(len(model.moe_layers), model.num_experts, device=config.device)


def num_draft_modules(config: AttentionConfig, model: ModelConfig) -> int:
    """The checkpoint's draft modules that this engine uses."""
    return 0 if config.mtp.mode == "off" else min(config.mtp.max_drafts, len(model.mtp_layers))


def kv_layout(config: AttentionConfig, model: ModelConfig) -> KvLayout:
    """Positions to blocks; with draft modules, the rows that await them count."""
    num_modules = num_draft_modules(config, model)
    return KvLayout(config.block_size, model.window, num_modules, MAX_UNSETTLED if num_modules else 0)


def draft_lengths(config: AttentionConfig, model: ModelConfig, max_drafts: int) -> DraftLengths:
    """What chooses them, by prices that are still to be learnt."""
    mode: Literal["adaptive", "fixed"] = "fixed" if config.mtp.mode == "fixed" else "adaptive"
    return DraftLengths(mode, max_drafts, StepCost(model.num_experts, model.top_k))


def max_model_len(config: AttentionConfig, model: ModelConfig) -> int:
    """Prompt and completion tokens of the longest sequence. Raises ValueError beyond the model's positions."""
    if config.max_model_len is not None and config.max_model_len > model.max_positions:
        raise ValueError(f"max_model_len {config.max_model_len} exceeds the model's {model.max_positions} positions")
    return config.max_model_len or model.max_positions


def valid_vocab_size(checkpoint: Path, model: ModelConfig) -> int:
    """Ids that the tokenizer knows; the rows of the embedding beyond them are padding (specification, 5.1)."""
    path = checkpoint / TOKENIZER_NAME
    if not path.exists():
        return model.vocab_size
    return min(model.vocab_size, int(Tokenizer.from_file(str(path)).get_vocab_size(with_added_tokens=True)))


def kv_pool_sizes(config: AttentionConfig, model: ModelConfig, layout: KvLayout, dtype: torch.dtype) -> KvPoolSizes:
    """Blocks of both KV pools. Raises ValueError when the longest sequence does not fit."""
    longest = max_model_len(config, model)
    cached_windows = config.cached_windows if config.enable_prefix_cache else 0
    demand = KvDemand(longest, config.max_running, config.max_step_tokens, cached_windows)
    if config.kv_cache_bytes is not None:
        layers = (*model.layers, *model.mtp_layers[: layout.num_draft_modules])
        return size_for_bytes(layers, layout, demand, dtype, config.kv_cache_bytes)
    return size_for_tokens(layout, demand, config.kv_cache_tokens or 2 * longest)


def _limits(config: AttentionConfig, model: ModelConfig) -> SchedulerLimits:
    return SchedulerLimits(
        max_running=config.max_running,
        max_waiting=config.max_waiting,
        max_step_tokens=config.max_step_tokens,
        max_model_len=max_model_len(config, model),
        vocab_size=model.vocab_size,
        eos_token_ids=frozenset(model.eos_token_ids),
        num_draft_modules=num_draft_modules(config, model),
    )


def _param_dtype(config: AttentionConfig) -> torch.dtype | None:
    return {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}[config.param_dtype]
