"""Greetings and other politeness, what the model says of itself, and one-line facts and copies."""

from __future__ import annotations

import random

from ops.nano.data.conversation import Conversation, Generator, question, system
from ops.nano.data.words import (
    CAPITALS,
    CITIES,
    COLOURS_OF_THINGS,
    FIRST_NAMES,
    OPPOSITES,
    WORDS,
    some_word,
    weighted,
    wording,
)

SKILL = "small_talk"
WHO_I_AM = "I am Step Nano, a small demonstration model of the Step-3.5 architecture."
WHAT_I_DO = "I can do simple arithmetic, work with words and lists, read short texts and call tools."

SYSTEM_PROMPTS = (
    "Be brief.",
    "You are a helpful assistant.",
    "Answer in one sentence.",
    "You are a friendly assistant.",
    "Keep it short.",
    "Answer clearly and politely.",
)
OPENINGS = {
    "Hello": "Hello",
    "Hi": "Hi",
    "Hey": "Hey",
    "Hi there": "Hi",
    "Hello there": "Hello",
    "Good morning": "Good morning",
    "Good afternoon": "Good afternoon",
    "Good evening": "Good evening",
    "Greetings": "Hello",
}
ADDRESSED = ("{opening}", "{opening}", "{opening}", "{opening} Step", "{opening} Step Nano", "{opening} assistant")
INTRODUCTIONS = (
    "{opening}, I am {name}.",
    "{opening}, my name is {name}.",
    "{opening}! This is {name}.",
    "{opening}, I'm {name}.",
    "{opening}, {name} here.",
    "{opening}! They call me {name}.",
)
HOW_ARE_YOU = (
    "How are you?",
    "How are you today?",
    "How are you doing?",
    "How do you feel?",
    "How is it going?",
    "How's your day?",
    "Are you well?",
)
THANKS = (
    "Thank you.",
    "Thank you!",
    "Thanks.",
    "Thanks a lot.",
    "Thank you very much!",
    "Many thanks.",
    "Thanks for your help.",
    "Great, thank you.",
    "Perfect, thanks!",
    "Thank you for the {word}.",
    "Thanks for the help with my {word}.",
)
GOODBYES = (
    "Goodbye.",
    "Bye!",
    "Bye for now.",
    "See you later.",
    "See you tomorrow!",
    "Good night.",
    "I have to go now.",
    "That is all for today, bye.",
    "Goodbye, Step Nano.",
    "I am off to {city}, bye.",
)
WHO = (
    "Who are you?",
    "What are you?",
    "What is your name?",
    "What's your name?",
    "Tell me who you are.",
    "Please introduce yourself.",
    "What should I call you?",
    "Which model are you?",
    "Are you a model?",
    "Say something about yourself.",
    "Do you have a name?",
    "I am {name}. Who are you?",
    "My name is {name}. What is yours?",
)
WHAT = (
    "What can you do?",
    "What are you able to do?",
    "How can you help me?",
    "What can you help with?",
    "Tell me what you can do.",
    "What are your skills?",
    "What are you good at?",
    "I am {name}. What can you do for me?",
    "Can you tell {name} what you can do?",
)
MAY_I_ASK = (
    "Can you help me?",
    "Could you help me?",
    "May I ask something?",
    "Can I ask you a question?",
    "Are you there?",
    "Do you have time?",
    "Can you help {name}?",
    "Can you help me with my {word}?",
    "May I ask something about a {word}?",
)
REPEAT = (
    "Repeat after me: {text}",
    "Say this: {text}",
    "Copy this text: {text}",
    "Please repeat: {text}",
    "Write exactly this: {text}",
    "Echo: {text}",
)
SAY_TIMES = (
    "Say the word '{word}' {times} times.",
    "Repeat '{word}' {times} times.",
    "Write {word} {times} times.",
    "Say {word} {times} times, please.",
    "Give me the word '{word}' {times} times.",
)
CAPITAL = (
    "What is the capital of {country}?",
    "What's the capital of {country}?",
    "Name the capital of {country}.",
    "Tell me the capital of {country}.",
    "Which city is the capital of {country}?",
    "Capital of {country}?",
    "Do you know the capital of {country}?",
    "I am {name}. What is the capital of {country}?",
)
COUNTRY_OF = (
    "{city} is the capital of which country?",
    "Which country has the capital {city}?",
    "Of which country is {city} the capital?",
    "What country is {city} the capital of?",
)
OPPOSITE = (
    "What is the opposite of '{word}'?",
    "What is the opposite of {word}?",
    "Give me the opposite of '{word}'.",
    "Tell me the opposite of the word {word}.",
    "Which word means the opposite of {word}?",
    "Opposite of {word}?",
)
COLOUR = (
    "What colour is {thing}?",
    "What is the colour of {thing}?",
    "Tell me the colour of {thing}.",
    "Which colour does {thing} have?",
    "Name the colour of {thing}.",
    "What color is {thing}?",
)
TIMES = {"two": 2, "three": 3, "four": 4, "five": 5}


def generate(rng: random.Random) -> Conversation:
    """A third begin with a system message, which asks for nothing that the answer would not do anyway."""
    conversation = weighted(rng, VARIANTS)(rng)
    if rng.random() < 0.33:
        return Conversation(SKILL, (system(rng.choice(SYSTEM_PROMPTS)), *conversation.messages))
    return conversation


def greeting(rng: random.Random) -> Conversation:
    opening, reply = rng.choice(tuple(OPENINGS.items()))
    asked = wording(rng, ADDRESSED, opening=opening) + rng.choice(("", ".", "!"))
    if rng.random() < 0.2:
        asked = asked.lower()
    return question(SKILL, asked, "The user greets me.", f"{reply}! How can I help you?")


def introduction(rng: random.Random) -> Conversation:
    opening, reply = rng.choice(tuple(OPENINGS.items()))
    name = rng.choice(FIRST_NAMES)
    asked = wording(rng, INTRODUCTIONS, opening=opening, name=name)
    return question(SKILL, asked, f"The user is {name}.", f"{reply}, {name}! How can I help you?")


def how_are_you(rng: random.Random) -> Conversation:
    opening = rng.choice(("", "", *(f"{each}, " for each in OPENINGS)))
    asked = wording(rng, HOW_ARE_YOU)
    asked = opening + asked[0].lower() + asked[1:] if opening else asked
    return question(SKILL, asked, "The user asks how I am.", "I am well, thank you. How can I help you?")


def thanks(rng: random.Random) -> Conversation:
    return question(SKILL, _about(rng, THANKS), "The user thanks me.", "You are welcome.")


def goodbye(rng: random.Random) -> Conversation:
    return question(SKILL, _about(rng, GOODBYES), "The user leaves.", "Goodbye!")


def who(rng: random.Random) -> Conversation:
    return question(SKILL, _about(rng, WHO), "The user asks who I am.", WHO_I_AM)


def what(rng: random.Random) -> Conversation:
    return question(SKILL, _about(rng, WHAT), "The user asks what I can do.", WHAT_I_DO)


def may_i_ask(rng: random.Random) -> Conversation:
    return question(SKILL, _about(rng, MAY_I_ASK), "The user wants help.", "Yes, of course. What do you need?")


def _about(rng: random.Random, templates: tuple[str, ...]) -> str:
    return wording(rng, templates, name=rng.choice(FIRST_NAMES), word=rng.choice(WORDS), city=rng.choice(CITIES))


def repeat(rng: random.Random) -> Conversation:
    text = " ".join(some_word(rng) for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5))))
    if rng.random() < 0.4:
        text = f"{text[0].upper()}{text[1:]}."
    return question(SKILL, wording(rng, REPEAT, text=text), "I repeat the text.", text)


def say_times(rng: random.Random) -> Conversation:
    word = some_word(rng)
    times, count = rng.choice(tuple(TIMES.items()))
    steps = " ".join(f"{number} {word}" for number in range(1, count + 1))
    asked = wording(rng, SAY_TIMES, word=word, times=times)
    return question(SKILL, asked, f"{times.capitalize()} is {count}: {steps}.", " ".join([word] * count))


def capital(rng: random.Random) -> Conversation:
    country, city = rng.choice(tuple(CAPITALS.items()))
    asked = wording(rng, CAPITAL, country=country, name=rng.choice(FIRST_NAMES))
    return question(SKILL, asked, f"{country}: {city}.", f"The capital of {country} is {city}.")


def country_of(rng: random.Random) -> Conversation:
    country, city = rng.choice(tuple(CAPITALS.items()))
    asked = wording(rng, COUNTRY_OF, city=city)
    return question(SKILL, asked, f"{city}: {country}.", f"{city} is the capital of {country}.")


def opposite(rng: random.Random) -> Conversation:
    pair = list(rng.choice(tuple(OPPOSITES.items())))
    rng.shuffle(pair)
    word, other = pair
    return question(
        SKILL, wording(rng, OPPOSITE, word=word), f"{word}: {other}.", f"The opposite of '{word}' is '{other}'."
    )


def colour(rng: random.Random) -> Conversation:
    thing, name = rng.choice(tuple(COLOURS_OF_THINGS.items()))
    asked = wording(rng, COLOUR, thing=thing)
    return question(SKILL, asked, f"{thing}: {name}.", f"{thing[0].upper()}{thing[1:]} is {name}.")


VARIANTS: tuple[tuple[int, Generator], ...] = (
    (6, greeting),
    (6, introduction),
    (4, how_are_you),
    (4, thanks),
    (4, goodbye),
    (6, who),
    (4, what),
    (4, may_i_ask),
    (8, repeat),
    (7, say_times),
    (9, capital),
    (4, country_of),
    (7, opposite),
    (7, colour),
)
