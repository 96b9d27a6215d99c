"""The tokenizer of random checkpoints: DeepSeek-V3's form, the named special tokens, any text in and out."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from tests.fakes.tokenizer import ADDED_TOKENS, BOS, EOS, MIN_VOCAB_SIZE, PAD, eos_token_ids, tokenizer_json


@pytest.fixture(scope="module", params=[MIN_VOCAB_SIZE, 512, 4096])
def vocab_size(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


@pytest.fixture(scope="module")
def tokenizer(vocab_size: int) -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json(vocab_size))


def test_the_vocabulary_fits_the_model(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Every id is a row of the model, in the published order: BOS, EOS, PAD first, added tokens last."""
    assert [tokenizer.token_to_id(token) for token in (BOS, EOS, PAD)] == [0, 1, 2]
    size = tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(token) for token in ADDED_TOKENS] == list(range(size - len(ADDED_TOKENS), size))
    assert size == vocab_size - vocab_size // 64 or vocab_size == size == MIN_VOCAB_SIZE
    assert eos_token_ids(vocab_size) == [1, 2, tokenizer.token_to_id("<|im_end|>")]


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return x + 1\n",
        "3.14159, 2026",
        "Grüße, 世界 ひらがな カタカナ",
        "🙂\t\r\n  \0",
        "<|im_start|>user\n",
    ],
)
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    """Any text decodes to itself, and no token is added to it."""
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_are_single_ids(tokenizer: Tokenizer) -> None:
    """Control tokens are one id each; only those a client may see survive decoding without special tokens."""
    text = BOS + "".join(ADDED_TOKENS)
    ids = tokenizer.encode(text).ids
    assert ids == [0, *(tokenizer.token_to_id(token) for token in ADDED_TOKENS)]
    assert tokenizer.decode(ids) == "<think></think><tool_call></tool_call>"


def test_pieces_before_merging() -> None:
    """Digits in threes, Chinese and kana by themselves, words with the space or mark before them."""
    tokenizer = Tokenizer.from_str(tokenizer_json(512))
    text = "a1234 世界b (foo) it's\n\n  x"
    pieces = [text[start:end] for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == ["a", "123", "4", " ", "世界", "b", " (", "foo", ")", " it", "'s", "\n\n", " ", " x"]
