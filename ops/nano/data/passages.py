"""Short passages with one question each, answered by quoting the sentence that holds the answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ops.nano.data.conversation import Conversation, question
from ops.nano.data.words import (
    ADJECTIVES,
    CITIES,
    COLOURS,
    COUNTED,
    FIRST_NAMES,
    JOBS,
    OBJECTS,
    PET_NAMES,
    PETS,
    ROOMS,
    SHOPS,
    weighted,
)

SKILL = "passages"
NOT_SAID = "The passage does not say."

FRAMES = (
    "{passage} {asked}",
    "{passage} {asked}",
    "Read this: {passage} {asked}",
    "Passage: {passage} Question: {asked}",
    "Here is a text. {passage} {asked}",
    "{asked} {passage}",
    "Answer from the text. {passage} {asked}",
    "{passage} Now tell me: {asked}",
)
FILLERS = (
    "It is a sunny day.",
    "The street is quiet.",
    "Everyone is at home.",
    "It was raining.",
    "The morning was cold.",
    "They are good friends.",
    "Nobody was late.",
    "It is almost noon.",
)


@dataclass(frozen=True)
class Asked:
    """A question on a fact. The cue is what the reader looks for in the passage."""

    templates: tuple[str, ...]
    cue: str
    answer: str


@dataclass(frozen=True)
class Fact:
    sentence: str
    questions: tuple[Asked, ...]


def generate(rng: random.Random) -> Conversation:
    """One fact more than the passage tells: its question is the one that the passage does not answer."""
    *told, untold = weighted(rng, KINDS)(rng, rng.choice((3, 3, 3, 4, 4, 5)))
    is_told = rng.random() < 0.9
    fact = rng.choice(told) if is_told else untold
    sentences = [each.sentence for each in told]
    if rng.random() < 0.3 and len(sentences) < 4:
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(FILLERS))
    asked = rng.choice(fact.questions)
    prompt = rng.choice(FRAMES).format(passage=" ".join(sentences), asked=wording_of(rng, asked))
    if not is_told:
        return question(SKILL, prompt, f"I look for {asked.cue}. It is not there.", NOT_SAID)
    reasoning = f"I look for {asked.cue}. The passage says: '{fact.sentence}'"
    return question(SKILL, prompt, reasoning, asked.answer)


def wording_of(rng: random.Random, asked: Asked) -> str:
    """The question mark stays: in the middle of a prompt it is what tells question and passage apart."""
    return rng.choice(asked.templates).format(cue=asked.cue)


def keeping(rng: random.Random, size: int) -> list[Fact]:
    facts = []
    verb = rng.choice(("keeps", "has", "hides"))
    bare = {"keeps": "keep", "has": "have", "hides": "hide"}[verb]
    for name, thing, room in _columns(rng, size, FIRST_NAMES, OBJECTS, ROOMS):
        described = f"{rng.choice(COLOURS)} {thing}"
        where = (f"Where does {name} {bare} the {thing}?", "Where is the {cue}?", "In which room is the {cue}?")
        facts.append(
            Fact(
                f"{name} {verb} the {described} in the {room}.",
                (
                    Asked(where, thing, f"In the {room}."),
                    Asked((f"Who {verb} the {{cue}}?", f"Who {verb} the {{cue}} in the {room}?"), thing, f"{name}."),
                    Asked((f"What does {{cue}} {bare} in the {room}?",), name, f"The {described}."),
                    Asked(
                        ("What is in the {cue}?", f"What does {name} {bare} in the {{cue}}?"),
                        room,
                        f"The {described}.",
                    ),
                ),
            )
        )
    return facts


def pets(rng: random.Random, size: int) -> list[Fact]:
    facts = []
    for name, pet, called in _columns(rng, size, FIRST_NAMES, PETS, PET_NAMES):
        colour = rng.choice(tuple(each for each in COLOURS if each != "orange"))
        facts.append(
            Fact(
                f"{name} has a {colour} {pet} called {called}.",
                (
                    Asked(
                        (f"What is the name of {{cue}}'s {pet}?", f"What is {{cue}}'s {pet} called?"),
                        name,
                        f"{called}.",
                    ),
                    Asked(("Who has a {cue}?", "Who owns the {cue}?", "Whose pet is a {cue}?"), pet, f"{name}."),
                    Asked(
                        ("What colour is {cue}?", f"What is the colour of {{cue}} the {pet}?"),
                        called,
                        f"{colour.capitalize()}.",
                    ),
                    Asked(("What animal is {cue}?", "Which animal is called {cue}?"), called, f"A {pet}."),
                    Asked(("Whose pet is {cue}?", "Who is the owner of {cue}?"), called, f"{name}."),
                ),
            )
        )
    return facts


def schedules(rng: random.Random, size: int) -> list[Fact]:
    vehicle = rng.choice(("train", "bus", "boat", "plane"))
    times = rng.sample([f"{hour}:{minute:02}" for hour in range(6, 24) for minute in range(0, 60, 5)], size)
    facts = []
    for (city,), time in zip(_columns(rng, size, CITIES), times, strict=True):
        when = (
            "When does the {v} to {{cue}} leave?",
            "At what time does the {v} to {{cue}} leave?",
            "What time is the {v} to {{cue}}?",
        )
        where = (
            "Where does the {v} at {{cue}} go?",
            "Which city does the {v} at {{cue}} go to?",
            "Where is the {{cue}} {v} going?",
        )
        facts.append(
            Fact(
                f"The {vehicle} to {city} leaves at {time}.",
                (
                    Asked(tuple(each.format(v=vehicle) for each in when), city, f"At {time}."),
                    Asked(tuple(each.format(v=vehicle) for each in where), time, f"To {city}."),
                ),
            )
        )
    return facts


def homes(rng: random.Random, size: int) -> list[Fact]:
    facts = []
    for name, job, city in _columns(rng, size, FIRST_NAMES, JOBS, CITIES):
        facts.append(
            Fact(
                f"{name} is a {job} and lives in {city}.",
                (
                    Asked(("Where does {cue} live?", "Which city does {cue} live in?"), name, f"In {city}."),
                    Asked(("What is {cue}'s job?", "What does {cue} do for work?"), name, f"A {job}."),
                    Asked(("Who is a {cue}?", "What is the name of the {cue}?"), job, f"{name}."),
                    Asked(("Where does the {cue} live?", "In which city is the {cue}?"), job, f"In {city}."),
                    Asked(("Who lives in {cue}?", "Which person is from {cue}?"), city, f"{name}."),
                ),
            )
        )
    return facts


def purchases(rng: random.Random, size: int) -> list[Fact]:
    facts = []
    for name, item, place in _columns(rng, size, FIRST_NAMES, COUNTED, SHOPS):
        quantity, price = rng.randint(2, 30), rng.randint(2, 99)
        how_many = (f"How many {item}s did {{cue}} buy?", f"What number of {item}s did {{cue}} buy?")
        how_much = (f"How much did {{cue}} pay for the {item}s?", f"What did the {item}s of {{cue}} cost?")
        facts.append(
            Fact(
                f"{name} bought {quantity} {item}s for {price} euros at the {place}.",
                (
                    Asked(how_many, name, f"{quantity}."),
                    Asked(how_much, name, f"{price} euros."),
                    Asked((f"Where did {{cue}} buy the {item}s?", "Where was {cue}?"), name, f"At the {place}."),
                    Asked(("Who bought the {cue}?", "Who paid for the {cue}?"), f"{item}s", f"{name}."),
                    Asked(("Who was at the {cue}?", "Who bought something at the {cue}?"), place, f"{name}."),
                ),
            )
        )
    return facts


def descriptions(rng: random.Random, size: int) -> list[Fact]:
    facts = []
    for thing, colour, place in _columns(rng, size, OBJECTS, COLOURS, ROOMS):
        form = rng.choice(ADJECTIVES)
        facts.append(
            Fact(
                f"The {form} {thing} in the {place} is {colour}.",
                (
                    Asked(
                        ("What colour is the {cue}?", "Which colour does the {cue} have?"),
                        thing,
                        f"{colour.capitalize()}.",
                    ),
                    Asked(("Where is the {cue}?", "In which room is the {cue}?"), thing, f"In the {place}."),
                    Asked(("What is {cue}?", "Which thing is {cue}?"), colour, f"The {form} {thing}."),
                    Asked(("What is in the {cue}?", "Which thing is in the {cue}?"), place, f"The {form} {thing}."),
                ),
            )
        )
    return facts


def _columns(rng: random.Random, size: int, *sources: tuple[str, ...]) -> list[tuple[str, ...]]:
    """`size` rows with one word of every source; no word twice, not even in different columns."""
    used: set[str] = set()
    columns = []
    for source in sources:
        column = rng.sample([word for word in source if word not in used], size)
        used.update(column)
        columns.append(column)
    return list(zip(*columns, strict=True))


KINDS: tuple[tuple[int, Callable[[random.Random, int], list[Fact]]], ...] = (
    (4, keeping),
    (3, pets),
    (3, schedules),
    (4, homes),
    (3, purchases),
    (3, descriptions),
)
