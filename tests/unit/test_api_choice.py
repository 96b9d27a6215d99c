"""Stop strings, reasoning and logprobs of one choice: where the text is cut must never change the answer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from actors.messages import ErrorKind, FinishReason, GenerateRequest, RequestError, SamplingSpec, TokenEvent
from cluster.api.choice import Choice, ChoicePlan, Delta, join_deltas
from cluster.api.reasoning import ReasoningSplitter
from cluster.api.served_model import load_served_model
from cluster.api.stop import StopMatcher
from cluster.api.text import Tokenizer
from cluster.api.tools import Toolset
from cluster.errors import GenerationFailed
from tests.fakes.api import VOCAB_SIZE, tell, write_model_folder
from tests.fakes.tokenizer import tokenizer_json


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_served_model(write_model_folder(folder)).tokenizer


def plan(*, min_tokens: int = 0, **fields: object) -> ChoicePlan:
    request = GenerateRequest("r", (1, 2, 3), SamplingSpec(max_tokens=100, min_tokens=min_tokens))
    return ChoicePlan(index=0, prompt_idx=0, request=request, **fields)  # type: ignore[arg-type]


def feed_all(choice: Choice, events: list[TokenEvent]) -> Delta:
    """Feed until the choice is finished, as `Generation` does."""
    deltas = []
    for event in events:
        deltas.append(choice.feed(event))
        if choice.is_finished:
            break
    return join_deltas(0, deltas)


def earliest_end(text: str, stops: list[str]) -> str | None:
    """The oracle: text before the stop string that is complete first, the longest of several; None without one."""
    ends = [(end, -len(s)) for s in stops for end in range(len(s), len(text) + 1) if text[:end].endswith(s)]
    if not ends:
        return None
    end, minus_length = min(ends)
    return text[: end + minus_length]


def test_stop_matcher_against_an_oracle() -> None:
    """Random texts over two letters, cut at random: the same as looking at the whole text."""
    generator = random.Random(2)
    for _ in range(2000):
        text = "".join(generator.choices("ab", k=generator.randrange(0, 14)))
        stops = ["".join(generator.choices("ab", k=generator.randrange(1, 6))) for _ in range(generator.randrange(4))]
        matcher, seen, rest = StopMatcher(stops), "", text
        while rest and not matcher.is_matched:
            cut = generator.randrange(1, 4)
            seen += matcher.push(rest[:cut])
            rest = rest[cut:]
        expected = earliest_end(text, stops)
        assert matcher.is_matched == (expected is not None)
        assert seen + matcher.flush() == (text if expected is None else expected)


def test_stop_matcher_holds_no_more_than_it_must() -> None:
    """Text is released as soon as it cannot begin a stop string, and only what might is held."""
    matcher = StopMatcher(["END"])
    assert [matcher.push(text) for text in ("xE", "N", "Q", "EE", "x")] == ["x", "", "ENQ", "E", "Ex"]


@pytest.mark.parametrize("tokens_per_event", [1, 2, 5, 100])
def test_stop_string_across_tokens(tokens_per_event: int, tokenizer: Tokenizer) -> None:
    """A stop string that straddles tokens and events cuts the text before it, and later tokens do not count."""
    ids = tokenizer.encode("one two three four")
    num_needed = next(
        n for n in range(len(ids)) if "two th" in b"".join(tokenizer.token_bytes(i) for i in ids[:n]).decode()
    )
    choice = Choice(plan(stop_strings=("two th",)), tokenizer)
    delta = feed_all(choice, tell(ids, FinishReason.LENGTH, tokens_per_event=tokens_per_event))
    assert (delta.content, delta.finish_reason) == ("one ", "stop")
    assert choice.num_completion_tokens == num_needed


def test_partial_stop_string_is_released_at_the_end(tokenizer: Tokenizer) -> None:
    """What was held back for a stop string that never came is part of the answer."""
    choice = Choice(plan(stop_strings=("four!",)), tokenizer)
    delta = feed_all(choice, tell(tokenizer.encode("three four"), FinishReason.LENGTH))
    assert (delta.content, delta.finish_reason) == ("three four", "length")


def test_min_tokens_holds_for_stop_strings(tokenizer: Tokenizer) -> None:
    """A stop string within the first min_tokens does not stop."""
    ids = tokenizer.encode("a.b.c")
    assert len(ids) >= 5
    choice = Choice(plan(stop_strings=(".",), min_tokens=2), tokenizer)
    assert feed_all(choice, tell(ids)).content == "a.b"


def test_end_token_is_counted_but_is_no_text(tokenizer: Tokenizer) -> None:
    """The token that ends a sequence is not shown, even if it is ordinary text."""
    ids = tokenizer.encode("yes no")
    choice = Choice(plan(end_ids=frozenset(ids[-1:])), tokenizer)
    delta = feed_all(choice, tell(ids))
    assert delta.content == b"".join(map(tokenizer.token_bytes, ids[:-1])).decode()
    assert choice.num_completion_tokens == len(ids)


REASONING_CASES = [
    ("think\n</think>\nanswer", "think", "answer"),
    ("think \n\n</think>\n\nanswer", "think", "\nanswer"),
    ("</think>answer", "", "answer"),
    ("a\n\nb</think>c</think>d", "a\n\nb", "cd"),
    ("a<think>b</think>c", "ab", "c"),
    ("never closed \n", "never closed", ""),
]


@pytest.mark.parametrize(("text", "reasoning", "content"), REASONING_CASES)
@pytest.mark.parametrize("tokens_per_event", [1, 3, 100])
def test_reasoning_is_split_by_the_rules(
    text: str, reasoning: str, content: str, tokens_per_event: int, tokenizer: Tokenizer
) -> None:
    """Whitespace before the closing mark and one newline after it vanish, stray marks are swallowed."""
    choice = Choice(plan(starts_in_reasoning=True), tokenizer)
    delta = feed_all(choice, tell(tokenizer.encode(text), FinishReason.LENGTH, tokens_per_event=tokens_per_event))
    assert (delta.reasoning, delta.content) == (reasoning, content)


@pytest.mark.parametrize("tokens_per_event", [1, 3, 100])
def test_a_call_ends_reasoning_where_tools_are_offered(tokens_per_event: int, tokenizer: Tokenizer) -> None:
    """The mark of a call closes reasoning as its own mark does; where there is nothing to call it is text."""
    events = tell(
        tokenizer.encode("a\n<tool_call>\nf</think>b"), FinishReason.LENGTH, tokens_per_event=tokens_per_event
    )
    offered = feed_all(Choice(plan(starts_in_reasoning=True, tools=Toolset()), tokenizer), events)
    without = feed_all(Choice(plan(starts_in_reasoning=True), tokenizer), events)
    assert (offered.reasoning, offered.content) == ("a", "<tool_call>\nfb")
    assert (without.reasoning, without.content) == ("a\n<tool_call>\nf", "b")


def test_a_look_alike_of_the_mark_stays_reasoning(tokenizer: Tokenizer) -> None:
    """Only the token closes reasoning; the same letters from other tokens are text."""
    splitter = ReasoningSplitter(tokenizer, starts_in_reasoning=True)
    assert splitter.push(5, "x</think>y") == ("x</think>y", "")
    assert splitter.in_reasoning


def test_without_reasoning_everything_is_content(tokenizer: Tokenizer) -> None:
    """A completion that does not start in the think block shows the marks as the model wrote them."""
    choice = Choice(plan(), tokenizer)
    delta = feed_all(choice, tell(tokenizer.encode("a\n</think>\nb"), FinishReason.LENGTH))
    assert (delta.reasoning, delta.content) == ("", "a\n</think>\nb")


def test_stop_strings_spare_reasoning(tokenizer: Tokenizer) -> None:
    """A stop string in the reasoning does not end the answer, one in the content does."""
    choice = Choice(plan(starts_in_reasoning=True, stop_strings=("two",)), tokenizer)
    delta = feed_all(choice, tell(tokenizer.encode("one two</think>\none two three")))
    assert (delta.reasoning, delta.content) == ("one two", "one ")


def test_reasoning_tokens_are_counted(tokenizer: Tokenizer) -> None:
    """The closing mark counts as reasoning, what follows does not."""
    before, after = tokenizer.encode("one two</think>"), tokenizer.encode("three")
    choice = Choice(plan(starts_in_reasoning=True), tokenizer)
    feed_all(choice, tell(before + after, FinishReason.LENGTH))
    assert (choice.num_reasoning_tokens, choice.num_completion_tokens) == (len(before), len(before) + len(after))


def test_logprobs_follow_the_text_that_is_sent(tokenizer: Tokenizer) -> None:
    """Scores of tokens inside the stop string are not reported; offsets are those of the token's text."""
    ids = tokenizer.encode("one two three")
    texts = [tokenizer.token_text(i) for i in ids]
    offsets = [len("".join(texts[:n])) for n in range(len(texts))]
    choice = Choice(plan(stop_strings=("two",)), tokenizer)
    delta = feed_all(choice, tell(ids, logprobs=True))
    expected = [(offset, token_id) for offset, token_id in zip(offsets, ids, strict=True) if offset < len("one ")]
    assert [(token.offset, token.score.token_id) for token in delta.scored] == expected


def test_logprobs_of_a_whole_answer_are_complete(tokenizer: Tokenizer) -> None:
    """Every content token has its score, also those that hold only part of a character."""
    ids = tokenizer.encode("a🙂b")
    choice = Choice(plan(), tokenizer)
    delta = feed_all(choice, tell(ids, FinishReason.LENGTH, logprobs=True))
    assert [token.score.token_id for token in delta.scored] == ids


def test_logprobs_where_stop_strings_and_calls_hold_text_back(tokenizer: Tokenizer) -> None:
    """Tokens of the stop string have no score, also when text before it waited for a call to follow."""
    before, behind = tokenizer.encode("one \n"), tokenizer.encode(" two")
    ids = before + behind
    choice = Choice(plan(stop_strings=(" two",), tools=Toolset()), tokenizer)
    delta = feed_all(choice, tell(ids, logprobs=True))
    assert delta.content == "one \n"
    assert [token.score.token_id for token in delta.scored] == before


CALL = "<tool_call>\n<function=f>\n</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("before", "behind"),
    [("one", "<b>bold"), ("one", "<"), ("one", "</x"), ("", "< two"), ("one <b", "two"), ("x <tool_cal", "<tool_c")],
)
@pytest.mark.parametrize("tokens_per_event", [1, 100])
def test_logprobs_beside_calls(before: str, behind: str, tokens_per_event: int, tokenizer: Tokenizer) -> None:
    """Each token of the text before and behind a call has its score, also one that could have begun markup."""
    parts = [tokenizer.encode(part) for part in (before, CALL, behind)]
    choice = Choice(plan(tools=Toolset()), tokenizer)
    delta = feed_all(choice, tell(sum(parts, []), tokens_per_event=tokens_per_event, logprobs=True))
    assert delta.content == before + behind
    assert [token.score.token_id for token in delta.scored] == parts[0] + parts[2]


@pytest.mark.parametrize(
    "cut", ["<function=f>\n<parameter=k>\nab</para", "<function=f>\n<", "<function=f><parameter=k>\n<"]
)
def test_logprobs_of_a_cut_call(cut: str, tokenizer: Tokenizer) -> None:
    """A call that ends within what may be a tag leaves no score behind."""
    before = tokenizer.encode("one")
    choice = Choice(plan(tools=Toolset()), tokenizer)
    delta = feed_all(choice, tell(before + tokenizer.encode(cut), FinishReason.LENGTH, logprobs=True))
    assert [token.score.token_id for token in delta.scored] == before


def test_stop_strings_and_whitespace_beside_calls(tokenizer: Tokenizer) -> None:
    """Whitespace that only parts content from a call is no content; a stop string in it counts once text follows."""
    for text, is_stopped in ((f"one\n\n{CALL}", False), (f"one\n\n{CALL}two three", True)):
        token_ids = tokenizer.encode(text)
        choice = Choice(plan(stop_strings=("\n\n",), tools=Toolset()), tokenizer)
        delta = feed_all(choice, tell(token_ids))
        assert (delta.content, delta.finish_reason) == ("one", "tool_calls")
        assert (choice.num_completion_tokens < len(token_ids)) == is_stopped


def test_calls_whose_marks_are_not_shown() -> None:
    """A tokenizer that counts the call marks among the special tokens hides them, and the calls are found as well."""
    definition = json.loads(tokenizer_json(VOCAB_SIZE))
    definition["added_tokens"] = [{**entry, "special": True} for entry in definition["added_tokens"]]
    tokenizer = Tokenizer(definition)
    ids = tokenizer.encode("hm\n<tool_call>\n<function=f>\n</function>\n</tool_call><tool_call><function=g></function>")
    choice = Choice(plan(starts_in_reasoning=True, tools=Toolset()), tokenizer)
    delta = feed_all(choice, tell(ids))
    assert (delta.reasoning, delta.content) == ("hm", "")
    assert [piece.name for piece in delta.calls if piece.name is not None] == ["f", "g"]


def test_nothing_counts_behind_a_stop_string() -> None:
    """A call that begins in the very token that completes a stop string is not made."""
    definition = json.loads(tokenizer_json(VOCAB_SIZE))
    token_id = VOCAB_SIZE - 1
    definition["added_tokens"].append({"id": token_id, "content": "END <function=f>"})
    choice = Choice(plan(stop_strings=("END",), tools=Toolset()), Tokenizer(definition))
    delta = feed_all(choice, tell([token_id]))
    assert (delta.content, delta.calls) == ("", ())


@pytest.mark.parametrize(
    ("reason", "error", "kind"),
    [
        (FinishReason.ERROR, RequestError(ErrorKind.UNAVAILABLE, "Experts are missing."), ErrorKind.UNAVAILABLE),
        (FinishReason.ERROR, None, ErrorKind.INTERNAL),
        (FinishReason.ABORT, None, ErrorKind.DEADLINE),
    ],
)
def test_failures_are_raised(
    reason: FinishReason, error: RequestError | None, kind: ErrorKind, tokenizer: Tokenizer
) -> None:
    """An event that ends in failure is never taken for an answer."""
    with pytest.raises(GenerationFailed) as caught:
        Choice(plan(), tokenizer).feed(TokenEvent("r", finish_reason=reason, error=error))
    assert caught.value.kind is kind
