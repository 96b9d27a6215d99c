"""The decoder: embedding, layers, head, with the experts elsewhere.

`forward` is a generator that stops at each MoE layer with its rows already sent, so that several micro-batches can be
in flight and one's attention hides the other's expert round trip. It owns no request state.

Legend: T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from actors.kernels.contract import AttentionInputs, GateOutput, Kernels, LayerKV
from actors.model.config import LayerSpec, ModelConfig
from actors.weights.shard import AttentionTierWeights, LayerWeights, MoeWeights
from routing.dispatcher import Dispatcher, DispatchHandle, ExpertRequest

# Yields the handle of the dispatch it waits for, is sent the routed sum, returns the residual stream.
ForwardPass = Generator[DispatchHandle, Tensor, Tensor]


class Decoder:
    """The trunk on one attention rank. `cache_of(layer_id)` gives a layer's paged cache."""

    def __init__(
        self,
        config: ModelConfig,
        weights: AttentionTierWeights,
        kernels: Kernels,
        cache_of: Callable[[int], LayerKV],
        compute_dtype: torch.dtype,
        observe: Callable[[int, GateOutput], None] | None = None,
    ) -> None:
        """observe: is given the MoE layer index and what its gate made of each micro-batch, once the rows are sent."""
        self._config = config
        self._weights = weights
        self._kernels = kernels
        self._caches = [cache_of(spec.layer_id) for spec in config.layers]
        self._compute_dtype = compute_dtype
        self._observe = observe

    def forward(
        self,
        token_ids: Tensor,
        inputs_of: Callable[[LayerSpec], AttentionInputs],
        dispatcher: Dispatcher,
        microbatch_idx: int = 0,
    ) -> ForwardPass:
        """One micro-batch through every layer. token_ids: int64 [T]. Returns the residual stream before the final
        norm, [T, H]."""
        hidden = functional.embedding(token_ids, self._weights.embed).to(self._compute_dtype)
        for spec, layer, cache in zip(self._config.layers, self._weights.layers, self._caches, strict=True):
            hidden = self._kernels.attention_half(hidden, layer.attention, spec, inputs_of(spec), cache)
            hidden = yield from self._feed_forward(hidden, spec, layer, dispatcher, microbatch_idx)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: [T, H] before the final norm. Returns float32 [T, V]."""
        return self._kernels.head(hidden, self._weights.head)

    def _feed_forward(
        self, hidden: Tensor, spec: LayerSpec, layer: LayerWeights, dispatcher: Dispatcher, microbatch_idx: int
    ) -> ForwardPass:
        half = layer.ffn
        if not isinstance(half, MoeWeights):
            return self._kernels.dense_half(hidden, half.norm, half.mlp, spec)
        gate = self._kernels.gate(hidden, half.gate, spec)
        handle = dispatcher.dispatch(
            ExpertRequest(spec.moe_layer_idx, microbatch_idx, gate.normed, gate.topk_ids, gate.topk_weights)
        )
        try:
            if self._observe is not None:
                self._observe(spec.moe_layer_idx, gate)
            shared = self._kernels.shared_expert(gate.normed, half.shared, spec)
        except BaseException:
            dispatcher.abandon(handle)  # nobody else knows of it yet
            raise
        routed = yield handle
        return hidden + (routed + shared)


def run_passes(passes: Sequence[ForwardPass], dispatcher: Dispatcher) -> list[Tensor]:
    """Drive the micro-batches in turn until all have returned; their results in order.

    While one waits for its experts the next one computes. Whatever stops the run, every open handle is spent.
    """
    results: list[Tensor | None] = [None] * len(passes)
    waiting: deque[tuple[int, DispatchHandle]] = deque()
    try:
        for idx in range(len(passes)):
            _advance(passes, idx, None, waiting, results)
        while waiting:
            idx, handle = waiting.popleft()
            _advance(passes, idx, dispatcher.combine(handle), waiting, results)
    finally:
        for _, handle in waiting:
            dispatcher.abandon(handle)
    return [result for result in results if result is not None]


def _advance(
    passes: Sequence[ForwardPass],
    idx: int,
    routed: Tensor | None,
    waiting: deque[tuple[int, DispatchHandle]],
    results: list[Tensor | None],
) -> None:
    """Run one pass up to its next dispatch, or to its end. `routed` is None to start it."""
    try:
        handle = next(passes[idx]) if routed is None else passes[idx].send(routed)
        waiting.append((idx, handle))
    except StopIteration as end:
        results[idx] = end.value
