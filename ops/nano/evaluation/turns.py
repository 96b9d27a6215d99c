"""Held-out conversations as questions to the model: what it is shown, and what it should say."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from ops.nano.data.conversation import Conversation, Message, Tool
from ops.nano.data.mixture import generate
from ops.nano.data.rendering import chat_text
from ops.nano.evaluation.results import Variant
from ops.nano.tokenizer import TURN_START


@dataclass(frozen=True)
class Turn:
    """One assistant message that the model is to write. before: the messages that it sees."""

    before: tuple[Message, ...]
    expected: Message
    tools: tuple[Tool, ...]

    @property
    def variant(self) -> Variant:
        if self.expected.get("tool_calls"):
            return Variant.CALL
        if self.before[-1]["role"] == "tool":
            return Variant.AFTER_TOOL
        return Variant.NO_TOOL if self.tools else Variant.ANSWER

    @property
    def answer(self) -> str:
        """Reasoning, content and calls as one text to compare."""
        return json.dumps(self.expected)

    @property
    def expected_text(self) -> str:
        """What the model should generate, to the end token."""
        whole = chat_text((*self.before, self.expected), self.tools)
        return whole.removeprefix(self.prompt_text).removesuffix("\n")

    @property
    def prompt_text(self) -> str:
        return chat_text(self.before, self.tools, open_answer=True)

    @property
    def prompt_end(self) -> str:
        """The prompt from the latest user message on."""
        text = self.prompt_text
        return text[text.rindex(f"{TURN_START}user") :]


def held_out_conversations(skill: str, number: int, seed: int) -> list[Conversation]:
    """Conversations that training never sees. The first ones stay the same when more are asked for."""
    return [generate(skill, random.Random(f"evaluation {seed} {skill} {idx}"), held_out=True) for idx in range(number)]


def training_answers(skill: str, number: int, seed: int) -> set[str]:
    """`Turn.answer` of all turns of so many conversations as training sees them."""
    rng = random.Random(f"training answers {seed} {skill}")
    return {turn.answer for _ in range(number) for turn in turns_of(generate(skill, rng, held_out=False))}


def asked(conversation: Conversation) -> tuple[str, ...]:
    """What the user says, by which the held-out side is chosen."""
    return tuple(message["content"] for message in conversation.messages if message["role"] == "user")


def turns_of(conversation: Conversation) -> list[Turn]:
    """The assistant messages after the latest user message; only these show their reasoning and are learnt."""
    messages = conversation.messages
    latest = max(idx for idx, message in enumerate(messages) if message["role"] == "user")
    return [
        Turn(messages[:idx], message, conversation.tools)
        for idx, message in enumerate(messages)
        if idx > latest and message["role"] == "assistant"
    ]


def all_turns(conversations: Sequence[Conversation]) -> list[Turn]:
    return [turn for conversation in conversations for turn in turns_of(conversation)]
