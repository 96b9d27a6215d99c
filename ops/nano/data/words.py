"""Lists of common words, and how a question's wording is drawn from templates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _split(
    "Ana Ben Carla David Emma Felix Grace Hugo Ivy Jack Kate Leo Maria Nina Oscar Paul Rosa Sam Tom Uma Victor Wendy "
    "Yara Zoe Adam Bella Clara Dan Eva Frank Gina Henry Iris James Karl Lucy Max Noah Olga Peter Ruth Sara Tina Will "
    "Alice Bruno Diana Eric Fiona George Helen Ian Julia Kevin Laura Mark Nora Omar Rita Simon"
)
SURNAMES = _split(
    "Silva Smith Brown Jones Miller Garcia Rossi Weber Novak Tanaka Kim Lopez Martin Moreau Larsen Berg Cohen Khan "
    "Patel Singh Wong Young King Wright Green Hall Baker Cook Carter Costa Duarte Fischer Hansen Ivanov Keller Lang "
    "Marino Nielsen Ortiz Parker Reed Sato Turner Vega Walsh Wood"
)
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Portugal": "Lisbon",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Ireland": "Dublin",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Hungary": "Budapest",
}
COUNTRIES = tuple(CAPITALS)
CITIES = (
    *CAPITALS.values(),
    *_split(
        "London Milan Porto Seville Lyon Munich Hamburg Geneva Zurich Boston Chicago Denver Dallas Seattle Toronto "
        "Delhi Mumbai Sydney Perth Osaka Naples Turin Bergen Leeds Bristol Oxford Austin Miami Cork Ghent"
    ),
)
FOODS = _split(
    "apple pear plum grape lemon melon peach cherry banana orange mango fig olive onion carrot potato tomato bean "
    "bread cheese butter honey rice soup pasta egg fish cake sugar salt pepper garlic lime kiwi date nut corn pea "
    "cabbage radish yogurt jam"
)
ANIMALS = _split(
    "cat dog horse cow goat sheep pig duck hen mouse rabbit fox wolf bear lion tiger zebra monkey snake frog turtle "
    "eagle owl parrot whale shark crab ant bee spider deer camel donkey otter swan"
)
PETS = ("cat", "dog", "horse", "goat", "duck", "rabbit", "parrot", "turtle", "hen", "pony", "mouse", "donkey")
PET_NAMES = _split("Milo Luna Rex Bella Coco Daisy Rocky Toby Ruby Oreo Simba Pepper Buddy Lola Nala Ziggy")
OBJECTS = _split(
    "key lamp book pen cup plate box bag hat coat shoe ring clock phone chair table mirror knife spoon bottle basket "
    "brush candle camera ticket letter map ball drum flute kite rope ladder hammer bucket umbrella wallet watch vase "
    "pillow"
)
COUNTED = _split(  # whose plural is made with an s
    "key lamp book pen cup plate bag hat coat shoe ring clock phone chair table mirror spoon bottle basket candle "
    "ticket letter ball drum kite rope pear apple plum melon lemon banana onion carrot egg"
)
NATURE = _split(
    "sun moon star sky rain snow wind cloud river lake sea hill stone sand tree leaf flower grass forest island "
    "storm fire ice field garden bridge road house door window wall roof tower train boat plane wheel king queen "
    "music song story dream night summer winter market school"
)
ACTIONS = _split("run jump sing dance read write cook drive swim climb laugh sleep think build paint help open")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey", "pink", "purple", "orange", "silver")
ADJECTIVES = _split("small large old new light heavy round wooden metal plastic soft cheap")
JOBS = _split(
    "baker teacher nurse doctor farmer pilot painter driver lawyer writer singer cook gardener plumber dentist "
    "waiter tailor barber sailor miner"
)
ROOMS = _split("kitchen garage garden attic cellar office bedroom bathroom hall library shed studio pantry workshop")
SHOPS = ("market", "station", "bakery", "airport", "museum", "fair", "harbour", "school", "corner shop", "mall")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COLOURS_OF_THINGS = {
    "the sky on a clear day": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "a ripe banana": "yellow",
    "a ripe tomato": "red",
    "a lemon": "yellow",
    "a carrot": "orange",
    "milk": "white",
    "chocolate": "brown",
    "blood": "red",
    "a strawberry": "red",
    "a frog": "green",
    "the sun": "yellow",
    "an elephant": "grey",
    "a flamingo": "pink",
    "salt": "white",
    "a fire engine": "red",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "fast": "slow",
    "open": "closed",
    "day": "night",
    "old": "young",
    "rich": "poor",
    "wet": "dry",
    "light": "dark",
    "hard": "soft",
    "full": "empty",
    "high": "low",
    "left": "right",
    "long": "short",
    "good": "bad",
    "happy": "sad",
    "early": "late",
    "strong": "weak",
    "true": "false",
    "near": "far",
    "clean": "dirty",
    "loud": "quiet",
    "first": "last",
}
WORDS = tuple(dict.fromkeys((*FOODS, *ANIMALS, *OBJECTS, *NATURE, *ACTIONS, *COLOURS, *JOBS)))


def wording(rng: random.Random, templates: Sequence[str], **values: object) -> str:
    """One template, filled in. Some begin in lower case or lack the final mark, as people type; values never change."""
    template = rng.choice(templates)
    if rng.random() < 0.15 and not template.startswith(("{", "I ", "I'")):
        template = template[0].lower() + template[1:]
    if rng.random() < 0.12 and template[-1] in ".?!":
        template = template[:-1]
    return template.format(**values)


def weighted(rng: random.Random, choices: Sequence[tuple[int, T]]) -> T:
    """One of the pairs' second halves; the first halves are weights."""
    return rng.choices([choice for _, choice in choices], [weight for weight, _ in choices])[0]


def invented_word(rng: random.Random) -> str:
    """Two or three pronounceable syllables, so that spelling is learnt for more than the words listed here."""
    syllables = rng.choice((2, 2, 3))
    return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(syllables)) + rng.choice(
        ("", "", "n", "r", "s", "t", "l")
    )


def some_word(rng: random.Random) -> str:
    """A word to take apart: short ones more often, now and then an invented one."""
    if rng.random() < 0.15:
        return invented_word(rng)
    return min(rng.sample(WORDS, 2), key=len)


def listed(items: Sequence[str]) -> str:
    return ", ".join(items)


def numbered(items: Sequence[str]) -> str:
    """`1 apple 2 pear 3 plum`, the form in which items are counted aloud."""
    return " ".join(f"{position} {item}" for position, item in enumerate(items, 1))
