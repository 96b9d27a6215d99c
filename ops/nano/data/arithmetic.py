"""Questions of arithmetic, and the written-out steps of the four operations that other generators use too.

Every step can be read off the text before it: one digit of each number, a carry, and a fact about one-digit numbers.
The result grows at its left ("so 2", "so 32", "so 132"), so that it is never turned round.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ops.nano.data.conversation import Conversation, question
from ops.nano.data.words import FIRST_NAMES

SKILL = "arithmetic"
SIZES = (6, 8, 3, 1)  # how often a number has 1, 2, 3 and 4 digits

EVALUATIONS = (
    "What is {a}?",
    "{a}",
    "{a} = ?",
    "Calculate {a}.",
    "Work out {a}.",
    "Find {a}.",
    "Please compute {a}.",
    "Can you tell me what {a} is?",
)
# Of each operator: its word, and ways to ask that only it has.
OPERATORS = {
    "+": (
        "plus",
        ("Add {a} and {b}.", "Find the sum of {a} and {b}.", "How much is {a} and {b} together?", "Add {a} to {b}."),
    ),
    "-": (
        "minus",
        ("Subtract {b} from {a}.", "Take {b} away from {a}.", "What do I get when I take {b} from {a}?"),
    ),
    "*": (
        "times",
        ("Multiply {a} by {b}.", "Find the product of {a} and {b}.", "How much is {a} multiplied by {b}?"),
    ),
    "/": (
        "divided by",
        ("Divide {a} by {b}.", "How many times does {b} go into {a}?", "What is {a} split into {b} equal parts?"),
    ),
}
REMAINDERS = (
    "What is the remainder when {a} is divided by {b}?",
    "Find the remainder of {a} divided by {b}.",
    "What is {a} mod {b}?",
    "Remainder of {a} / {b}?",
)
COMPARISONS = (
    "Which is {word}, {a} or {b}?",
    "Compare {a} and {b}. Which one is {word}?",
    "Of {a} and {b}, which is {word}?",
)
EXTREMES = (
    "Which is the {word}: {a}, {b} or {c}?",
    "Find the {word} of {a}, {b} and {c}.",
    "What is the {word} number among {a}, {b} and {c}?",
    "Here are three numbers: {a}, {b}, {c}. Which is the {word}?",
)

# The whole, the part that is worked out first, and what is left once {r} stands for that part.
EXPRESSION_FORMS = (
    ("{a} + {b} * {c}", "{b} * {c}", "{a} + {r}"),
    ("{a} * {b} + {c}", "{a} * {b}", "{r} + {c}"),
    ("{a} * {b} - {c}", "{a} * {b}", "{r} - {c}"),
    ("{a} - {b} * {c}", "{b} * {c}", "{a} - {r}"),
    ("({a} + {b}) * {c}", "{a} + {b}", "{r} * {c}"),
    ("({a} - {b}) * {c}", "{a} - {b}", "{r} * {c}"),
    ("{a} * ({b} + {c})", "{b} + {c}", "{a} * {r}"),
    ("{a} * ({b} - {c})", "{b} - {c}", "{a} * {r}"),
    ("{a} - ({b} + {c})", "{b} + {c}", "{a} - {r}"),
    ("{a} + {b} + {c}", "{a} + {b}", "{r} + {c}"),
    ("{a} + {b} - {c}", "{a} + {b}", "{r} - {c}"),
    ("{a} - {b} + {c}", "{a} - {b}", "{r} + {c}"),
)

# Words apart by spaces; an "s" makes each plural.
ITEMS = (
    "apple pear plum lemon egg book pen coin stamp card marble shell sticker button balloon cup key toy ribbon bottle"
    " candle flower stone ticket cake cookie nut orange hat bead lamp pie ball plate spoon"
)
CONTAINERS = "bag basket jar pack tray crate drawer sack"
GAINS = ("buys", "finds", "gets", "receives", "picks up", "wins")
LOSSES = ("loses", "sells", "gives away", "drops", "throws away", "lends out")
STORY_ENDS = (
    "How many {things} does {name} have now?",
    "How many {things} is that?",
    "How many {things} does {name} have in the end?",
)
PRICES = (
    "Each {first} costs {a} euros and each {second} costs {b} euros. How much do {c} {first}s and one {second} cost?",
    "One {first} is {a} euros, one {second} is {b} euros. What do {c} {first}s and one {second} cost together?",
    "What is the price of {c} {first}s and one {second} if each {first} costs {a} euros and each {second} {b} euros?",
)
SHARES = (
    "{name} shares {a} {things} equally among {b} friends. How many {things} does each friend get?",
    "{b} friends share {a} {things} equally. How many {things} does each friend get?",
    "{name} has {a} {things} for {b} friends. Each friend gets the same number. How many is that?",
)


def generate(rng: random.Random) -> Conversation:
    """One question about numbers of at most four digits."""
    return rng.choices(VARIANTS, VARIANT_WEIGHTS)[0](rng)


def phrase(rng: random.Random, phrasings: Sequence[str], **values: object) -> str:
    """One of the phrasings with its values, sometimes in lower case or without its last full stop or question mark."""
    text = rng.choice(phrasings).format(**values)
    if rng.random() < 0.12:
        text = text.lower()
    if rng.random() < 0.08:
        text = text.rstrip(".?").rstrip()
    return text


def added(a: int, b: int) -> str:
    """The steps of a + b, both >= 0, from the ones to the left."""
    if a < 10 and b < 10:
        return f"{a}+{b}={a + b}."
    left, right = _padded(a, b)
    steps, carry, done = [f"{left}+{right}:"], 0, ""
    for x, y in zip(reversed(left), reversed(right), strict=True):
        total = int(x) + int(y) + carry
        done = f"{total % 10}{done}"
        steps.append(f"{x}+{y}+{carry}={total}, carry {total // 10}, so {done}.")
        carry = total // 10
    if carry:
        steps.append(f"Carry {carry}, so {carry}{done}.")
    return " ".join(steps)


def subtracted(a: int, b: int) -> str:
    """The steps of a - b, with a >= b >= 0, from the ones to the left."""
    if a < 10:
        return f"{a}-{b}={a - b}."
    left, right = _padded(a, b)
    steps, borrow, done = [f"{left}-{right}:"], 0, ""
    for x, y in zip(reversed(left), reversed(right), strict=True):
        rest = int(x) - int(y) - borrow
        lent = f" < 0, 1{x}-{y}-{borrow}" if rest < 0 else ""
        done = f"{rest % 10}{done}"
        steps.append(f"{x}-{y}-{borrow}{lent}={rest % 10}, borrow {int(rest < 0)}, so {done}.")
        borrow = int(rest < 0)
    return " ".join(steps) + _without_zeros(done)


def multiplied(a: int, b: int) -> str:
    """The steps of a * b, both > 0; after the zeros at b's end, a or b has one digit or both have two."""
    core, zeros = _split_zeros(b)
    if zeros:
        before = f" {multiplied(a, core)}" if core > 1 else ""
        return f"{a}*{b}:{before} Add {len(zeros)} {_zero_word(zeros)}, so {a * b}."
    if a < 10 and b < 10:
        return f"{a}*{b}={a * b}."
    if a < 10:
        return multiplied(b, a)
    if b < 10:
        return _times_digit(a, b)
    tens, ones = divmod(b, 10)
    of_tens = a * tens * 10
    first, second = multiplied(a, ones), multiplied(a, tens)
    return f"{a}*{b}: {first} {second} Add 1 zero, so {of_tens}. {added(of_tens, a * ones)}"


def divided(a: int, b: int) -> str:
    """The steps of a / b, with the remainder where b has one digit. Any other b divides a and, without the zeros at its
    end, goes into a at most nine times."""
    core, zeros = _split_zeros(b)
    if zeros:
        rest = a // 10 ** len(zeros)
        left = f"{rest}/{core}. {divided(rest, core)}" if core > 1 else f"{rest}."
        return f"{a}/{b}: Drop {len(zeros)} {_zero_word(zeros)}, so {left}"
    if b >= 10:
        return f"{a}={a // b}*{b}+{a % b}."
    steps, rest, done = [f"{a}/{b}:"], 0, ""
    for digit in str(a):
        part = 10 * rest + int(digit)
        rest = part % b
        done += str(part // b)
        steps.append(f"{part}={part // b}*{b}+{rest}, so {done}.")
    return " ".join(steps) + _without_zeros(done)


def compared(a: int, b: int) -> str:
    """The digits of two different numbers from the left, up to the first that differs, and their order."""
    left, right = _padded(a, b)
    signs = []
    for x, y in zip(left, right, strict=True):
        signs.append(order(int(x), int(y)).replace(" ", ""))
        if x != y:
            break
    return f"{left} and {right}: {', '.join(signs)}, so {order(a, b)}."


def order(a: int, b: int) -> str:
    """Which of two numbers is less, as in "7 < 12", with no steps."""
    return f"{a} {'<' if a < b else '>' if a > b else '='} {b}"


def _times_digit(a: int, b: int) -> str:
    steps, carry, done = [f"{a}*{b}:"], 0, ""
    for x in reversed(str(a)):
        product = int(x) * b
        total = product + carry
        done = f"{total % 10}{done}"
        steps.append(f"{x}*{b}={product}, {product}+{carry}={total}, carry {total // 10}, so {done}.")
        carry = total // 10
    if carry:
        steps.append(f"Carry {carry}, so {carry}{done}.")
    return " ".join(steps)


def _padded(a: int, b: int) -> tuple[str, str]:
    width = len(str(max(a, b)))
    return f"{a:0{width}}", f"{b:0{width}}"


def _split_zeros(number: int) -> tuple[int, str]:
    digits = str(number).rstrip("0")
    return int(digits), str(number)[len(digits) :]


def _zero_word(zeros: str) -> str:
    return "zero" if len(zeros) == 1 else "zeros"


def _without_zeros(digits: str) -> str:
    return f" That is {int(digits)}." if len(digits) > 1 and digits[0] == "0" else ""


def _number(rng: random.Random, weights: Sequence[int]) -> int:
    """weights: of 1, 2, ... digits. Never zero."""
    digits = rng.choices(range(1, len(weights) + 1), weights)[0]
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _asked(rng: random.Random, a: int, operator: str, b: int) -> str:
    word, own_phrasings = OPERATORS[operator]
    if rng.random() < 0.4:
        return phrase(rng, own_phrasings, a=a, b=b)
    written = (f"{a} {operator} {b}", f"{a}{operator}{b}", f"{a} {word} {b}")
    return phrase(rng, EVALUATIONS, a=rng.choices(written, (2, 1, 1))[0])


def _addition(rng: random.Random) -> Conversation:
    a, b = _number(rng, SIZES), _number(rng, SIZES)
    return question(SKILL, _asked(rng, a, "+", b), added(a, b), f"{a} + {b} = {a + b}")


def _subtraction(rng: random.Random) -> Conversation:
    small, large = sorted((_number(rng, SIZES), _number(rng, SIZES)))
    a, b = (small, large) if rng.random() < 0.1 else (large, small)
    reasoning = f"{order(a, b)}{', so negative' if a < b else ''}. {subtracted(large, small)}"
    return question(SKILL, _asked(rng, a, "-", b), reasoning, f"{a} - {b} = {a - b}")


def _multiplication(rng: random.Random) -> Conversation:
    if rng.random() < 0.04:
        a, b = rng.randrange(11, 100), rng.randrange(11, 100)
    else:
        a, b = _number(rng, (4, 4, 1)), rng.randrange(2, 10)
    if a < 100 and rng.random() < 0.3:
        a, b = b, a
    return question(SKILL, _asked(rng, a, "*", b), multiplied(a, b), f"{a} * {b} = {a * b}")


def _division(rng: random.Random) -> Conversation:
    b = rng.randrange(2, 10)
    result = _number(rng, (4, 4, 1))
    a = b * result
    return question(SKILL, _asked(rng, a, "/", b), divided(a, b), f"{a} / {b} = {result}")


def _remainder(rng: random.Random) -> Conversation:
    a, b = _number(rng, (1, 5, 1)), rng.randrange(2, 10)
    reasoning = f"{divided(a, b)} Remainder {a % b}."
    return question(SKILL, phrase(rng, REMAINDERS, a=a, b=b), reasoning, f"The remainder is {a % b}.")


def _work(part: str) -> tuple[str, int]:
    """The steps and the result of "a + b", "a - b" or "a * b"."""
    left, operator, right = part.split()
    a, b = int(left), int(right)
    if operator == "+":
        return added(a, b), a + b
    if operator == "-":
        return subtracted(a, b), a - b
    return multiplied(a, b), a * b


def _is_easy(part: str) -> bool:
    left, operator, right = part.split()
    a, b = int(left), int(right)
    if operator == "*":
        return 0 < min(a, b) < 10
    return operator == "+" or a >= b


def _expression(rng: random.Random) -> Conversation:
    while True:
        whole, first, second = rng.choice(EXPRESSION_FORMS)
        values = {name: _number(rng, (4, 1)) for name in "abc"}
        part = first.format(**values)
        if not _is_easy(part):
            continue
        first_steps, result = _work(part)
        rest = second.format(**values, r=result)
        if _is_easy(rest):
            break
    asked = whole.format(**values)
    second_steps, total = _work(rest)
    reasoning = f"First {part}. {first_steps} Then {rest}. {second_steps}"
    return question(SKILL, phrase(rng, EVALUATIONS, a=asked), reasoning, f"{asked} = {total}")


def _comparison(rng: random.Random) -> Conversation:
    a = _number(rng, (2, 4, 4, 2))
    near = rng.random() < 0.4  # so that the order often depends on more than the first digit or the length
    b = a + rng.randrange(1, 30) if near else _number(rng, (2, 4, 4, 2))
    if a == b:
        b += 1
    if rng.random() < 0.5:
        a, b = b, a
    word, chosen = rng.choice((("larger", max(a, b)), ("bigger", max(a, b)), ("smaller", min(a, b))))
    return question(SKILL, phrase(rng, COMPARISONS, word=word, a=a, b=b), compared(a, b), f"{chosen} is {word}.")


def _extreme(rng: random.Random) -> Conversation:
    a, b, c = rng.sample(range(1, 10 ** rng.choice((1, 2, 2, 3))), 3)
    word = rng.choice(("largest", "biggest", "smallest"))
    choose = min if word == "smallest" else max
    kept = choose(a, b)
    last = choose(kept, c)
    reasoning = f"{compared(a, b)} Keep {kept}. {compared(kept, c)} Keep {last}."
    return question(SKILL, phrase(rng, EXTREMES, word=word, a=a, b=b, c=c), reasoning, f"{last} is the {word}.")


def _plural(rng: random.Random, words: str) -> str:
    return rng.choice(words.split()) + "s"


def _story(rng: random.Random) -> Conversation:
    """Something is had, alone or in containers, and then more comes or some goes, in all two steps at most."""
    name, things, total = rng.choice(FIRST_NAMES), _plural(rng, ITEMS), _number(rng, (3, 4))
    told, steps = [f"{name} has {total} {things}"], [f"Start with {total}."]
    num_changes = rng.choice((1, 2))
    if 1 < total < 10 and rng.random() < 0.3:
        each = _number(rng, (3, 1)) + 1
        told = [f"{name} has {total} {_plural(rng, CONTAINERS)} of {each} {things} each"]
        steps = [multiplied(total, each)]
        total, num_changes = total * each, 1
    for _ in range(num_changes):
        amount = _number(rng, (4, 1))
        if total >= amount + 2 and rng.random() < 0.55:
            verb, text, after = rng.choice(LOSSES), subtracted(total, amount), total - amount
        else:
            verb, text, after = rng.choice(GAINS), added(total, amount), total + amount
        told.append(f"{verb} {amount}")
        steps.append(f"{verb} {amount}, so {text}")
        total = after
    told_text = ", ".join(told[:-1]) + rng.choice((" and ", " and then ", ", then ")) + told[-1]
    end = rng.choice(STORY_ENDS).format(name=name, things=things)
    return question(SKILL, f"{told_text}. {end}", " ".join(steps), f"{name} has {total} {things}.")


def _price(rng: random.Random) -> Conversation:
    first, second = rng.sample(ITEMS.split(), 2)
    a, b, c = _number(rng, (4, 1)), _number(rng, (1, 1)), rng.randrange(2, 10)
    asked = rng.choice(PRICES).format(first=first, second=second, a=a, b=b, c=c)
    reasoning = f"{c} {first}s: {multiplied(a, c)} One {second}: {added(a * c, b)}"
    return question(SKILL, asked, reasoning, f"They cost {a * c + b} euros.")


def _share(rng: random.Random) -> Conversation:
    b, result = rng.randrange(2, 10), _number(rng, (4, 2)) + 1
    name, things = rng.choice(FIRST_NAMES), _plural(rng, ITEMS)
    asked = rng.choice(SHARES).format(name=name, things=things, a=b * result, b=b)
    return question(SKILL, asked, divided(b * result, b), f"Each friend gets {result} {things}.")


VARIANTS: tuple[Callable[[random.Random], Conversation], ...] = (
    _addition,
    _subtraction,
    _multiplication,
    _division,
    _remainder,
    _expression,
    _comparison,
    _extreme,
    _story,
    _price,
    _share,
)
VARIANT_WEIGHTS = (24, 20, 14, 9, 4, 7, 5, 4, 9, 2, 2)
