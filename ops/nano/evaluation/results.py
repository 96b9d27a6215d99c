"""What the evaluation of answers and the comparison with transformers find. Values only: no model, no text format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

TIE_GAP = 1e-4  # logits that are closer than this may change places with the order of float32 sums


@dataclass(frozen=True)
class Rate:
    """How many of a number of cases."""

    count: int
    total: int

    @property
    def value(self) -> float:
        """Between 0 and 1; 0 without cases."""
        return self.count / self.total if self.total else 0.0

    @staticmethod
    def of(cases: Iterable[bool]) -> Rate:
        answers = list(cases)
        return Rate(sum(answers), len(answers))

    @staticmethod
    def pooled(rates: Iterable[Rate]) -> Rate:
        """Every case of every rate counts the same."""
        parts = list(rates)
        return Rate(sum(rate.count for rate in parts), sum(rate.total for rate in parts))


class Variant(StrEnum):
    """What a turn asks of the assistant."""

    ANSWER = "answer"  # no tools are offered
    CALL = "call"
    AFTER_TOOL = "answer after tool"
    NO_TOOL = "no tool fits"  # tools are offered, and none is to be called


@dataclass(frozen=True)
class Completion:
    """One generated sequence. completion_token_ids: the token that ended it included; empty for a prompt that does not
    fit into the model's context. is_stopped: whether the model ended it, and not the limit."""

    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    is_stopped: bool


@dataclass(frozen=True)
class Verdict:
    """What is right of one answer. Nothing is right of an answer that is not well-formed."""

    is_well_formed: bool
    is_reasoning_right: bool = False  # word for word; for information, an answer may be right without
    is_content_right: bool = False  # equal when stripped
    are_names_right: bool = False  # of the called functions, in order; no call where none is due
    are_arguments_right: bool = False  # of those calls, as values of the types that the schema gives them
    problem: str = ""  # why it is not well-formed

    @property
    def are_calls_right(self) -> bool:
        return self.are_names_right and self.are_arguments_right

    @property
    def is_exact(self) -> bool:
        """Content and calls are what they should be."""
        return self.is_content_right and self.are_calls_right


@dataclass(frozen=True)
class WrongAnswer:
    """An example for the report. prompt_end: the latest user message and what followed. problem: in a few words."""

    prompt_end: str
    expected: str
    got: str
    problem: str


@dataclass(frozen=True)
class CallRates:
    """Over the turns in which a call is due."""

    names: Rate  # right functions
    valid: Rate  # right functions with right arguments


@dataclass(frozen=True)
class SkillResult:
    """One skill. Rates are over turns: assistant messages after the latest user message, of which a conversation with a
    tool's answer has two.

    Held-out questions are never trained on, but other questions have the same answer: exact_new is about the turns
    whose answer, reasoning included, is in none of many training conversations.
    """

    skill: str
    num_conversations: int
    num_questions: int  # different ones among them
    exact: Rate
    exact_new: Rate
    well_formed: Rate
    reasoning: Rate
    exact_by_variant: Mapping[Variant, Rate]  # the variants that occur
    calls: CallRates | None  # None for a skill without calls
    num_cut: int  # completions that a limit ended, of tokens or of the context
    mean_tokens: float  # of a completion
    wrong: tuple[WrongAnswer, ...]

    @property
    def num_turns(self) -> int:
        return self.exact.total


@dataclass(frozen=True)
class AnswerResults:
    """All skills, and what the model wrote, by skill: greedily on every turn, and at temperature 1 on fewer."""

    skills: tuple[SkillResult, ...]
    greedy: Mapping[str, tuple[Completion, ...]]
    sampled: Mapping[str, tuple[Completion, ...]]

    @property
    def exact(self) -> Rate:
        return Rate.pooled(result.exact for result in self.skills)

    @property
    def well_formed(self) -> Rate:
        return Rate.pooled(result.well_formed for result in self.skills)

    @property
    def valid_calls(self) -> Rate:
        return Rate.pooled(result.calls.valid for result in self.skills if result.calls is not None)


@dataclass(frozen=True)
class Mismatch:
    """The first token of a completion that transformers would not have chosen. gap: by how much its logit is below
    that of the other's choice, both by transformers."""

    domain: str
    prompt_number: int
    position: int  # in the completion, from 0
    our_token: str
    other_token: str
    gap: float

    @property
    def is_tie(self) -> bool:
        """Whether the two logits are the same but for rounding."""
        return self.gap <= TIE_GAP


@dataclass(frozen=True)
class ParityResult:
    """Greedy tokens of the engine beside those of transformers' Step-3.7 text model with the same weights."""

    num_prompts: int  # those that fit into the model's context
    num_tokens: int  # of all completions together
    mismatches: tuple[Mismatch, ...]  # at most one for each prompt

    @property
    def num_equal(self) -> int:
        """Prompts whose tokens are all equal; ties that fell differently are not among them."""
        return self.num_prompts - len(self.mismatches)

    @property
    def num_ties(self) -> int:
        """Mismatches that are ties."""
        return sum(mismatch.is_tie for mismatch in self.mismatches)
