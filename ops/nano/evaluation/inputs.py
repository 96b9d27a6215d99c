"""What the measurements read: held-out texts of every domain, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from ops.nano.data.mixture import SKILLS
from ops.nano.data.python_texts import CODE, PROSE, Library
from ops.nano.data.rendering import Renderer
from ops.nano.evaluation.drafts import DraftText
from ops.nano.evaluation.engine import Engine
from ops.nano.evaluation.foreign import foreign_texts
from ops.nano.evaluation.language import held_out_pieces
from ops.nano.evaluation.results import Completion
from ops.nano.evaluation.turns import held_out_conversations

CONTINUED_TOKENS = 96  # of a piece, which the model continues
CONTINUATION_TOKENS = 128

Domains = Mapping[str, Sequence[Sequence[int]]]


def written_texts(completions: Mapping[str, Sequence[Completion]], num_tokens: int) -> dict[str, list[DraftText]]:
    """By domain, the first texts that the model wrote, until it has written `num_tokens` of them. Without domains whose
    prompts do not fit into the model's context."""
    written = {
        domain: [_written(each) for each in parts if each.completion_token_ids] for domain, parts in completions.items()
    }
    return {domain: _first(texts, num_tokens) for domain, texts in written.items() if texts}


def standing_texts(library: Library, renderer: Renderer, num_tokens: int) -> dict[str, list[DraftText]]:
    """Held-out pieces as they stand, of at least `num_tokens` for each domain."""
    return {
        domain: [DraftText(piece, first=1) for piece in held_out_pieces(library, domain, renderer, num_tokens)]
        for domain in (PROSE, CODE)
    }


def continuations(
    engine: Engine, library: Library, number: int
) -> tuple[dict[str, list[Completion]], dict[str, list[Completion]]]:
    """What the model makes of the beginnings of `number` held-out pieces of text and of code: greedily, and sampled."""
    renderer = Renderer(engine.tokenizer)
    greedy, sampled = {}, {}
    for domain in (PROSE, CODE):
        pieces = held_out_pieces(library, domain, renderer, number * 2 * CONTINUED_TOKENS)
        prompts = [piece[:CONTINUED_TOKENS] for piece in pieces if len(piece) >= CONTINUED_TOKENS][:number]
        greedy[domain] = engine.greedy(prompts, CONTINUATION_TOKENS)
        sampled[domain] = engine.sampled(prompts, CONTINUATION_TOKENS, seed=0)
    return greedy, sampled


def domain_texts(library: Library, renderer: Renderer, num_tokens: int) -> dict[str, list[list[int]]]:
    """Whole held-out conversations of each skill, and text and code, of about `num_tokens` each."""
    texts: dict[str, list[list[int]]] = {}
    for skill in SKILLS:
        texts[skill] = _conversations(skill, renderer, num_tokens)
    for domain in (PROSE, CODE):
        texts[domain] = held_out_pieces(library, domain, renderer, num_tokens)
    return texts


def foreign_pieces(library: Library, renderer: Renderer, num_pieces: int) -> dict[str, list[list[int]]]:
    """Text of kinds that training has nothing of."""
    kinds = foreign_texts(max(library.prose, key=len), num_pieces)
    return {kind: [renderer.plain(text).token_ids for text in texts] for kind, texts in kinds.items()}


def _conversations(skill: str, renderer: Renderer, num_tokens: int) -> list[list[int]]:
    """The first ones with `num_tokens` together; at least two, so that they have halves to compare."""
    texts: list[list[int]] = []
    number = 2
    while sum(map(len, texts)) < num_tokens:
        texts = [renderer.conversation(each).token_ids for each in held_out_conversations(skill, number, seed=0)]
        number += max(1, number // 4)
    return texts


def _written(completion: Completion) -> DraftText:
    prompt = completion.prompt_token_ids
    return DraftText((*prompt, *completion.completion_token_ids), first=len(prompt))


def _first(texts: Sequence[DraftText], num_tokens: int) -> list[DraftText]:
    ends = accumulate(len(text.token_ids) - text.first for text in texts)
    num_full = sum(end < num_tokens for end in ends)
    return list(texts[: num_full + 1])
