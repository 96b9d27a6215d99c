"""How well the model predicts text and code that it has never seen, beside n-grams over the same tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from ops.nano.data.mixture import Mixture
from ops.nano.data.python_texts import CODE, PROSE, Library
from ops.nano.data.rendering import Renderer
from ops.nano.evaluation.checkpoint import Checkpoint
from ops.nano.evaluation.ngram import Ngram
from ops.nano.evaluation.rows import rows_of

ORDERS: Mapping[str, int] = {"unigram": 1, "4-gram": 4}
MODEL, SAME_TEXT = "model", "4-gram, as much text as the model"
SHARE_SAMPLE = 1500  # documents from which the library's share of the training data is estimated


@dataclass(frozen=True)
class LanguageScore:
    """perplexity: per token. bits_per_byte: of UTF-8."""

    perplexity: float
    bits_per_byte: float


@dataclass(frozen=True)
class DomainLanguage:
    """Scores of all models on the same pieces of one domain."""

    domain: str
    num_tokens: int
    num_bytes: int
    scores: Mapping[str, LanguageScore]


@dataclass(frozen=True)
class LanguageResults:
    """tokens_seen: what each model has seen of the library's training side; the trained model's is estimated, and
    missing when it is not known how long it was trained."""

    domains: tuple[DomainLanguage, ...]
    tokens_seen: Mapping[str, int]


def held_out_pieces(library: Library, domain: str, renderer: Renderer, num_tokens: int) -> list[list[int]]:
    """Seeded pieces as token ids, of at least `num_tokens` together."""
    rng = random.Random(f"evaluation {domain}")
    pieces: list[list[int]] = []
    while sum(map(len, pieces)) < num_tokens:
        pieces.append(renderer.plain(library.piece(domain, rng), is_whole=False).token_ids)
    return pieces


def evaluate_language(
    checkpoint: Checkpoint, *, held_out: Library, training: Library, num_tokens: int, trunk_tokens: int | None
) -> LanguageResults:
    """Score model and baselines on `num_tokens` of each domain. trunk_tokens: how many the trunk was trained on."""
    renderer, vocab_size = checkpoint.renderer, checkpoint.config.vocab_size
    texts = [renderer.plain(text).token_ids for text in (*training.prose, *training.code)]
    baselines = {name: Ngram(texts, order, vocab_size) for name, order in ORDERS.items()}
    tokens_seen = {name: ngram.num_tokens for name, ngram in baselines.items()}
    if trunk_tokens is not None:
        tokens_seen[MODEL] = round(trunk_tokens * library_share(Mixture(renderer, training)))
        pieces = _training_pieces(training, renderer, tokens_seen[MODEL])
        baselines[SAME_TEXT] = Ngram(pieces, ORDERS["4-gram"], vocab_size)
        tokens_seen[SAME_TEXT] = baselines[SAME_TEXT].num_tokens
    domains = []
    for domain in (PROSE, CODE):
        pieces = held_out_pieces(held_out, domain, renderer, num_tokens)
        domains.append(_domain(checkpoint, domain, pieces, baselines))
    return LanguageResults(tuple(domains), tokens_seen)


def library_share(mixture: Mixture) -> float:
    """The part of the training tokens that comes from the library, estimated from a seeded sample of short documents;
    every token of the library's counts fully, and a prompt's does not."""
    documents = mixture.documents(random.Random("library share"))
    lengths = {True: 0, False: 0}
    for _ in range(SHARE_SAMPLE):
        document = next(documents)
        lengths[all(weight == 1.0 for weight in document.weights[1:])] += len(document.token_ids)
    return lengths[True] / (lengths[True] + lengths[False])


def score(nats: float, num_tokens: int, num_bytes: int) -> LanguageScore:
    """nats: the negative log probability of all tokens."""
    return LanguageScore(math.exp(nats / num_tokens), nats / math.log(2.0) / num_bytes)


def _training_pieces(library: Library, renderer: Renderer, num_tokens: int) -> list[list[int]]:
    """As many random pieces as the model saw, drawn as training draws them."""
    rng = random.Random("as much text")
    pieces: list[list[int]] = []
    seen = 0
    while seen < max(num_tokens, 1):
        pieces.append(renderer.plain(library.piece(rng.choice((PROSE, CODE)), rng), is_whole=False).token_ids)
        seen += len(pieces[-1])
    return pieces


def _domain(
    checkpoint: Checkpoint, domain: str, pieces: Sequence[list[int]], baselines: Mapping[str, Ngram]
) -> DomainLanguage:
    num_tokens = sum(len(piece) - 1 for piece in pieces)
    num_bytes = sum(len(checkpoint.tokenizer.decode(piece[1:]).encode()) for piece in pieces)
    nats = {MODEL: _model_nats(checkpoint, domain, pieces)}
    for name, ngram in baselines.items():
        nats[name] = -sum(float(ngram.log_probabilities(piece).sum()) for piece in pieces)
    scores = {name: score(value, num_tokens, num_bytes) for name, value in nats.items()}
    return DomainLanguage(domain, num_tokens, num_bytes, scores)


@torch.no_grad()
def _model_nats(checkpoint: Checkpoint, domain: str, pieces: Sequence[list[int]]) -> float:
    model = checkpoint.model()
    total = 0.0
    for rows in track(rows_of(pieces, window=checkpoint.config.window), f"perplexity of {domain}"):
        logits = model.logits(model.hidden(rows.batch))
        for row in range(len(rows.numbers)):
            targets = rows.sequence(rows.batch.token_ids.flatten(), row)
            total += token_nats(rows.sequence(logits, row), targets)
    return total


def token_nats(logits: Tensor, token_ids: Tensor) -> float:
    """Of every token but the first. logits: [L, V]. token_ids: [L]."""
    return functional.cross_entropy(logits[:-1], token_ids[1:], reduction="sum").item()
