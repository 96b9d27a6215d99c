"""A real byte-level BPE tokenizer in DeepSeek-V3's form, with Step-3.5's special tokens and chat template.

Trained on the standard library's own sources, so it needs no download; the same Python gives the same tokenizer.
Specification 5.1 (tokenizer) and 5.2 (template).
"""

from __future__ import annotations

import json
import sysconfig
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# Text that a client may see, so decoding does not skip these.
VISIBLE_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
ADDED_TOKENS = (TURN_START, TURN_END, *VISIBLE_TOKENS)

MIN_VOCAB_SIZE = 3 + 256 + len(ADDED_TOKENS)
MAX_TRAINED_SIZE = 8192  # larger vocabularies get padding rows, as the published one does
PADDING_FRACTION = 64  # one row in so many is padding

# Split in this order, each match by itself.
SPLITS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)
TRAINING_MODULES = ("argparse", "ast", "calendar", "datetime", "difflib", "inspect", "optparse", "pydoc", "typing")
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def write_tokenizer(folder: Path, vocab_size: int, max_positions: int) -> None:
    """tokenizer.json and tokenizer_config.json. vocab_size: rows of the model, at least MIN_VOCAB_SIZE."""
    (folder / "tokenizer.json").write_text(tokenizer_json(vocab_size))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "chat_template": CHAT_TEMPLATE.read_text(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")


def eos_token_ids(vocab_size: int) -> list[int]:
    """The three ids that end a generation: end of sentence, padding, end of turn."""
    tokenizer = Tokenizer.from_str(tokenizer_json(vocab_size))
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in (EOS, PAD, TURN_END)]


@lru_cache(maxsize=8)
def tokenizer_json(vocab_size: int) -> str:
    """The tokenizer for a model of `vocab_size` rows; the last rows are padding without a token.

    Raises ValueError when bytes and special tokens do not fit.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size {vocab_size} is below the {MIN_VOCAB_SIZE} of bytes and special tokens")
    tokenizer = _untrained()
    tokenizer.train_from_iterator(_training_text(vocab_size), _trainer(_trained_size(vocab_size)))
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=t not in VISIBLE_TOKENS) for t in ADDED_TOKENS])
    return tokenizer.to_str(pretty=False)


def _trained_size(vocab_size: int) -> int:
    """Ids of BOS, EOS, PAD, bytes and merges."""
    size = vocab_size - vocab_size // PADDING_FRACTION - len(ADDED_TOKENS)
    return max(MIN_VOCAB_SIZE - len(ADDED_TOKENS), min(size, MAX_TRAINED_SIZE))


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _trainer(size: int) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _training_text(vocab_size: int) -> list[str]:
    """More text for more merges; a tiny vocabulary is trained in milliseconds."""
    library = Path(sysconfig.get_path("stdlib"))
    modules = TRAINING_MODULES if vocab_size > 1024 else TRAINING_MODULES[:1]
    return [(library / f"{module}.py").read_text(encoding="utf-8") for module in modules]
