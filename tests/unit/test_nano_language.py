"""Language skills of the nano model's data: every answer is worked out again from what the user wrote."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import pytest

from ops.nano.data import extraction, passages, small_talk, strings, turns
from ops.nano.data.conversation import Generator
from ops.nano.data.words import COLOURS_OF_THINGS, OPPOSITES

MODULES = (strings, extraction, passages, small_talk, turns)
SEEDS = 300
MAX_CHARACTERS = {"strings": 400, "extraction": 400, "passages": 450, "small_talk": 300, "turns": 420}

Values = dict[str, str]

WORD = r"\w+"
PHRASE = r"[A-Za-z]+(?: [A-Za-z]+)*"
# What may stand in each place of a template, so that a template never matches another one's question.
PATTERNS = {
    "items": r"\w+(?:, \w+)*",
    "text": rf"{PHRASE}\.?",
    "name": r"[A-Z][a-z]+(?: [A-Z][a-z]+)?",
    "email": r"[a-z.]+@[a-z]+\.[a-z]+",
    "keys": r'[a-z_", ]+',
    **dict.fromkeys(("it", "opening", "place", "product", "separator", "thing"), PHRASE),
    **dict.fromkeys(("date", "phone", "price", "time"), r"\d+(?:[-:.]\d+)*"),
}
NUMBERS: dict[str, Callable[[str], object]] = {"age": int, "quantity": int, "price": json.loads}


def _matches(templates: Sequence[str], asked: str, **patterns: str) -> Iterator[Values]:
    """The values of each template that the text was made from; the first letter's case and a final mark may differ."""
    for template in templates:
        mark = "[.?!]?" if template[-1] in ".?!" else ""
        body = re.escape(template[:-1] if mark else template)
        seen: set[str] = set()

        def group(found: re.Match[str], seen: set[str] = seen) -> str:
            field = found[1]
            if field in seen:
                return f"(?P={field})"
            seen.add(field)
            return f"(?P<{field}>{(PATTERNS | patterns).get(field, WORD)})"

        pattern = re.sub(r"\\\{(\w+)\\\}", group, body) + mark
        if not template.startswith("{"):
            pattern = f"(?i:{re.escape(template[0])}){pattern[len(re.escape(template[0])) :]}"
        if found := re.fullmatch(pattern, asked):
            yield found.groupdict()


def _match(templates: Sequence[str], asked: str, **patterns: str) -> Values:
    return next(_matches(templates, asked, **patterns))


def _fits(templates: Sequence[str], asked: str) -> bool:
    return next(_matches(templates, asked), None) is not None


def _made(make: Generator) -> Iterator[tuple[list[str], str, str]]:
    """Per seed: what the user said, turn by turn, the last reasoning and the last answer."""
    for seed in range(SEEDS):
        messages = make(random.Random(seed)).messages
        said = [message["content"] for message in messages if message["role"] == "user"]
        yield said, messages[-1]["reasoning_content"], messages[-1]["content"]


def _list(values: Values) -> list[str]:
    return values["items"].split(", ")


@pytest.mark.parametrize("module", MODULES)
def test_conversations_are_well_formed(module: ModuleType) -> None:
    """Roles alternate, nothing begins or ends with white space or has a line break, and every text is short."""
    for seed in range(SEEDS):
        conversation = module.generate(random.Random(seed))
        messages = list(conversation.messages)
        assert conversation.skill == module.SKILL
        if messages[0]["role"] == "system":
            messages.pop(0)
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        texts = [message["content"] for message in messages] + [messages[-1]["reasoning_content"]]
        for text in texts:
            assert text
            assert text == " ".join(text.split())
            assert "{" not in text or module is extraction
        assert sum(map(len, texts)) <= MAX_CHARACTERS[module.SKILL]


@pytest.mark.parametrize("module", MODULES)
def test_a_seed_decides_the_conversation(module: ModuleType) -> None:
    """The same seed makes the same conversation, and other seeds make others."""
    first, again = ([module.generate(rng) for _ in range(400)] for rng in (random.Random(7), random.Random(7)))
    assert first == again
    assert len({str(conversation.messages) for conversation in first}) > 300


@pytest.mark.parametrize("module", MODULES)
def test_held_out_conversations_are_about_one_in_sixteen(module: ModuleType) -> None:
    """The evaluation finds questions of every skill, and takes few from training."""
    rng = random.Random(3)
    held_out = sum(module.generate(rng).is_held_out for _ in range(3000))
    assert 3000 / 16 * 0.6 < held_out < 3000 / 16 * 1.6


def _times(values: Values) -> str:
    count = sum(letter == values["letter"] for letter in values["word"])
    return f"The letter '{values['letter']}' occurs {count} time{'' if count == 1 else 's'} in '{values['word']}'."


def _contains(values: Values) -> str:
    opening, verb = ("Yes", "is") if values["item"] in _list(values) else ("No", "is not")
    return f"{opening}, {values['item']} {verb} in the list."


ORDINALS = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4, "last": -1}
SIGNS = {"hyphen": "-", "slash": "/", "hash": "#", "plus sign": "+", "dot": ".", "colon": ":", "star": "*"}
STRING_ANSWERS: dict[str, tuple[tuple[str, ...], Callable[[Values], str]]] = {
    "reverse_word": (strings.REVERSE_WORD, lambda v: "".join(reversed(v["word"]))),
    "spell": (strings.SPELL, lambda v: re.sub(r"(?<=.)(?=.)", " ", v["word"])),
    "upper_case": (strings.UPPER, lambda v: v["text"].upper()),
    "lower_case": (strings.LOWER, lambda v: v["text"].lower()),
    "count_letters": (strings.COUNT_LETTERS, lambda v: f"'{v['word']}' has {len(v['word'])} letters."),
    "count_letter": (strings.COUNT_LETTER, _times),
    "end_letter": (strings.END_LETTER, lambda v: v["word"][ORDINALS[v["which"]]]),
    "join_words": (strings.JOIN, lambda v: v["items"].replace(", ", SIGNS[v["separator"]])),
    "sort_words": (strings.SORT_WORDS, lambda v: ", ".join(sorted(_list(v)))),
    "sort_ascending": (strings.SORT_ASCENDING, lambda v: ", ".join(sorted(_list(v), key=int))),
    "sort_descending": (strings.SORT_DESCENDING, lambda v: ", ".join(sorted(_list(v), key=int)[::-1])),
    "nth_item": (strings.NTH_ITEM, lambda v: _list(v)[ORDINALS[v["ordinal"]]]),
    "remove_item": (strings.REMOVE_ITEM, lambda v: ", ".join(i for i in _list(v) if i != v["item"])),
    "reverse_list": (strings.REVERSE_LIST, lambda v: ", ".join(reversed(_list(v)))),
    "count_items": (strings.COUNT_ITEMS, lambda v: f"There are {v['items'].count(',') + 1} items."),
    "longest_word": (strings.LONGEST, lambda v: max(_list(v), key=len)),
    "dedupe": (strings.DEDUPE, lambda v: ", ".join(Counter(_list(v)))),
    "contains": (strings.CONTAINS, _contains),
}


@pytest.mark.parametrize("variant", [make for _, make in strings.VARIANTS])
def test_string_answers_follow_from_the_question(variant: Generator) -> None:
    """The answer is what Python makes of the words in the question."""
    templates, answer_of = STRING_ANSWERS[variant.__name__]
    for (asked,), _, answer in _made(variant):
        assert answer == answer_of(_match(templates, asked)), asked


def test_longest_words_have_no_rival_and_sorted_words_no_shared_initial() -> None:
    """The questions of which word is longest, or first, have one answer each, and a look at initials finds it."""
    for (asked,), _, _ in _made(strings.longest_word):
        lengths = sorted(map(len, _list(_match(strings.LONGEST, asked))))
        assert lengths[-1] > lengths[-2]
    for (asked,), _, _ in _made(strings.sort_words):
        items = _list(_match(strings.SORT_WORDS, asked))
        assert len({item[0] for item in items}) == len(items) >= 3


def _record(asked: str) -> tuple[list[str], Values]:
    """The keys that a request lists, and every field of its text."""
    for request in _matches(extraction.REQUESTS, asked, text=".+"):
        for _, (templates, _) in extraction.KINDS:
            for fields in _matches(templates, request["text"], item="[a-z]+"):
                return re.findall(r"[a-z_]+", request["keys"].replace(" and ", ", ")), fields
    raise AssertionError(asked)


def test_extracted_json_holds_the_fields_of_the_text() -> None:
    """The answer is json.dumps of the requested keys in their order, numbers as numbers, null for what is not there."""
    num_missing = 0
    for (asked,), reasoning, answer in _made(extraction.generate):
        keys, fields = _record(asked)
        found = {key: NUMBERS.get(key, str)(fields[key]) if key in fields else None for key in keys}
        assert answer == json.dumps(found), asked
        assert reasoning == "; ".join(f"{key}: {fields.get(key, 'not given')}" for key in keys) + "."
        num_missing += None in found.values()
    assert 0 < num_missing < SEEDS / 5


SENTENCES = (
    r"(?P<name>\w+) (?:keeps|has|hides) the (?P<described>\w+ (?P<thing>\w+)) in the (?P<room>\w+)\.",
    r"(?P<name>\w+) has a (?P<colour>\w+) (?P<pet>\w+) called (?P<called>\w+)\.",
    r"The \w+ to (?P<city>\w+) leaves at (?P<time>[\d:]+)\.",
    r"(?P<name>\w+) is a (?P<job>\w+) and lives in (?P<city>\w+)\.",
    r"(?P<name>\w+) bought (?P<quantity>\d+) (?P<things>\w+) for (?P<price>\d+) euros at the (?P<shop>[\w ]+)\.",
    r"The (?P<described>\w+ (?P<thing>\w+)) in the (?P<room>\w+) is (?P<colour>\w+)\.",
)
# The first pattern found in a question says which field of the sentence answers it, and how.
ANSWERS = (
    (r"^(Who|Whose|Which person)\b|^What is the name of the \w+\?", "name", "{}."),
    (r"^What is the name of \w+'s|called\?$", "called", "{}."),
    (r"\b(colour)\b", "colour", "{}."),
    (r"^(What|Which) animal", "pet", "A {}."),
    (r"^(When|At what time|What time)", "time", "At {}."),
    (r"go\?|go to\?|going\?", "city", "To {}."),
    (r"job\?|for work\?", "job", "A {}."),
    (r"\blive\b|^In which city", "city", "In {}."),
    (r"^(How many|What number)", "quantity", "{}."),
    (r"^How much|cost\?", "price", "{} euros."),
    (r"^Where (did|was)", "shop", "At the {}."),
    (r"^(Where|In which room)", "room", "In the {}."),
    (r"^(What|Which)", "described", "The {}."),
)


def _passage(asked: str) -> tuple[list[Values], str]:
    """The facts of a passage in its order, and the question on it."""
    facts = [found.groupdict() | {"said": found[0]} for pattern in SENTENCES for found in re.finditer(pattern, asked)]
    (final,) = (part for part in re.split(r"(?<=[.?]) |: ", asked) if part.endswith("?"))
    return facts, final


def _passage_answer(facts: list[Values], final: str) -> tuple[str, str]:
    """The sentence that the question names something of, and the answer; empty if there is none."""
    words = set(re.findall(r"\d+:\d\d|[\w]+", final))
    for fact in facts:
        own = {value for key, value in fact.items() if key not in ("said", "described", "colour", "quantity", "price")}
        if "pet" not in fact and "thing" in fact and "name" not in fact:
            own.add(fact["colour"])
        if not any(value in words or (" " in value and value in final) for value in own):
            continue
        _, field, form = next(entry for entry in ANSWERS if re.search(entry[0], final) and entry[1] in fact)
        value = fact[field].capitalize() if field == "colour" else fact[field]
        return fact["said"], form.format(value)
    return "", ""


def test_passage_answers_stand_in_the_quoted_sentence() -> None:
    """The quoted sentence is in the passage, holds what the question names, and gives the answer; each form occurs."""
    num_unsaid = 0
    seen: set[str] = set()
    for (asked,), reasoning, answer in _made(passages.generate):
        facts, final = _passage(asked)
        assert 2 <= len(facts) <= 4
        seen.update(pattern for pattern in SENTENCES if re.search(pattern, asked))
        sentence, expected = _passage_answer(facts, final)
        num_unsaid += not sentence
        assert answer == (expected or "The passage does not say."), asked
        assert reasoning.endswith(f"The passage says: '{sentence}'" if sentence else "It is not there."), asked
    assert SEEDS * 0.04 < num_unsaid < SEEDS * 0.18
    assert seen == set(SENTENCES)


ATLAS = (
    "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Portugal Lisbon, Japan Tokyo, China Beijing, "
    "Russia Moscow, Egypt Cairo, Greece Athens, Norway Oslo, Sweden Stockholm, Austria Vienna, Poland Warsaw, "
    "Ireland Dublin, Canada Ottawa, Cuba Havana, Peru Lima, Kenya Nairobi, Hungary Budapest"
)
CAPITAL_OF = {pair.split()[0]: pair.split()[1] for pair in ATLAS.split(", ")}


def test_capitals_are_those_of_an_atlas() -> None:
    """Both directions of the question agree with a list written down apart."""
    for (asked,), _, answer in _made(small_talk.capital):
        country = _match(small_talk.CAPITAL, asked)["country"]
        assert answer == f"The capital of {country} is {CAPITAL_OF[country]}."
    for (asked,), _, answer in _made(small_talk.country_of):
        city = _match(small_talk.COUNTRY_OF, asked)["city"]
        (country,) = (name for name, capital in CAPITAL_OF.items() if capital == city)
        assert answer == f"{city} is the capital of {country}."


def test_copies_are_exact() -> None:
    """A text is given back as it is, and a word as many times as asked."""
    for (asked,), _, answer in _made(small_talk.repeat):
        assert answer == _match(small_talk.REPEAT, asked)["text"]
    for (asked,), _, answer in _made(small_talk.say_times):
        values = _match(small_talk.SAY_TIMES, asked)
        count = {"two": 2, "three": 3, "four": 4, "five": 5}[values["times"]]
        assert answer.split(" ") == [values["word"]] * count


def test_opposites_go_both_ways() -> None:
    """No word has two opposites, and the opposite of the opposite is the word."""
    pairs = set()
    for (asked,), _, answer in _made(small_talk.opposite):
        word, other = re.findall(r"'(\w+)'", answer)
        assert word == _match(small_talk.OPPOSITE, asked)["word"]
        pairs.add(frozenset((word, other)))
    assert len(frozenset().union(*pairs)) == 2 * len(pairs)


def test_greetings_answer_in_kind() -> None:
    """A greeting comes back with the time of day and the name that the user gave."""
    for (asked,), _, answer in _made(small_talk.introduction):
        assert answer.endswith(f", {_match(small_talk.INTRODUCTIONS, asked)['name']}! How can I help you?")
    for make in (small_talk.introduction, small_talk.greeting):
        for (asked,), _, answer in _made(make):
            for part in ("morning", "afternoon", "evening"):
                assert (part in asked) == (part in answer)


@pytest.mark.parametrize("variant", ["how_are_you", "thanks", "goodbye", "who", "what", "may_i_ask"])
def test_set_phrases_have_one_answer_and_no_shared_question(variant: str) -> None:
    """However it is asked, the answer is the same, and no question belongs to two kinds."""
    own = {asked: answer for (asked,), _, answer in _made(getattr(small_talk, variant))}
    assert len(set(own.values())) == 1
    for _, other in small_talk.VARIANTS:
        if other.__name__ != variant:
            assert not own.keys() & {asked for (asked,), _, _ in _made(other)}


def test_a_third_of_small_talk_has_a_system_message() -> None:
    """The model sees system messages, and does without them too."""
    made = [small_talk.generate(random.Random(seed)).messages for seed in range(SEEDS)]
    assert 0.2 < sum(messages[0]["role"] == "system" for messages in made) / SEEDS < 0.5


def test_facts_are_remembered_as_told() -> None:
    """The answer's values are those of the one earlier message that the reasoning quotes."""
    for said, reasoning, answer in _made(turns.remember):
        quoted = reasoning.removeprefix("The user said: '").removesuffix("'")
        assert quoted in said[:-1]
        solutions = set()
        for statements, questions, form in turns.FACTS:
            for asked_of in _matches(questions, said[-1]):
                solutions |= {
                    form.format(**told)
                    for earlier in said[:-1]
                    for told in _matches(statements, earlier)
                    if asked_of.items() <= told.items()
                }
        assert solutions == {answer}, said


def _replay_list(said: list[str]) -> tuple[list[str], str]:
    """The list after all messages, and the last question if it changes nothing."""
    items = _list(_match(turns.START_LIST, said[0]))
    for message in said[1:]:
        if dropped := next(_matches(turns.DROP_ITEM, message), None):
            items.remove(dropped["item"])
        elif added := next(_matches(turns.ADD_ITEM, message), None):
            items.append(added["item"])
        else:
            return items, message
    return items, ""


def test_lists_are_kept_through_the_turns() -> None:
    """Replaying the messages gives the list, and from it the answer."""
    for said, _, answer in _made(turns.list_changes):
        items, asked = _replay_list(said)
        expected = f"The list: {', '.join(items)}."
        if _fits(turns.HOW_MANY, asked):
            expected = f"The list has {len(items)} item{'s' * (len(items) != 1)}."
        elif _fits(turns.WHICH_FIRST, asked):
            expected = f"The first item is {items[0]}."
        elif _fits(turns.WHICH_LAST, asked):
            expected = f"The last item is {items[-1]}."
        else:
            assert not asked or _fits(turns.SHOW_LIST, asked)
        assert answer == expected, said


def test_statements_are_given_back() -> None:
    """Asked what was said, the model repeats the message before."""
    assert all(answer == f"You said: {said[0]}" for said, _, answer in _made(turns.say_again))


def test_totals_are_kept_through_the_turns() -> None:
    """The total is the first number with every later one added or taken away."""
    for said, _, answer in _made(turns.running_total):
        total = 0
        for message in said:
            is_less = re.search("subtract|minus|take|lose|less", message, re.IGNORECASE)
            total += int(re.findall(r"\d+", message)[0]) * (-1 if is_less else 1)
        assert answer == f"The total is {total}.", said


def test_follow_ups_repeat_the_first_question() -> None:
    """`And of Italy?` is answered as the first question would be with Italy in it."""
    for said, _, answer in _made(turns.what_about):
        it = re.sub("^((and|what about|how about|for|of) )+", "", said[1].rstrip("?"), flags=re.IGNORECASE)
        (kind,) = (name for name, (templates, _) in turns.SUBJECTS.items() if _fits(templates, said[0]))
        expected = {
            "capital": f"The capital of {it} is {CAPITAL_OF.get(it)}.",
            "opposite": f"The opposite of '{it}' is '{OPPOSITES.get(it)}'.",
            "colour": f"{it[0].upper()}{it[1:]} is {COLOURS_OF_THINGS.get(it)}.",
            "length": f"'{it}' has {len(it)} letters.",
            "upper case": it.upper(),
        }
        assert answer == expected[kind], said
        assert it != _match(turns.SUBJECTS[kind][0], said[0])["it"]


def test_first_turns_get_the_answer_that_the_longer_conversations_show() -> None:
    """The beginning of a conversation is answered alone as it is in the history of a longer one."""
    starts = (turns.remember, turns.list_changes, turns.running_total, turns.say_again)
    made = [make(random.Random(seed)).messages for make in starts for seed in range(4 * SEEDS)]
    shown = {messages[0]["content"]: messages[1]["content"] for messages in made}
    common = [(asked[0], answer) for asked, _, answer in _made(turns.first_turn) if asked[0] in shown]
    assert len(common) > SEEDS / 20
    assert all(shown[asked] == answer for asked, answer in common)
