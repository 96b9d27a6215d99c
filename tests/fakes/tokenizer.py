"""A real byte-level BPE tokenizer for random checkpoints, in DeepSeek-V3's form with Step-3.5's special tokens.

Trained on the standard library's own sources, so it needs no download; the same Python gives the same tokenizer.
"""

from __future__ import annotations

import sysconfig
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from ops.nano.tokenizer import (
    ADDED_TOKENS,
    BOS,
    CHAT_TEMPLATE,
    DIGITS_BY_THREE,
    EOS,
    MIN_VOCAB_SIZE,
    PAD,
    end_token_ids,
    num_tokens_of,
    train_tokenizer,
    write_tokenizer_files,
)

__all__ = [
    "ADDED_TOKENS",
    "BOS",
    "CHAT_TEMPLATE",
    "EOS",
    "MIN_VOCAB_SIZE",
    "PAD",
    "eos_token_ids",
    "tokenizer_json",
    "write_tokenizer",
]

MAX_TRAINED_SIZE = 8192  # larger vocabularies get padding rows, as the published one does
TRAINING_MODULES = ("argparse", "ast", "calendar", "datetime", "difflib", "inspect", "optparse", "pydoc", "typing")


def write_tokenizer(folder: Path, vocab_size: int, max_positions: int) -> None:
    """tokenizer.json and tokenizer_config.json. vocab_size: rows of the model, at least MIN_VOCAB_SIZE."""
    write_tokenizer_files(folder, tokenizer_json(vocab_size), max_positions)


def eos_token_ids(vocab_size: int) -> list[int]:
    """The three ids that end a generation: end of sentence, padding, end of turn."""
    return end_token_ids(Tokenizer.from_str(tokenizer_json(vocab_size)))


@lru_cache(maxsize=8)
def tokenizer_json(vocab_size: int) -> str:
    """The tokenizer for a model of `vocab_size` rows; the last rows are padding without a token.

    Raises ValueError when bytes and special tokens do not fit.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size {vocab_size} is below the {MIN_VOCAB_SIZE} of bytes and special tokens")
    num_tokens = max(MIN_VOCAB_SIZE, min(num_tokens_of(vocab_size), MAX_TRAINED_SIZE + len(ADDED_TOKENS)))
    return train_tokenizer(_training_text(vocab_size), num_tokens, DIGITS_BY_THREE).to_str(pretty=False)


def _training_text(vocab_size: int) -> list[str]:
    """More text for more merges; a tiny vocabulary is trained in milliseconds."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = TRAINING_MODULES if vocab_size > 1024 else TRAINING_MODULES[:1]
    return [(library / f"{module}.py").read_text(encoding="utf-8") for module in modules]
