"""Usage: the tokens of one HTTP request. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from actors.messages import NO_DRAFTS, DraftCounts


@dataclass(frozen=True)
class Usage:
    """Tokens of one HTTP request. A prompt counts once however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    draft_counts: DraftCounts = NO_DRAFTS
