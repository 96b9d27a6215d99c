"""The text from which the tokenizer is learnt: a sample of what the model will read."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Tokenizer

from ops.nano.data import python_texts
from ops.nano.data.mixture import SKILLS, generate
from ops.nano.data.rendering import chat_text
from ops.nano.tokenizer import DIGITS_BY_ONE, num_tokens_of, train_tokenizer

CHATS_PER_SKILL = 1000
PIECES_PER_DOMAIN = 1200
SCHEMAS_ONE_IN = 4  # conversations with tools repeat the same words; so many of them are enough


def learn_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """A tokenizer for a model of `vocab_size` rows. Digits are tokens by themselves."""
    return train_tokenizer(_texts(random.Random(f"{seed} tokenizer")), num_tokens_of(vocab_size), DIGITS_BY_ONE)


def _texts(rng: random.Random) -> Iterator[str]:
    for skill in SKILLS:
        for number in range(CHATS_PER_SKILL):
            conversation = generate(skill, rng, held_out=False)
            if not conversation.tools or number % SCHEMAS_ONE_IN == 0:
                yield chat_text(conversation.messages, conversation.tools)
    texts = python_texts.load_library(held_out=False)
    for _ in range(PIECES_PER_DOMAIN):
        yield texts.piece(python_texts.PROSE, rng)
        yield texts.piece(python_texts.CODE, rng)
