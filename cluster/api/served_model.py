"""What the API takes from a checkpoint folder: tokenizer, chat template, stop ids, context length. Reads no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.errors import CheckpointError
from actors.messages import MAX_STOP_TOKEN_IDS
from actors.model.config import ModelConfig
from actors.weights.check import read_model_config
from cluster.api.template import ChatTemplate
from cluster.api.text import Tokenizer

# Leaves clients most of the stop ids that a request may have.
MAX_EOS_IDS = MAX_STOP_TOKEN_IDS // 4
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class ServedModel:
    """One model as clients see it.

    vocab_size: width of the logits, which bounds ids in sampling parameters. bos_id: None where completions get none.
    """

    context_tokens: int
    vocab_size: int
    eos_ids: frozenset[int]
    bos_id: int | None
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None

    def starts_in_reasoning(self, prompt_ids: tuple[int, ...]) -> bool:
        """Whether the completion begins inside the think block: the prompt's last control token opens it.

        Looks at the current turn only, since every turn begins with a control token.
        """
        think, end = self.tokenizer.control_id("<think>"), self.tokenizer.control_id("</think>")
        if think is None or end is None:
            return False
        return next((i == think for i in reversed(prompt_ids) if i in self.tokenizer.control_ids), False)


def load_served_model(checkpoint: Path, max_context_tokens: int | None = None) -> ServedModel:
    """Read the folder. Raises CheckpointError with what is missing or not supported."""
    model = read_model_config(checkpoint)
    fields = _read_optional_json(checkpoint, "tokenizer_config.json")
    tokenizer = _tokenizer(checkpoint)
    if tokenizer.num_tokens > model.vocab_size:
        problem = f"tokenizer.json has {tokenizer.num_tokens} tokens, config.json only {model.vocab_size} rows"
        raise CheckpointError(str(checkpoint), [problem])
    context = min(model.max_positions, max_context_tokens or model.max_positions)
    named = {name: text for name in NAMED_TOKENS if (text := _token_text(fields.get(name))) is not None}
    return ServedModel(
        context_tokens=context,
        vocab_size=model.vocab_size,
        eos_ids=_eos_ids(checkpoint, model, tokenizer, named),
        bos_id=tokenizer.control_id(named.get("bos_token", "")) if fields.get("add_bos_token", True) else None,
        tokenizer=tokenizer,
        chat_template=_chat_template(checkpoint, fields, tokenizer, named, context),
    )


def _tokenizer(checkpoint: Path) -> Tokenizer:
    definition = _read_json(checkpoint, "tokenizer.json")
    try:
        return Tokenizer(definition)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(str(checkpoint), [f"tokenizer.json: {error}"]) from error


def _chat_template(
    checkpoint: Path, fields: Mapping[str, Any], tokenizer: Tokenizer, named: Mapping[str, str], context: int
) -> ChatTemplate | None:
    try:
        source = _template_source(checkpoint / "chat_template.jinja", fields)
        if source is None:
            return None
        return ChatTemplate(source, tokenizer, special_tokens=named, max_chars=context * tokenizer.max_token_bytes)
    except ValueError as error:
        raise CheckpointError(str(checkpoint), [str(error)]) from error


def _template_source(file: Path, fields: Mapping[str, Any]) -> str | None:
    """A file of its own wins; tokenizer_config.json may hold one template, or several with names. Raises ValueError."""
    try:
        source = file.read_text(encoding="utf-8") if file.is_file() else fields.get("chat_template")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from error
    if isinstance(source, list):
        source = next((entry["template"] for entry in source if entry.get("name") == "default"), None)
    return source


def _eos_ids(checkpoint: Path, model: ModelConfig, tokenizer: Tokenizer, named: Mapping[str, str]) -> frozenset[int]:
    """generation_config.json's and config.json's, at which the engine ends in any case; else the tokenizer's eos_token.

    They go into every request, so one that the engine refuses would refuse them all. Raises CheckpointError.
    """
    given = _read_optional_json(checkpoint, "generation_config.json").get("eos_token_id")
    given_ids = given if isinstance(given, list) else [] if given is None else [given]
    ids = [value for value in given_ids if type(value) is int and 0 <= value < model.vocab_size]
    eos_ids = {*ids, *model.eos_token_ids}
    if len(ids) < len(given_ids) or len(eos_ids) > MAX_EOS_IDS:
        rule = f"at most {MAX_EOS_IDS} token ids within 0..{model.vocab_size - 1}"
        raise CheckpointError(str(checkpoint), [f"config.json and generation_config.json: eos_token_id must be {rule}"])
    named_id = tokenizer.control_id(named.get("eos_token", ""))
    return frozenset(eos_ids or ({named_id} if named_id is not None else ()))


def _token_text(value: object) -> str | None:
    """Named tokens are written as a string or as an object with `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def _read_optional_json(checkpoint: Path, name: str) -> dict[str, Any]:
    return _read_json(checkpoint, name) if (checkpoint / name).is_file() else {}


def _read_json(checkpoint: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(checkpoint), [f"{name} cannot be read: {error}"]) from error
    if not isinstance(value, dict):
        raise CheckpointError(str(checkpoint), [f"{name} does not hold an object"])
    return value
