"""Questions of the calendar and the clock: weekdays, months, dates in two formats, times of day."""

from __future__ import annotations

import calendar
import datetime
import random
from collections.abc import Callable

from ops.nano.data.arithmetic import added, divided, order, phrase, subtracted
from ops.nano.data.conversation import Conversation, question
from ops.nano.data.words import DAYS

SKILL = "dates"

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
MAX_SHIFT_DAYS = 28  # so that a shift passes one month's end at most

DAYS_AFTER = (
    "What day is {n} days after {day}?",
    "If today is {day}, what day is it in {n} days?",
    "Today is {day}. Which weekday is it {n} days from now?",
    "Which weekday comes {n} days after {day}?",
    "It is {day}. What day will it be in {n} days?",
    "{n} days after {day} is what day?",
)
DAYS_BEFORE = (
    "What day is {n} days before {day}?",
    "If today is {day}, what day was it {n} days ago?",
    "Today is {day}. Which weekday was it {n} days ago?",
    "Which weekday comes {n} days before {day}?",
    "{n} days before {day} is what day?",
)
DATES_AFTER = (
    "What date is {n} days after {date}?",
    "Today is {date}. What is the date in {n} days?",
    "Which date comes {n} days after {date}?",
    "Add {n} days to {date}.",
    "Start at {date} and go forward {n} days. Which date is that?",
    "A parcel sent on {date} takes {n} days. On which date does it arrive?",
)
DATES_BEFORE = (
    "What date is {n} days before {date}?",
    "Today is {date}. What was the date {n} days ago?",
    "Which date comes {n} days before {date}?",
    "Subtract {n} days from {date}.",
    "Start at {date} and go back {n} days. Which date is that?",
)
SPANS = (
    "How many days are there from {first} to {second}?",
    "How many days lie between {first} and {second}?",
    "Count the days from {first} to {second}.",
    "A trip starts on {first} and ends on {second}. How many days later is that?",
    "How long is it from {first} to {second} in days?",
    "Today is {first}. How many days is it until {second}?",
)
LEAP_YEARS = (
    "Is {year} a leap year?",
    "Was {year} a leap year or not?",
    "Tell me whether {year} is a leap year.",
    "Does February {year} have 29 days?",
    "Check if the year {year} is a leap year.",
)
MONTH_NAMES = (
    "Which month is number {n}?",
    "What is month {n} called?",
    "Name month number {n}.",
    "Month {n} is which?",
)
MONTH_NUMBERS = (
    "What number is {month}?",
    "Which number does {month} have in the year?",
    "Give the month number of {month}.",
    "{month} is month number what?",
)
NEIGHBOURS = (
    "Which {kind} comes {side} {name}?",
    "What {kind} is right {side} {name}?",
    "Name the {kind} {side} {name}.",
)
MONTH_LENGTHS = (
    "How many days does {month} have?",
    "How many days are in {month}?",
    "What is the number of days in {month}?",
    "How long is {month} in days?",
    "Tell me how many days {month} has.",
)
TO_ISO = (
    "Write {date} as an ISO date.",
    "Write {date} in the form YYYY-MM-DD.",
    "What is {date} in ISO format?",
    "Convert {date} to ISO format.",
    "{date} as YYYY-MM-DD?",
)
FROM_ISO = (
    "Write {date} with the month's name.",
    "Which date is {date} in words?",
    "Spell out the date {date}.",
    "Write the ISO date {date} in long form.",
    "{date} in long form?",
)
TIMES_AFTER = (
    "What time is it {amount} after {time}?",
    "It is {time}. What time is it in {amount}?",
    "Add {amount} to {time}.",
    "A film starts at {time} and lasts {amount}. When does it end?",
    "The train leaves at {time} and takes {amount}. When does it arrive?",
    "{time} plus {amount}?",
)
DURATIONS = (
    "How long is it from {first} to {second}?",
    "A shop opens at {first} and closes at {second}. How long is it open?",
    "How much time passes between {first} and {second}?",
    "The bus leaves at {first} and arrives at {second}. How long does it take?",
    "A lesson lasts from {first} until {second}. How long is that?",
)


def generate(rng: random.Random) -> Conversation:
    """One question whose answer the calendar or the clock gives."""
    return rng.choices(VARIANTS, VARIANT_WEIGHTS)[0](rng)


def _shift_weekday(rng: random.Random) -> Conversation:
    n = rng.randrange(2, 7) if rng.random() < 0.45 else rng.randrange(7, 31)
    start, sign = rng.randrange(7), rng.choice((1, 1, -1))
    asked = phrase(rng, DAYS_AFTER if sign > 0 else DAYS_BEFORE, n=n, day=DAYS[start])
    weeks = f"{divided(n, 7)} Remainder {n % 7}. " if n > 6 else ""
    counted = ", ".join(f"{i} {DAYS[(start + sign * i) % 7]}" for i in range(n % 7 + 1))
    return question(SKILL, asked, f"{weeks}Count: {counted}.", f"It is {DAYS[(start + sign * n) % 7]}.")


def _written(date: datetime.date, form: str) -> str:
    """form: "iso", "long" or "short", which is without the year."""
    if form == "iso":
        return date.isoformat()
    return f"{MONTHS[date.month - 1]} {date.day}" + (f", {date.year}" if form == "long" else "")


def _length(year: int, month: int) -> int:
    return calendar.monthrange(year, month)[1]


def _length_steps(date: datetime.date) -> str:
    """How many days the date's month has; for February, why."""
    length, month = _length(date.year, date.month), MONTHS[date.month - 1]
    leap = f"{date.year} is {'a' if length == 29 else 'not a'} leap year. " if date.month == 2 else ""
    return f"{leap}{month} has {length} days."


def _any_date(rng: random.Random) -> datetime.date:
    year, month = rng.randrange(1980, 2050), rng.randrange(1, 13)
    return datetime.date(year, month, rng.randrange(1, _length(year, month) + 1))


def _shifted(rng: random.Random, sign: int) -> tuple[datetime.date, datetime.date, str]:
    """A date, the one some days after it (before, for sign -1), and a form that makes both certain: without a year,
    neither is in February."""
    while True:
        date = _any_date(rng)
        n = rng.randrange(2, 10) if rng.random() < 0.65 else rng.randrange(10, MAX_SHIFT_DAYS + 1)
        end = date + datetime.timedelta(days=sign * n)
        form = rng.choice(("iso", "long", "short"))
        if form != "short" or 2 not in (date.month, end.month):
            return date, end, form


def _opening(date: datetime.date, form: str) -> str:
    return f"Month {date.isoformat()[5:7]} is {MONTHS[date.month - 1]}. " if form == "iso" else ""


def _moved(start: datetime.date, end: datetime.date, form: str) -> str:
    """What the month of `end` is called and, where the form needs it, its number and its year."""
    if end.month == start.month:
        return ""
    side, month = "Next" if end > start else "Previous", MONTHS[end.month - 1]
    year = f" {end.year}" if form != "short" else ""
    number = f" {month} is {end.isoformat()[5:7]}." if form == "iso" else ""
    return f" {side} month: {month}{year}.{number}"


def _date_after(rng: random.Random) -> Conversation:
    start, end, form = _shifted(rng, 1)
    n = (end - start).days
    length, total = _length(start.year, start.month), start.day + n
    steps = f"{_length_steps(start)} {added(start.day, n)} {order(total, length)}."
    if total > length:
        steps += f" {subtracted(total, length)}"
    asked = phrase(rng, DATES_AFTER, n=n, date=_written(start, form))
    reasoning = f"{_opening(start, form)}{steps}{_moved(start, end, form)} So {_written(end, form)}."
    return question(SKILL, asked, reasoning, f"It is {_written(end, form)}.")


def _date_before(rng: random.Random) -> Conversation:
    start, end, form = _shifted(rng, -1)
    n = (start - end).days
    steps = f"{order(start.day, n)}."
    if start.day > n:
        steps += f" {subtracted(start.day, n)}"
    else:
        length = _length(end.year, end.month)
        steps += f"{_moved(start, end, form)} {_length_steps(end)}"
        steps += f" {added(start.day, length)} {subtracted(start.day + length, n)}"
    asked = phrase(rng, DATES_BEFORE, n=n, date=_written(start, form))
    reasoning = f"{_opening(start, form)}{steps} So {_written(end, form)}."
    return question(SKILL, asked, reasoning, f"It is {_written(end, form)}.")


def _span(rng: random.Random) -> Conversation:
    start, end, form = _shifted(rng, 1)
    if start.month == end.month:
        steps = f"Same month. {subtracted(end.day, start.day)}"
    else:
        length = _length(start.year, start.month)
        left = length - start.day
        steps = f"Next month. {_length_steps(start)} {subtracted(length, start.day)} {added(left, end.day)}"
    n = (end - start).days
    asked = phrase(rng, SPANS, first=_written(start, form), second=_written(end, form))
    return question(SKILL, asked, f"{_opening(start, form)}{steps}", f"{n} day" if n == 1 else f"{n} days")


def _leap_year(rng: random.Random) -> Conversation:
    is_century = rng.random() < 0.2
    year = 100 * rng.randrange(15, 26) if is_century else rng.randrange(1900, 2101)
    century, rest = divmod(year, 100)
    tested = rest or century
    found = f"{divided(tested, 4)} Remainder {tested % 4}."
    ends = f"{year} ends in {rest:02}." + ("" if rest else f" Take {century}.")
    answer = f"Yes, {year} is a leap year." if calendar.isleap(year) else f"No, {year} is not a leap year."
    return question(SKILL, phrase(rng, LEAP_YEARS, year=year), f"{ends} {found}", answer)


def _month_number(rng: random.Random) -> Conversation:
    n = rng.randrange(1, 13)
    month = MONTHS[n - 1]
    if rng.random() < 0.5:
        reasoning, answer = f"Number {n} is {month}.", f"Month {n} is {month}."
        return question(SKILL, phrase(rng, MONTH_NAMES, n=n), reasoning, answer)
    reasoning, answer = f"{month} is number {n}.", f"{month} is month {n}."
    return question(SKILL, phrase(rng, MONTH_NUMBERS, month=month), reasoning, answer)


def _neighbour(rng: random.Random) -> Conversation:
    kind, names = rng.choice((("month", MONTHS), ("day", DAYS)))
    i, (side, sign) = rng.randrange(len(names)), rng.choice((("after", 1), ("before", -1)))
    found = names[(i + sign) % len(names)]
    asked = phrase(rng, NEIGHBOURS, kind=kind, side=side, name=names[i])
    return question(SKILL, asked, f"The {kind} {side} {names[i]} is {found}.", f"It is {found}.")


def _month_length(rng: random.Random) -> Conversation:
    date = _any_date(rng)
    is_dated = date.month == 2 or rng.random() < 0.3
    month = MONTHS[date.month - 1] + (f" {date.year}" if is_dated else "")
    answer = f"{month} has {_length(date.year, date.month)} days."
    return question(SKILL, phrase(rng, MONTH_LENGTHS, month=month), _length_steps(date), answer)


def _rewriting(rng: random.Random) -> Conversation:
    date = _any_date(rng)
    iso, long, month = date.isoformat(), _written(date, "long"), MONTHS[date.month - 1]
    if rng.random() < 0.6:
        reasoning = f"Year {date.year}. {month} is {iso[5:7]}. Day {iso[8:]}."
        return question(SKILL, phrase(rng, TO_ISO, date=long), reasoning, iso)
    reasoning = f"Month {iso[5:7]} is {month}. Day {date.day}. Year {date.year}."
    return question(SKILL, phrase(rng, FROM_ISO, date=iso), reasoning, long)


def _time(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def _amount(hours: int, minutes: int) -> str:
    parts = [(hours, "hour"), (minutes, "minute")]
    return " and ".join(f"{count} {name}{'s' if count > 1 else ''}" for count, name in parts if count)


def _time_after(rng: random.Random) -> Conversation:
    start = rng.randrange(24 * 60)
    hours, minutes = rng.choices(((0, 1), (1, 0), (1, 1)), (6, 2, 2))[0]
    hours, minutes = (
        hours * rng.randrange(1, 10),
        minutes * rng.choice((rng.randrange(1, 60), 5 * rng.randrange(1, 12))),
    )
    end = (start + 60 * hours + minutes) % (24 * 60)
    hour, steps = start // 60, []
    if minutes:
        total = start % 60 + minutes
        steps += ["Minutes.", added(start % 60, minutes), f"{order(total, 60)}."]
        if total >= 60:
            hour += 1
            steps.append(f"{total}-60={total - 60}. One hour more, {hour}.")
    if hours:
        steps += ["Hours.", added(hour, hours)]
    if hour + hours >= 24:
        steps.append(f"{hour + hours}-24={hour + hours - 24}.")
    asked = phrase(rng, TIMES_AFTER, time=_time(start), amount=_amount(hours, minutes))
    return question(SKILL, asked, f"{' '.join(steps)} So {_time(end)}.", f"It is {_time(end)}.")


def _duration(rng: random.Random) -> Conversation:
    first, second = sorted(rng.sample(range(0, 24 * 60, rng.choice((1, 5))), 2))
    hour, minute = divmod(second, 60)
    steps = [f"{order(minute, first % 60)}."]
    if minute < first % 60:
        steps.append(f"{minute}+60={minute + 60}. One hour less, {hour - 1}.")
        hour, minute = hour - 1, minute + 60
    steps += ["Minutes.", subtracted(minute, first % 60), "Hours.", subtracted(hour, first // 60)]
    hours, minutes = divmod(second - first, 60)
    asked = phrase(rng, DURATIONS, first=_time(first), second=_time(second))
    return question(SKILL, asked, " ".join(steps), f"{hours} h {minutes} min")


VARIANTS: tuple[Callable[[random.Random], Conversation], ...] = (
    _shift_weekday,
    _date_after,
    _date_before,
    _span,
    _leap_year,
    _month_number,
    _neighbour,
    _month_length,
    _rewriting,
    _time_after,
    _duration,
)
VARIANT_WEIGHTS = (18, 16, 8, 11, 8, 4, 3, 6, 9, 11, 4)
