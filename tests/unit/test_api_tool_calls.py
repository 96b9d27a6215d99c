"""Tool calls in a completion's content, rule by rule; where the text is cut must never change what is found."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from cluster.api import tool_calls
from cluster.api.tool_arguments import CallPiece
from cluster.api.tool_calls import MAX_NAME_CHARS, ToolCallParser, new_call_id
from cluster.api.tools import Toolset
from tests.fakes.api import call_markup

PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "array", "items": {"type": "integer"}},
    "count": {"type": "integer"},
    "note": {"type": ["string", "null"]},
}
TOOLSET = Toolset({"get_weather": {"type": "object", "properties": PROPERTIES}})


class Found(NamedTuple):
    """Everything a client gets to know: calls as name and joined arguments."""

    content: str
    calls: list[tuple[str, str]]
    has_open_call: bool


def parse(pieces: Iterable[str], *, toolset: Toolset = TOOLSET, is_complete: bool = True) -> Found:
    """Feed the pieces and join what comes, checking the order of events on the way."""
    parser = ToolCallParser(toolset)
    events = [event for piece in pieces for event in parser.feed(piece)]
    events += parser.finish(is_complete=is_complete)
    calls: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallPiece):
            assert (event.call_id is None) == (event.name is None) == (event.index == len(calls) - 1)
            name, arguments = (event.name or "", "") if event.name is not None else calls.pop()
            assert (event.name is None) == bool(event.arguments)
            calls.append((name, arguments + event.arguments))
    assert parser.num_calls == len(calls)
    content = "".join(event for event in events if isinstance(event, str))
    return Found(content, calls, parser.has_open_call)


PARIS = ("get_weather", '{"city": "Paris"}')
ROME = ("get_weather", '{"city": "Rome", "days": [1, 2]}')
CITY = "<function=get_weather>\n<parameter=city>\nParis\n"

# Text, content, calls.
RULES: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "no call": ("a < b, </x> and <b>c</b>\n", "a < b, </x> and <b>c</b>\n", []),
    "one call": (call_markup(city="Paris"), "", [PARIS]),
    "two calls without a separator": (
        call_markup(city="Paris") + call_markup(city="Rome", days="[1, 2]"),
        "",
        [PARIS, ROME],
    ),
    "two calls with whitespace between": (
        f"{call_markup(city='Paris')}\n\n{call_markup(city='Paris')}\n",
        "",
        [PARIS, PARIS],
    ),
    "text before": ("Let me look.\n\n" + call_markup(city="Paris"), "Let me look.", [PARIS]),
    "text after": (call_markup(city="Paris") + "\n\nDone. ", "Done. ", [PARIS]),
    "text parted by what stands behind a call": (
        f"One.{call_markup()}\n\nTwo.{call_markup()}\n{call_markup()} Three.",
        "One.\n\nTwo.\nThree.",
        [("get_weather", "{}")] * 3,
    ),
    "text parted before a call": (f"One.\n{call_markup()}\n\nTwo.", "One.\nTwo.", [("get_weather", "{}")]),
    "whitespace within a call parts nothing": ("a<function=f>\n</function>\n</tool_call>b", "ab", [("f", "{}")]),
    "text around": (
        f"One.\n\n{call_markup(city='Paris')}\nTwo. {call_markup()}",
        "One.\n\nTwo.",
        [PARIS, ("get_weather", "{}")],
    ),
    "whitespace before text stays": ("\n\n a", "\n\n a", []),
    "no parameters": (call_markup(), "", [("get_weather", "{}")]),
    "no call mark": (f"Now: {CITY}</parameter>\n</function>", "Now:", [PARIS]),
    "no parameter close before the next": (
        "<function=get_weather>\n<parameter=city>\nRome\n<parameter=days>\n[1, 2]\n</parameter>\n</function>",
        "",
        [ROME],
    ),
    "no parameter close before the end": (f"<tool_call>\n{CITY}</function>\n</tool_call>", "", [PARIS]),
    "no close but the call's, at the end": (f"<tool_call>\n{CITY}</tool_call>\n", "", [PARIS]),
    "no close but the call's, before the next": (
        f"<tool_call>\n{CITY}</tool_call>\n<tool_call>\n{CITY}</tool_call>",
        "",
        [PARIS, PARIS],
    ),
    "a call's close within a value": (
        f"{CITY}</tool_call>\n</tool_call> and\n</parameter></function>",
        "",
        [("get_weather", '{"city": "Paris\\n</tool_call>\\n</tool_call> and"}')],
    ),
    "a call's close before the value's": (
        f"{CITY}</tool_call>\n</parameter>\n<parameter=count>5</tool_call>\n</function>x",
        "x",
        [("get_weather", '{"city": "Paris\\n</tool_call>", "count": "5</tool_call>"}')],
    ),
    "no function close before the call's": (f"<tool_call>\n{CITY}</parameter>\n</tool_call>", "", [PARIS]),
    "no close before the next function": (f"{CITY}</parameter>\n{CITY}</parameter></function>", "", [PARIS, PARIS]),
    "no close before the next call": (f"{CITY}</parameter>\n{call_markup(city='Paris')}", "", [PARIS, PARIS]),
    "no call close before the next call": (
        f"<tool_call>{CITY}</function>\n{call_markup(city='Paris')}",
        "",
        [PARIS, PARIS],
    ),
    "no call close before the next function": (f"<tool_call>{CITY}</function>{CITY}</function>", "", [PARIS, PARIS]),
    "no call close before text": (f"<tool_call>{CITY}</function>\nDone </tool_call>", "Done </tool_call>", [PARIS]),
    "no close at all": (f"<tool_call>{CITY}", "", [PARIS]),
    "nothing after the name": ("<tool_call><function=f>", "", [("f", "{}")]),
    "nothing after a key": ("<function=f><parameter=k", "", [("f", "{}")]),
    "name ends with the function": ("<tool_call>\n<function=f</function>\n</tool_call>", "", [("f", "{}")]),
    "spaces around names": (
        "<function= f ><parameter= k >v</parameter></function>",
        "",
        [("f", '{"k": "v"}')],
    ),
    "a key ends with its line": (
        "<function=f>\n<parameter=k\nv\n</parameter>\n<parameter=l\r\n\nw\r\n</parameter>\n</function>",
        "",
        [("f", '{"k": "v", "l": "\\nw"}')],
    ),
    "a line before a key": ("<function=f><parameter=\nk>v</parameter></function>", "", [("f", '{"k": "v"}')]),
    "text between parameters is none": (
        "<function=f>so: <parameter=k>v</parameter> and </parameter> then</function>",
        "",
        [("f", '{"k": "v"}')],
    ),
    "one newline at either end": (
        call_markup(city="\n\n Paris \n\n").replace("\n<", "<", 1),
        "",
        [("get_weather", '{"city": "\\n\\n Paris \\n\\n"}')],
    ),
    "newlines of two characters": (
        "<function=f><parameter=a>\r\nv\r\n</parameter><parameter=b>\r\n\r\n</parameter><parameter=c>\rv\r</parameter>"
        "<parameter=d>\r</parameter><parameter=e>a\r\nb\n\r\n</parameter></function>",
        "",
        [("f", '{"a": "v", "b": "", "c": "\\rv\\r", "d": "\\r", "e": "a\\r\\nb\\n"}')],
    ),
    "no newlines": ("<function=f><parameter=k>v</parameter></function>", "", [("f", '{"k": "v"}')]),
    "empty values": (
        "<function=f><parameter=a></parameter><parameter=b>\n</parameter><parameter=c>\n\n</parameter></function>",
        "",
        [("f", '{"a": "", "b": "", "c": ""}')],
    ),
    "markup in a value": (
        call_markup(city="<tool_call>\n<function=x>\n</tool_call></param </b> a > b"),
        "",
        [("get_weather", '{"city": "<tool_call>\\n<function=x>\\n</tool_call></param </b> a > b"}')],
    ),
    "escapes": (call_markup(city='"\\\té\u2028🙂'), "", [("get_weather", '{"city": "\\"\\\\\\té\u2028🙂"}')]),
    "values by type": (
        call_markup(count="5", days="nothing", note="null", other="5"),
        "",
        [("get_weather", '{"count": 5, "days": "nothing", "note": null, "other": "5"}')],
    ),
    "a tool that was not offered": (call_markup("rm", path="/"), "", [("rm", '{"path": "/"}')]),
    "a key twice": (
        "<function=f><parameter=k>1</parameter><parameter=k>2</parameter><parameter=l>3</parameter></function>",
        "",
        [("f", '{"k": "1", "l": "3"}')],
    ),
    "an empty call": ("a <tool_call>\n</tool_call> b", "a <tool_call>\n</tool_call> b", []),
    "a call of another form": (
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        [],
    ),
    "text behind a call mark": ("<tool_call> so <function=f></function>", "<tool_call> so", [("f", "{}")]),
    "a call mark twice": (f"<tool_call>\n{call_markup(city='Paris')}", "<tool_call>", [PARIS]),
    "prose about calls": ("write <function= and a > b", "write <function= and a > b", []),
    "prose, then a call": (f"write <function= or {call_markup(city='Paris')}", "write <function= or", [PARIS]),
    "a nameless function": ("<tool_call><function=></function>", "<tool_call><function=></function>", []),
    "an endless name": (f"<function={'x' * 999}>", f"<function={'x' * 999}>", []),
    "much whitespace behind a call mark": (
        f"a{' ' * 300}<tool_call>{' ' * 256}<function=f></function>",
        "a",
        [("f", "{}")],
    ),
    "too much whitespace behind a call mark": (
        f"<tool_call>{' ' * 257}<function=f></function>",
        "<tool_call>",
        [("f", "{}")],
    ),
    "too much whitespace behind a call's close": (
        f"{CITY}</tool_call>{' ' * 257}<tool_call>",
        "",
        [("get_weather", f'{{"city": "Paris\\n</tool_call>{" " * 257}<tool_call>"}}')],
    ),
    "an unfinished name": ("<tool_call>\n<function=get_wea", "<tool_call>\n<function=get_wea", []),
    "an unfinished tag": ("so <tool_c", "so <tool_c", []),
    "an unfinished tag in a value": ("<function=f><parameter=k>\na</para", "", [("f", '{"k": "a</para"}')]),
}


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str) -> None:
    """Each rule on a text of its own: what is content, which calls there are, with which arguments."""
    text, content, calls = RULES[rule]
    assert parse([text]) == Found(content, calls, has_open_call=False)


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_cuts_change_nothing(rule: str, is_complete: bool) -> None:
    """Cut at every place, and into single characters, each text gives what it gives in one piece."""
    text = RULES[rule][0]
    whole = parse([text], is_complete=is_complete)
    assert parse(text, is_complete=is_complete) == whole
    for cut in range(1, len(text)):
        assert parse([text[:cut], text[cut:]], is_complete=is_complete) == whole


WORDS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<function=",
        "<function=get_weather>",
        "</function>",
        "<parameter=",
        "</parameter>",
    ),
    *(
        "<parameter=city>",
        "<parameter=count>",
        "<parameter=city\n",
        "\r",
        "<parameter=note>",
        ">",
        "<",
        "</",
        "\n",
        " ",
        "a",
        "5",
        "null",
        '"',
    ),
]


def test_any_text_is_parsed_the_same_however_it_is_cut() -> None:
    """Random markup, mostly broken: cuts change nothing, closed arguments are JSON, and no call means no change."""
    generator = random.Random(3)
    for _ in range(1500):
        text = "".join(generator.choices(WORDS, k=generator.randrange(1, 16)))
        whole = parse([text])
        cuts = [0, *sorted(generator.choices(range(len(text) + 1), k=4)), len(text)]
        assert parse(text) == whole, text
        assert parse(text[a:b] for a, b in itertools.pairwise(cuts)) == whole, text
        assert not whole.has_open_call
        assert all(isinstance(json.loads(arguments), dict) for _, arguments in whole.calls), text
        assert whole.calls or whole.content == text


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (CITY, '{"city": "Paris'),
        ("<function=get_weather><parameter=count>\n1", '{"count": '),
        ("<function=get_weather><parameter=count>\n1\n</parameter>\n", '{"count": 1'),
        ("<function=get_weather>\n", "{"),
        ("<function=get_weather>", "{"),
        ("<function=get_weather><parameter=ci", "{"),
        (f"{CITY}</tool_call>\n", '{"city": "Paris'),
        (f"{CITY}</tool_c", '{"city": "Paris\\n</tool_c'),
    ],
)
def test_a_cut_call_stays_open(text: str, arguments: str) -> None:
    """A call that a limit cuts is told as far as it came and never made to look whole."""
    found = parse([text], is_complete=False)
    assert found == Found("", [("get_weather", arguments)], has_open_call=True)


def test_a_cut_after_a_call_leaves_it_whole() -> None:
    """A call that is complete stays so, whatever is cut behind it."""
    assert parse([call_markup(city="Paris") + "\n<tool_c"], is_complete=False).calls == [PARIS]
    assert not parse([f"{CITY}</function>"], is_complete=False).has_open_call


def test_only_the_first_call_where_one_is_wanted() -> None:
    """Later calls leave no trace, neither as calls nor as content; text around them stays."""
    toolset = Toolset(TOOLSET.schemas, max_calls=1)
    text = f"a {call_markup(city='Paris')} b {call_markup(city='Rome')} c"
    assert parse([text], toolset=toolset) == Found("a b c", [PARIS], has_open_call=False)
    assert parse(text, toolset=toolset) == parse([text], toolset=toolset)


def test_pieces_come_as_early_as_they_can() -> None:
    """The name comes with its `>`, a string's text as it is written, any other value when it is whole."""
    parser = ToolCallParser(TOOLSET, new_id=lambda: "call_1")
    feeds = ["Hm ", "<tool_call>", "\n<function=get_weather", ">", "\n<parameter=city>", "\nPa", "ris\n", "</para"]
    feeds += ["meter>\n<parameter=count>\n1", "2", "\n</parameter>", "\n</function>", "\n</tool_call>"]
    events = [(text, parser.feed(text)) for text in feeds]
    assert [(text, event) for text, made in events for event in made] == [
        ("Hm ", "Hm"),
        (">", CallPiece(0, call_id="call_1", name="get_weather")),
        ("\n<parameter=city>", CallPiece(0, '{"city": "')),
        ("\nPa", CallPiece(0, "Pa")),
        ("ris\n", CallPiece(0, "ris")),
        ("meter>\n<parameter=count>\n1", CallPiece(0, '", "count": ')),
        ("\n</parameter>", CallPiece(0, "12")),
        ("\n</function>", CallPiece(0, "}")),
    ]


def test_each_call_has_an_id_of_its_own() -> None:
    """Ids are in OpenAI's form, distinct, and short enough for other servers to take back."""
    parser = ToolCallParser(TOOLSET)
    events = parser.feed(call_markup(city="Paris") * 3)
    ids = [event.call_id for event in events if isinstance(event, CallPiece) and event.call_id]
    assert len(set(ids)) == 3
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", call_id) for call_id in [*ids, new_call_id()])


class _CountingPattern:
    """A compiled pattern that counts the characters it looks at."""

    def __init__(self, pattern: re.Pattern[str], counts: list[int]) -> None:
        self._pattern, self._counts = pattern, counts

    def search(self, text: str, start: int) -> re.Match[str] | None:
        match = self._pattern.search(text, start)
        self._counts.append((match.end() if match else len(text)) - start)
        return match


@pytest.mark.parametrize("key", ["city", "days"])
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_work_grows_with_the_text_alone(key: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a value is and however it is cut, each character is looked at a bounded number of times."""
    counts: list[int] = []
    patterns: dict[Any, Any] = {s: _CountingPattern(p, counts) for s, p in tool_calls._PATTERNS.items()}
    monkeypatch.setattr(tool_calls, "_PATTERNS", patterns)
    value = "<</parameter x\n" * 2000
    text = "</functio" * 100 + call_markup(**{key: value}) + " \n" * 1000
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert json.loads(parse(pieces).calls[0][1]) == {key: value}
    assert sum(counts) <= 13 * len(text)


def test_what_is_held_back_is_bounded() -> None:
    """Of a text that only looks like a call, no more is withheld than a name's length and the marks around it."""
    for text in ("<function=" + "x" * 2000, "<tool_call>" + "<function=" * 500, "<tool_cal" * 500):
        parser = ToolCallParser(TOOLSET)
        held = []
        for char in text:
            parser.feed(char)
            held.append(parser.num_held_chars)
        assert max(held) <= MAX_NAME_CHARS + len("<tool_call><function=")
