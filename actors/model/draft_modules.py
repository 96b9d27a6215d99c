"""The draft modules: what module k makes of a row, and the token it proposes there (specification 3.1).

Legend: T rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from actors.kernels.contract import AttentionInputs, Kernels, LayerKV
from actors.model.config import ModelConfig
from actors.weights.shard import AttentionTierWeights, DenseWeights, MtpWeights


class DraftModules:
    """The first `num_modules` modules. They share the trunk's embedding and have heads of their own."""

    def __init__(
        self,
        config: ModelConfig,
        weights: AttentionTierWeights,
        kernels: Kernels,
        caches: Sequence[LayerKV],
        num_modules: int,
    ) -> None:
        """caches: one for each module, in the sliding pool."""
        self._specs = config.mtp_layers[:num_modules]
        self._modules: Sequence[MtpWeights] = weights.mtp[:num_modules]
        self._embed = weights.embed
        self._kernels = kernels
        self._caches = caches

    @property
    def num_modules(self) -> int:
        return len(self._specs)

    def run(self, module: int, token_ids: Tensor, hidden: Tensor, inputs: AttentionInputs) -> Tensor:
        """token_ids: int64 [T], for row p the token p + 1 + module. hidden: [T, H], of the module before or, for module
        0, of the trunk, before any final norm. Returns the module's own, [T, H]; its cache holds the rows."""
        x = self.write(module, token_ids, hidden, inputs)
        half, spec = self._modules[module].layer.ffn, self._specs[module]
        assert isinstance(half, DenseWeights), "draft modules have no experts"
        return self._kernels.dense_half(x, half.norm, half.mlp, spec)

    def write(self, module: int, token_ids: Tensor, hidden: Tensor, inputs: AttentionInputs) -> Tensor:
        """As `run`, up to the rows in the module's cache, where nobody asks what the module makes of them. Returns its
        attention half's output, [T, H]."""
        weights, spec = self._modules[module], self._specs[module]
        embedded = functional.embedding(token_ids, self._embed).to(hidden.dtype)
        x = self._kernels.draft_input(embedded, hidden, weights.input)
        return self._kernels.attention_half(x, weights.layer.attention, spec, inputs, self._caches[module])

    def logits(self, module: int, hidden: Tensor) -> Tensor:
        """hidden: [T, H] of this module. Returns float32 [T, V] for the token after the one that each row has read."""
        return self._kernels.head(hidden, self._modules[module].head)
