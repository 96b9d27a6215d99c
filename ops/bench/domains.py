"""Prompts that the nano model has not seen, by domain, from a fixed seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path

from tokenizers import Tokenizer

from ops.nano.data import arithmetic, python_texts, tool_use
from ops.nano.data.mixture import SKILLS, generate
from ops.nano.data.rendering import Renderer

SEED = 20
MIN_ANSWER_TOKENS = 40  # of the reference answer: shorter ones leave little to time
TEXT_CHARACTERS = 600

Prompts = Iterator[list[int]]


def prompts(checkpoint: Path, domain: str, count: int) -> list[list[int]]:
    """Token ids of `count` prompts of one of DOMAINS; the same every time."""
    renderer = Renderer(Tokenizer.from_file(str(checkpoint / "tokenizer.json")))
    stream = DOMAINS[domain](renderer, random.Random(SEED))
    return [next(stream) for _ in range(count)]


def mixed_prompts(checkpoint: Path, count: int) -> list[list[int]]:
    """Token ids of `count` prompts: every skill, code and prose in turn, however short the answer; always the same."""
    renderer = Renderer(Tokenizer.from_file(str(checkpoint / "tokenizer.json")))
    rng = random.Random(SEED)
    texts = _texts(renderer, rng)
    streams = [*(_questions(skill, min_answer_tokens=0)(renderer, rng) for skill in SKILLS), texts, texts]
    return [next(stream) for stream in islice(cycle(streams), count)]


def _questions(skill: str, min_answer_tokens: int = MIN_ANSWER_TOKENS) -> Callable[[Renderer, random.Random], Prompts]:
    def stream(renderer: Renderer, rng: random.Random) -> Prompts:
        while True:
            conversation = generate(skill, rng, held_out=True)
            prompt = renderer.prompt(conversation.messages[:-1], conversation.tools)
            if len(renderer.conversation(conversation).token_ids) >= len(prompt) + min_answer_tokens:
                yield prompt

    return stream


def _texts(renderer: Renderer, rng: random.Random) -> Prompts:
    """Beginnings of code and of prose in turn, to be continued."""
    texts = python_texts.load_library(held_out=True)
    while True:
        for kind in (python_texts.CODE, python_texts.PROSE):
            piece = texts.piece(kind, rng, TEXT_CHARACTERS)
            yield renderer.plain(piece, is_whole=False).token_ids


DOMAINS: Mapping[str, Callable[[Renderer, random.Random], Prompts]] = {
    arithmetic.SKILL: _questions(arithmetic.SKILL),
    tool_use.SKILL: _questions(tool_use.SKILL),
    "text": _texts,
}
