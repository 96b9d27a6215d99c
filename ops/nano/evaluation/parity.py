"""Our engine's greedy tokens beside those of transformers' Step-3.7 text model, on the same weights in float32.

transformers reads each prompt with our completion behind it once: while all tokens before are the same, its choice at
every position is what it would have generated itself. Needs transformers, which only the tests install.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.progress import track
from torch import Tensor

from actors.attention.engine import valid_vocab_size
from actors.model.config import parse_model_config
from actors.weights.check import CONFIG_NAME
from ops.nano.data.mixture import SKILLS, generate
from ops.nano.data.python_texts import CODE, PROSE, load_library
from ops.nano.data.rendering import Renderer
from ops.nano.evaluation.engine import Engine
from ops.nano.evaluation.results import Completion, Mismatch, ParityResult
from ops.nano.evaluation.turns import turns_of

DOMAINS = (*SKILLS, CODE, PROSE)
MAX_TOKENS = 24
PIECE_CHARACTERS = 400  # of a prompt that is text or code


class Oracle(Protocol):
    """Another implementation of the trunk."""

    def logits(self, token_ids: list[int]) -> Tensor:
        """float32 [T, V]."""


@dataclass(frozen=True)
class _Prompt:
    domain: str
    number: int
    token_ids: list[int]


def compare_with_transformers(
    checkpoint: Path, *, num_prompts: int = 200, seed: int = 0, domains: Sequence[str] = DOMAINS
) -> ParityResult:
    """Held-out prompts, spread over the domains. Raises CheckpointError, ImportError without transformers."""
    from ops.nano.evaluation.transformers_oracle import TransformersOracle

    engine = Engine(checkpoint, param_dtype="float32")
    fields = json.loads((checkpoint / CONFIG_NAME).read_text(encoding="utf-8"))
    num_valid = valid_vocab_size(checkpoint, parse_model_config(fields))
    oracle = TransformersOracle(fields, checkpoint)
    prompts = _held_out_prompts(Renderer(engine.tokenizer), domains, num_prompts, seed)
    completions = engine.greedy([prompt.token_ids for prompt in prompts], MAX_TOKENS)
    # One without room in the context was not completed, so there is nothing to compare.
    cases = [case for case in zip(prompts, completions, strict=True) if case[1].completion_token_ids]
    found = [_compare(oracle, *case, engine, num_valid) for case in track(cases, description="transformers")]
    num_tokens = sum(len(completion.completion_token_ids) for completion in completions)
    return ParityResult(len(cases), num_tokens, tuple(mismatch for mismatch in found if mismatch is not None))


def first_difference(logits: Tensor, token_ids: Sequence[int]) -> tuple[int, int, float] | None:
    """logits: [T, V], row t for what token_ids[t] should be. The first position whose likeliest token is another, that
    token, and the distance of the two logits; None if there is none."""
    best = logits.argmax(dim=-1)
    for position, token_id in enumerate(token_ids):
        other = int(best[position])
        if other != token_id:
            return position, other, float(logits[position, other] - logits[position, token_id])
    return None


def _compare(
    oracle: Oracle, prompt: _Prompt, completion: Completion, engine: Engine, num_valid_tokens: int
) -> Mismatch | None:
    chosen = completion.completion_token_ids
    # Row p is about token p + 1, and the last token is followed by nothing.
    logits = oracle.logits([*prompt.token_ids, *chosen[:-1]])[len(prompt.token_ids) - 1 :, :num_valid_tokens]
    difference = first_difference(logits, chosen)
    if difference is None:
        return None
    position, other, gap = difference
    ours, others = engine.text([chosen[position]]), engine.text([other])
    return Mismatch(prompt.domain, prompt.number, position, ours, others, gap)


def _held_out_prompts(renderer: Renderer, domains: Sequence[str], number: int, seed: int) -> list[_Prompt]:
    """The domains in turns."""
    needs_texts = any(domain in (CODE, PROSE) for domain in domains)
    texts = load_library(held_out=True) if needs_texts else None
    prompts = []
    for idx in range(number):
        domain = domains[idx % len(domains)]
        rng = random.Random(f"parity {seed} {idx}")
        if domain in SKILLS:
            turn = rng.choice(turns_of(generate(domain, rng, held_out=True)))
            token_ids = renderer.prompt(turn.before, turn.tools)
        else:
            assert texts is not None  # read for these domains
            token_ids = renderer.plain(texts.piece(domain, rng, PIECE_CHARACTERS), is_whole=False).token_ids
        prompts.append(_Prompt(domain, idx, token_ids))
    return prompts
