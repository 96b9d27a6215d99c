"""Logits to tokens, one row at a time: a row's token and logprobs depend on that row alone, and a bad row fails alone.

Knows no sequences, batches or clocks; randomness comes from (seed, position). The order of the steps:
tokenizer mask, stop-id mask (min_tokens), penalties, logit bias, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from actors.messages import SamplingSpec, TokenLogprob
from actors.sampling.draws import draw
from actors.sampling.penalties import PenaltyCounts, has_penalties
from actors.sampling.rng import Purpose, uniform
from actors.speculative.state import Draft
from actors.speculative.verify import verified_token

logger = logging.getLogger(__name__)

NOT_FINITE = "The model produced logits that are not finite."
ALL_MASKED = "No token is left to choose from: every one is masked."
FAILED = "Sampling failed for this request."

USUAL_NUCLEUS = 512  # tokens looked at first for top-p; only flat distributions need more


@dataclass(frozen=True)
class SamplingRow:
    """What choosing one token needs besides the logits.

    position: index in the sequence of the token that is being chosen. num_completion_tokens: how many came before it.
    stop_token_ids: every id that ends the sequence, masked while min_tokens is not reached. counts: None without
    penalties.
    """

    spec: SamplingSpec
    seed: int
    position: int
    num_completion_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    counts: PenaltyCounts | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the token is the argmax of the unmodified logits and nothing else is asked for."""
        spec = self.spec
        return spec.temperature == 0.0 and spec.logprobs is None and not self.changes_logits

    @property
    def masks_stop_ids(self) -> bool:
        return self.num_completion_tokens < self.spec.min_tokens and bool(self.stop_token_ids)

    @property
    def changes_logits(self) -> bool:
        return self.masks_stop_ids or bool(self.spec.logit_bias) or has_penalties(self.spec)


@dataclass(frozen=True)
class SampledToken:
    """A chosen token. logprob: None unless asked for."""

    token_id: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class RowFailure:
    """Why a row has no token; a sentence fit for the client."""

    message: str


class Sampler:
    """Samples rows of logits of one width. `valid_vocab_size`: ids from here on are padding and are never chosen."""

    def __init__(self, valid_vocab_size: int) -> None:
        if valid_vocab_size < 1:
            raise ValueError(f"valid_vocab_size must be at least 1, got {valid_vocab_size}")
        self._valid_vocab_size = valid_vocab_size

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> list[SampledToken | RowFailure]:
        """One result per row. logits: float32 [R, V], unchanged."""
        assert logits.shape[0] == len(rows), f"{logits.shape[0]} rows of logits for {len(rows)} rows to sample"
        opened = self.open(logits)
        return [opened.token(idx, row) for idx, row in enumerate(rows)]

    def open(self, logits: Tensor) -> LogitRows:
        """Rows whose tokens are asked for one by one, because what one becomes decides how the next is chosen."""
        return LogitRows(logits, self._valid_vocab_size)

    def draft(self, logits: Tensor, rows: Sequence[SamplingRow], num_ahead: int, *, is_sampled: bool) -> list[Draft]:
        """One draft per row. logits: float32 [R, V]. num_ahead: tokens between the row's position and the draft's.

        The likeliest token; with `is_sampled`, where the request samples, one drawn from the distribution that its
        parameters make of these logits.
        """
        greedy = torch.argmax(logits[:, : self._valid_vocab_size], dim=-1).tolist()
        drafts = []
        for idx, row in enumerate(rows):
            if not is_sampled or row.spec.temperature == 0.0:
                drafts.append(Draft(greedy[idx]))
                continue
            proposal = probabilities(logits[idx], row, self._valid_vocab_size)
            u = uniform(row.seed, row.position + num_ahead, Purpose.DRAFT)
            drafts.append(Draft(draw(proposal, u), proposal))
        return drafts


class LogitRows:
    """The rows of logits of one step. Greedy choices and the check for NaN are made for all rows at once."""

    def __init__(self, logits: Tensor, valid_vocab_size: int) -> None:
        self._logits, self._valid_vocab_size = logits, valid_vocab_size
        valid = logits[:, :valid_vocab_size]
        if not logits.shape[0]:
            return
        low, high = torch.aminmax(valid, dim=-1)  # NaN spreads to both
        self._is_finite = (torch.isfinite(low) & torch.isfinite(high)).tolist()
        self._greedy = torch.argmax(valid, dim=-1).tolist()

    def token(self, idx: int, row: SamplingRow, draft: Draft | None = None) -> SampledToken | RowFailure:
        """The token of one row; with a draft, by the rule of `actors.speculative.verify`."""
        if not self._is_finite[idx]:
            return RowFailure(NOT_FINITE)
        if row.is_plain_greedy:
            return SampledToken(self._greedy[idx])
        try:
            return self._sample(self._logits[idx], row, draft)
        # Whatever one request's parameters provoke must not fail the others.
        except Exception:
            logger.exception("sampling a row failed")
            return RowFailure(FAILED)

    def _sample(self, logits: Tensor, row: SamplingRow, draft: Draft | None) -> SampledToken | RowFailure:
        adjusted = adjusted_logits(logits, row, self._valid_vocab_size)
        if adjusted.max() == -torch.inf:
            return RowFailure(ALL_MASKED)
        token_id = _choose(adjusted, row, draft)
        if row.spec.logprobs is None:
            return SampledToken(token_id)
        return SampledToken(token_id, token_logprob(logits[: self._valid_vocab_size], token_id, row.spec.logprobs))


def probabilities(logits: Tensor, row: SamplingRow, valid_vocab_size: int) -> Tensor:
    """The distribution that `row` samples from, float64 [V]; one-hot when greedy. logits: float32 [V], finite.

    ValueError if every token is masked.
    """
    adjusted = adjusted_logits(logits, row, valid_vocab_size)
    if adjusted.max() == -torch.inf:
        raise ValueError(ALL_MASKED)
    if row.spec.temperature == 0.0:
        return torch.zeros_like(adjusted).index_fill_(0, torch.argmax(adjusted), 1.0)
    weights = filtered_weights(adjusted, row.spec)
    return weights / weights.sum()


def adjusted_logits(logits: Tensor, row: SamplingRow, valid_vocab_size: int) -> Tensor:
    """Logits after masks, penalties and bias, a new float64 [V]; float32 sums over a vocabulary would be too coarse."""
    adjusted = logits.to(torch.float64, copy=True)
    adjusted[valid_vocab_size:] = -torch.inf
    if row.masks_stop_ids:
        adjusted[torch.tensor(row.stop_token_ids, device=logits.device)] = -torch.inf
    if row.counts is not None:
        row.counts.apply(adjusted, row.spec)
    if row.spec.logit_bias:
        ids, biases = zip(*row.spec.logit_bias, strict=True)
        bias = torch.tensor(biases, dtype=torch.float64, device=logits.device)
        adjusted.index_add_(0, torch.tensor(ids, device=logits.device), bias)
    return adjusted


def filtered_weights(adjusted: Tensor, spec: SamplingSpec) -> Tensor:
    """Temperature, top-k, top-p and min-p on adjusted logits [V], at least one of them finite, which are used up.

    Float64 [V], proportional to the probabilities; the most likely token has weight 1. Equal logits at the edge of
    top-k are all kept; at the edge of top-p the lower token ids are.
    """
    # Subtracting the maximum first keeps the smallest temperatures from overflowing.
    scaled = adjusted.sub_(adjusted.max()).div_(spec.temperature)
    if 0 < spec.top_k < len(scaled):
        scaled.masked_fill_(scaled < torch.topk(scaled, spec.top_k).values[-1], -torch.inf)
    weights = scaled.exp_()
    if spec.top_p < 1.0:
        weights = _nucleus(weights, spec.top_p)
    if spec.min_p > 0.0:
        weights.masked_fill_(weights < spec.min_p, 0.0)
    return weights


def token_logprob(logits: Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Log-softmax of the unmodified logits [V] (before masks, penalties, bias, temperature and filters), natural log.

    The `num_top` most likely tokens come in descending order, equals by ascending id.
    """
    exact = logits.to(torch.float64)
    logprobs = exact - torch.logsumexp(exact, dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if num_top:
        edge = torch.topk(logprobs, min(num_top, len(logprobs))).values[-1]
        candidates = (logprobs >= edge).nonzero().flatten()
        order = torch.argsort(logprobs[candidates], descending=True, stable=True)[:num_top]
        ids = candidates[order]
        top = tuple(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))
    return TokenLogprob(token_id, float(logprobs[token_id]), top)


def _choose(adjusted: Tensor, row: SamplingRow, draft: Draft | None) -> int:
    if row.spec.temperature == 0.0:
        return int(torch.argmax(adjusted))
    weights = filtered_weights(adjusted, row.spec)
    u = uniform(row.seed, row.position)
    if draft is None or draft.probabilities is None:
        return draw(weights, u)
    u_accept = uniform(row.seed, row.position, Purpose.ACCEPTANCE)
    return verified_token(weights / weights.sum(), draft.token_id, draft.probabilities, u_accept, u)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of heaviest tokens whose share of the weight reaches `top_p`."""
    needed = weights.sum() * top_p
    candidates = _nucleus_candidates(weights, needed, top_p)
    ordered, order = torch.sort(weights[candidates], descending=True, stable=True)
    weight_before = torch.cumsum(ordered, dim=-1) - ordered
    kept = candidates[order[weight_before < needed]]
    return torch.zeros_like(weights).index_copy_(0, kept, weights[kept])


def _nucleus_candidates(weights: Tensor, needed: Tensor, top_p: float) -> Tensor:
    """Ids, ascending, of a superset of the nucleus: sorting the whole vocabulary is what makes top-p slow."""
    if len(weights) > USUAL_NUCLEUS:
        values, ids = torch.topk(weights, USUAL_NUCLEUS)
        # Equals of the last value may lie outside, so it does not count.
        above = values > values[-1]
        if values[above].sum() >= needed:
            return ids[above].sort().values
    # Tokens with less than (1 - top_p) / V of the weight together have less than 1 - top_p of it, so none of them is
    # needed; the half covers rounding.
    least = weights.sum() * (0.5 * (1.0 - top_p) / len(weights))
    return (weights >= least).nonzero().flatten()
