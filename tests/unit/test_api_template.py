"""What chat templates may do, what they are asked at start, and that no text of a client becomes a control token."""

from __future__ import annotations

import json
import logging
import random
import re
from typing import Any

import pytest

from cluster.api import template as template_module
from cluster.api.control import ControlText
from cluster.api.served_model import ServedModel, load_served_model
from cluster.api.template import ChatTemplate
from cluster.errors import ContextLengthExceeded, InvalidRequest
from tests.fakes.api import HI, WEATHER_TOOL, write_model_folder

TOOLS_LOOP = "{{ messages[0].content }}{% for tool in tools or [] %}{{ tool | tojsonARGUMENTS }}{% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return load_served_model(write_model_folder(tmp_path_factory.mktemp("model"), context_tokens=4096))


def compiled(source: str, model: ServedModel, max_chars: int = 100_000) -> ChatTemplate:
    return ChatTemplate(source, model.tokenizer, special_tokens={}, max_chars=max_chars)


def shown(model: ServedModel, token_ids: list[int]) -> str:
    return b"".join(map(model.tokenizer.token_bytes, token_ids)).decode()


def tools_loop(arguments: str = "") -> str:
    """A template that shows tools with these arguments of the filter."""
    return TOOLS_LOOP.replace("ARGUMENTS", arguments)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("", {}),
        ("(ensure_ascii=False)", {}),
        ("(true, 2)", {"ensure_ascii": True, "indent": 2}),
        ("(indent=1, sort_keys=true)", {"indent": 1, "sort_keys": True}),
        ("(separators=(',', ':'))", {"separators": (",", ":")}),
        ("(false, none, (',', ':'), true)", {"separators": (",", ":"), "sort_keys": True}),
    ],
)
def test_tojson_is_that_of_transformers(arguments: str, options: dict[str, Any], model: ServedModel) -> None:
    """The filter takes the arguments of transformers' one, in its order: published templates give them."""
    tool = {**WEATHER_TOOL, "b": "é<>&'", "a": None}
    template = compiled(tools_loop(arguments), model)
    assert shown(model, template.encode(HI, [tool])) == "Hi" + json.dumps(tool, **{"ensure_ascii": False, **options})
    assert template.shows_tools


@pytest.mark.parametrize(
    ("source", "shows_tools"),
    [
        ("{{ messages[0].content }}", False),
        ("{{ messages[0].content }}{% if tools %}{{ raise_exception('no') }}{% endif %}", False),
        ("{% if messages[0].role == 'system' %}{{ tools[0].function.name if tools }}{% endif %}", True),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ tools }}", True),
        ("{% for t in tools or [] %}{{ t.function.name ~ t.function.parameters.properties.x.type }}{% endfor %}", True),
    ],
    ids=["ignores", "refuses", "with a system message", "without a system message", "reads properties"],
)
def test_whether_a_template_shows_tools(source: str, shows_tools: bool, model: ServedModel) -> None:
    """Found out with a whole tool, with and without a system message; a refusal in the template's words is a no."""
    assert compiled(source, model).shows_tools is shows_tools


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (tools_loop("(colour=1)"), "colour"),
        (tools_loop() + "{{ tools[0].a.b if tools }}", "has no attribute 'a'"),
        ("{{ messages[9].content.x }}", "has no element 9|list object"),
    ],
)
def test_a_template_that_breaks_says_so_at_start(
    source: str, cause: str, model: ServedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """A template that fails on a tool, or at all, stops the start with the cause instead of passing for one without."""
    with pytest.raises(ValueError, match=cause):
        compiled(source, model)
    assert re.search(cause, caplog.text)


def test_a_template_that_breaks_later_is_logged(model: ServedModel, caplog: pytest.LogCaptureFixture) -> None:
    """The client hears that its messages were refused, the operator why; a meant refusal is no news."""
    source = "{{ raise_exception('no') if messages | length == 2 }}{{ messages[2].a.b if messages | length == 3 }}"
    template = compiled(source, model)
    with caplog.at_level(logging.WARNING):
        with pytest.raises(InvalidRequest, match="does not accept"):
            template.encode(HI * 2)
        assert caplog.text == ""
        with pytest.raises(InvalidRequest, match="does not accept"):
            template.encode(HI * 3)
    assert "has no attribute 'a'" in caplog.text


@pytest.mark.parametrize(
    ("messages", "tools", "param"),
    [
        ([{"role": "user", "content": "<" * 101}], [], "messages"),
        (HI, [{**WEATHER_TOOL, "x": "<" * 100}], "tools"),
    ],
)
def test_too_long_is_seen_before_any_work(
    messages: list[Any], tools: list[Any], param: str, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot fit is neither searched for control tokens nor rendered, and the error names what is too long."""
    template = compiled(tools_loop(), model, max_chars=100)
    monkeypatch.setattr(template_module, "HiddenControlText", None)
    with pytest.raises(ContextLengthExceeded) as caught:
        template.encode(messages, tools)
    assert caught.value.param == param


def test_old_answers_are_not_counted(model: ServedModel) -> None:
    """Templates leave old reasoning out, so its length refuses nothing."""
    template = compiled("{{ messages[0].content }}", model, max_chars=100)
    assert template.encode([*HI, {"role": "assistant", "content": "x" * 1000}]) == template.encode(HI)


# Templates write `>` behind names and keys, which completes what lacks no more.
FRAGMENTS = [
    *("<|im_end|>", "<|im_end|", "<|im_", "|>", ">", "<", "<think", "<think>", "</think", "</", "<tool_call"),
    *("</tool_call>", "start|>", "<|im_start|>", '"', "\\", "\n", " ", "a", "<｜end▁of▁sentence｜", "<tool_response"),
]


def conversation(texts: dict[str, str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools with a client's text wherever one can stand."""
    properties = {
        "k": {"type": "string", "description": texts["about"], "enum": [texts["enum"]]},
        texts["property"]: {},
    }
    function = {"name": "t", "description": texts["tool"], "parameters": {"type": "object", "properties": properties}}
    arguments = {texts["key"]: texts["value"], "list": [texts["item"], {texts["inner"]: 1}]}
    call = {"id": texts["id"], "type": "function", "function": {"name": texts["name"], "arguments": arguments}}
    return [
        {"role": "system", "content": texts["system"], "name": texts["speaker"]},
        {"role": "user", "content": texts["user"]},
        {"role": "assistant", "content": texts["answer"], "reasoning_content": texts["why"], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": texts["id"], "content": texts["result"]},
    ], [{"type": "function", "function": function}]


FIELDS = [
    *("about", "enum", "property", "tool", "key", "value", "item", "inner", "id", "name", "system", "speaker", "user"),
    *("answer", "why", "result"),
]
# The generation prompt's own way to write a key: nothing between the client's text and the mark's end.
BARE = "{% for m in messages %}<{{ m.content | trim }}>{{ m.content }}|>{% endfor %}"


@pytest.mark.parametrize("source", [None, BARE], ids=["own template", "bare template"])
def test_no_text_becomes_a_control_token(source: str | None, model: ServedModel) -> None:
    """Marks and parts of marks in every field, keys and names included: the same control tokens as for letters."""
    template = model.chat_template if source is None else compiled(source, model)
    assert template is not None
    generator = random.Random(5)

    def controls(texts: dict[str, str]) -> list[int]:
        token_ids = template.encode(*conversation(texts))
        return [token_id for token_id in token_ids if token_id in model.tokenizer.control_ids]

    harmless = dict.fromkeys(FIELDS, "a")
    expected = controls(harmless)
    for _ in range(40):
        texts = {field: "".join(generator.choices(FRAGMENTS, k=generator.randrange(1, 4))) for field in FIELDS}
        if "think>" in texts["answer"]:
            texts["answer"] = "a"  # the marks of old reasoning are meant
        assert controls(texts) == expected, texts


@pytest.mark.parametrize("key", ["<|im_end|", "<|im_end", "x<think", "<|im_start|  "])
def test_a_part_of_a_mark_is_shown_as_it_was_sent(key: str, model: ServedModel) -> None:
    """What is hidden from the cutting comes back as text."""
    call = {"id": "a", "type": "function", "function": {"name": key, "arguments": {key: key}}}
    assert model.chat_template is not None
    prompt = shown(model, model.chat_template.encode([*HI, {"role": "assistant", "content": "", "tool_calls": [call]}]))
    assert f"<function={key}>\n<parameter={key}>\n{key}\n</parameter>" in prompt


def by_alternatives(tokens: list[str], text: str) -> list[tuple[int, str]]:
    """The oracle: one pattern of all tokens, the longest first."""
    pattern = re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))
    return [(match.start(), match[0]) for match in pattern.finditer(text)]


@pytest.mark.parametrize(
    "tokens",
    [["<a>", "<ab>", "</a>", "<a b>"], ["<a>", "<a>b", "ab", "<<a>"], ["<a", "<a>"]],
    ids=["brackets", "other shapes", "both"],
)
def test_control_text_against_an_oracle(tokens: list[str]) -> None:
    """Random texts: every token is found, and so is one that the text's end cuts, whatever its shape."""
    control, generator = ControlText(tokens), random.Random(7)
    begins = {token[:end] for token in tokens for end in range(1, len(token))}
    for _ in range(3000):
        text = "".join(generator.choices("<>/ab ", k=generator.randrange(12)))
        found = [(match.start(), match[0]) for match in control.find(text)]
        assert found == by_alternatives(tokens, text), text
        ends = [text.rstrip()[start:] for start in range(len(text.rstrip()))]
        longest = next((end for end in ends if end in begins), "")
        start, end = control.unfinished(text)
        assert text[start:end] == longest, text


def test_searching_does_not_try_each_token() -> None:
    """Of hundreds of bracketed tokens, none is spelled out in the pattern that runs over clients' text."""
    control = ControlText([f"<｜place▁holder▁no▁{n}｜>" for n in range(800)])
    assert len(control._pattern.pattern) < 40
    assert [match[0] for match in control.find("<｜place▁holder▁no▁7｜><｜place▁holder▁no▁900｜>")] == [
        "<｜place▁holder▁no▁7｜>"
    ]


def test_history_of_a_published_template(model: ServedModel) -> None:
    """The published form of calls in history, which writes lists and objects with tojson's first argument by name."""
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% for k, v in c.function.arguments|items %}{{ k }}="
        "{{ v | tojson(ensure_ascii=False) | safe if v is mapping or (v is sequence and v is not string) else v }};"
        "{% endfor %}{% endfor %}{% endfor %}"
    )
    arguments = {"a": ["é"], "b": {"c": None}, "d": True, "e": "x"}
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
    token_ids = compiled(source, model).encode([{"role": "assistant", "content": "", "tool_calls": [call]}, *HI])
    assert shown(model, token_ids) == f'a={json.dumps(["é"], ensure_ascii=False)};b={{"c": null}};d=True;e=x;Hi'
