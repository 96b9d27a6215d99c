"""Arithmetic, units and dates that the demonstration model learns from: every answer is worked out again from the
question alone, and every equation of the reasoning is true."""

from __future__ import annotations

import datetime
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from ops.nano.data import arithmetic, dates, units
from ops.nano.data.conversation import Conversation, Generator

GENERATORS = {"arithmetic": arithmetic.generate, "units": units.generate, "dates": dates.generate}
NUM_SEEDS = 1500
MAX_CHARACTERS = 420


def conversations(generate: Generator) -> list[Conversation]:
    return [generate(random.Random(seed)) for seed in range(NUM_SEEDS)]


def parts(conversation: Conversation) -> tuple[str, str, str]:
    """Question, reasoning and answer."""
    asked, answered = conversation.messages
    return asked["content"], answered["reasoning_content"], answered["content"]


def check_answers(generate: Generator, expect: Callable[[str], tuple[str, str]], kinds: set[str]) -> None:
    """expect: from a question in lower case to its kind and its answer in lower case. Every kind must occur."""
    seen: Counter[str] = Counter()
    for conversation in conversations(generate):
        asked, _, answer = parts(conversation)
        kind, expected = expect(asked.lower())
        assert answer.lower() == expected, asked
        seen[kind] += 1
    assert set(seen) == kinds


def evaluate(expression: str) -> int:
    """The value of an expression of whole numbers, in which every division is exact."""
    assert re.fullmatch(r"[\d()+*/ -]+", expression)
    value = eval(expression.replace("/", "//"))
    if "/" in expression:
        dividend, divisor = (int(number) for number in expression.split("/"))
        assert value * divisor == dividend
    return int(value)


@pytest.mark.parametrize("skill", GENERATORS)
def test_same_seed_same_conversation(skill: str) -> None:
    """Only the generator of random numbers decides what is asked."""
    generate = GENERATORS[skill]
    assert conversations(generate) == conversations(generate)
    assert len({parts(conversation)[0] for conversation in conversations(generate)}) > NUM_SEEDS // 2


@pytest.mark.parametrize("skill", GENERATORS)
def test_form(skill: str) -> None:
    """One short question and its answer on one line each, without spaces that a comparison would trip over."""
    for conversation in conversations(GENERATORS[skill]):
        assert conversation.skill == skill
        assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
        texts = parts(conversation)
        assert sum(map(len, texts)) <= MAX_CHARACTERS
        for text in texts:
            assert text
            assert text == text.strip()
            assert "\n" not in text
            assert "  " not in text
            assert "{" not in text


@pytest.mark.parametrize("skill", GENERATORS)
def test_reasoning_is_true(skill: str) -> None:
    """Each equation and each comparison in the reasoning holds."""
    num_equations = 0
    for conversation in conversations(GENERATORS[skill]):
        _, reasoning, _ = parts(conversation)
        for left, right in re.findall(r"([\d*+-]*\d)=([\d*+]*\d)", reasoning):
            values = [sum_of_products(side) for side in (left, right)]
            assert values[0] == values[1], reasoning
            num_equations += 1
        for left, sign, right in re.findall(r"(?<![-\d])(\d+) ?([<>]) ?(\d+)", reasoning):
            assert (int(left) < int(right)) == (sign == "<"), reasoning
            assert left != right
    assert num_equations > NUM_SEEDS


@pytest.mark.parametrize("skill", GENERATORS)
def test_reasoning_reaches_the_answer(skill: str) -> None:
    """What the answer says and the question does not is in the reasoning; an hour lent is the one used next."""
    for conversation in conversations(GENERATORS[skill]):
        asked, reasoning, answer = parts(conversation)
        known, result = (re.findall(r"\d+|[A-Z][a-z]+day|" + MONTH.title(), text) for text in (reasoning, answer))
        numbers = {int(word) for word in known + re.findall(r"\d+", asked) if word.isdigit()}
        assert all(int(word) in numbers if word.isdigit() else word in known for word in result), asked
        if lent := re.search(r"One hour less, (\d+)\. .* Hours\. (\d+)-", reasoning):
            assert int(lent[1]) == int(lent[2])


def sum_of_products(text: str) -> int:
    """The value of, say, 3*7+6-05; numbers may begin with zeros, which Python's own do not."""
    return evaluate(re.sub(r"\b0+(?=\d)", "", text))


def last_number(text: str) -> int:
    return int(re.findall(r"\d+", text)[-1])


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
def test_written_steps_end_with_the_result(digits: int) -> None:
    """Addition, subtraction and multiplication, down to zero for the first two."""
    rng = random.Random(digits)
    for _ in range(300):
        a, b = rng.randrange(10**digits), rng.randrange(10**digits)
        assert last_number(arithmetic.added(a, b)) == a + b
        assert last_number(arithmetic.subtracted(max(a, b), min(a, b))) == abs(a - b)
        factor = rng.choice((*range(1, 10), 10, 60, 100, 1000))
        assert last_number(arithmetic.multiplied(a + 1, factor)) == (a + 1) * factor


def test_written_products_and_quotients() -> None:
    """Two digits by two; quotients by one digit with any remainder, and exact ones by the factors of the units."""
    rng = random.Random(3)
    for _ in range(300):
        a, b, digit = rng.randrange(1, 100), rng.randrange(10, 100), rng.randrange(1, 10)
        assert last_number(arithmetic.multiplied(a, b)) == a * b
        assert quotient(arithmetic.divided(a * b, digit)) == a * b // digit
        factor = rng.choice((10, 60, 100, 1000))
        assert quotient(arithmetic.divided(a * factor, factor)) == a
    for factor in (12, 16, 24):
        assert [arithmetic.divided(i * factor, factor) for i in (1, 9)] == [
            f"{factor}=1*{factor}+0.",
            f"{9 * factor}=9*{factor}+0.",
        ]


def quotient(steps: str) -> int:
    return last_number(re.findall(r"(?:so|That is) \d+", steps)[-1])


def test_examples_of_steps() -> None:
    """Carries, borrows and zeros at the left, worked by hand."""
    assert arithmetic.added(47, 85) == ("47+85: 7+5+0=12, carry 1, so 2. 4+8+1=13, carry 1, so 32. Carry 1, so 132.")
    assert arithmetic.subtracted(103, 98) == (
        "103-098: 3-8-0 < 0, 13-8-0=5, borrow 1, so 5. 0-9-1 < 0, 10-9-1=0, borrow 1, so 05."
        " 1-0-1=0, borrow 0, so 005. That is 5."
    )
    assert arithmetic.multiplied(7, 60) == "7*60: 7*6=42. Add 1 zero, so 420."
    assert arithmetic.divided(84, 6) == "84/6: 8=1*6+2, so 1. 24=4*6+0, so 14."
    assert arithmetic.compared(482, 79) == "482 and 079: 4>0, so 482 > 79."


SAID_IN_WORDS = (  # what is asked, the sign, and whether the numbers change places
    (r"add (\d+) (?:and|to) (\d+)", "+", False),
    (r"find the sum of (\d+) and (\d+)", "+", False),
    (r"how much is (\d+) and (\d+) together", "+", False),
    (r"subtract (\d+) from (\d+)", "-", True),
    (r"take (\d+) away from (\d+)", "-", True),
    (r"what do i get when i take (\d+) from (\d+)", "-", True),
    (r"multiply (\d+) by (\d+)", "*", False),
    (r"find the product of (\d+) and (\d+)", "*", False),
    (r"how much is (\d+) multiplied by (\d+)", "*", False),
    (r"divide (\d+) by (\d+)", "/", False),
    (r"how many times does (\d+) go into (\d+)", "/", True),
    (r"what is (\d+) split into (\d+) equal parts", "/", False),
)
OPERATOR_WORDS = {"plus": "+", "minus": "-", "times": "*", "divided by": "/"}
GAINS = {"buys", "finds", "gets", "receives", "picks up", "wins"}
LOSSES = {"loses", "sells", "gives away", "drops", "throws away", "lends out"}


def expect_arithmetic(asked: str) -> tuple[str, str]:
    numbers = [int(number) for number in re.findall(r"\d+", asked)]
    if "remainder" in asked or " mod " in asked:
        return "remainder", f"the remainder is {numbers[0] % numbers[1]}."
    if word := re.search(r"\b(larger|bigger|smaller|largest|biggest|smallest)\b", asked):
        chosen = min(numbers) if word[0].startswith("small") else max(numbers)
        return f"{len(numbers)} compared", f"{chosen} is {'the ' if len(numbers) == 3 else ''}{word[0]}."
    if "friends" in asked:
        (thing,) = re.search(r"\d+ (?!friends)(\w+)", asked).groups()  # type: ignore[union-attr]
        assert max(numbers) % min(numbers) == 0
        return "share", f"each friend gets {max(numbers) // min(numbers)} {thing}."
    if "euros" in asked:
        count, price, other = (*numbers[2:], *numbers[:2]) if not asked.startswith("what is the price") else numbers
        return "price", f"they cost {count * price + other} euros."
    if story := re.match(r"(\w+) has ", asked):
        return "story", expect_story(story[1], asked)
    return expect_calculation(asked)


def expect_story(name: str, asked: str) -> str:
    told = asked.split(".")[0]
    if boxes := re.search(r"has (\d+) \w+ of (\d+) (\w+) each", told):
        total, things = int(boxes[1]) * int(boxes[2]), boxes[3]
    else:
        start = re.search(r"has (\d+) (\w+)", told)
        assert start
        total, things = int(start[1]), start[2]
    changes = re.findall(rf"({'|'.join(GAINS | LOSSES)}) (\d+)", told)
    assert changes
    for verb, amount in changes:
        total += int(amount) if verb in GAINS else -int(amount)
        assert total > 1
    return f"{name} has {total} {things}."


def expect_calculation(asked: str) -> tuple[str, str]:
    for pattern, sign, is_swapped in SAID_IN_WORDS:
        if found := re.fullmatch(pattern + r"[.?]?", asked):
            a, b = reversed(found.groups()) if is_swapped else found.groups()
            return f"said {sign}", f"{a} {sign} {b} = {evaluate(f'{a}{sign}{b}')}"
    for word, sign in OPERATOR_WORDS.items():
        asked = asked.replace(word, sign)
    found = re.search(r"[\d(][\d()+*/ -]*[\d)]", asked)
    assert found, asked
    expression = re.sub(r"\s*([-+*/])\s*", r" \1 ", found[0])
    kind = "written" if len(re.findall(r"\d+", expression)) == 2 else "expression"
    return kind, f"{expression} = {evaluate(expression)}"


def test_arithmetic_answers() -> None:
    """Expressions as Python values them, and the stories told again by their verbs."""
    said = {f"said {sign}" for sign in "+-*/"}
    told = {"remainder", "2 compared", "3 compared", "share", "price", "story", "written", "expression"}
    check_answers(arithmetic.generate, expect_arithmetic, said | told)


# Of each unit: what it measures, its size in the smallest unit of its kind, and how it is written.
UNITS = [
    ("length", 1_000_000, "kilometre kilometres km"),
    ("length", 1000, "metre metres m"),
    ("length", 10, "centimetre centimetres cm"),
    ("length", 1, "millimetre millimetres mm"),
    ("mass", 1_000_000_000, "tonne tonnes t"),
    ("mass", 1_000_000, "kilogram kilograms kg"),
    ("mass", 1000, "gram grams g"),
    ("mass", 1, "milligram milligrams mg"),
    ("volume", 1000, "litre litres l"),
    ("volume", 100, "decilitre decilitres dl"),
    ("volume", 1, "millilitre millilitres ml"),
    ("time", 604_800, "week weeks wk"),
    ("time", 86_400, "day days d"),
    ("time", 3600, "hour hours h"),
    ("time", 60, "minute minutes min"),
    ("time", 1, "second seconds s"),
    ("months", 12, "year years yr"),
    ("months", 1, "month months mo"),
    ("imperial length", 36, "yard yards yd"),
    ("imperial length", 12, "foot feet ft"),
    ("imperial length", 1, "inch inches inch"),
    ("imperial mass", 16, "pound pounds lb"),
    ("imperial mass", 1, "ounce ounces oz"),
    ("count", 12, "dozen dozens doz"),
    ("count", 1, "piece pieces pcs"),
    ("money", 100, "euro euros eur"),
    ("money", 1, "cent cents ct"),
]
SPELLINGS = {spelling: unit for unit in UNITS for spelling in unit[2].split()}


def counted(count: int, unit: tuple[str, int, str]) -> str:
    one, many, _ = unit[2].split()
    return f"{count} {one if count == 1 else many}"


def expect_units(asked: str) -> tuple[str, str]:
    if "degrees" in asked:
        return expect_temperature(asked)
    amounts = [(int(count), SPELLINGS[word]) for count, word in re.findall(r"(\d+) (\w+)", asked)]
    assert len({unit[0] for _, unit in amounts}) == 1
    if word := re.search(r"\b(longer|heavier|more)\b", asked):
        assert amounts[0][0] * amounts[0][1][1] != amounts[1][0] * amounts[1][1][1]
        chosen = max(amounts, key=lambda amount: amount[0] * amount[1][1])
        return "comparison", f"{counted(*chosen)} is {word[0]}."
    without_amounts = re.sub(r"\d+ \w+", "", asked)
    (target,) = {
        SPELLINGS[word][2]: SPELLINGS[word] for word in re.findall(r"\w+", without_amounts) if word in SPELLINGS
    }.values()
    assert target[0] == amounts[0][1][0]
    total, rest = divmod(sum(count * unit[1] for count, unit in amounts), target[1])
    assert rest == 0
    kind = "sum" if len(amounts) == 2 else "to small" if target[1] < amounts[0][1][1] else "to large"
    return kind, f"{' and '.join(counted(*amount) for amount in amounts)} = {counted(total, target)}"


def expect_temperature(asked: str) -> tuple[str, str]:
    found = re.search(r"(\d+) degrees (celsius|fahrenheit)", asked)
    assert found
    degrees = int(found[1])
    if found[2] == "celsius":
        return "celsius", f"{degrees} degrees celsius = {round(degrees * 1.8 + 32)} degrees fahrenheit"
    return "fahrenheit", f"{degrees} degrees fahrenheit = {round((degrees - 32) / 1.8)} degrees celsius"


def test_unit_answers() -> None:
    """Each unit's size in the smallest of its kind gives the same result, without a rest."""
    kinds = {"to small", "to large", "sum", "comparison", "celsius", "fahrenheit"}
    check_answers(units.generate, expect_units, kinds)


MONTHS = [datetime.date(2024, month, 1).strftime("%B").lower() for month in range(1, 13)]
WEEKDAYS = [datetime.date(2024, 1, day).strftime("%A").lower() for day in range(1, 8)]  # the first was a Monday
MONTH = "|".join(MONTHS)
DATE = re.compile(rf"(\d{{4}}-\d\d-\d\d)|({MONTH}) (\d{{1,2}})(?:, (\d{{4}}))?(?!\d)")
BACKWARDS = re.compile(r"\b(before|ago|subtract|back)\b")


def date_of(found: re.Match[str], default_year: int) -> datetime.date:
    if found[1]:
        return datetime.date.fromisoformat(found[1])
    return datetime.date(int(found[4] or default_year), MONTHS.index(found[2]) + 1, int(found[3]))


def write_as(date: datetime.date, example: re.Match[str]) -> str:
    if example[1]:
        return str(date)
    return f"{MONTHS[date.month - 1]} {date.day}" + (f", {date.year}" if example[4] else "")


def expect_dates(asked: str) -> tuple[str, str]:
    found = list(DATE.finditer(asked))
    if "leap" in asked or "have 29 days" in asked:
        year = int(re.findall(r"\d{4}", asked)[0])
        is_leap = (datetime.date(year, 3, 1) - datetime.timedelta(days=1)).day == 29
        return "leap", f"yes, {year} is a leap year." if is_leap else f"no, {year} is not a leap year."
    if re.search(r"iso|yyyy|long form|spell|in words|month's name", asked) and found:
        date = date_of(found[0], 0)
        return "rewriting", f"{MONTHS[date.month - 1]} {date.day}, {date.year}" if found[0][1] else str(date)
    if found:
        (answer,) = {expect_shift(asked, found, year) for year in (2023, 2024)}  # the same in a leap year
        return answer
    if ":" in asked:
        return expect_times(asked)
    return expect_names(asked)


def expect_shift(asked: str, found: list[re.Match[str]], year: int) -> tuple[str, str]:
    dates_found = [date_of(one, year) for one in found]
    if len(found) == 2:
        if dates_found[1] < dates_found[0]:  # from December to January, said without years
            dates_found[1] = dates_found[1].replace(year=year + 1)
        n = (dates_found[1] - dates_found[0]).days
        return "span", f"{n} day{'s' if n != 1 else ''}"
    (n,) = (int(number) for number in re.findall(r"(\d+) days", asked))
    is_back = BACKWARDS.search(asked) is not None
    shifted = dates_found[0] + datetime.timedelta(days=-n if is_back else n)
    return "date before" if is_back else "date after", f"it is {write_as(shifted, found[0])}."


def expect_times(asked: str) -> tuple[str, str]:
    midnight = datetime.datetime(2024, 1, 1)
    times = [midnight.replace(hour=int(h), minute=int(m)) for h, m in re.findall(r"(\d\d):(\d\d)", asked)]
    if len(times) == 2:
        minutes = (times[1] - times[0]) // datetime.timedelta(minutes=1)
        return "duration", f"{minutes // 60} h {minutes % 60} min"
    amounts = {f"{unit}s": int(count) for count, unit in re.findall(r"(\d+) (hour|minute)s?\b", asked)}
    assert amounts
    return "time", f"it is {times[0] + datetime.timedelta(**amounts):%H:%M}."


def expect_names(asked: str) -> tuple[str, str]:
    day, month = (re.search(rf"\b({names})\b", asked) for names in ("|".join(WEEKDAYS), MONTH))
    step = -1 if BACKWARDS.search(asked) else 1
    if day and (n := re.search(r"(\d+) days", asked)):
        return "weekday", f"it is {WEEKDAYS[(WEEKDAYS.index(day[1]) + step * int(n[1])) % 7]}."
    if day:
        return "neighbour", f"it is {WEEKDAYS[(WEEKDAYS.index(day[1]) + step) % 7]}."
    if month is None:
        found = re.findall(r"\d+", asked)
        return "month", f"month {found[0]} is {MONTHS[int(found[0]) - 1]}."
    number = MONTHS.index(month[1]) + 1
    if "before" in asked or "after" in asked:
        return "neighbour", f"it is {MONTHS[(number - 1 + step) % 12]}."
    if "number" in asked and "days" not in asked:
        return "month", f"{month[1]} is month {number}."
    year = re.search(r" \d{4}", asked)
    assert year or number != 2
    next_month = datetime.date(int(year[0]) if year else 2023, number, 28) + datetime.timedelta(days=4)
    length = (next_month - datetime.timedelta(days=next_month.day)).day
    return "month length", f"{month[1]}{year[0] if year else ''} has {length} days."


def test_date_answers() -> None:
    """As `datetime` has them; where a question gives no year, in a leap year and in another."""
    shifts = {"date after", "date before", "span", "weekday", "neighbour", "time", "duration"}
    check_answers(dates.generate, expect_dates, shifts | {"leap", "rewriting", "month", "month length"})
