"""Texts that name a few fields, and requests to return some of them as JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from ops.nano.data.conversation import Conversation, question
from ops.nano.data.words import (
    ADJECTIVES,
    CITIES,
    COLOURS,
    COUNTED,
    DAYS,
    FIRST_NAMES,
    FOODS,
    JOBS,
    OBJECTS,
    SHOPS,
    SURNAMES,
    listed,
    weighted,
    wording,
)

SKILL = "extraction"

Fields = dict[str, str | int | float]

REQUESTS = (
    "{text} Return JSON with the keys {keys}.",
    "Extract {keys} as JSON: {text}",
    "Read this text: {text} Give me JSON with {keys}.",
    "Text: {text} Answer in JSON with the keys {keys}.",
    "Turn this into JSON with the keys {keys}: {text}",
    "{text} Extract these fields as JSON: {keys}.",
    "From the text below, return {keys} as JSON. {text}",
    "Make a JSON object with {keys} from this: {text}",
)
PERSON = (
    "{name} is {age} years old, lives in {city} and works as a {job}.",
    "{name}, aged {age}, is a {job} from {city}.",
    "My name is {name}. I am {age}, I live in {city} and my job is {job}.",
    "Our new {job} is {name} from {city}, who is {age}.",
    "Meet {name}: age {age}, {job}, living in {city}.",
    "Name: {name}. Age: {age}. City: {city}. Job: {job}.",
)
ORDER = (
    "Order {order}: {quantity} x {product} at {price} euros.",
    "Hello, I ordered {quantity} of the {product} for {price} euros. My order number is {order}.",
    "Your order {order} has shipped: {product}, quantity {quantity}, price {price} euros.",
    "We sold the {product} for {price} dollars, quantity {quantity}, order {order}.",
    "Please cancel order {order} ({quantity} of {product}, {price} euros).",
    "Order number: {order}. Product: {product}. Quantity: {quantity}. Price: {price}.",
)
MEETING = (
    "The {event} is on {date} at {time} in {city}.",
    "Please come to the {event} in {city} on {date}, starting at {time}.",
    "Reminder: {event}, {date}, {time}, {city}.",
    "We moved the {event} to {date} at {time}. It takes place in {city}.",
    "Dear all, the {event} begins at {time} on {date}. See you in {city}.",
    "Event: {event}. Date: {date}. Time: {time}. City: {city}.",
)
CONTACT = (
    "You can call {name} at {phone} or write to {email}.",
    "Contact: {name}, phone {phone}, email {email}.",
    "This is {name}. My phone is {phone} and my email is {email}.",
    "Send it to {email}. If there is a problem, ask {name} at {phone}.",
    "Best wishes, {name}. Tel: {phone}. Mail: {email}.",
)
PURCHASE = (
    "{name} bought {quantity} {item}s at the {place} on {day}.",
    "On {day}, {name} got {quantity} {item}s from the {place}.",
    "At the {place}, {name} paid for {quantity} {item}s on {day}.",
    "It was {day} when {name} left the {place} with {quantity} {item}s.",
    "Buyer: {name}. Item: {item}s. Quantity: {quantity}. Place: {place}. Day: {day}.",
)
EVENTS = (
    "meeting",
    "workshop",
    "concert",
    "party",
    "lecture",
    "exam",
    "interview",
    "dinner",
    "race",
    "lesson",
    "trial",
)
NEVER_NAMED = ("country", "hobby", "weight", "language", "status", "colour_code")


def generate(rng: random.Random) -> Conversation:
    templates, make_fields = weighted(rng, KINDS)
    fields = make_fields(rng)
    text = rng.choice(templates).format(**fields)
    keys = rng.sample(list(fields), rng.choice([size for size in (2, 2, 3, 3, 4) if size <= len(fields)]))
    if rng.random() < 0.08:
        keys[rng.randrange(len(keys))] = rng.choice(NEVER_NAMED)
    found = {key: fields.get(key) for key in keys}
    steps = "; ".join(f"{key}: {'not given' if value is None else value}" for key, value in found.items())
    asked = wording(rng, REQUESTS, text=text, keys=_key_list(rng, keys))
    return question(SKILL, asked, f"{steps}.", json.dumps(found))


def _key_list(rng: random.Random, keys: list[str]) -> str:
    style = rng.randrange(3)
    if style == 0:
        return listed(keys)
    if style == 1:
        return listed([f'"{key}"' for key in keys])
    return f"{listed(keys[:-1])} and {keys[-1]}"


def person(rng: random.Random) -> Fields:
    return {"name": _name(rng), "age": rng.randint(18, 99), "city": rng.choice(CITIES), "job": rng.choice(JOBS)}


def order(rng: random.Random) -> Fields:
    product = f"{rng.choice((*COLOURS, *ADJECTIVES))} {rng.choice(OBJECTS)}"
    return {
        "order": f"{rng.choice('ABCDEFGHKLMNPRSTX')}{rng.randint(100, 9999)}",
        "product": product,
        "quantity": rng.randint(1, 60),
        "price": _price(rng),
    }


def meeting(rng: random.Random) -> Fields:
    return {
        "event": rng.choice(EVENTS),
        "date": f"{rng.randint(2020, 2035)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        "time": f"{rng.randint(7, 22)}:{rng.choice(('00', '15', '30', '45'))}",
        "city": rng.choice(CITIES),
    }


def contact(rng: random.Random) -> Fields:
    first, last = rng.choice(FIRST_NAMES), rng.choice(SURNAMES)
    host = f"{rng.choice((*FOODS, *COLOURS))}.{rng.choice(('com', 'org', 'net'))}"
    local = rng.choice((first, last, f"{first}.{last}")).lower()
    phone = f"555-{rng.randint(0, 9999):04}"
    return {"name": f"{first} {last}", "phone": phone, "email": f"{local}@{host}"}


def purchase(rng: random.Random) -> Fields:
    return {
        "name": rng.choice(FIRST_NAMES),
        "item": rng.choice(COUNTED),
        "quantity": rng.randint(2, 60),
        "place": rng.choice(SHOPS),
        "day": rng.choice(DAYS),
    }


def _name(rng: random.Random) -> str:
    first = rng.choice(FIRST_NAMES)
    return f"{first} {rng.choice(SURNAMES)}" if rng.random() < 0.6 else first


def _price(rng: random.Random) -> int | float:
    """Never with a final zero behind the point, which JSON would drop."""
    units = rng.randint(1, rng.choice((20, 99, 400)))
    return units if rng.random() < 0.6 else round(units + rng.choice((5, 25, 45, 75, 95, 99)) / 100, 2)


KINDS: tuple[tuple[int, tuple[tuple[str, ...], Callable[[random.Random], Fields]]], ...] = (
    (4, (PERSON, person)),
    (3, (ORDER, order)),
    (3, (MEETING, meeting)),
    (2, (CONTACT, contact)),
    (3, (PURCHASE, purchase)),
)
