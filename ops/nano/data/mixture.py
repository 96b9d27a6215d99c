"""What the model learns from: documents of all kinds in fixed shares, packed into rows, from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ops.nano.data import (
    arithmetic,
    dates,
    extraction,
    passages,
    python_texts,
    small_talk,
    strings,
    tool_use,
    turns,
    units,
)
from ops.nano.data.conversation import Conversation, Generator
from ops.nano.data.rendering import Document, Renderer

SKILLS: Mapping[str, Generator] = {
    arithmetic.SKILL: arithmetic.generate,
    dates.SKILL: dates.generate,
    extraction.SKILL: extraction.generate,
    passages.SKILL: passages.generate,
    small_talk.SKILL: small_talk.generate,
    strings.SKILL: strings.generate,
    tool_use.SKILL: tool_use.generate,
    turns.SKILL: turns.generate,
    units.SKILL: units.generate,
}

# Documents of each kind in a hundred. A document with tools has about five times the tokens of another.
SHARES: Mapping[str, float] = {
    arithmetic.SKILL: 20,
    dates.SKILL: 10,
    extraction.SKILL: 9,
    passages.SKILL: 9,
    small_talk.SKILL: 5,
    strings.SKILL: 14,
    tool_use.SKILL: 14,
    turns.SKILL: 7,
    units.SKILL: 8,
    python_texts.CODE: 2,
    python_texts.PROSE: 2,
}
# The same while polishing: more of what needs most of it.
POLISH_SHARES: Mapping[str, float] = {
    arithmetic.SKILL: 14,
    dates.SKILL: 14,
    extraction.SKILL: 4,
    passages.SKILL: 16,
    small_talk.SKILL: 4,
    strings.SKILL: 16,
    tool_use.SKILL: 26,
    turns.SKILL: 6,
    units.SKILL: 6,
    python_texts.CODE: 2,
    python_texts.PROSE: 2,
}
JOINED_FRACTION = 0.06  # of the conversations without tools: put behind one another, as a long chat is
LONG_CHAT = 24  # conversations of a long chat


def generate(skill: str, rng: random.Random, *, held_out: bool) -> Conversation:
    """A conversation from one side of the split."""
    while (conversation := SKILLS[skill](rng)).is_held_out != held_out:
        pass
    return conversation


@dataclass(frozen=True)
class Mixture:
    """An endless, seeded stream of documents for training."""

    renderer: Renderer
    texts: python_texts.Library

    def documents(
        self, rng: random.Random, shares: Mapping[str, float] = SHARES, *, long: bool = False
    ) -> Iterator[Document]:
        """Short documents, or with `long` chats and texts that fill a long row."""
        kinds, weights = list(shares), list(shares.values())
        while True:
            kind = rng.choices(kinds, weights)[0]
            yield self._text(kind, rng, long=long) if kind not in SKILLS else self._chat(kind, rng, long=long)

    def _text(self, domain: str, rng: random.Random, *, long: bool) -> Document:
        num_characters = python_texts.PIECE_CHARACTERS * (6 if long else 1)
        return self.renderer.plain(self.texts.piece(domain, rng, num_characters), is_whole=False)

    def _chat(self, skill: str, rng: random.Random, *, long: bool) -> Document:
        conversation = generate(skill, rng, held_out=False)
        if not conversation.tools and (long or rng.random() < JOINED_FRACTION):
            num_before = rng.randrange(LONG_CHAT) if long else rng.randrange(1, 3)
            conversation = _joined([*(self._without_tools(rng) for _ in range(num_before)), conversation])
        return self.renderer.conversation(conversation)

    def _without_tools(self, rng: random.Random) -> Conversation:
        skills = [skill for skill in SKILLS if skill != tool_use.SKILL]
        return generate(rng.choice(skills), rng, held_out=False)


def _joined(conversations: list[Conversation]) -> Conversation:
    """One chat of several; a system message stays only in front."""
    messages = [
        message
        for idx, conversation in enumerate(conversations)
        for message in conversation.messages
        if idx == 0 or message["role"] != "system"
    ]
    return replace(conversations[-1], messages=tuple(messages))
