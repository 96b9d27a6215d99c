"""Whether a drafted token is taken, and what comes in its place. Pure; the output has the target's distribution.

Rejection sampling (Leviathan et al., 2023; Chen et al., 2023): a draft from q is accepted with probability
min(1, p / q), else a token is drawn from the normalised positive part of p - q. A draft that was no matter of chance
needs no rule of its own: a token is drawn from p as if there were no draft, and the draft is right if it is the same,
which happens with probability p(draft). So with such drafts a seed gives the tokens that it gives without drafts.
"""

from __future__ import annotations

from torch import Tensor

from actors.sampling.draws import draw


def verified_token(target: Tensor, draft_id: int, proposal: Tensor, u_accept: float, u_draw: float) -> int:
    """The token for this position: `draft_id` if it is accepted.

    target, proposal: float64 [V], p and q, each summing to 1; the draft was drawn from q. u_accept, u_draw: independent
    and uniform in [0, 1).
    """
    if u_accept * float(proposal[draft_id]) < float(target[draft_id]):
        return draft_id
    residual = (target - proposal).clamp_(min=0.0)
    # Where p equals q, rounding may leave nothing although the draft was rejected.
    return draw(residual if float(residual.sum()) > 0.0 else target, u_draw)
