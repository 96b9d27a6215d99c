"""A byte-level BPE tokenizer in the form of Step-3.5's, trained on any text: special tokens, splits, chat template.

Specification 5.1 (tokenizer) and 5.2 (template).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
# Text that a client may see, so decoding does not skip these.
VISIBLE_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
ADDED_TOKENS = (TURN_START, TURN_END, *VISIBLE_TOKENS)
MIN_VOCAB_SIZE = 3 + 256 + len(ADDED_TOKENS)
PADDING_FRACTION = 64  # one row of the model in so many has no token, as the published model has some

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# Runs of digits as the published tokenizer cuts them, and one by one, which a small model can calculate with.
DIGITS_BY_THREE, DIGITS_BY_ONE = r"\p{N}{1,3}", r"\p{N}"
# After the digits, in this order, each match by itself.
_SPLITS = (
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)


def train_tokenizer(texts: Iterable[str], num_tokens: int, digits: str) -> Tokenizer:
    """A tokenizer of at most `num_tokens` tokens, added ones included, learnt from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in (digits, *_SPLITS)]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens - len(ADDED_TOKENS),
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=t not in VISIBLE_TOKENS) for t in ADDED_TOKENS])
    return tokenizer


def num_tokens_of(vocab_size: int) -> int:
    """Tokens of a model with `vocab_size` rows; the last rows are padding without a token."""
    return vocab_size - vocab_size // PADDING_FRACTION


def end_token_ids(tokenizer: Tokenizer) -> list[int]:
    """The three ids that end a generation: end of sentence, padding, end of turn."""
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in (EOS, PAD, TURN_END)]


def write_tokenizer_files(folder: Path, tokenizer_json: str, max_positions: int) -> None:
    """tokenizer.json, and tokenizer_config.json with the chat template."""
    (folder / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "chat_template": CHAT_TEMPLATE.read_text(encoding="utf-8"),
    }
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
