"""Conversations of two or three questions, the last of which depends on the earlier ones."""

from __future__ import annotations

import random

from ops.nano.data.arithmetic import added, subtracted
from ops.nano.data.conversation import Conversation, Generator, Message, assistant, user
from ops.nano.data.words import (
    ANIMALS,
    CAPITALS,
    CITIES,
    COLOURS,
    COLOURS_OF_THINGS,
    COUNTED,
    FIRST_NAMES,
    FOODS,
    JOBS,
    OBJECTS,
    OPPOSITES,
    PET_NAMES,
    PETS,
    listed,
    numbered,
    some_word,
    weighted,
    wording,
)

SKILL = "turns"

# What is told, how it is asked back, and the answer.
FACTS: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        ("My name is {name}.", "I am {name}.", "You can call me {name}.", "People call me {name}."),
        ("What is my name?", "What's my name?", "Who am I?", "Do you remember my name?", "Tell me my name."),
        "Your name is {name}.",
    ),
    (
        ("I live in {city}.", "My home is in {city}.", "I come from {city}.", "I have a flat in {city}."),
        ("Where do I live?", "Which city do I live in?", "What is my city?", "Do you know where I live?"),
        "You live in {city}.",
    ),
    (
        ("I am a {job}.", "I work as a {job}.", "My job is {job}.", "I have a new job as a {job}."),
        ("What is my job?", "What do I do for work?", "What's my job?", "Do you remember my job?"),
        "You are a {job}.",
    ),
    (
        ("I am {age} years old.", "My age is {age}.", "I turned {age} this week.", "I'm {age}."),
        ("How old am I?", "What is my age?", "Do you remember my age?", "Tell me my age."),
        "You are {age} years old.",
    ),
    (
        ("I have a {pet} called {called}.", "My {pet} is called {called}.", "The name of my {pet} is {called}."),
        ("What is my {pet} called?", "What is the name of my {pet}?", "What's my {pet}'s name?"),
        "Your {pet} is called {called}.",
    ),
    (
        ("My favourite colour is {colour}.", "I like {colour} best of all colours.", "The colour I like is {colour}."),
        ("What is my favourite colour?", "Which colour do I like?", "What colour do I like best?"),
        "Your favourite colour is {colour}.",
    ),
    (
        ("My {thing} is {colour}.", "I have a {colour} {thing}.", "I bought a {colour} {thing}."),
        ("What colour is my {thing}?", "Which colour does my {thing} have?", "What is the colour of my {thing}?"),
        "Your {thing} is {colour}.",
    ),
    (
        ("The code is {code}.", "Remember the number {code}.", "My number is {code}.", "Please remember {code}."),
        ("What was the number?", "Which number did I tell you?", "What number did I say?", "Tell me the number again."),
        "The number is {code}.",
    ),
)
NOTED = "I will remember that."

START_LIST = (
    "My list: {items}.",
    "I need {items}.",
    "Here is a list: {items}.",
    "Start a list with {items}.",
    "Keep this list: {items}.",
)
ADD_ITEM = ("Add {item}.", "Please add {item}.", "Add {item} to it.", "Put {item} on the list.", "Also {item}.")
DROP_ITEM = ("Remove {item}.", "Take {item} off.", "Delete {item} from it.", "I do not need {item}.", "Drop {item}.")
HOW_MANY = (
    "How many now?",
    "How many items are there now?",
    "Count the items.",
    "How long is the list?",
    "How many items are on the list?",
)
WHICH_LAST = ("Which item is last?", "What is the last item?", "Tell me the last item.", "What is at the end?")
WHICH_FIRST = ("Which item is first?", "What is the first item?", "Tell me the first item.", "What is at the start?")
SHOW_LIST = ("Show me the list.", "What is on the list?", "Read me the list.", "What is the list now?")

START_TOTAL = (
    "Start with {number}.",
    "I have {number} {things}.",
    "There are {number} {things}.",
    "Let us begin at {number}.",
    "The total is {number}.",
)
PLUS = ("Add {number}.", "Plus {number}.", "Now add {number}.", "I get {number} more.", "{number} more, please.")
MINUS = ("Subtract {number}.", "Minus {number}.", "Take away {number}.", "I lose {number}.", "{number} less, please.")

WHAT_ABOUT = ("And {it}?", "And what about {it}?", "What about {it}?", "And for {it}?", "How about {it}?")
SAY_AGAIN = (
    "What did I just say?",
    "Repeat what I said.",
    "What was my last message?",
    "Say my last message again.",
    "What did I write before?",
)
STATEMENTS = (
    "The {thing} is {colour}.",
    "I saw a {animal} in {city}.",
    "{name} likes {food}.",
    "I lost my {thing}.",
    "We ate {food} in {city}.",
    "{name} has a {colour} {thing}.",
)
HEARD = "I see."


def generate(rng: random.Random) -> Conversation:
    return weighted(rng, VARIANTS)(rng)


def _dialogue(earlier: list[tuple[str, str]], asked: str, reasoning: str, answer: str) -> Conversation:
    """Earlier answers have no reasoning: the template drops it from the history."""
    messages: list[Message] = []
    for said, replied in earlier:
        messages += [user(said), assistant("", replied)]
    return Conversation(SKILL, (*messages, user(asked), assistant(reasoning, answer)))


def remember(rng: random.Random) -> Conversation:
    """One or two facts are told; one of them is asked back. An age beside a code would make "which number" unclear."""
    chosen = rng.sample(FACTS[:-1] if rng.random() < 0.8 else FACTS[4:], rng.choice((1, 2, 2)))
    told = [(fact, _personal(rng)) for fact in chosen]
    history = [(wording(rng, statements, **values), NOTED) for (statements, _, _), values in told]
    at = rng.randrange(len(told))
    (_, questions, answer), values = told[at]
    reasoning = f"The user said: '{history[at][0]}'"
    return _dialogue(history, wording(rng, questions, **values), reasoning, answer.format(**values))


def _personal(rng: random.Random) -> dict[str, object]:
    return {
        "name": rng.choice(FIRST_NAMES),
        "city": rng.choice(CITIES),
        "job": rng.choice(JOBS),
        "age": rng.randint(18, 99),
        "pet": rng.choice(PETS),
        "called": rng.choice(PET_NAMES),
        "colour": rng.choice(COLOURS[:10]),
        "thing": rng.choice(COUNTED[:22]),
        "code": rng.randint(100, 9999),
    }


def first_turn(rng: random.Random) -> Conversation:
    """The beginning of the other variants alone: only a conversation's last answers are learnt."""
    variant = rng.randrange(4)
    if variant == 0:
        statements, _, _ = rng.choice(FACTS)
        return _dialogue([], wording(rng, statements, **_personal(rng)), "The user tells a fact to remember.", NOTED)
    if variant == 1:
        return _dialogue([], _statement(rng), "The user tells something.", HEARD)
    if variant == 2:
        items = _list_words(rng)[: rng.randint(1, 4)]
        asked = wording(rng, START_LIST, items=listed(items))
        return _dialogue([], asked, f"The list is {' '.join(items)}.", f"The list: {listed(items)}.")
    total = rng.randint(1, 90)
    return _dialogue([], _start_total(rng, total), f"The total starts at {total}.", f"The total is {total}.")


def list_changes(rng: random.Random) -> Conversation:
    """A list is told, changed, and perhaps asked about. Every answer to a change is the list as it is then."""
    words = _list_words(rng)
    items = words[: rng.choice((1, 2, 2, 3, 3, 4))]
    earlier = [(wording(rng, START_LIST, items=listed(items)), f"The list: {listed(items)}.")]
    asked, reasoning, items = _change(rng, items, words[5])
    answer = f"The list: {listed(items)}."
    if rng.random() < 0.35:
        return _dialogue(earlier, asked, reasoning, answer)
    earlier.append((asked, answer))
    return _dialogue(earlier, *_asked_of_list(rng, items))


def _list_words(rng: random.Random) -> list[str]:
    return rng.sample(rng.choice((FOODS, OBJECTS, ANIMALS, FIRST_NAMES)), 6)


def _change(rng: random.Random, items: list[str], new: str) -> tuple[str, str, list[str]]:
    """What the user says, the reasoning, and the list after it."""
    before = " ".join(items)
    if len(items) > 1 and rng.random() < 0.35:
        item = rng.choice(items)
        changed = [each for each in items if each != item]
        return wording(rng, DROP_ITEM, item=item), f"The list is {before}. I remove {item}.", changed
    return wording(rng, ADD_ITEM, item=new), f"The list is {before}. I add {new}.", [*items, new]


def _asked_of_list(rng: random.Random, items: list[str]) -> tuple[str, str, str]:
    which = weighted(rng, ((4, "count"), (2, "first"), (2, "last"), (2, "all")))
    if which == "count":
        noun = "item" if len(items) == 1 else "items"
        reasoning = f"I number them: {numbered(items)}. So {len(items)}."
        return wording(rng, HOW_MANY), reasoning, f"The list has {len(items)} {noun}."
    if which == "all":
        return wording(rng, SHOW_LIST), f"The list is {' '.join(items)}.", f"The list: {listed(items)}."
    item = items[0] if which == "first" else items[-1]
    asked = wording(rng, WHICH_FIRST if which == "first" else WHICH_LAST)
    return asked, f"The list is {' '.join(items)}. The {which} is {item}.", f"The {which} item is {item}."


def running_total(rng: random.Random) -> Conversation:
    total = rng.randint(1, rng.choice((9, 30, 90)))
    earlier = [(_start_total(rng, total), f"The total is {total}.")]
    for is_last in rng.choice(([True], [False, True], [False, True])):
        asked, reasoning, total = _step(rng, total)
        answer = f"The total is {total}."
        if not is_last:
            earlier.append((asked, answer))
    return _dialogue(earlier, asked, reasoning, answer)


def _start_total(rng: random.Random, total: int) -> str:
    things = rng.choice(COUNTED) + ("" if total == 1 else "s")
    start = wording(rng, START_TOTAL, number=total, things=things)
    return start.replace("here are 1 ", "here is 1 ")


def _step(rng: random.Random, total: int) -> tuple[str, str, int]:
    number = rng.randint(1, rng.choice((5, 9, 9, 40)))
    if number < total and rng.random() < 0.35:
        after = total - number
        return wording(rng, MINUS, number=number), f"The total is {total}. {subtracted(total, number)}", after
    after = total + number
    return wording(rng, PLUS, number=number), f"The total is {total}. {added(total, number)}", after


def what_about(rng: random.Random) -> Conversation:
    """The same question is asked of something else, without being said again."""
    subject = rng.choice(tuple(SUBJECTS))
    asked, make = SUBJECTS[subject]
    (first, _, first_answer), (second, reasoning, answer) = make(rng), make(rng)
    while second == first:
        second, reasoning, answer = make(rng)
    prefix = "of " if subject == "capital" and rng.random() < 0.5 else ""
    follow_up = wording(rng, WHAT_ABOUT[:1] if prefix else WHAT_ABOUT, it=f"{prefix}{second}")
    return _dialogue([(wording(rng, asked, it=first), first_answer)], follow_up, reasoning, answer)


def _capital(rng: random.Random) -> tuple[str, str, str]:
    country, city = rng.choice(tuple(CAPITALS.items()))
    return country, f"{country}: {city}.", f"The capital of {country} is {city}."


def _opposite(rng: random.Random) -> tuple[str, str, str]:
    word, other = rng.choice(tuple(OPPOSITES.items()))
    return word, f"{word}: {other}.", f"The opposite of '{word}' is '{other}'."


def _colour(rng: random.Random) -> tuple[str, str, str]:
    thing, name = rng.choice(tuple(COLOURS_OF_THINGS.items()))
    return thing, f"{thing}: {name}.", f"{thing[0].upper()}{thing[1:]} is {name}."


def _length(rng: random.Random) -> tuple[str, str, str]:
    word = some_word(rng)
    return word, f"I number the letters: {numbered(word)}. So {len(word)}.", f"'{word}' has {len(word)} letters."


def _upper_case(rng: random.Random) -> tuple[str, str, str]:
    word = some_word(rng)
    return word, f"{word}: {' '.join(word.upper())}.", word.upper()


SUBJECTS = {
    "capital": (("What is the capital of {it}?", "Tell me the capital of {it}.", "Capital of {it}?"), _capital),
    "opposite": (("What is the opposite of {it}?", "Give me the opposite of {it}.", "Opposite of {it}?"), _opposite),
    "colour": (("What colour is {it}?", "Tell me the colour of {it}.", "What is the colour of {it}?"), _colour),
    "length": (("How many letters are in {it}?", "Count the letters of {it}.", "How long is the word {it}?"), _length),
    "upper case": (
        ("Write {it} in capital letters.", "Make {it} upper case.", "Uppercase the text {it}."),
        _upper_case,
    ),
}


def say_again(rng: random.Random) -> Conversation:
    said = _statement(rng)
    answer = f"You said: {said}"
    return _dialogue([(said, HEARD)], wording(rng, SAY_AGAIN), "I look at the message before.", answer)


def _statement(rng: random.Random) -> str:
    return wording(
        rng,
        STATEMENTS,
        thing=rng.choice(COUNTED[:22]),
        colour=rng.choice(COLOURS[:10]),
        animal=rng.choice(ANIMALS[:15]),
        city=rng.choice(CITIES),
        name=rng.choice(FIRST_NAMES),
        food=rng.choice(FOODS),
    )


VARIANTS: tuple[tuple[int, Generator], ...] = (
    (9, remember),
    (4, first_turn),
    (8, list_changes),
    (6, running_total),
    (6, what_about),
    (2, say_again),
)
