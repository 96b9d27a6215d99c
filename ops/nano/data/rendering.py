"""Conversations and text as token ids, with what each token counts in the loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from ops.nano.data.conversation import Conversation, Message, Tool
from ops.nano.tokenizer import BOS, CHAT_TEMPLATE, EOS

ANSWER_START, ANSWER_END = "<|im_start|>assistant\n<think>\n", "<|im_end|>"
PROMPT_WEIGHT = 0.1  # a prompt is mostly chance; a little of it teaches the words


@dataclass(frozen=True)
class Document:
    """token_ids, and the weight of predicting each of them; the first has none."""

    token_ids: list[int]
    weights: list[float]


def _chat_template() -> Template:
    environment = ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(CHAT_TEMPLATE.read_text(encoding="utf-8"))


_TEMPLATE = _chat_template()


def chat_text(messages: Sequence[Message], tools: Sequence[Tool] = (), *, open_answer: bool = False) -> str:
    """What the chat template makes of the messages; open_answer adds the opening of an assistant turn."""
    return _TEMPLATE.render(messages=messages, tools=tools, add_generation_prompt=open_answer, bos_token=BOS)


class Renderer:
    """The chat template with a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of a prompt that awaits an answer."""
        return self._encode(chat_text(messages, tools, open_answer=True))[0]

    def conversation(self, conversation: Conversation) -> Document:
        """Assistant turns that show their reasoning count fully, all else as prompt: the template drops the reasoning
        of earlier turns, and an answer without reasoning must not be learnt."""
        text = chat_text(conversation.messages, conversation.tools)
        token_ids, ends = self._encode(text)
        spans = _answer_spans(text)
        weights = [1.0 if any(first < end <= last for first, last in spans) else PROMPT_WEIGHT for end in ends]
        return Document(token_ids, [0.0, *weights[1:]])

    def plain(self, text: str, *, is_whole: bool = True) -> Document:
        """Text for completion, every token counting; only a whole one has an end to learn."""
        token_ids, _ = self._encode(BOS + text + (EOS if is_whole else ""))
        return Document(token_ids, [0.0] + [1.0] * (len(token_ids) - 1))

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids, and the character after each token."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]


def _answer_spans(text: str) -> list[tuple[int, int]]:
    """From behind the opening of each answer to behind its end token."""
    spans, start = [], text.find(ANSWER_START)
    while start >= 0:
        first = start + len(ANSWER_START)
        last = text.index(ANSWER_END, first) + len(ANSWER_END)
        spans.append((first, last))
        start = text.find(ANSWER_START, last)
    return spans
