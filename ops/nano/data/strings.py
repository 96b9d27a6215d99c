"""Questions on letters, words and short lists, answered by spelling and numbering."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ops.nano.data.conversation import Conversation, Generator, question
from ops.nano.data.words import (
    ANIMALS,
    COLOURS,
    FIRST_NAMES,
    FOODS,
    OBJECTS,
    WORDS,
    invented_word,
    listed,
    numbered,
    some_word,
    weighted,
    wording,
)

SKILL = "strings"

SEPARATORS = {"hyphen": "-", "slash": "/", "hash": "#", "plus sign": "+", "dot": ".", "colon": ":", "star": "*"}
ORDINALS = ("first", "second", "third", "fourth", "fifth")
LIST_SOURCES = (FOODS, ANIMALS, OBJECTS, COLOURS, FIRST_NAMES, WORDS)

REVERSE_WORD = (
    "Reverse the word '{word}'.",
    "Spell '{word}' backwards.",
    "Write {word} backwards.",
    "What is '{word}' reversed?",
    "What do you get if you reverse the word {word}?",
    "Please reverse: {word}",
    "How do you write '{word}' from right to left?",
)
SPELL = (
    "Spell the word '{word}'.",
    "Spell {word} letter by letter.",
    "What are the letters of '{word}'?",
    "Please spell: {word}",
    "Write '{word}' with a space between the letters.",
    "How is the word {word} spelled?",
)
UPPER = (
    "Write '{text}' in capital letters.",
    "Convert '{text}' to upper case.",
    "Make this upper case: {text}",
    "What is '{text}' in capitals?",
    "Put '{text}' in uppercase, please.",
    "Uppercase the text '{text}'.",
)
LOWER = (
    "Write '{text}' in small letters.",
    "Convert '{text}' to lower case.",
    "Make this lower case: {text}",
    "What is '{text}' in lowercase?",
    "Put '{text}' in lowercase, please.",
    "Lowercase the text '{text}'.",
)
COUNT_LETTERS = (
    "How many letters are in '{word}'?",
    "How many letters does the word {word} have?",
    "Count the letters of '{word}'.",
    "What is the length of the word '{word}'?",
    "How long is the word {word}?",
    "Number of letters in '{word}'?",
)
COUNT_LETTER = (
    "How many times does '{letter}' occur in '{word}'?",
    "How many {letter}'s are in the word {word}?",
    "Count the letter '{letter}' in '{word}'.",
    "How often is the letter {letter} in {word}?",
    "How many times is the letter '{letter}' in the word '{word}'?",
)
END_LETTER = (
    "What is the {which} letter of '{word}'?",
    "What's the {which} letter of the word {word}?",
    "Give me the {which} letter of '{word}'.",
    "Which letter is {which} in {word}?",
    "Tell me the {which} letter in the word '{word}'.",
)
JOIN = (
    "Join the words {items} with a {separator}.",
    "Join {items} using a {separator}.",
    "Put a {separator} between these words: {items}",
    "Connect the words {items} with a {separator}.",
    "Write {items} as one text, joined by a {separator}.",
)
SORT_WORDS = (
    "Sort these words alphabetically: {items}",
    "Put {items} in alphabetical order.",
    "Sort the list {items} from A to Z.",
    "Arrange these words in alphabetical order: {items}",
    "What is the alphabetical order of {items}?",
    "Alphabetize: {items}",
)
SORT_ASCENDING = (
    "Sort these numbers in ascending order: {items}",
    "Sort {items} from smallest to largest.",
    "Put the numbers {items} in ascending order.",
    "Order these from low to high: {items}",
    "Arrange {items} from the smallest to the largest.",
)
SORT_DESCENDING = (
    "Sort these numbers in descending order: {items}",
    "Sort {items} from largest to smallest.",
    "Put the numbers {items} in descending order.",
    "Order these from high to low: {items}",
    "Arrange {items} from the largest to the smallest.",
)
NTH_ITEM = (
    "What is the {ordinal} item of the list {items}?",
    "Which item is {ordinal} in {items}?",
    "Give me the {ordinal} item: {items}",
    "Here is a list: {items}. What is the {ordinal} item?",
    "From the list {items}, take the {ordinal} item.",
)
REMOVE_ITEM = (
    "Remove {item} from the list {items}.",
    "Take {item} out of {items}.",
    "Here is a list: {items}. Remove {item}.",
    "Delete {item} from this list: {items}",
    "What is the list {items} without {item}?",
)
REVERSE_LIST = (
    "Reverse the list {items}.",
    "Reverse the order of this list: {items}",
    "List these from last to first: {items}",
    "What is the list {items} in reverse order?",
    "Write the items {items} in reverse order.",
)
COUNT_ITEMS = (
    "How many items are in the list {items}?",
    "Count the items: {items}",
    "How many words are here: {items}?",
    "How long is the list {items}?",
    "Here is a list: {items}. How many items does it have?",
)
LONGEST = (
    "Which word is the longest: {items}?",
    "What is the longest word in {items}?",
    "Find the longest word: {items}",
    "Which of {items} has the most letters?",
    "Of the words {items}, which is longest?",
)
DEDUPE = (
    "Remove the duplicates from {items}.",
    "Delete repeated words: {items}",
    "List each word once: {items}",
    "Drop the repeats in the list {items}.",
    "Here is a list: {items}. Remove the duplicates.",
)
CONTAINS = (
    "Is {item} in the list {items}?",
    "Does the list {items} contain {item}?",
    "Here is a list: {items}. Is {item} in it?",
    "Check if {item} is in this list: {items}",
    "Can you find {item} among {items}?",
)


def generate(rng: random.Random) -> Conversation:
    return weighted(rng, VARIANTS)(rng)


def spelled(word: str) -> str:
    return " ".join(word)


def reverse_word(rng: random.Random) -> Conversation:
    word = min(some_word(rng), some_word(rng), key=len)
    backwards = word[::-1]
    reasoning = f"{word} is {spelled(word)}. Backwards: {spelled(backwards)}."
    return question(SKILL, wording(rng, REVERSE_WORD, word=word), reasoning, backwards)


def spell(rng: random.Random) -> Conversation:
    word = some_word(rng)
    return question(SKILL, wording(rng, SPELL, word=word), f"I spell {word}.", spelled(word))


def upper_case(rng: random.Random) -> Conversation:
    text = _phrase(rng)
    return question(SKILL, wording(rng, UPPER, text=text), _case_steps(text, text.upper()), text.upper())


def lower_case(rng: random.Random) -> Conversation:
    text = _phrase(rng).upper()
    return question(SKILL, wording(rng, LOWER, text=text), _case_steps(text, text.lower()), text.lower())


def _phrase(rng: random.Random) -> str:
    return " ".join(some_word(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))


def _case_steps(text: str, changed: str) -> str:
    words = zip(text.split(), changed.split(), strict=True)
    return " ".join(f"{old}: {spelled(new)}." for old, new in words)


def count_letters(rng: random.Random) -> Conversation:
    word = some_word(rng)
    reasoning = f"I number the letters: {numbered(word)}. So {len(word)}."
    return question(SKILL, wording(rng, COUNT_LETTERS, word=word), reasoning, f"'{word}' has {len(word)} letters.")


def count_letter(rng: random.Random) -> Conversation:
    """The running count stands behind every letter, so that each step looks back two tokens only."""
    word = some_word(rng)
    letter = rng.choice(word) if rng.random() < 0.9 else rng.choice("aeiorst")
    running = " ".join(f"{each} {word[: end + 1].count(letter)}" for end, each in enumerate(word))
    count = word.count(letter)
    times = "time" if count == 1 else "times"
    return question(
        SKILL,
        wording(rng, COUNT_LETTER, word=word, letter=letter),
        f"I count {letter}: {running}. So {count}.",
        f"The letter '{letter}' occurs {count} {times} in '{word}'.",
    )


def end_letter(rng: random.Random) -> Conversation:
    word = some_word(rng)
    which = rng.choice(("first", "last"))
    letter = word[0] if which == "first" else word[-1]
    reasoning = f"{word} is {spelled(word)}. The {which} is {letter}."
    return question(SKILL, wording(rng, END_LETTER, word=word, which=which), reasoning, letter)


def join_words(rng: random.Random) -> Conversation:
    items = _items(rng, (2, 3, 3, 4))
    name, separator = rng.choice(tuple(SEPARATORS.items()))
    asked = wording(rng, JOIN, items=listed(items), separator=name)
    return question(
        SKILL, asked, f"A {name} is {separator} and the words are {' '.join(items)}.", separator.join(items)
    )


def sort_words(rng: random.Random) -> Conversation:
    """First letters differ, so one look at them decides each step."""
    size = rng.choice((3, 3, 3, 4, 4, 5))
    by_letter: dict[str, str] = {}
    for word in rng.sample(rng.choice((FOODS, ANIMALS, OBJECTS, WORDS)), 24):
        by_letter.setdefault(word[0], word)
    items = rng.sample(list(by_letter.values()), size)
    steps = []
    left = list(items)
    while len(left) > 1:
        first = min(left)
        steps.append(f"Of {' '.join(word[0] for word in left)} the first is {first[0]}: {first}.")
        left.remove(first)
    steps.append(f"Last: {left[0]}.")
    return question(SKILL, wording(rng, SORT_WORDS, items=listed(items)), " ".join(steps), listed(sorted(items)))


def sort_ascending(rng: random.Random) -> Conversation:
    return _sort_numbers(rng, SORT_ASCENDING, "smallest")


def sort_descending(rng: random.Random) -> Conversation:
    return _sort_numbers(rng, SORT_DESCENDING, "largest")


def _sort_numbers(rng: random.Random, templates: Sequence[str], extreme: str) -> Conversation:
    largest = rng.choice((9, 99, 99, 99, 999))
    items = rng.sample(range(1, largest + 1), rng.choice((3, 3, 4)))
    ordered = sorted(items, reverse=extreme == "largest")
    steps = []
    left = list(items)
    for number in ordered[:-1]:
        steps.append(f"Of {' '.join(map(str, left))} the {extreme} is {number}.")
        left.remove(number)
    steps.append(f"Last: {left[0]}.")
    asked = wording(rng, templates, items=listed([str(item) for item in items]))
    return question(SKILL, asked, " ".join(steps), listed([str(item) for item in ordered]))


def nth_item(rng: random.Random) -> Conversation:
    items = _items(rng, (3, 3, 4, 5))
    position = rng.randrange(len(items) + 1)
    ordinal = ORDINALS[position] if position < len(items) else "last"
    item = items[min(position, len(items) - 1)]
    reasoning = f"{numbered(items)}. The {ordinal} is {item}."
    return question(SKILL, wording(rng, NTH_ITEM, items=listed(items), ordinal=ordinal), reasoning, item)


def remove_item(rng: random.Random) -> Conversation:
    items = _items(rng, (2, 3, 3, 4, 5))
    item = rng.choice(items)
    kept = [each for each in items if each != item]
    steps = ", ".join(f"{each} {'out' if each == item else 'stays'}" for each in items)
    asked = wording(rng, REMOVE_ITEM, items=listed(items), item=item)
    return question(SKILL, asked, f"{steps}.", listed(kept))


def reverse_list(rng: random.Random) -> Conversation:
    items = _items(rng, (2, 3, 3, 4, 5))
    backwards = [f"{position} {items[position - 1]}" for position in range(len(items), 0, -1)]
    reasoning = f"{numbered(items)}. From the end: {' '.join(backwards)}."
    return question(SKILL, wording(rng, REVERSE_LIST, items=listed(items)), reasoning, listed(items[::-1]))


def count_items(rng: random.Random) -> Conversation:
    items = _items(rng, (2, 3, 4, 5, 6, 7))
    reasoning = f"I number them: {numbered(items)}. So {len(items)}."
    return question(SKILL, wording(rng, COUNT_ITEMS, items=listed(items)), reasoning, f"There are {len(items)} items.")


def longest_word(rng: random.Random) -> Conversation:
    while True:
        items = _items(rng, (2, 2, 3))
        lengths = sorted(len(item) for item in items)
        if lengths[-1] > lengths[-2]:
            break
    longest = max(items, key=len)
    counts = " ".join(f"{item}: {numbered(item.lower())}." for item in items)
    return question(SKILL, wording(rng, LONGEST, items=listed(items)), f"{counts} The most is {len(longest)}.", longest)


def dedupe(rng: random.Random) -> Conversation:
    items = _items(rng, (2, 3, 3, 4))
    shuffled = items + rng.sample(items, rng.choice((1, 1, 2)))
    rng.shuffle(shuffled)
    marks = [f"{item} {'again' if item in shuffled[:at] else 'new'}" for at, item in enumerate(shuffled)]
    asked = wording(rng, DEDUPE, items=listed(shuffled))
    return question(SKILL, asked, f"{listed(marks)}.", listed(list(dict.fromkeys(shuffled))))


def contains(rng: random.Random) -> Conversation:
    items = _items(rng, (3, 4, 5, 6))
    item = rng.choice(items)
    is_in = rng.random() < 0.5
    if not is_in:
        items.remove(item)
    asked = wording(rng, CONTAINS, items=listed(items), item=item)
    verdict = f"There is {item}." if is_in else f"There is no {item}."
    answer = f"Yes, {item} is in the list." if is_in else f"No, {item} is not in the list."
    return question(SKILL, asked, f"The list has {' '.join(items)}. {verdict}", answer)


def _items(rng: random.Random, sizes: Sequence[int]) -> list[str]:
    """Distinct words of one kind, or now and then invented ones."""
    size = rng.choice(sizes)
    if rng.random() < 0.1:
        return list({invented_word(rng): None for _ in range(4 * size)})[:size]
    return rng.sample(rng.choice(LIST_SOURCES), size)


VARIANTS: tuple[tuple[int, Generator], ...] = (
    (8, reverse_word),
    (8, spell),
    (6, upper_case),
    (5, lower_case),
    (8, count_letters),
    (6, count_letter),
    (6, end_letter),
    (5, join_words),
    (9, sort_words),
    (5, sort_ascending),
    (4, sort_descending),
    (7, nth_item),
    (5, remove_item),
    (5, reverse_list),
    (7, count_items),
    (4, longest_word),
    (4, dedupe),
    (5, contains),
)
