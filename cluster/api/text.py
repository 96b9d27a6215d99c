"""Text to token ids and back, for byte-level BPE tokenizers. Knows nothing of messages, templates or HTTP.

An *added token* (`<|im_end|>`, `<think>`, ...) is only ever produced where the caller says that control text is meant;
everything else is encoded with a tokenizer from which the added tokens were removed.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from cluster.api.control import ControlText


class Tokenizer:
    """A tokenizer.json. Immutable, safe to share between threads."""

    def __init__(self, definition: Mapping[str, Any]) -> None:
        """Raises ValueError naming what is not supported in a parsed tokenizer.json."""
        _check_definition(definition)
        added = {entry["content"]: entry for entry in definition["added_tokens"]}
        model = definition["model"]
        ordinary = {token: token_id for token, token_id in model["vocab"].items() if token not in added}
        self._plain = tokenizers.Tokenizer.from_str(
            json.dumps(
                {
                    **definition,
                    "added_tokens": [],
                    "post_processor": None,
                    "truncation": None,
                    "padding": None,
                    "model": {**model, "vocab": ordinary},
                }
            )
        )
        self._control_ids = {content: int(entry["id"]) for content, entry in added.items()}
        self._bytes = _bytes_by_id(ordinary, self._control_ids)
        # A text of n bytes has at least n / max_token_bytes tokens.
        self.max_token_bytes = max(map(len, self._bytes))
        self.special_ids = frozenset(int(entry["id"]) for entry in added.values() if entry.get("special"))
        self.control_ids = frozenset(self._control_ids.values())
        self.control_text = ControlText(self._control_ids)

    @property
    def num_tokens(self) -> int:
        """One more than the highest id."""
        return len(self._bytes)

    def control_id(self, content: str) -> int | None:
        """The id of an added token, None if there is none with this text."""
        return self._control_ids.get(content)

    def is_known(self, token_id: int) -> bool:
        """Whether the id names a token; ids of padding rows and of holes do not."""
        return 0 <= token_id < len(self._bytes) and bool(self._bytes[token_id])

    def encode(self, text: str) -> list[int]:
        """Token ids of a text whose added tokens mean what they say. Adds no beginning-of-sequence token."""
        return self.encode_pieces(self.split_control(text))

    def encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        """Token ids of `split_control`'s pieces. Added tokens inside a text piece stay text.

        Equal to encoding the whole text: the original tokenizer also cuts at added tokens before it does anything else.
        """
        token_ids: list[int] = []
        for piece in pieces:
            if isinstance(piece, int):
                token_ids.append(piece)
            else:
                token_ids += self._plain.encode(piece, add_special_tokens=False).ids
        return token_ids

    def split_control(self, text: str) -> list[str | int]:
        """Cut a text at its added tokens: their ids, and the text between them."""
        pieces: list[str | int] = []
        end = 0
        for match in self.control_text.find(text):
            pieces += [text[end : match.start()], self._control_ids[match[0]]]
            end = match.end()
        return [piece for piece in [*pieces, text[end:]] if piece != ""]

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for; empty for an id without a token (a padding row)."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def token_text(self, token_id: int) -> str:
        """A token as a string that names it; one that is no whole UTF-8 text is written as `bytes:\\xe2...`."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class Detokenizer:
    """Turns one sequence's tokens into text as they come. Holds back at most the bytes of one unfinished character."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes, possibly none."""
        if token_id in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: a replacement character if the last one never became whole."""
        return self._decoder.decode(b"", final=True)


def _check_definition(definition: Mapping[str, Any]) -> None:
    model, decoder = definition.get("model") or {}, definition.get("decoder") or {}
    if model.get("type") != "BPE":
        raise ValueError(f"model type {model.get('type')!r} is not supported, only BPE is")
    if decoder.get("type") != "ByteLevel":
        raise ValueError(f"decoder {decoder.get('type')!r} is not supported, only ByteLevel is")
    if definition.get("normalizer") is not None:
        raise ValueError("a normalizer is not supported")
    for entry in definition.get("added_tokens", []):
        flags = [name for name in ("lstrip", "rstrip", "single_word") if entry.get(name)]
        if flags:
            raise ValueError(f"added token {entry.get('content')!r} sets {', '.join(flags)}, which is not supported")


def _bytes_by_id(ordinary: Mapping[str, int], control: Mapping[str, int]) -> list[bytes]:
    table = [b""] * (1 + max([*ordinary.values(), *control.values()]))
    byte_of = _byte_of_char()
    for token, token_id in ordinary.items():
        table[token_id] = bytes(byte_of[char] for char in token)
    for token, token_id in control.items():
        table[token_id] = token.encode()
    return table


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, every other byte for a character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
