"""Questions that change one unit of measure into another, with whole numbers on both sides."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ops.nano.data.arithmetic import added, compared, divided, multiplied, phrase, subtracted
from ops.nano.data.conversation import Conversation, question

SKILL = "units"


@dataclass(frozen=True)
class Unit:
    """How a unit is written."""

    one: str
    many: str
    short: str

    def counted(self, count: int) -> str:
        return f"{count} {self.one if count == 1 else self.many}"


@dataclass(frozen=True)
class Scale:
    """One `large` is `factor` of `small`; `more` is what the larger of two amounts is called."""

    large: Unit
    small: Unit
    factor: int
    more: str

    @property
    def fact(self) -> str:
        return f"{self.large.counted(1)} = {self.small.counted(self.factor)}."


KILOMETRE = Unit("kilometre", "kilometres", "km")
METRE = Unit("metre", "metres", "m")
CENTIMETRE = Unit("centimetre", "centimetres", "cm")
MILLIMETRE = Unit("millimetre", "millimetres", "mm")
TONNE = Unit("tonne", "tonnes", "t")
KILOGRAM = Unit("kilogram", "kilograms", "kg")
GRAM = Unit("gram", "grams", "g")
MILLIGRAM = Unit("milligram", "milligrams", "mg")
LITRE = Unit("litre", "litres", "l")
DECILITRE = Unit("decilitre", "decilitres", "dl")
MILLILITRE = Unit("millilitre", "millilitres", "ml")
WEEK = Unit("week", "weeks", "wk")
DAY = Unit("day", "days", "d")
HOUR = Unit("hour", "hours", "h")
MINUTE = Unit("minute", "minutes", "min")
SECOND = Unit("second", "seconds", "s")
YEAR = Unit("year", "years", "yr")
MONTH = Unit("month", "months", "mo")
YARD = Unit("yard", "yards", "yd")
FOOT = Unit("foot", "feet", "ft")
INCH = Unit("inch", "inches", "inch")
POUND = Unit("pound", "pounds", "lb")
OUNCE = Unit("ounce", "ounces", "oz")
DOZEN = Unit("dozen", "dozens", "doz")
PIECE = Unit("piece", "pieces", "pcs")
EURO = Unit("euro", "euros", "EUR")
CENT = Unit("cent", "cents", "ct")

SCALES = (
    Scale(KILOMETRE, METRE, 1000, "longer"),
    Scale(METRE, CENTIMETRE, 100, "longer"),
    Scale(CENTIMETRE, MILLIMETRE, 10, "longer"),
    Scale(TONNE, KILOGRAM, 1000, "heavier"),
    Scale(KILOGRAM, GRAM, 1000, "heavier"),
    Scale(GRAM, MILLIGRAM, 1000, "heavier"),
    Scale(LITRE, MILLILITRE, 1000, "more"),
    Scale(LITRE, DECILITRE, 10, "more"),
    Scale(WEEK, DAY, 7, "longer"),
    Scale(DAY, HOUR, 24, "longer"),
    Scale(HOUR, MINUTE, 60, "longer"),
    Scale(MINUTE, SECOND, 60, "longer"),
    Scale(YEAR, MONTH, 12, "longer"),
    Scale(YARD, FOOT, 3, "longer"),
    Scale(FOOT, INCH, 12, "longer"),
    Scale(POUND, OUNCE, 16, "heavier"),
    Scale(DOZEN, PIECE, 12, "more"),
    Scale(EURO, CENT, 100, "more"),
)

CONVERSIONS = (
    "How many {many} are there in {amount}?",
    "How many {many} are in {amount}?",
    "How many {many} is {amount}?",
    "Convert {amount} to {many}.",
    "Change {amount} into {many}.",
    "What is {amount} in {many}?",
    "Express {amount} in {many}.",
    "{amount} in {many}?",
    "Please convert {amount} into {many}.",
    "{amount} = ? {many}",
)
SUMS = (
    "How many {many} are {amount} and {rest}?",
    "Convert {amount} and {rest} to {many}.",
    "What is {amount} and {rest} in {many}?",
    "{amount} and {rest} is how many {many}?",
    "Something takes up {amount} and {rest}. Give that in {many}.",
)
COMPARISONS = (
    "Which is {more}, {first} or {second}?",
    "Which one is {more}: {first} or {second}?",
    "Compare {first} and {second}. Which is {more}?",
    "Is {first} or {second} {more}?",
)
TEMPERATURES = (
    "Convert {a} degrees {first} to {second}.",
    "What is {a} degrees {first} in {second}?",
    "How much is {a} degrees {first} in {second}?",
    "Change {a} degrees {first} into {second}.",
    "It is {a} degrees {first}. What is that in {second}?",
)


def generate(rng: random.Random) -> Conversation:
    """One question about two units of the same kind."""
    return rng.choices(VARIANTS, VARIANT_WEIGHTS)[0](rng)


def _count(rng: random.Random, factor: int) -> int:
    """How many of the large unit; one digit where a second would make the product long."""
    is_long = factor in (12, 16, 24)
    return rng.randrange(1, 10) if is_long or rng.random() < 0.5 else rng.randrange(10, 100)


def _conversion(rng: random.Random) -> Conversation:
    scale = rng.choice(SCALES)
    factor, count = scale.factor, _count(rng, scale.factor)
    sides = (scale.large, count), (scale.small, count * factor)
    (source, given), (target, result) = sides if rng.random() < 0.55 else reversed(sides)
    steps = multiplied(given, factor) if source is scale.large else divided(given, factor)
    if rng.random() < 0.25:
        asked = phrase(rng, CONVERSIONS, many=target.short, amount=f"{given} {source.short}")
    else:
        asked = phrase(rng, CONVERSIONS, many=target.many, amount=source.counted(given))
    return question(SKILL, asked, f"{scale.fact} {steps}", f"{source.counted(given)} = {target.counted(result)}")


def _sum(rng: random.Random) -> Conversation:
    """So much of the large unit and some of the small."""
    scale = rng.choice(SCALES)
    count, rest = rng.randrange(1, 10), rng.randrange(1, scale.factor)
    factor, total = scale.factor, count * scale.factor
    amount, rest_amount = scale.large.counted(count), scale.small.counted(rest)
    asked = phrase(rng, SUMS, many=scale.small.many, amount=amount, rest=rest_amount)
    if factor in (10, 100, 1000):
        steps = f"{count}, then {rest:0{len(str(factor)) - 1}}, so {total + rest}."
    else:
        steps = f"{multiplied(count, factor)} {added(total, rest)}"
    reasoning = f"{scale.fact} {steps}"
    return question(SKILL, asked, reasoning, f"{amount} and {rest_amount} = {scale.small.counted(total + rest)}")


def _comparison(rng: random.Random) -> Conversation:
    scale = rng.choice(SCALES)
    count = rng.randrange(1, 10)
    total = count * scale.factor
    other = total
    while other == total:
        other = rng.randrange(max(2, total // 2), 2 * total)
    pair = [scale.large.counted(count), scale.small.counted(other)]
    chosen = pair[0] if total > other else pair[1]
    rng.shuffle(pair)
    asked = phrase(rng, COMPARISONS, more=scale.more, first=pair[0], second=pair[1])
    reasoning = f"{scale.fact} {multiplied(count, scale.factor)} {compared(total, other)}"
    return question(SKILL, asked, reasoning, f"{chosen} is {scale.more}.")


def _temperature(rng: random.Random) -> Conversation:
    fifths = rng.randrange(1, 21)
    celsius, ninefold = 5 * fifths, 9 * fifths
    fahrenheit = ninefold + 32
    if rng.random() < 0.5:
        asked = phrase(rng, TEMPERATURES, a=celsius, first="Celsius", second="Fahrenheit")
        reasoning = (
            f"Divide by 5, times 9, plus 32. {divided(celsius, 5)} {multiplied(fifths, 9)} {added(ninefold, 32)}"
        )
        return question(SKILL, asked, reasoning, f"{celsius} degrees Celsius = {fahrenheit} degrees Fahrenheit")
    asked = phrase(rng, TEMPERATURES, a=fahrenheit, first="Fahrenheit", second="Celsius")
    reasoning = (
        f"Minus 32, divide by 9, times 5. {subtracted(fahrenheit, 32)} {divided(ninefold, 9)} {multiplied(fifths, 5)}"
    )
    return question(SKILL, asked, reasoning, f"{fahrenheit} degrees Fahrenheit = {celsius} degrees Celsius")


VARIANTS: tuple[Callable[[random.Random], Conversation], ...] = (_conversion, _sum, _comparison, _temperature)
VARIANT_WEIGHTS = (72, 13, 11, 4)
