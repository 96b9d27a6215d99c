"""The request bodies, with every bound that needs no model to check. Parsing is strict: a string is never a number.

Fields that change nothing here (user, metadata, store, ...) and unknown ones are accepted and ignored; fields that
would change the answer and are not implemented are refused by `refuse_unsupported`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from actors.messages import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_SEED, MAX_STOP_TOKEN_IDS
from cluster.api.messages import ChatMessage, FunctionCall, RefusalPart, TextPart, ToolCall
from cluster.api.tools import MAX_TOOLS, FunctionSpec, Tool
from cluster.errors import InvalidRequest

MAX_STOP_STRINGS = 4
MAX_STOP_CHARS = 256
MAX_MESSAGES = 4096
MAX_PROMPTS = 256
MAX_TOKENS = 2**31 - 1

StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Bias = Annotated[float, Field(ge=-100.0, le=100.0)]
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]

# Field -> values that ask for nothing. Anything else would change the answer in a way that is not implemented.
# A field that an endpoint's body declares is no extra one there, and not looked at here.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None, []),
    "guided_grammar": (None,),
    "modalities": (None, [], ["text"]),
    "audio": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "prompt_logprobs": (None,),
    "bad_words": (None, []),
    "allowed_token_ids": (None, []),
    "chat_template": (None,),
    "documents": (None, []),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "add_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "include_stop_str_in_output": (None, False),
    "thinking_token_budget": (None,),
    "return_token_ids": (None, False),
    # A degree is a hint, and this model has none to set; "none" asks for an answer without reasoning.
    "reasoning_effort": (None, "low", "medium", "high"),
}

UNSUPPORTED_STREAM_OPTIONS: Mapping[str, tuple[Any, ...]] = {"continuous_usage_stats": (None, False)}

_BODY_CONFIG = ConfigDict(strict=True, frozen=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class StreamOptions(BaseModel):
    """How a stream reports itself."""

    model_config = _BODY_CONFIG

    include_usage: bool | None = None


class SamplingBody(BaseModel, ABC):
    """What both generation endpoints take. None means the default that `SamplingSpec` has."""

    model_config = _BODY_CONFIG

    model: str = Field(min_length=1, max_length=256)
    n: int | None = Field(None, ge=1, le=MAX_TOKENS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0.0, le=2.0)
    top_p: float | None = Field(None, gt=0.0, le=1.0)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKENS)
    min_p: float | None = Field(None, ge=0.0, le=1.0)
    frequency_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    presence_penalty: float | None = Field(None, ge=-2.0, le=2.0)
    repetition_penalty: float | None = Field(None, gt=0.0, le=2.0)
    logit_bias: dict[BiasKey, Bias] | None = Field(None, max_length=MAX_LOGIT_BIAS)
    seed: int | None = Field(None, ge=-MAX_SEED, le=MAX_SEED)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whatever form it came in."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with a chunk that carries usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    @abstractmethod
    def num_logprobs(self) -> int | None:
        """How many alternatives to report with each token; None for no logprobs at all."""

    @property
    def max_new_tokens(self) -> int | None:
        """The explicit limit of completion tokens, None if there is none."""
        return self.max_tokens


class ChatBody(SamplingBody):
    """POST /v1/chat/completions.

    tool_choice "none": the model is not told of the tools, the only way to keep it from calling them, and its answer is
    content from end to end. parallel_tool_calls false: the first call is answered with, later ones are dropped.
    """

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include_reasoning: bool | None = None
    chat_template_kwargs: dict[Literal["enable_thinking"], bool] | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    @property
    def offered_tools(self) -> list[Tool]:
        """The tools that the model is told of and may call."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionBody(SamplingBody):
    """POST /v1/completions. `prompt`: a text, texts, one prompt's ids, or several prompts' ids."""

    prompt: (
        str
        | list[TokenId]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[list[TokenId]], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt, whatever form they came in."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt or isinstance(self.prompt[0], int):
            return [list(self.prompt)]  # type: ignore[arg-type]  # the first entry tells the list's type
        return list(self.prompt)


Body = TypeVar("Body", bound=SamplingBody)


def parse_body(kind: type[Body], raw: bytes) -> Body:
    """Understand a JSON body. Raises InvalidRequest that names the first wrong field and the rule, never the value."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        raise _as_invalid_request(error.errors(include_url=False, include_input=False)[0]) from None
    refuse_unsupported(body)
    return body


def refuse_unsupported(body: SamplingBody) -> None:
    """Raises InvalidRequest for what would change the answer and is not implemented, and for fields that contradict."""
    _refuse_extra(body, UNSUPPORTED)
    if body.stream_options is not None:
        _refuse_extra(body.stream_options, UNSUPPORTED_STREAM_OPTIONS, "stream_options.")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options needs stream to be true.", "stream_options")
    if isinstance(body, ChatBody):
        _refuse_chat_contradictions(body)


def _refuse_extra(body: BaseModel, unsupported: Mapping[str, tuple[Any, ...]], prefix: str = "") -> None:
    """Types count: to Python, 0 is False and 1 is true."""
    extra = body.model_extra or {}
    for name, harmless in unsupported.items():
        value = extra.get(name)
        if not any(type(value) is type(allowed) and value == allowed for allowed in harmless):
            raise InvalidRequest(f"{prefix}{name} is not supported with this value.", prefix + name)


def _refuse_chat_contradictions(body: ChatBody) -> None:
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
    both = {limit for limit in (body.max_tokens, body.max_completion_tokens) if limit is not None}
    if len(both) > 1:
        raise InvalidRequest("max_tokens and max_completion_tokens differ; send one.", "max_completion_tokens")
    if body.tool_choice == "required" or isinstance(body.tool_choice, dict):
        sentence = "tool_choice cannot make the model call a tool: that needs constrained decoding, which is not served"
        raise InvalidRequest(f'{sentence}; use "auto" or "none".', "tool_choice")
    if body.tool_choice not in (None, "auto", "none"):
        raise InvalidRequest('tool_choice must be "auto" or "none".', "tool_choice")


def _as_invalid_request(detail: ErrorDetails) -> InvalidRequest:
    """pydantic's own sentences name rules and bounds of ours, never what the client sent."""
    path, is_union = _field_path(detail["loc"])
    if detail["type"] == "json_invalid":
        return InvalidRequest("The body is not valid JSON.")
    if not path:
        return InvalidRequest("The body must be a JSON object.")
    if detail["type"] == "missing":
        return InvalidRequest(f"{path} is required.", path)
    if is_union:
        return InvalidRequest(f"{path} has the wrong type, or is too long, or holds a wrong entry.", path)
    return InvalidRequest(f"{path}: {detail['msg']}.", path)


def _field_path(location: tuple[int | str, ...]) -> tuple[str, bool]:
    """`messages[2].content` and whether the rest of the location is about the branches of a union."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part in _FIELD_NAMES:
            path += f".{part}" if path else part
        else:
            return path, True
    return path, False


_FIELD_NAMES = frozenset(
    name
    for kind in (
        ChatBody,
        CompletionBody,
        ChatMessage,
        ToolCall,
        FunctionCall,
        Tool,
        FunctionSpec,
        TextPart,
        RefusalPart,
        StreamOptions,
    )
    for name in kind.model_fields
)
