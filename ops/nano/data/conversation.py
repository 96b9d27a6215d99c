"""A conversation that a generator made, and the rule that keeps some of them for evaluation only."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]  # in the form of the OpenAI API; an assistant's has `reasoning_content`
Tool = dict[str, Any]  # {"type": "function", "function": {...}}

HELD_OUT_ONE_IN = 16


@dataclass(frozen=True)
class Conversation:
    """Messages that end with an assistant's. Every assistant message after the latest user message is to be learnt."""

    skill: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()

    @property
    def is_held_out(self) -> bool:
        """Whether training must not see it. Depends on what the users say, so the same question never is on both
        sides, whatever the seed."""
        asked = [message["content"] for message in self.messages if message["role"] == "user"]
        digest = hashlib.sha256(json.dumps(asked).encode()).digest()
        return int.from_bytes(digest[:4], "little") % HELD_OUT_ONE_IN == 0


Generator = Callable[[random.Random], Conversation]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def tool_response(content: str) -> Message:
    return {"role": "tool", "content": content}


def assistant(reasoning: str, content: str = "", calls: Sequence[tuple[str, dict[str, Any]]] = ()) -> Message:
    """calls: names of functions with their arguments."""
    message: Message = {"role": "assistant", "reasoning_content": reasoning, "content": content}
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls
        ]
    return message


def question(skill: str, asked: str, reasoning: str, answer: str) -> Conversation:
    """One user message and its answer."""
    return Conversation(skill, (user(asked), assistant(reasoning, answer)))
