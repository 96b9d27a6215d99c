"""NativeKernels: the C++ operations under the contract's names, for float32 activations on a CPU.

Every sum's order depends on its width alone (product.h), so rows are independent whether that is asked for or not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actors.errors import KernelError
from actors.kernels.contract import (
    AttentionInputs,
    AttentionWeights,
    DraftInputWeights,
    ExpertWeights,
    GateConfidence,
    GateOutput,
    GateWeights,
    HeadWeights,
    LayerKV,
    MlpWeights,
)
from actors.model.config import LayerSpec
from routing.load.tally import LayerTally

try:
    from actors.kernels import _native
except ImportError as error:
    raise KernelError(
        "the native kernels are not built: `pip install -e .` in the repository builds them (it needs a C++ compiler)"
    ) from error

from actors.kernels.native import views


class NativeKernels:
    """One thread per call. Weights float32 or bfloat16, read in place; KV cache either. Anything else: KernelError.

    rms_norm_eps: of the final norm; layers bring their own. row_independent: always so; the argument is the family's.
    """

    def __init__(self, rms_norm_eps: float, row_independent: bool = True) -> None:
        del row_independent
        self._rms_norm_eps = rms_norm_eps
        self._mlps = views.ViewCache(views.mlp_view)
        self._slots = views.ViewCache(views.slots_view)
        self._gates = views.ViewCache(views.gate_view)
        self._heads = views.ViewCache(self._head_view)
        self._draft_inputs = views.ViewCache(_halves)
        self._layers = views.ViewCache(views.attention_view)
        self._batches = views.ViewCache(views.batch_view)
        self._caches = views.ViewCache(views.cache_view)

    def attention_half(
        self, hidden: Tensor, weights: AttentionWeights, spec: LayerSpec, inputs: AttentionInputs, cache: LayerKV
    ) -> Tensor:
        num_rows = views.check_rows(hidden, weights.q.shape[1])
        if inputs.positions.shape[0] != num_rows:
            raise KernelError(f"{inputs.positions.shape[0]} positions for {num_rows} rows")
        layer, paged = self._layers.get(weights, spec), self._caches.get(cache, spec)
        out = torch.empty_like(hidden)
        _native.attention_half(layer, self._batches.get(inputs), paged, hidden.data_ptr(), out.data_ptr())
        return out

    def dense_half(self, hidden: Tensor, norm: Tensor, weights: MlpWeights, spec: LayerSpec) -> Tensor:
        width = weights.gate.shape[1]
        num_rows = views.check_rows(hidden, width)
        native_norm = _native.Norm(views.vector(norm, width, "norm"), spec.rms_norm_eps)
        out = torch.empty_like(hidden)
        mlp = self._mlps.get(weights)
        _native.dense_half(mlp, native_norm, spec.shared_limit, hidden.data_ptr(), num_rows, out.data_ptr())
        return out

    def gate(self, hidden: Tensor, weights: GateWeights, spec: LayerSpec) -> GateOutput:
        num_rows = views.check_rows(hidden, weights.router.shape[1])
        normed = torch.empty_like(hidden)
        topk_ids = torch.empty(num_rows, spec.top_k, dtype=torch.int64)
        topk_weights = torch.empty(num_rows, spec.top_k, dtype=torch.float32)
        table = torch.empty(4, num_rows, dtype=torch.float32)
        outputs = (normed.data_ptr(), topk_ids.data_ptr(), topk_weights.data_ptr(), table.data_ptr())
        _native.gate(self._gates.get(weights, spec), hidden.data_ptr(), num_rows, outputs)
        return GateOutput(normed, topk_ids, topk_weights, GateConfidence(table))

    def shared_expert(self, normed: Tensor, weights: MlpWeights, spec: LayerSpec) -> Tensor:
        num_rows = views.check_rows(normed, weights.gate.shape[1])
        out = torch.empty_like(normed)
        mlp = self._mlps.get(weights)
        _native.gated_mlp(mlp, spec.shared_limit, normed.data_ptr(), num_rows, out.data_ptr())
        return out

    def expert_mlp(
        self,
        hidden: Tensor,
        pair_row: Tensor,
        pair_slot: Tensor,
        weights: ExpertWeights,
        limit: float,
        tally: LayerTally | None = None,
    ) -> Tensor:
        """Raises KernelError for a tally that is not in C++; what it adds is the time of the products alone."""
        num_slots, _, width = weights.gate.shape
        num_rows, num_pairs = views.check_rows(hidden, width), pair_row.shape[0]
        views.check_pairs(pair_row, pair_slot)
        out = torch.empty((num_pairs, width), dtype=torch.float32)
        tensors = (hidden.data_ptr(), pair_row.data_ptr(), pair_slot.data_ptr(), out.data_ptr())
        sizes = (num_rows, num_pairs, num_slots)
        _native.expert_mlp(self._slots.get(weights), limit, tensors, sizes, views.tally_address(tally))
        return out

    def draft_input(self, embedded: Tensor, hidden: Tensor, weights: DraftInputWeights) -> Tensor:
        from_embedded, from_hidden = self._draft_inputs.get(weights)
        # A product over the concatenation is the sum of two products, each with a norm in front: two heads.
        return self.head(embedded, from_embedded) + self.head(hidden, from_hidden)

    def head(self, hidden: Tensor, weights: HeadWeights) -> Tensor:
        vocab_size, width = weights.output.shape
        num_rows = views.check_rows(hidden, width)
        norm, output = self._heads.get(weights)
        logits = torch.empty((num_rows, vocab_size), dtype=torch.float32)
        _native.head(norm, output, hidden.data_ptr(), num_rows, logits.data_ptr())
        return logits

    def _head_view(self, weights: HeadWeights) -> tuple[_native.Norm, _native.Matrix]:
        vocab_size, width = weights.output.shape
        norm = _native.Norm(views.vector(weights.norm, width, "norm"), self._rms_norm_eps)
        return norm, views.matrix(weights.output, (vocab_size, width), "output")


def _halves(weights: DraftInputWeights) -> tuple[HeadWeights, HeadWeights]:
    """The projection's columns for the embedding and for the hidden state, each with its norm; copies of them."""
    left, right = weights.projection.chunk(2, dim=1)
    return HeadWeights(weights.embed_norm, left.contiguous()), HeadWeights(weights.hidden_norm, right.contiguous())
