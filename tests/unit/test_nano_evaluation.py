"""The evaluation of the nano model's answers: the strict parser, the judge, and the way from checkpoint to counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ops.nano.data.conversation import Conversation, assistant, tool_response, user
from ops.nano.data.mixture import SKILLS
from ops.nano.data.rendering import Renderer
from ops.nano.data.tool_catalogue import function_schema
from ops.nano.evaluation import answers, parity
from ops.nano.evaluation.answers import evaluate_answers
from ops.nano.evaluation.engine import Engine
from ops.nano.evaluation.judging import judge, problem_of
from ops.nano.evaluation.parity import compare_with_transformers, first_difference
from ops.nano.evaluation.parsing import Call, MalformedAnswer, parse_answer, typed_values
from ops.nano.evaluation.results import Completion, Mismatch, ParityResult, Rate, Variant
from ops.nano.evaluation.transformers_oracle import TransformersOracle
from ops.nano.evaluation.turns import Turn, all_turns, asked, held_out_conversations, training_answers, turns_of
from ops.nano.tokenizer import TURN_END
from tests.fakes.checkpoint import write_checkpoint
from tests.fakes.configs import tiny_config
from tests.fakes.tokenizer import tokenizer_json

OPEN, CLOSE = "<tool_call>\n<function=", "</function>\n</tool_call>"
TIMER = function_schema(
    "set_timer",
    "Start a timer",
    {
        "label": {"type": "string"},
        "minutes": {"type": "integer"},
        "volume": {"type": "number"},
        "loud": {"type": "boolean"},
        "days": {"type": "array", "items": {"type": "string"}},
    },
    ["minutes"],
)


def written(content: str, reasoning: str = "I think.") -> str:
    return f"{reasoning}\n</think>\n{content}{TURN_END}"


def call_text(name: str, **values: str) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"{OPEN}{name}>\n{parameters}{CLOSE}"


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "calls"),
    [
        (written("4"), "I think.", "4", ()),
        (written(" 4\n"), "I think.", "4", ()),
        (written("4", reasoning=""), "", "4", ()),
        (written("a < b > c"), "I think.", "a < b > c", ()),
        (written('{"a": [1, 2]}\nline', "one\ntwo"), "one\ntwo", '{"a": [1, 2]}\nline', ()),
        (written(call_text("now")), "I think.", "", (Call("now", {}),)),
        (written(call_text("f", a="1")), "I think.", "", (Call("f", {"a": "1"}),)),
        (
            written("Wait." + call_text("f", a="1", b="x\ny")),
            "I think.",
            "Wait.",
            (Call("f", {"a": "1", "b": "x\ny"}),),
        ),
        (written(call_text("f", a="")), "I think.", "", (Call("f", {"a": ""}),)),
        (written(call_text("f") + call_text("g", b="<b>")), "I think.", "", (Call("f", {}), Call("g", {"b": "<b>"}))),
    ],
)
def test_a_well_formed_answer_is_taken_apart(text: str, reasoning: str, content: str, calls: tuple[Call, ...]) -> None:
    """Reasoning, content and calls come out as they were written."""
    answer = parse_answer(text)
    assert (answer.reasoning, answer.content, answer.calls) == (reasoning, content, calls)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "does not end"),
        (written("4").removesuffix(TURN_END), "does not end"),
        (written("4").replace(TURN_END, "<｜end▁of▁sentence｜>"), "does not end"),
        (written("4") + "\n", "does not end"),
        (f"I think. 4{TURN_END}", "not closed"),
        (f"I think.</think>\n4{TURN_END}", "not closed"),
        (f"I think.\n</think>4{TURN_END}", "not closed"),
        (written(call_text("f")).replace("</think>\n", ""), "not closed"),
        (written(""), "neither"),
        (written(" \n"), "neither"),
        (written("4", reasoning="<think>\nso"), "<think> in the reasoning"),
        (written("4", reasoning=f"so {call_text('f')}"), "in the reasoning"),
        (written("4\n</think>\n4"), "</think> in the content"),
        (written(f"4{TURN_END}\n<|im_start|>user\nso"), "in the content"),
        (written("<function=f>\n</function>"), "<function in the content"),
        (written("4 </tool_call>"), "</tool_call> in the content"),
        (written("4 </parameter>"), "</parameter in the content"),
        (written(call_text("f") + "Done."), "text behind a call"),
        (written(call_text("f") + "\n" + call_text("g")), "text behind a call"),
        (written(call_text("f").removesuffix("\n</tool_call>")), "a call"),
        (written(call_text("f").replace("</function>\n", "")), "a call"),
        (written(call_text("f").replace("f>\n", "f>")), "a call"),
        (written(call_text("f").replace("=f>", "=>")), "a call"),
        (written(call_text("f").replace("=f>", "=f g>")), "a call"),
        (written(call_text("f", a="1").replace("\n</parameter>", "")), "a call"),
        (written(call_text("f", a="1").replace("1\n", "1")), "a call"),
        (written(call_text("f", a="1\n</parameter>\njunk")), "a call"),
        (written(call_text("f", a="<tool_call>")), "a call"),
        (written(call_text("f", a="1").replace(CLOSE, "junk\n" + CLOSE)), "a call"),
        (written(OPEN + "f>\n" + "<parameter=a>\n1\n</parameter>\n" * 2 + CLOSE), "twice"),
        (written(call_text("f", a="</think>")), "a special token in a parameter"),
    ],
)
def test_a_malformed_answer_is_refused(text: str, problem: str) -> None:
    """Whatever breaks the grammar is named, whether the server would forgive it or not."""
    with pytest.raises(MalformedAnswer, match=problem):
        parse_answer(text)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("minutes", "5", 5),
        ("minutes", "-5", -5),
        ("minutes", "5.0", "5.0"),
        ("minutes", "five", "five"),
        ("minutes", " 5", " 5"),
        ("volume", "5", 5.0),
        ("volume", "0.5", 0.5),
        ("volume", "1e3", "1e3"),
        ("loud", "True", True),
        ("loud", "false", False),
        ("loud", "1", "1"),
        ("days", '["Monday"]', ["Monday"]),
        ("days", '{"a": 1}', '{"a": 1}'),
        ("days", "['Monday']", "['Monday']"),
        ("label", "5", "5"),
        ("label", "true", "true"),
        ("unknown", "5", "5"),
    ],
)
def test_a_parameter_has_the_type_of_its_schema(key: str, text: str, value: object) -> None:
    """Text becomes a value of the declared type, and stays text where it is no such value."""
    found = typed_values(Call("set_timer", {key: text}), [TIMER])
    assert found == {key: value}
    assert type(found[key]) is type(value)


def test_a_call_of_an_unknown_tool_has_text_alone() -> None:
    """Without a schema nothing is converted."""
    assert typed_values(Call("stop", {"minutes": "5"}), [TIMER]) == {"minutes": "5"}


def timer_turn(*calls: dict[str, Any], content: str = "") -> Turn:
    expected = assistant("I think.", content, [("set_timer", arguments) for arguments in calls])
    return Turn((user("A timer, please."),), expected, (TIMER,))


FIVE = {"minutes": 5, "loud": True, "label": "eggs"}


@pytest.mark.parametrize(
    ("text", "names", "arguments", "exact"),
    [
        (call_text("set_timer", minutes="5", loud="True", label="eggs"), True, True, True),
        (call_text("set_timer", label="eggs", loud="true", minutes="5"), True, True, True),
        (call_text("set_timer", minutes="6", loud="True", label="eggs"), True, False, False),
        (call_text("set_timer", minutes="5", loud="1", label="eggs"), True, False, False),
        (call_text("set_timer", minutes="5.0", loud="True", label="eggs"), True, False, False),
        (call_text("set_timer", minutes="5", loud="True", label=" eggs"), True, False, False),
        (call_text("set_timer", minutes="5", loud="True"), True, False, False),
        (call_text("set_timer", minutes="5", loud="True", label="eggs", volume="1"), True, False, False),
        (call_text("stop_timer", minutes="5", loud="True", label="eggs"), False, False, False),
        (call_text("set_timer", minutes="5", loud="True", label="eggs") * 2, False, False, False),
        ("Done: " + call_text("set_timer", minutes="5", loud="True", label="eggs"), True, True, False),
        ("5 minutes.", False, False, False),
    ],
)
def test_a_call_is_judged_by_name_and_typed_arguments(text: str, names: bool, arguments: bool, exact: bool) -> None:
    """A call is right with the right function and equal values in any order; exact, when nothing else is said."""
    verdict = judge(written(text), timer_turn(FIVE))
    assert verdict.is_well_formed
    assert (verdict.are_names_right, verdict.are_arguments_right, verdict.is_exact) == (names, arguments, exact)
    assert verdict.are_calls_right == (names and arguments)
    assert (problem_of(verdict) == "") == exact


def test_two_calls_are_judged_in_order() -> None:
    """The calls of one turn belong to what the user named first and second."""
    one, two = call_text("set_timer", minutes="1"), call_text("set_timer", minutes="2")
    turn = timer_turn({"minutes": 1}, {"minutes": 2})
    assert judge(written(one + two), turn).is_exact
    for text in (two + one, one + one, one):
        assert not judge(written(text), turn).are_calls_right


def test_a_boolean_is_no_number() -> None:
    """1 for an integer is not the True that the schema's other reading would give."""
    assert not judge(written(call_text("set_timer", minutes="1")), timer_turn({"minutes": True})).are_calls_right


def test_a_call_where_none_is_due_is_wrong() -> None:
    """Offered tools need not be used: the right content with a call beside it is not exact."""
    turn = timer_turn(content="I have no tool for that.")
    verdict = judge(written("I have no tool for that." + call_text("set_timer", minutes="1")), turn)
    assert verdict.is_content_right
    assert not verdict.is_exact
    assert judge(written("I have no tool for that."), turn).is_exact


def test_content_is_compared_stripped_and_whole() -> None:
    """Whitespace around an answer is forgiven, and nothing else; reasoning counts for itself."""
    turn = Turn((user("2 + 2?"),), assistant("2 and 2.", "2 + 2 = 4"), ())
    assert judge(written(" 2 + 2 = 4\n", "2 and 2."), turn).is_reasoning_right
    right = judge(written("2 + 2 = 4", "Hm."), turn)
    assert right.is_exact
    assert not right.is_reasoning_right
    for text in ("2 + 2 = 5", "2+2 = 4", "2 + 2 = 4.", "4"):
        assert problem_of(judge(written(text), turn)) == "wrong content"


def test_nothing_is_right_of_a_malformed_answer() -> None:
    """The right words without an end are no answer."""
    turn = Turn((user("2 + 2?"),), assistant("2 and 2.", "4"), ())
    verdict = judge("2 and 2.\n</think>\n4", turn)
    assert not any((verdict.is_well_formed, verdict.is_content_right, verdict.is_reasoning_right, verdict.is_exact))
    assert problem_of(verdict) == "malformed: it does not end with <|im_end|>"


@pytest.mark.parametrize("skill", SKILLS)
def test_what_is_expected_is_exact(skill: str) -> None:
    """Parser and judge accept the answer that each generator gives, on every turn, word for word."""
    for turn in all_turns(held_out_conversations(skill, 40, seed=1)):
        verdict = judge(turn.expected_text, turn)
        assert verdict.is_exact, (turn.expected_text, problem_of(verdict))
        assert verdict.is_reasoning_right


def test_conversations_are_held_out_and_stay() -> None:
    """No question is one of training's, asking for more keeps the first ones, and another seed asks others."""
    few, more = held_out_conversations("arithmetic", 3, seed=0), held_out_conversations("arithmetic", 5, seed=0)
    assert more[:3] == few
    assert all(conversation.is_held_out for conversation in more)
    assert held_out_conversations("arithmetic", 5, seed=1) != more


def test_answers_that_training_has_are_known() -> None:
    """Different questions have the same answer: training soon has many of the held-out ones' answers, but not all."""
    trained = training_answers("units", 3000, seed=0)
    turns = all_turns(held_out_conversations("units", 100, seed=0))
    seen = [turn for turn in turns if turn.answer in trained]
    assert 20 < len(seen) < 100
    assert training_answers("units", 300, seed=0) <= trained


def test_turns_are_the_answers_to_the_latest_user_message() -> None:
    """History is shown and not asked for; a call and the answer from its result are asked for one by one."""
    call, answer = assistant("I call.", calls=[("set_timer", {"minutes": 5})]), assistant("I tell.", "It runs.")
    messages = (user("Hi"), assistant("", "Hello!"), user("5 minutes"), call, tool_response("ok"), answer)
    first, second = turns_of(Conversation("tools", messages, (TIMER,)))
    assert (first.before, first.expected, first.variant) == (messages[:3], call, Variant.CALL)
    assert (second.before, second.expected, second.variant) == (messages[:5], answer, Variant.AFTER_TOOL)
    assert second.expected_text == written("It runs.", "I tell.")
    assert second.prompt_end.startswith("<|im_start|>user\n5 minutes")
    assert second.prompt_text.endswith("<tool_response>ok</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert turns_of(Conversation("tools", messages[:2], (TIMER,)))[0].variant is Variant.NO_TOOL
    assert turns_of(Conversation("chat", messages[:2]))[0].variant is Variant.ANSWER


def test_rates_pool_cases() -> None:
    """A pooled rate weighs every case the same, and nothing is no rate to divide by."""
    pooled = Rate.pooled([Rate.of([True]), Rate.of([False, False, True])])
    assert pooled == Rate(2, 4)
    assert pooled.value == 0.5
    assert Rate.of([]).value == 0.0


class FluentEngine:
    """Gives every expected answer, but spoils the second of each `greedy`."""

    def __init__(self, checkpoint: Path, *, device: str) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer_json(512))
        turns = [turn for skill in SKILLS for turn in all_turns(held_out_conversations(skill, 8, seed=0))]
        renderer = Renderer(self.tokenizer)
        self._texts = {tuple(renderer.prompt(turn.before, turn.tools)): turn.expected_text for turn in turns}

    def greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Completion]:
        texts = [self._texts[tuple(prompt)] for prompt in prompts]
        texts[1] = texts[1].removesuffix(TURN_END)
        ids = [tuple(self.tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
        return [
            Completion(tuple(prompt), chosen, is_stopped=idx != 1)
            for idx, (prompt, chosen) in enumerate(zip(prompts, ids, strict=True))
        ]

    def sampled(self, prompts: Sequence[Sequence[int]], max_tokens: int, seed: int) -> list[Completion]:
        return [Completion(tuple(prompt), (seed,), is_stopped=False) for prompt in prompts]

    def text(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))


def test_right_answers_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model that says what is expected has every turn of every skill but the one that it leaves without an end."""
    monkeypatch.setattr(answers, "Engine", FluentEngine)
    monkeypatch.setattr(answers, "TRAINING_CONVERSATIONS", 100)
    results = evaluate_answers(tmp_path, per_skill=8, num_sampled=2)
    assert [result.skill for result in results.skills] == list(SKILLS)
    for result in results.skills:
        conversations = held_out_conversations(result.skill, 8, seed=0)
        turns = all_turns(conversations)
        assert result.num_turns == len(turns) >= 8
        assert result.exact == result.well_formed == result.reasoning == Rate(len(turns) - 1, len(turns))
        assert result.num_questions == len({asked(conversation) for conversation in conversations}) <= 8
        assert result.exact_new.total <= result.exact.total
        assert result.num_cut == 1
        assert [wrong.problem for wrong in result.wrong] == ["malformed: it does not end with <|im_end|>"]
        assert result.wrong[0].expected == result.wrong[0].got + TURN_END == turns[1].expected_text
        assert Rate.pooled(result.exact_by_variant.values()) == result.exact
        tokens = [len(completion.completion_token_ids) for completion in results.greedy[result.skill]]
        assert result.mean_tokens == sum(tokens) / len(tokens)
        assert len(results.sampled[result.skill]) == len(all_turns(held_out_conversations(result.skill, 2, seed=0)))
    assert results.well_formed.total - results.well_formed.count == len(SKILLS)
    tools = results.skills[list(SKILLS).index("tools")]
    assert tools.calls is not None
    assert tools.calls.valid.total == tools.exact_by_variant[Variant.CALL].total == results.valid_calls.total
    assert results.skills[0].calls is None


def test_a_random_model_answers_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From checkpoint to counts with the real engine: every turn is asked, and noise is neither exact nor valid."""
    monkeypatch.setattr(answers, "MAX_TOKENS", 12)
    monkeypatch.setattr(answers, "TRAINING_CONVERSATIONS", 100)
    fields = tiny_config(max_position_embeddings=2048)
    results = evaluate_answers(
        write_checkpoint(tmp_path, fields), per_skill=3, num_sampled=1, skills=("arithmetic", "tools")
    )
    assert [result.skill for result in results.skills] == ["arithmetic", "tools"]
    assert results.exact == results.well_formed == Rate(0, results.exact.total)
    assert results.valid_calls.count == 0 < results.valid_calls.total
    for result in results.skills:
        greedy, sampled = results.greedy[result.skill], results.sampled[result.skill]
        assert len(greedy) == result.num_turns >= 3
        assert all(0 < len(completion.completion_token_ids) <= 12 for completion in greedy)
        assert sampled[0].prompt_token_ids == greedy[0].prompt_token_ids
        assert sampled[0].completion_token_ids != greedy[0].completion_token_ids
        assert len(result.wrong) == min(8, result.num_turns)


def test_the_engine_completes_in_order_and_repeats_its_samples(tmp_path: Path) -> None:
    """Prompts of any length keep their places, one without room comes back empty, and a seed draws the same again."""
    engine = Engine(write_checkpoint(tmp_path, tiny_config(max_position_embeddings=64)))
    prompts = [[3, 4, 5], [7] * 64, [11] * 60, [9]]
    greedy = engine.greedy(prompts, 6)
    assert [list(completion.prompt_token_ids) for completion in greedy] == prompts
    assert [len(completion.completion_token_ids) for completion in greedy] == [6, 0, 4, 6]
    assert not any(completion.is_stopped for completion in greedy)
    again = [engine.greedy([prompt], 6)[0] for prompt in prompts]
    assert again == greedy
    sampled = engine.sampled(prompts, 6, seed=1)
    assert engine.sampled(prompts, 6, seed=1) == sampled
    assert engine.sampled(prompts, 6, seed=2) != sampled


def test_the_first_difference_is_found_with_its_gap() -> None:
    """By hand: the second row likes token 2 better than the chosen 0, by 0.75."""
    logits = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.5, 1.0], [9.0, 0.0, 0.0]])
    assert first_difference(logits, [1, 0, 1]) == (1, 2, 0.75)
    assert first_difference(logits, [1, 2, 0]) is None


def test_ties_are_told_apart() -> None:
    """A gap within rounding is a tie and still not an equal prompt."""
    mismatches = tuple(Mismatch("text", 0, 0, "a", "b", gap) for gap in (0.0, 5e-5, 2e-4))
    result = ParityResult(10, 240, mismatches)
    assert (result.num_equal, result.num_ties) == (7, 2)


def test_tokens_equal_those_of_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On bfloat16 weights computed in float32 both implementations choose the same; another trunk is found out."""
    write_checkpoint(tmp_path, tiny_config())
    monkeypatch.setattr(parity, "MAX_TOKENS", 8)
    same = compare_with_transformers(tmp_path, num_prompts=2, domains=("arithmetic", "turns"))
    assert (same.num_prompts, same.num_equal, same.mismatches) == (2, 2, ())
    assert same.num_tokens == 16

    original = TransformersOracle.logits

    def reversed_logits(oracle: TransformersOracle, token_ids: list[int]) -> Tensor:
        return -original(oracle, token_ids)

    monkeypatch.setattr(TransformersOracle, "logits", reversed_logits)
    other = compare_with_transformers(tmp_path, num_prompts=2, domains=("arithmetic", "turns"))
    assert other.num_equal == other.num_ties == 0
    assert [(mismatch.domain, mismatch.position) for mismatch in other.mismatches] == [("arithmetic", 0), ("turns", 0)]
    assert all(mismatch.gap > 0.1 for mismatch in other.mismatches)
