"""Our decoder over whole batches of packed documents, with gradients: attention without a cache, all experts here.

The decoder, the kernels and the weights are those that serve; only the two things that serving does in place are done
functionally here: attention reads keys of the batch instead of a cache, and experts are applied without scatter.

Legend: B rows of the batch, L tokens of a row, T = B * L, H hidden size, N query heads, G key/value heads, D head
size, E experts, K experts per token, P = T * K pairs, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from actors.kernels.contract import (
    AttentionInputs,
    AttentionWeights,
    ExpertWeights,
    GateOutput,
    GateWeights,
    LayerKV,
)
from actors.kernels.reference.attention import gated_output, project_qkv
from actors.kernels.reference.kernels import ReferenceKernels
from actors.kernels.reference.mlp import activation
from actors.kernels.reference.norm import rms_norm
from actors.model.config import LayerSpec, ModelConfig
from actors.model.decoder import Decoder, run_passes
from actors.weights.shard import DenseWeights, MtpWeights
from ops.nano.model import Tensors, attention_tier, expert_tier
from routing.dispatcher import DispatchHandle, ExpertRequest
from routing.plan import DispatchPlan


@dataclass(frozen=True)
class Batch:
    """Packed documents. token_ids, document: int64 [B, L]; document numbers the documents of a row, and a token sees
    its own document only. position: int64 [B, L], from 0 in each document. weight: float32 [B, L], what predicting
    this token counts in the loss; 0 for the first token of a document."""

    token_ids: Tensor
    document: Tensor
    position: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device) for part in (self.token_ids, self.document, self.position, self.weight)))


@dataclass(frozen=True)
class RoutingRecord:
    """What the gate of one MoE layer did. scores: float32 [T, E], sigmoid. topk_ids: int64 [T, K]."""

    scores: Tensor
    topk_ids: Tensor


class DenseModel:
    """Trunk and draft modules of one set of tensors, for training and for measuring."""

    def __init__(self, config: ModelConfig, tensors: Tensors, compute_dtype: torch.dtype) -> None:
        self.config = config
        self._kernels = _DenseKernels(config.rms_norm_eps)
        self._weights = attention_tier(config, tensors)
        self._experts = _DenseDispatcher(config, expert_tier(config, tensors))
        self._decoder = Decoder(config, self._weights, self._kernels, lambda _: _NO_CACHE, compute_dtype)

    def hidden(self, batch: Batch) -> Tensor:
        """Residual stream before the final norm, [T, H]."""
        inputs = self._begin(batch)
        forward = self._decoder.forward(batch.token_ids.flatten(), lambda _: inputs, self._experts)
        return run_passes([forward], self._experts)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [T, V] of the trunk."""
        return self._decoder.logits(hidden)

    @property
    def routing(self) -> Sequence[RoutingRecord]:
        """One record for each MoE layer of the last `hidden`."""
        return self._kernels.routing

    def draft(self, batch: Batch, trunk_hidden: Tensor) -> list[Tensor]:
        """float32 [T, V] of each draft module, chained as the specification has it (3.1, 3.2): row p of module k reads
        token p + 1 + k and the row's hidden state of the module before it, and predicts token p + 2 + k."""
        inputs = self._begin(batch)
        hidden, logits = trunk_hidden, []
        for shift, (spec, module) in enumerate(zip(self.config.mtp_layers, self._weights.mtp, strict=True), start=1):
            shifted = functional.pad(batch.token_ids[:, shift:], (0, shift)).flatten()
            hidden = self._module(shifted, hidden, spec, module, inputs)
            logits.append(self._kernels.head(hidden, module.head))
        return logits

    def _module(
        self, token_ids: Tensor, hidden: Tensor, spec: LayerSpec, module: MtpWeights, inputs: AttentionInputs
    ) -> Tensor:
        embedded = functional.embedding(token_ids, self._weights.embed).to(hidden.dtype)
        x = self._kernels.draft_input(embedded, hidden, module.input)
        x = self._kernels.attention_half(x, module.layer.attention, spec, inputs, _NO_CACHE)
        half = module.layer.ffn
        assert isinstance(half, DenseWeights)  # draft modules have no experts
        return self._kernels.dense_half(x, half.norm, half.mlp, spec)

    def _begin(self, batch: Batch) -> AttentionInputs:
        self._kernels.begin(batch)
        return AttentionInputs(batch.position.flatten(), slot_mapping=_NOTHING, sequences=())


EXPERTS_AT_ONCE = 8

_NOTHING = torch.empty(0)
_NO_CACHE = LayerKV(_NOTHING, _NOTHING)
_NO_PLAN = DispatchPlan(_NOTHING, (), _NOTHING, _NOTHING, _NOTHING, _NOTHING, ())


class _DenseKernels:
    """The reference kernels, except that attention looks at the batch, and what the gates chose is recorded."""

    def __init__(self, rms_norm_eps: float) -> None:
        self._reference = ReferenceKernels(rms_norm_eps)
        self.dense_half = self._reference.dense_half
        self.shared_expert = self._reference.shared_expert
        self.expert_mlp = self._reference.expert_mlp
        self.draft_input = self._reference.draft_input
        self.head = self._reference.head
        self.routing: list[RoutingRecord] = []
        self._masks: dict[int, Tensor] = {}
        self._document = _NOTHING

    def begin(self, batch: Batch) -> None:
        """Forget the batch before; the next layers belong to this one."""
        self._document = batch.document
        self._masks = {}
        self.routing = []

    def attention_half(
        self, hidden: Tensor, weights: AttentionWeights, spec: LayerSpec, inputs: AttentionInputs, cache: LayerKV
    ) -> Tensor:
        """As the reference, over the batch instead of the cache."""
        normed = rms_norm(hidden, weights.norm, spec.rms_norm_eps)
        shape = self._document.shape
        query, key, value = (
            part.unflatten(0, shape) for part in project_qkv(normed, weights, spec, inputs.positions, tile_rows=0)
        )
        attended = _attend(query, key, value, self._mask(spec.window), spec.window)
        return hidden + gated_output(attended.flatten(0, 1), normed, weights, tile_rows=0)

    def gate(self, hidden: Tensor, weights: GateWeights, spec: LayerSpec) -> GateOutput:
        """The reference's choice; its scores are kept for the balance loss and for measuring."""
        output = self._reference.gate(hidden, weights, spec)
        logits = functional.linear(output.normed.to(torch.float32), weights.router)
        self.routing.append(RoutingRecord(logits.sigmoid(), output.topk_ids))
        return output

    def _mask(self, window: int) -> Tensor:
        """What may be seen, made once for all layers of a kind."""
        if window not in self._masks:
            self._masks[window] = _window_mask(self._document, window) if window else _full_mask(self._document)
        return self._masks[window]


def _full_mask(document: Tensor) -> Tensor:
    """bool [B, 1, L, L]: earlier tokens of the same document, and the token itself."""
    same = document.unsqueeze(2) == document.unsqueeze(1)
    return same.tril().unsqueeze(1)


def _window_mask(document: Tensor, window: int) -> Tensor:
    """bool [B * L / W, 1, W, 2W]: of its own chunk of W tokens and the chunk before, what a token's window holds."""
    chunks = document.unflatten(1, (-1, window))
    same = chunks.unsqueeze(3) == _with_previous(chunks, fill=-1).unsqueeze(2)
    query = torch.arange(window, 2 * window, device=document.device).unsqueeze(1)
    key = torch.arange(2 * window, device=document.device).unsqueeze(0)
    visible: Tensor = same & (key <= query) & (key > query - window)
    return visible.flatten(0, 1).unsqueeze(1)


def _with_previous(chunks: Tensor, fill: float = 0) -> Tensor:
    """[B, C, W, ...] -> [B, C, 2W, ...]: every chunk behind the one before it."""
    first = torch.full_like(chunks[:, :1], fill)
    return torch.cat((torch.cat((first, chunks[:, :-1]), dim=1), chunks), dim=2)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, window: int) -> Tensor:
    """query: [B, L, N, D]. key, value: [B, L, G, D]. -> [B, L, N, D]. Windows need L to be a multiple of theirs."""
    shape = query.shape
    if window:
        query = query.unflatten(1, (-1, window)).flatten(0, 1)
        key, value = (_with_previous(part.unflatten(1, (-1, window))).flatten(0, 1) for part in (key, value))
    copies = query.shape[2] // key.shape[2]
    key, value = (part.repeat_interleave(copies, dim=2).transpose(1, 2) for part in (key, value))
    # On small chunks plain products are several times as fast on a CPU as the fused form, on long rows the reverse.
    attend = _plain_attention if window else functional.scaled_dot_product_attention
    attended = attend(query.transpose(1, 2), key, value, attn_mask=mask)
    result: Tensor = attended.transpose(1, 2).reshape(shape)
    return result


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor) -> Tensor:
    """All [..., L, D]. attn_mask: bool [..., L, keys]."""
    bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2) + bias
    mixed: Tensor = scores.softmax(dim=-1) @ value
    return mixed


class _DenseDispatcher:
    """Satisfies `routing.dispatcher.Dispatcher` with every expert at hand. One product after the other per expert."""

    def __init__(self, config: ModelConfig, experts: Sequence[ExpertWeights]) -> None:
        self._experts = experts
        self._limits = [spec.routed_limit for spec in config.moe_layers]

    def dispatch(self, request: ExpertRequest) -> DispatchHandle:
        return DispatchHandle(request, _NO_PLAN, exchange=None)

    def combine(self, handle: DispatchHandle) -> Tensor:
        request = handle.request
        layer = request.moe_layer_idx
        return _routed_sum(request, self._experts[layer], self._limits[layer])

    def abandon(self, handle: DispatchHandle) -> None:
        """Nothing is in flight before `combine`."""


def _routed_sum(request: ExpertRequest, weights: ExpertWeights, limit: float) -> Tensor:
    """Experts of similar load together, each group in one batched product padded to its busiest expert. [T, H]."""
    hidden, (num_rows, top_k) = request.hidden, request.topk_ids.shape
    pair_expert = request.topk_ids.flatten()
    counts = torch.bincount(pair_expert, minlength=weights.gate.shape[0])
    pairs = torch.argsort(pair_expert, stable=True).split(counts.tolist())
    padded = functional.pad(hidden, (0, 0, 0, 1))
    pair_weights = functional.pad(request.topk_weights.flatten(), (0, 1)).to(hidden.dtype)
    routed = torch.zeros_like(padded)
    for experts in counts.argsort().split(EXPERTS_AT_ONCE):
        pair = pad_sequence([pairs[expert] for expert in experts.tolist()], True, padding_value=num_rows * top_k)
        row = torch.div(pair, top_k, rounding_mode="floor").flatten()
        x = padded.index_select(0, row).unflatten(0, pair.shape)
        outputs = _expert_products(
            x, ExpertWeights(weights.gate[experts], weights.up[experts], weights.down[experts]), limit
        )
        weighted = outputs * pair_weights.index_select(0, pair.flatten()).view(*pair.shape, 1)
        routed = routed.index_add(0, row, weighted.flatten(0, 1))
    return routed[:num_rows]


def _expert_products(x: Tensor, weights: ExpertWeights, limit: float) -> Tensor:
    """x: [S, R, H], the rows of each expert. -> [S, R, H]."""
    gate_up = torch.cat((weights.gate, weights.up), dim=1).to(x.dtype)
    gate, up = torch.bmm(x, gate_up.transpose(1, 2)).chunk(2, dim=-1)
    return torch.bmm(activation(gate, up, limit), weights.down.to(x.dtype).transpose(1, 2))
