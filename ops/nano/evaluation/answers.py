"""Asks the model held-out questions of every skill, with the engine that serves, and counts what is right."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from ops.nano.data.conversation import Conversation
from ops.nano.data.mixture import SKILLS
from ops.nano.data.rendering import Renderer
from ops.nano.evaluation.engine import Engine
from ops.nano.evaluation.judging import judge, problem_of
from ops.nano.evaluation.results import (
    AnswerResults,
    CallRates,
    Completion,
    Rate,
    SkillResult,
    Variant,
    Verdict,
    WrongAnswer,
)
from ops.nano.evaluation.turns import Turn, all_turns, asked, held_out_conversations, training_answers

MAX_TOKENS = 300
MAX_WRONG = 8  # examples of a skill
SAMPLED_CONVERSATIONS = 40
TRAINING_CONVERSATIONS = 25_000  # of a skill, searched for the answers of held-out ones; about what training sees


@dataclass(frozen=True)
class _Judged:
    turn: Turn
    completion: Completion
    text: str
    verdict: Verdict


def evaluate_answers(
    checkpoint: Path,
    *,
    per_skill: int = 200,
    num_sampled: int = SAMPLED_CONVERSATIONS,
    seed: int = 0,
    skills: Sequence[str] = tuple(SKILLS),
    device: str = "cpu",
) -> AnswerResults:
    """per_skill: conversations that are answered greedily. num_sampled: how many of them are answered at temperature 1
    too, only for what is written. Raises CheckpointError."""
    engine = Engine(checkpoint, device=device)
    renderer = Renderer(engine.tokenizer)
    results, greedy, sampled = [], {}, {}
    for skill in track(skills, description="answers"):
        conversations = held_out_conversations(skill, per_skill, seed)
        turns = all_turns(conversations)
        prompts = [renderer.prompt(turn.before, turn.tools) for turn in turns]
        num_turns_sampled = len(all_turns(conversations[:num_sampled]))
        greedy[skill] = tuple(engine.greedy(prompts, MAX_TOKENS))
        sampled[skill] = tuple(engine.sampled(prompts[:num_turns_sampled], MAX_TOKENS, seed))
        judged = [_judged(engine, *case) for case in zip(turns, greedy[skill], strict=True)]
        results.append(_summary(skill, conversations, judged, training_answers(skill, TRAINING_CONVERSATIONS, seed)))
    return AnswerResults(tuple(results), greedy, sampled)


def _judged(engine: Engine, turn: Turn, completion: Completion) -> _Judged:
    text = engine.text(completion.completion_token_ids)
    return _Judged(turn, completion, text, judge(text, turn))


def _summary(
    skill: str, conversations: Sequence[Conversation], judged: Sequence[_Judged], trained: Container[str]
) -> SkillResult:
    """trained: answers that training has."""
    verdicts = [case.verdict for case in judged]
    num_tokens = [len(case.completion.completion_token_ids) for case in judged]
    variants = {variant: [case.verdict for case in judged if case.turn.variant is variant] for variant in Variant}
    return SkillResult(
        skill=skill,
        num_conversations=len(conversations),
        num_questions=len({asked(conversation) for conversation in conversations}),
        exact=Rate.of(verdict.is_exact for verdict in verdicts),
        exact_new=Rate.of(case.verdict.is_exact for case in judged if case.turn.answer not in trained),
        well_formed=Rate.of(verdict.is_well_formed for verdict in verdicts),
        reasoning=Rate.of(verdict.is_reasoning_right for verdict in verdicts),
        exact_by_variant={
            variant: Rate.of(verdict.is_exact for verdict in found) for variant, found in variants.items() if found
        },
        calls=_call_rates(variants[Variant.CALL]),
        num_cut=sum(not case.completion.is_stopped for case in judged),
        mean_tokens=sum(num_tokens) / max(1, len(num_tokens)),
        wrong=_wrong(judged),
    )


def _call_rates(verdicts: Sequence[Verdict]) -> CallRates | None:
    if not verdicts:
        return None
    return CallRates(
        names=Rate.of(verdict.are_names_right for verdict in verdicts),
        valid=Rate.of(verdict.are_calls_right for verdict in verdicts),
    )


def _wrong(judged: Sequence[_Judged]) -> tuple[WrongAnswer, ...]:
    cases = [case for case in judged if not case.verdict.is_exact][:MAX_WRONG]
    return tuple(
        WrongAnswer(case.turn.prompt_end, case.turn.expected_text, case.text, problem_of(case.verdict))
        for case in cases
    )
