"""How the nano model is trained: sizes of batches, learning rates, and how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

TRUNK, POLISH, DRAFTS = "trunk", "polish", "drafts"
PHASES = (TRUNK, POLISH, DRAFTS)  # in their order; polishing trains the trunk again, gently, where it was weakest


@dataclass(frozen=True)
class Recipe:
    """Learning rates rise over `warmup_steps`, and fall to zero over the last `decay_fraction` of a phase.

    tokens: what each phase sees. rows, row_tokens: a batch; row_tokens is a multiple of the window. Every
    `long_every`-th batch of the last half of a phase has rows of `long_tokens` instead, one for each process.
    balance_weight: of the loss that balances expert groups. bias_rate: step of the loss-free balancing.
    polish_rate: of the full learning rates when polishing begins; there they fall from the start.
    draft_weights: of each draft module's loss.
    """

    tokens: Mapping[str, int]
    rows: int = 8
    row_tokens: int = 640
    long_every: int = 12
    long_tokens: int = 4096
    matrix_lr: float = 0.02
    vector_lr: float = 0.003
    warmup_steps: int = 40
    decay_fraction: float = 0.5
    polish_rate: float = 0.4
    balance_weight: float = 1e-3
    bias_rate: float = 5e-3
    draft_weights: tuple[float, ...] = (1.0, 0.8, 0.6)
    seed: int = 0

    def rate(self, phase: str, step: int, tokens_seen: int) -> float:
        """What the learning rates and the bias rate are multiplied with, 0 to 1."""
        left = max(0.0, 1.0 - tokens_seen / self.tokens[phase])
        peak = self.polish_rate if phase == POLISH else 1.0
        decayed = left if phase == POLISH else min(1.0, left / self.decay_fraction)
        return min((step + 1) / self.warmup_steps, peak * decayed)

    def identity(self) -> dict[str, Any]:
        """What must stay the same when a run goes on; how long it runs may change."""
        return {name: value for name, value in asdict(self).items() if name != "tokens"}
