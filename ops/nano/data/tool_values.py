"""Values of the parameters and results of the tools in generated conversations, and their form in running text."""

from __future__ import annotations

import operator
import random
import string
from collections.abc import Callable
from typing import Any

Values = dict[str, Any]  # by name of a parameter or of a result's field
Sampler = Callable[[random.Random], Any]


def words_of(text: str) -> list[str]:
    """The entries of a list written with blanks and line ends between them."""
    return text.split()


def entries_of(text: str) -> list[str]:
    """The entries of a list written with bars and line ends between them."""
    return text.replace("\n", "|").split("|")


FIRST_NAMES = words_of(
    """Ana Ben Carla David Emma Felix Grace Hugo Iris Jonas Karin Leo Maria Nina Oscar Paula Quentin Rosa Sam Tara
    Ugo Vera Walter Xenia Yusuf Zoe Ahmed Bella Chen Dora Elif Fatima Goran Hana Ivan Julia Kofi Lena Marco Noor"""
)
CITIES = entries_of(
    """Paris|Rome|London|Berlin|Madrid|Tokyo|Oslo|Lisbon|Vienna|Cairo|Delhi|Seoul|Athens|Dublin|Prague|Warsaw
Boston|Chicago|New York|San Diego|Toronto|Lima|Quito|Nairobi|Lagos|Sydney|Perth|Moscow|Kyiv|Helsinki|Stockholm|Geneva
Milan|Naples|Porto|Munich|Zurich|Brussels|Dakar|Havana|Hanoi|Jakarta|Manila|Beijing|Osaka|Mumbai|Dubai|Riga
Turin|Leeds"""
)
ADJECTIVES = words_of(
    """blue red green old new quiet loud small big golden silver broken happy lonely cold warm early late long
    short bright dark sweet wild slow fast empty round soft hidden"""
)
NOUNS = words_of(
    """river house road moon train garden winter summer window dream city forest letter bridge song stone night
    ocean bird flower engine mirror lamp castle market harbour island ladder basket candle
    hammer button carpet violin pillow whistle mountain village coffee butter school doctor farmer sailor teacher
    horse tiger rabbit spoon bottle paper ticket circle shadow"""
)
VERBS = words_of("buy clean paint move find fix check bring sell wash open count send pack")
MONTHS = words_of("January February March April May June July August September October November December")
FOODS = words_of(
    """apples pears eggs lemons onions carrots bananas tomatoes peaches cookies potatoes plums olives rolls
    yoghurts candles batteries pens cups plates bottles nails"""
)
TOPICS = entries_of(
    """sport|music|science|politics|football|the economy|space|health|films|tennis|energy|robots|trains|farming
art|the weather|history|chess|electric cars|climate"""
)
_SYMBOLS = words_of("AAPL MSFT TSLA AMZN NVDA IBM ORCL INTC SAP NKE SBUX KO PEP BA GE UBER NFLX ADBE")
_SYLLABLES = words_of(
    "ba be bo da de di fa ga go ka ke ki la le lo ma mi mo na ni no pa po ra re ri sa so ta to va vi zo"
)


def coined(rng: random.Random) -> str:
    """A word that exists nowhere, so that it can only be copied."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3)))


def spoken(value: Any) -> str:
    """The form in running text; the items of a list as "a, b and c"."""
    if not isinstance(value, list):
        return str(value)
    return " and ".join(filter(None, [", ".join(value[:-1]), value[-1]]))


def fields_of(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name]


def _one_of(choices: list[str], coin_one_in: int = 0) -> Sampler:
    """A choice, or now and then a coined name."""

    def sample(rng: random.Random) -> str:
        if coin_one_in and rng.randrange(coin_one_in) == 0:
            return coined(rng).capitalize()
        return rng.choice(choices)

    return sample


def _whole(low: int, high: int) -> Sampler:
    return lambda rng: rng.randint(low, high)


def _decimal(low: int, high: int, digits: int) -> Sampler:
    """A number with at most so many digits after the point; an int where none is left."""

    def sample(rng: random.Random) -> int | float:
        scale: int = 10**digits
        value = rng.randint(low * scale, high * scale)
        return value // scale if value % scale == 0 or rng.random() < 0.4 else value / scale

    return sample


def _phrase(*patterns: str) -> Sampler:
    """One of the patterns with words in the places of {adjective}, {noun}, {verb}, {name}, {hour} and {word}; the
    places with "other_" in front get different words."""

    def sample(rng: random.Random) -> str:
        nouns, names, words = rng.sample(NOUNS, 2), rng.sample(FIRST_NAMES, 2), [coined(rng), coined(rng)]
        return rng.choice(patterns).format(
            adjective=rng.choice(ADJECTIVES),
            verb=rng.choice(VERBS),
            hour=rng.randint(1, 12),
            noun=nouns[0],
            other_noun=nouns[1],
            name=names[0],
            other_name=names[1],
            word=words[0],
            other_word=words[1],
        )

    return sample


def _titled(*patterns: str) -> Sampler:
    phrase = _phrase(*patterns)
    return lambda rng: string.capwords(phrase(rng))


def _sample_date(rng: random.Random) -> str:
    month, day = rng.randint(1, 12), rng.randint(1, 28)
    return rng.choice([f"2026-{month:02}-{day:02}", f"{MONTHS[month - 1]} {day}", f"{day} {MONTHS[month - 1]}"])


def _sample_time(rng: random.Random) -> str:
    return f"{rng.randint(0, 23):02}:{rng.choice([0, 15, 30, 45, rng.randint(0, 59)]):02}"


def _sample_tags(rng: random.Random) -> list[str]:
    return rng.sample(NOUNS, rng.choice([1, 2, 2, 3]))


def _sample_files(rng: random.Random) -> list[str]:
    return [f"{name}.{rng.choice(['txt', 'md', 'csv'])}" for name in rng.sample(NOUNS, rng.randint(1, 3))]


def _sample_path(rng: random.Random) -> str:
    folder = rng.choice(["", "", f"{rng.choice(NOUNS)}/", f"/tmp/{coined(rng)}/"])
    return f"{folder}{rng.choice([*NOUNS, coined(rng)])}.{rng.choice(['txt', 'md', 'csv', 'json', 'py'])}"


def _sample_code(rng: random.Random) -> str:
    return "".join(rng.choice(string.ascii_uppercase) for _ in range(2)) + str(rng.randint(100, 99999))


def _sample_symbol(rng: random.Random) -> str:
    return rng.choice(
        [rng.choice(_SYMBOLS), "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(3, 4)))]
    )


def _sample_expression(rng: random.Random) -> str:
    """Two numbers of which at least one has two digits, so that a tool is worth calling."""
    return f"{rng.randint(10, 999)} {rng.choice('+-*')} {rng.randint(2, 99)}"


_NAME = _one_of(FIRST_NAMES, coin_one_in=8)
_CITY = _one_of(CITIES, coin_one_in=8)
_CURRENCY = _one_of(words_of("USD EUR GBP JPY CHF CAD AUD SEK NOK INR BRL CNY MXN PLN KRW TRY"))
_ROOM = _one_of(
    entries_of("kitchen|bedroom|bathroom|hall|office|garage|attic|cellar|living room|dining room|guest room")
)
_RESTAURANT = _titled("{adjective} {noun}", "chez {name}", "{word}", "the {noun}", "{name} and {other_name}")

SAMPLERS: dict[str, Sampler] = {
    "amount": _decimal(2, 900, 2),
    "artist": _titled("{name} {word}", "the {adjective} {noun}s", "{word}", "{name}"),
    "brightness": _whole(1, 100),
    "city": _CITY,
    "code": _sample_code,
    "count": _whole(2, 9),
    "country": _one_of(words_of("Spain France Italy Japan Kenya Peru Norway Chile Egypt India Brazil Poland Cuba"), 8),
    "cuisine": _one_of(words_of("Italian Thai Mexican Indian Greek Turkish Korean French Spanish Lebanese Chinese")),
    "date": _sample_date,
    "definition": _phrase("a {adjective} {noun}", "a kind of {noun}", "a {noun} made of {other_noun}"),
    "degrees": _decimal(12, 28, 1),
    "destination": _CITY,
    "distance": _whole(2, 900),
    "end": _CITY,
    "expression": _sample_expression,
    "files": _sample_files,
    "folder": _phrase("{noun}", "{noun}/{other_noun}", "{adjective}_{noun}", "/{word}/{noun}", "{word}"),
    "force": lambda rng: rng.random() < 0.5,
    "from_currency": _CURRENCY,
    "headline": _phrase("{name} finds {adjective} {noun}", "new {noun} in the {other_noun}", "{adjective} {noun} sold"),
    "item": _one_of(FOODS),
    "language": _one_of(words_of("French German Spanish Italian Dutch Polish Swedish Greek Turkish Finnish Czech")),
    "line": _phrase("the {noun} is {adjective}", "{verb} the {noun}", "{name} has the {noun}"),
    "minutes": _whole(2, 90),
    "mode": _one_of(["walk", "drive", "bike"]),
    "name": _NAME,
    "number": _whole(1, 40),
    "origin": _CITY,
    "outdoor": lambda rng: rng.random() < 0.5,
    "path": _sample_path,
    "people": _whole(2, 12),
    "place": _CITY,
    "price": _decimal(3, 900, 2),
    "quantity": _whole(2, 30),
    "query": _phrase("how to {verb} a {noun}", "{word}", "{name} {word}", "{noun} and {other_noun}"),
    "recipient": _NAME,
    "repeat": lambda rng: rng.random() < 0.5,
    "restaurant": _RESTAURANT,
    "room": _ROOM,
    "sky": _one_of(words_of("sunny cloudy rainy windy foggy snowy clear stormy")),
    "start": _CITY,
    "summary": _phrase("a {noun} in {word}", "the {adjective} {noun}", "{name} and the {noun}"),
    "symbol": _sample_symbol,
    "tags": _sample_tags,
    "temperature": lambda rng: rng.choice([rng.randint(-9, -2), rng.randint(2, 39), rng.randint(2, 39)]),
    "text": _phrase("I am late", "the {noun} is {adjective}", "{verb} the {adjective} {noun}",
                    "I will {verb} the {noun}", "see you at {hour}",
                    "where is the {noun}", "{name} has the {noun}", "dinner is at {hour}"),
    "time": _sample_time,
    "to_currency": _CURRENCY,
    "topic": _one_of(TOPICS),
    "total": _whole(2, 60),
    "translation": _phrase("{word} {other_word}", "{word}", "{other_word} {word}", "{word} la {other_word}"),
    "unit": _one_of(["celsius", "fahrenheit"]),
    "word": _one_of([*NOUNS, "gimlet", "trivet", "cairn", "sextant", "plinth"], coin_one_in=3),
    "year": _whole(1990, 2030),
    "add_event.title": _phrase("dinner with {name}", "{noun} meeting", "call {name}", "{name} visits"),
    "create_note.title": _phrase("{adjective} {noun}", "{verb} the {noun}", "{noun} plans", "{name} and {other_name}"),
    "play_song.title": _titled("{adjective} {noun}", "{noun} of {other_noun}", "{word}", "my {adjective} {noun}"),
}  # fmt: skip
"""By name of a parameter or of a result's field; `tool.parameter` where a name means different things."""

SPOKEN_BOOLEANS: dict[str, tuple[str, str]] = {
    "force": ("without force", "with force"),
    "outdoor": ("inside", "outside"),
    "repeat": ("once", "every day"),
}
"""How a request says False and True of a parameter."""

_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def calculate(expression: str) -> int:
    """The value of "A op B"."""
    left, sign, right = expression.split(" ")
    return _OPERATORS[sign](int(left), int(right))
